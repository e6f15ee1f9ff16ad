"""A site of machines that are none: playbooks run with the roles' own judgements, and a log in place of what they do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from .plays import PROJECT, run_playbook

# What the role itself does about who is who, when it runs a node.
RUN = {each["name"]: each for each in yaml.safe_load((PROJECT / "roles/k3s/tasks/run.yml").read_text())}
REFUSE = RUN["Refuse to guess where this node belongs"]
MAKE_ROOM = RUN["Make room for a machine that replaces one of this name"]
COUNT = RUN["Count the node among the live ones"]


def note(word: str, more: str = "") -> dict[str, Any]:
    """A task that writes a line to the log."""
    return {"ansible.builtin.shell": f"echo {word} {{{{ inventory_hostname }}}}{more} >> {{{{ log }}}}"}


TASKS: dict[str, list[dict[str, Any]]] = {
    "survey": [
        {"ansible.builtin.ping": None},
        {"ansible.builtin.set_fact": {"_k3s_state": "{{ state }}"}, "when": "state is defined"},
    ],
    "same_version": [],
    "snapshot": [note("snapshot", " {{ _k3s_snapshot_name }}")],
    "start": [note("start", " {{ _k3s_since | default(0) }}")],
    "tokens_join": [note("tokens", " {{ _k3s_join_host }}")],
    "files": [],
    "run": [REFUSE, MAKE_ROOM, note("run", " {{ _k3s_join_host or '-' }}"), COUNT],
    "stop": [note("stop")],
    "uninstall": [note("uninstall")],
    "tokens_new": [],
    "wake": [note("wake"), {"ansible.builtin.set_fact": {"_k3s_state": "{{ woken }}"}}],
}
# What runs on nodes says so in the log, and does nothing.
DOUBLE = """#!/usr/bin/python
import json
from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule({name: {"type": "raw"} for name in %(options)r}, supports_check_mode=True)
    with open(%(log)r, "a") as log:
        log.write(%(name)r + " " + json.dumps(module.params[%(option)r]) + "\\n")
    begun = {kind: {"begun": 5.0} for kind in module.params.get("begun") or []}
    module.exit_json(changed=False, record=begun, finished=7.0, folders=%(folders)s)


main()
"""


def listed(*names: str, votes: bool = True) -> list[dict[str, Any]]:
    """Servers as k3s_state tells of them."""
    return [{"name": name, "server": True, "ready": True, "votes": votes, "reason": ""} for name in names]


# Each with the option that its line in the log names.
DOUBLES = (
    *(("k3s_voters", "servers"), ("k3s_node", "name"), ("workloads_ready", "nodes"), ("node_drain", "state")),
    *(("k3s_aside", "keep_data"), ("k3s_reset", "snapshot"), ("node_files", "role")),
    *(("k3s_rotation", "ended"), ("k3s_token", "of"), ("k3s_encryption", "state"), ("k3s_certificates", "service")),
    ("volume_folders", "kubeconfig"),
)
OPTIONS = [
    "servers",
    "timeout",
    "name",
    "patience",
    "nodes",
    "kubeconfig",
    "kubectl",
    "namespaces",
    "expect",
    "node",
    "state",
]
OPTIONS += ["unmanaged_pods", "empty_dirs", "role", "folder", "keep_data", "snapshot", "directories", "files"]
OPTIONS += ["begun", "ended", "of", "since", "service"]


class Stage:
    """A folder with a site of machines that are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.output = ""
        tasks = folder / "roles/k3s/tasks"
        tasks.mkdir(parents=True)
        for name, content in TASKS.items():
            (tasks / f"{name}.yml").write_text(yaml.safe_dump(content))
        for name in ("vars", "defaults"):
            (folder / "roles/k3s" / name).symlink_to(PROJECT / "roles/k3s" / name)
        self.use(
            *("settle", "backup", "restore", "restore_aside", "restore_check", "restore_volumes"),
            *("no_rotation", "restart", "certificates"),
        )
        for path in (
            "preflight/tasks/main",
            "node/tasks/main",
            "node/tasks/uninstall",
            "kubeconfig/tasks/main",
            "gpu_operator/tasks/uninstall_node",
            "api_address/tasks/main",
            "api_address/tasks/uninstall",
        ):
            file = folder / f"roles/{path}.yml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump([note("kubeconfig")] if path.startswith("kubeconfig") else []))
        (folder / "modules").mkdir()
        for name, option in DOUBLES:
            text = DOUBLE % {
                **{"log": str(self.log), "name": name, "option": option, "options": OPTIONS},
                # Of volumes on the node a.
                "folders": {"a": [f"{folder}/volumes/{each}" for each in ("missing", "empty", "full")]},
            }
            (folder / "modules" / f"{name}.py").write_text(text)

    def component(self, name: str, verb: str, more: str = "") -> None:
        """Have a role that says in the log that it was asked for a verb, and `more`."""
        path = self.folder / f"roles/{name}/tasks/{verb}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        # It runs on the controller, which is none of the site's hosts.
        path.write_text(yaml.safe_dump([note(f"{verb} {name}", more)]).replace("{{ log }}", str(self.log)))

    def use(self, *names: str) -> None:
        """Have task files of the role itself there, in place of doubles."""
        for name in names:
            path = self.folder / f"roles/k3s/tasks/{name}.yml"
            path.unlink(missing_ok=True)
            path.symlink_to(PROJECT / f"roles/k3s/tasks/{name}.yml")

    def run(
        self,
        states: dict[str, dict[str, Any] | None],
        absent: tuple[str, ...] = (),
        playbook: str = "cluster",
        variables: dict[str, Any] | None = None,
        check: bool = False,
        agent: dict[str, Any] | None = None,
    ) -> tuple[list[str], str]:
        """Run a playbook on servers in these states (None: dead) and an agent; the log, and what was said unless all went well."""
        local = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "log": str(self.log),
        }
        bare: dict[str, Any] = {
            "has_data": False,
            "has_password": False,
            "members": None,
            "active": False,
            "server_url": "",
        }
        bare |= {"version": "", "started": "", "restoring": False, "rotation": {}}
        hosts = {
            # Nobody listens there.
            name: {"ansible_host": "127.0.0.1", "ansible_port": 1}
            if state is None
            else {**local, "state": {**bare, **state}, "woken": {**bare, **state.get("woken", state)}}
            for name, state in states.items()
        }
        groups = {
            "server": {"hosts": hosts},
            "agent": {"hosts": {"agent-1": {**local, "state": {**bare, **(agent or {})}}}},
        }
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"k3s_cluster": {"children": groups}}, sort_keys=False))
        words = {
            **(variables or {}),
            "slipway_absent": list(absent),
            "slipway_site": "site",
            "slipway_bundle": {"versions": {"k3s": "v1.35.8+k3s1"}, "artifacts": []},
            "slipway_state_dir": str(self.folder),
        }
        self.log.write_text("")
        command = ["-i", "hosts.yml", "-M", str(self.folder / "modules"), str(PROJECT / f"playbooks/{playbook}.yml")]
        command += ["--check"] if check else []
        done = run_playbook(self.folder, *command, "-e", json.dumps(words))
        self.output = done.stdout
        said = "" if done.returncode == 0 else " ".join(done.stdout.split())
        return self.log.read_text().splitlines(), said

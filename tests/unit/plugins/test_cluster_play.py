"""playbooks/cluster.yml as Ansible runs it, with the role's own judgements and a log in place of what it does to machines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .plays import PROJECT, run_playbook

LIVES = {"_k3s_state": "{{ _k3s_state | combine({'members': _k3s_known_members}) }}"}


def note(word: str, more: str = "") -> dict[str, Any]:
    """A task that writes a line to the log."""
    return {"ansible.builtin.shell": f"echo {word} {{{{ inventory_hostname }}}}{more} >> {{{{ log }}}}"}


TASKS: dict[str, list[dict[str, Any]]] = {
    "survey": [{"ansible.builtin.ping": None}, {"ansible.builtin.set_fact": {"_k3s_state": "{{ state }}"}}],
    "same_version": [],
    "files": [],
    "run": [note("run", " {{ _k3s_join_host or '-' }}"), {"ansible.builtin.set_fact": LIVES}],
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
    module.exit_json(changed=False)


main()
"""


def listed(*names: str, votes: bool = True) -> list[dict[str, Any]]:
    """Servers as k3s_state tells of them."""
    return [{"name": name, "server": True, "ready": True, "votes": votes, "reason": ""} for name in names]


class Stage:
    """A folder with a site of machines that are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        tasks = folder / "roles/k3s/tasks"
        tasks.mkdir(parents=True)
        for name, content in TASKS.items():
            (tasks / f"{name}.yml").write_text(yaml.safe_dump(content))
        for name in ("vars", "defaults"):
            (folder / "roles/k3s" / name).symlink_to(PROJECT / "roles/k3s" / name)
        (tasks / "settle.yml").symlink_to(PROJECT / "roles/k3s/tasks/settle.yml")
        for role in ("node", "kubeconfig"):
            (folder / "roles" / role / "tasks").mkdir(parents=True)
            content = [note("kubeconfig")] if role == "kubeconfig" else []
            (folder / "roles" / role / "tasks/main.yml").write_text(yaml.safe_dump(content))
        (folder / "modules").mkdir()
        for name, option in (("k3s_voters", "servers"), ("k3s_node", "name"), ("workloads_ready", "nodes")):
            options = ["servers", "timeout", "name", "nodes", "kubeconfig", "kubectl", "namespaces", "expect"]
            text = DOUBLE % {"log": str(self.log), "name": name, "option": option, "options": options}
            (folder / "modules" / f"{name}.py").write_text(text)

    def run(self, states: dict[str, dict[str, Any] | None], absent: tuple[str, ...] = ()) -> tuple[list[str], str]:
        """Run the playbook on servers in these states (None: dead) and an agent; the log, and what was said unless all went well."""
        local = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "log": str(self.log),
        }
        bare = {"has_data": False, "has_password": False, "members": None, "active": False, "server_url": ""}
        hosts = {
            # Nobody listens there.
            name: {"ansible_host": "127.0.0.1", "ansible_port": 1}
            if state is None
            else {**local, "state": {**bare, **state}, "woken": state.get("woken", {**bare, **state})}
            for name, state in states.items()
        }
        groups = {"server": {"hosts": hosts}, "agent": {"hosts": {"agent-1": {**local, "state": bare}}}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump({"k3s_cluster": {"children": groups}}, sort_keys=False))
        variables = {
            "slipway_absent": list(absent),
            "slipway_bundle": {"versions": {"k3s": "v1.35.8+k3s1"}, "artifacts": []},
            "slipway_state_dir": str(self.folder),
        }
        self.log.write_text("")
        words = ["-i", "hosts.yml", "-M", str(self.folder / "modules"), str(PROJECT / "playbooks/cluster.yml")]
        done = run_playbook(self.folder, *words, "-e", json.dumps(variables))
        said = "" if done.returncode == 0 else " ".join(done.stdout.split())
        return self.log.read_text().splitlines(), said


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    return Stage(tmp_path)


NODES = ("c", "b", "a")


def test_servers_of_a_new_cluster_join_one_another(stage: Stage) -> None:
    """By name, whatever the inventory's order; each joins one that lives."""
    log, said = stage.run({name: {} for name in NODES})
    assert said == ""
    assert log == [
        "run a -",
        "run b a",
        "run c a",
        "run agent-1 a",
        "kubeconfig a",
        'workloads_ready ["c", "b", "a", "agent-1"]',
    ]


def test_the_first_server_is_lost_and_replaced(stage: Stage) -> None:
    """Declared absent it is not asked for anything, its node goes before another one joins, and those that run come last."""
    lives = {"has_data": True, "active": True, "members": listed("a", "b", "c")}
    log, said = stage.run({"a": None, "d": {}, "c": lives, "b": lives}, absent=("a",))
    assert said == ""
    assert log == [
        'k3s_node "a"',
        "run d b",
        "run b c",
        "run c b",
        "run agent-1 b",
        "kubeconfig b",
        'workloads_ready ["d", "c", "b", "agent-1"]',
    ]


def test_a_server_that_does_not_vote_is_awaited_first(stage: Stage) -> None:
    lives = {"has_data": True, "active": True, "members": listed("a", "b", votes=False)}
    log, _ = stage.run({"b": lives, "a": lives})
    assert log[:2] == ['k3s_voters ["a", "b"]', "run a b"]


def test_servers_that_are_all_stopped_are_started_together(stage: Stage) -> None:
    woken = {"has_data": True, "active": True, "members": listed("a", "b", "c"), "has_password": True, "server_url": ""}
    log, said = stage.run({name: {"has_data": True, "woken": woken} for name in NODES})
    assert said == ""
    assert sorted(log[:3]) == ["wake a", "wake b", "wake c"]
    assert log[3:6] == ["run a b", "run b a", "run c a"]


def test_a_lost_quorum_stops_the_run_before_any_change(stage: Stage) -> None:
    log, said = stage.run({"a": None, "b": None, "c": {"has_data": True}}, absent=("a", "b"))
    # What holds data was given a chance.
    assert log == ["wake c"]
    assert (
        "No server answers, although c holds the data of a cluster (1 of the site's 3 servers; declared absent: a, b)"
        in said
    )
    assert "k3s server --cluster-reset" in said


def test_an_undeclared_dead_server_stops_the_run_before_any_change(stage: Stage) -> None:
    lives = {"has_data": True, "active": True, "members": listed("a", "b", "c")}
    log, said = stage.run({"b": lives, "c": lives, "a": None})
    assert "a : ok=0 changed=0 unreachable=1" in said
    assert log == []

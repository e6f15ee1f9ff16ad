"""playbooks/upgrade.yml and the guard of cluster.yml, as Ansible runs them, with nodes that are folders of the test's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from .plays import PROJECT, run_playbook

GUARD = """
- hosts: all
  gather_facts: false
  connection: local
  vars:
    slipway_bundle: {versions: {k3s: v1.35.8+k3s1}, artifacts: []}
    slipway_site: example
    _k3s_state: {has_data: %(data)s, has_password: false, version: "%(version)s", started: "%(started)s"}
  tasks:
    - ansible.builtin.import_role: {name: k3s, tasks_from: same_version}
"""


@pytest.mark.parametrize(
    ("data", "version", "started", "stops"),
    [
        # A new node, the same version, one that is only placed yet, and what an interrupted upgrade leaves.
        (False, "", "", False),
        (True, "v1.35.8+k3s1", "v1.35.8+k3s1", False),
        (True, "v1.35.8+k3s1", "", False),
        (False, "v1.35.4+k3s1", "", False),
        (True, "v1.35.4+k3s1", "", True),
        (True, "v1.35.8+k3s1", "v1.35.4+k3s1", True),
    ],
)
def test_site_leaves_another_version_to_upgrade(
    tmp_path: Path, data: bool, version: str, started: str, stops: bool
) -> None:
    (tmp_path / "play.yml").write_text(GUARD % {"data": str(data).lower(), "version": version, "started": started})
    (tmp_path / "hosts.yml").write_text("server: {hosts: {a: }}\nagent: {hosts: {}}\n")
    done = run_playbook(tmp_path, "-i", "hosts.yml", "play.yml")
    text = " ".join(done.stdout.split())
    assert (done.returncode != 0) is stops, done.stdout + done.stderr
    assert ("ansible-playbook -i inventories/example playbooks/upgrade.yml, then run this again" in text) is stops
    assert ("a runs k3s v1.35.4+k3s1, the bundle brings v1.35.8+k3s1. Nothing was changed." in text) is stops


# The role's own tasks, with doubles for what needs a node or a cluster: what they do is in a log, in the order of the calls.
NODE = """
- hosts: %s
  gather_facts: false
  connection: local
  any_errors_fatal: true
  serial: 1
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    slipway_bundle: {versions: {k3s: v1.35.8+k3s1}, artifacts: []}
    slipway_kubeconfig: /none
    slipway_kubectl: kubectl
    slipway_base_workloads: []
    slipway_ready_timeout: 5
    _k3s_state: {version: v1.35.4+k3s1, members: [], active: true}
  tasks:
    - ansible.builtin.include_role: {name: k3s, tasks_from: upgrade}
"""
DOUBLE = """#!/usr/bin/python
from pathlib import Path
from ansible.module_utils.basic import AnsibleModule

FAILS = %(fails)r
NAME = %(name)r


def main():
    known = ["kubeconfig", "kubectl", "node", "state", "unmanaged_pods", "empty_dirs", "timeout", "role", "version", "nodes",
             "namespaces", "expect", "inputs", "pending", "since", "servers"]
    module = AnsibleModule({name: {"type": "raw"} for name in known})
    state = module.params["state"] or ("back" if NAME == "k3s_service" and Path(%(log)r).read_text().count("restored") else "")
    word = (NAME + " " + state).strip()
    with open(%(log)r, "a") as log:
        log.write(word + "\\n")
    if word in FAILS:
        module.fail_json(msg=word + " went wrong")
    module.exit_json(changed=True, kept="", restored="v1.35.4+k3s1" if state == "restored" else "", evicted=[])


main()
"""
DOUBLES = ("node_drain", "k3s_binary", "k3s_service", "workloads_ready", "k3s_voters")
UNDONE = ["k3s_binary restored", "k3s_service back", "node_drain released"]
BEGUN = ["node_drain drained", "k3s_binary switched", "k3s_service"]


def upgrade_two(folder: Path, group: str, fails: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Upgrade the nodes a and b of a group, with one call that fails (or none, empty); the run, and the calls in their order."""
    log = folder / "log"
    log.touch()
    (folder / "modules").mkdir()
    for name in DOUBLES:
        text = DOUBLE % {"fails": [fails], "name": name, "log": str(log)}
        (folder / "modules" / f"{name}.py").write_text(text)
    (folder / "play.yml").write_text(NODE % group)
    groups = {"server": {"hosts": {}}, "agent": {"hosts": {}}, group: {"hosts": {"a": None, "b": None}}}
    controller = {"ansible_connection": "local", "_upgrade_plan": {"namespaces": []}}
    inventory = {"all": {"hosts": {"localhost": controller}}, **groups}
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
    done = run_playbook(folder, "-i", "hosts.yml", "-M", str(folder / "modules"), "play.yml")
    return done, log.read_text().splitlines()


@pytest.mark.parametrize(
    ("fails", "calls"),
    [
        ("", [*BEGUN, "workloads_ready", "k3s_binary settled", "node_drain released", "workloads_ready"]),
        ("node_drain drained", [*BEGUN[:1], *UNDONE]),
        ("k3s_service", [*BEGUN, *UNDONE]),
        ("workloads_ready", [*BEGUN, "workloads_ready", *UNDONE]),
    ],
)
def test_a_failure_leaves_the_node_as_it_was_and_stops_the_run(tmp_path: Path, fails: str, calls: list[str]) -> None:
    """Steps in their order; after one that fails the old program is back, the node uncordoned, and the next node untouched."""
    done, found = upgrade_two(tmp_path, "agent", fails)
    if fails:
        assert done.returncode != 0
        assert found == calls, done.stdout
        assert f"{fails} went wrong" in done.stdout
        assert "a was not upgraded to k3s v1.35.8+k3s1" in done.stdout and "schedulable as before" in done.stdout
    else:
        assert done.returncode == 0, done.stdout
        assert found == calls * 2


def test_servers_vote_again_before_the_next_one_is_touched(tmp_path: Path) -> None:
    """One whose vote does not come back ends the run."""
    done, found = upgrade_two(tmp_path, "server", "k3s_voters")
    assert done.returncode != 0
    assert found == [*BEGUN, "k3s_voters", *UNDONE], done.stdout
    assert "k3s_voters went wrong" in done.stdout and "a was not upgraded" in done.stdout


def test_its_syntax_is_right(tmp_path: Path) -> None:
    done = run_playbook(
        tmp_path, "--syntax-check", "-i", str(PROJECT / "inventories/lab"), str(PROJECT / "playbooks/upgrade.yml")
    )
    assert done.returncode == 0, done.stderr

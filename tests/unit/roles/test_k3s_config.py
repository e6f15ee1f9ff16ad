"""The configuration that the k3s role renders for the example site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .plays import outcome

PROJECT = Path(__file__).parents[3]
PLAY = """
- hosts: k3s_cluster
  gather_facts: false
  connection: local
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    _k3s_state:
      members: "{{ [{'name': 'server-b', 'server': true}] if inventory_hostname == 'server-b' else none }}"
      has_data: "{{ inventory_hostname == 'server-b' }}"
      server_url: ""
    _k3s_server_url: "{{ _k3s_join_url if inventory_hostname != 'server-b' else '' }}"
  tasks:
    # For the role's variables only.
    - import_role: {name: k3s, tasks_from: survey}
      when: false
    - set_fact: {_k3s_state: "{{ _k3s_state }}"}
    - copy: {content: "{{ _k3s_config | to_json }}", dest: "DEST/{{ inventory_hostname }}.json", mode: "0600"}
      become: false
"""
SNAPSHOTS = """
- hosts: localhost
  gather_facts: false
  tasks:
    - import_role: {name: k3s, tasks_from: survey}
      when: false
    - copy: {content: "{{ _k3s_snapshot_config | to_json }}", dest: "DEST/out.json", mode: "0600"}
"""


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """config.yaml of each node; of the three servers, only server-b lives and holds data."""
    folder = tmp_path_factory.mktemp("configs")
    play = folder / "play.yml"
    play.write_text(PLAY.replace("DEST", str(folder)))
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(PROJECT / "inventories/example"), str(play)],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_BECOME": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_servers(configs: dict[str, Any]) -> None:
    """Servers run embedded etcd, encrypt Secrets, answer to their address, and hold no secret in the file."""
    server = configs["server-b"]
    assert server["cluster-init"] is True
    assert server["secrets-encryption"] is True
    assert server["write-kubeconfig-mode"] == "0600"
    # Of its own only: a server more in the inventory changes no other's file.
    assert server["tls-san"] == ["192.0.2.12"]
    assert (server["etcd-snapshot-schedule-cron"], server["etcd-snapshot-retention"]) == ("0 */6 * * *", 10)
    assert "etcd-snapshot-dir" not in server and "etcd-s3" not in server
    plugins = "enable-admission-plugins=NodeRestriction,ExtendedResourceToleration,EventRateLimit"
    assert server["kube-apiserver-arg"][0] == plugins
    assert "server" not in server
    assert not {"token", "agent-token"} & set(server)


def test_snapshots_to_s3_name_a_secret_and_hold_none(tmp_path: Path) -> None:
    """What is left out is left to k3s."""
    (tmp_path / "play.yml").write_text(SNAPSHOTS.replace("DEST", str(tmp_path)))
    assert outcome(tmp_path, {"k3s_snapshots": {}}) == {}
    assert outcome(tmp_path, {"k3s_snapshots": {"folder": "/srv/snapshots", "s3_secret": "s3"}}) == {
        "etcd-snapshot-dir": "/srv/snapshots",
        "etcd-s3": True,
        "etcd-s3-config-secret": "s3",
    }


def test_hardening_is_on_unless_somebody_says_otherwise(configs: dict[str, Any]) -> None:
    """What API server, controllers and kubelets are started with; the site's own arguments of the kubelet are added."""
    server, agent = configs["server-b"], configs["gpu-a"]
    assert server["kube-apiserver-arg"][1:] == [
        "admission-control-config-file=/etc/rancher/k3s/admission.yaml",
        "audit-policy-file=/etc/rancher/k3s/audit-policy.yaml",
        "audit-log-path=/var/lib/rancher/k3s/server/logs/audit.log",
        "audit-log-maxage=30",
        "audit-log-maxbackup=10",
        "audit-log-maxsize=100",
        "service-account-extend-token-expiration=false",
    ]
    assert server["kube-controller-manager-arg"] == ["terminated-pod-gc-threshold=1000"]
    for config in (server, agent):
        assert config["protect-kernel-defaults"] is True
        idle, ciphers, own = config["kubelet-arg"]
        assert (idle, own) == ("streaming-connection-idle-timeout=5m", "max-pods=200")
        assert ciphers.startswith("tls-cipher-suites=TLS_ECDHE_") and ciphers.count("TLS_ECDHE_") == 6


HARDENING = """
- hosts: server
  gather_facts: false
  connection: local
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    _k3s_state: {members: [], has_data: true, server_url: ""}
    _k3s_server_url: ""
    k3s_hardening: HARDENING
  tasks:
    - import_role: {name: k3s, tasks_from: survey}
      when: false
    - set_fact: {_k3s_state: "{{ _k3s_state }}"}
    - copy:
        content: "{{ {'config': _k3s_config, 'admission': _k3s_admission, 'audit': _k3s_audit_policy} | to_json }}"
        dest: FOLDER/found.json
        mode: "0600"
"""


def hardened(folder: Path, hardening: dict[str, Any]) -> dict[str, Any]:
    """What a server is configured with under these switches."""
    (folder / "hosts.yml").write_text("server: {hosts: {a: {ansible_host: 192.0.2.1}}}\nagent: {hosts: {}}\n")
    (folder / "play.yml").write_text(
        HARDENING.replace("HARDENING", json.dumps(hardening)).replace("FOLDER", str(folder))
    )
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(folder / "hosts.yml"), str(folder / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def test_policies(tmp_path: Path) -> None:
    """No object is in the audit log, namespaces without a label enforce baseline, and k3s' own are let alone."""
    found = hardened(tmp_path, {})
    assert {rule["level"] for rule in found["audit"]["rules"]} == {"None", "Metadata"}
    pods, events = found["admission"]["plugins"]
    assert (pods["configuration"]["defaults"]["enforce"], events["name"]) == ("baseline", "EventRateLimit")
    assert pods["configuration"]["exemptions"]["namespaces"] == ["kube-system"]


def test_each_control_has_a_switch(tmp_path: Path) -> None:
    """With all of them off, what is left is what k3s needs."""
    off = dict.fromkeys(
        ("audit_log", "event_rate_limit", "token_expiry", "protect_kernel_defaults", "tls_ciphers"), False
    )
    found = hardened(
        tmp_path, {**off, "pod_security": "privileged", "streaming_timeout": "0", "terminated_pods": 12500}
    )
    config = found["config"]
    assert config["kube-apiserver-arg"] == [
        "enable-admission-plugins=NodeRestriction,ExtendedResourceToleration",
        "admission-control-config-file=/etc/rancher/k3s/admission.yaml",
    ]
    assert (config["kubelet-arg"], config["protect-kernel-defaults"]) == (
        ["streaming-connection-idle-timeout=0"],
        False,
    )
    assert config["kube-controller-manager-arg"] == ["terminated-pod-gc-threshold=12500"]
    (plugin,) = found["admission"]["plugins"]
    assert plugin["configuration"]["defaults"]["enforce"] == "privileged"


def test_newcomers_join_the_one_that_lives(configs: dict[str, Any]) -> None:
    """The join target is a live member, not the first host of the inventory."""
    assert {configs[name]["server"] for name in ("server-a", "server-c", "gpu-a", "gpu-b")} == {
        "https://192.0.2.12:6443"
    }


def test_what_k3s_deploys_is_awaited_unless_it_is_disabled(tmp_path: Path) -> None:
    """The workloads that a run waits for, seen from the controller, which has no variable of a group."""
    (tmp_path / "hosts.yml").write_text(
        "k3s_cluster: {children: {server: {hosts: {a: {k3s_disable: [traefik]}, b: {k3s_disable: [coredns]}}}}}\n"
    )
    play = f"""
- hosts: localhost
  gather_facts: false
  vars_files: [{PROJECT}/playbooks/group_vars/all/site.yml]
  tasks:
    - copy: {{content: "{{{{ slipway_base_workloads | to_json }}}}", dest: {tmp_path}/workloads.json, mode: "0600"}}
"""
    (tmp_path / "play.yml").write_text(play)
    for hosts, missing in ((f"{PROJECT}/inventories/example", set()), (f"{tmp_path}/hosts.yml", {"traefik"})):
        answer = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", hosts, str(tmp_path / "play.yml")],
            env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        names = {"coredns", "local-path-provisioner", "metrics-server", "traefik"} - missing
        found = json.loads((tmp_path / "workloads.json").read_text())
        assert set(found) == {f"kube-system/Deployment/{name}" for name in names}


def test_agents_get_no_key_that_only_servers_know(configs: dict[str, Any]) -> None:
    """`k3s agent` dies of an unknown key."""
    assert set(configs["gpu-a"]) == {
        *("node-name", "node-ip", "token-file", "server", "kubelet-arg", "protect-kernel-defaults"),
    }


MEMBERS = [{"name": name, "server": True} for name in ("a", "b", "c")]
STATES = {
    # Runs, and began the cluster.
    "a": {"members": MEMBERS, "has_data": True},
    # Runs, and was given a server that is gone since.
    "b": {"members": MEMBERS, "has_data": True, "server_url": "https://10.0.0.9:6443"},
    # Installed anew around the data of a member.
    "c": {"members": None, "has_data": True},
    # Holds the data of a member that was removed meanwhile.
    "d": {"members": None, "has_data": True},
    "e": {"members": None, "has_data": False},
    "gone": None,
    "x": {"members": None, "has_data": False, "server_url": "https://10.0.0.9:6443"},
    "y": {"members": None, "has_data": False, "server_url": "https://10.0.0.2:6443"},
}
JOINS = """
- hosts: all
  gather_facts: false
  connection: local
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    slipway_absent_names: [gone]
  tasks:
    - import_role: {name: k3s, tasks_from: survey}
      when: false
    - meta: end_host
      when: inventory_hostname == 'gone'
    - set_fact: {_k3s_state: "{{ {'server_url': ''} | combine(state) }}"}
    - copy:
        content: "{{ [_k3s_is_member, _k3s_kept_url or _k3s_join_url] | to_json }}"
        dest: "DEST/{{ inventory_hostname }}.json"
        mode: "0600"
"""


@pytest.mark.parametrize("order", [sorted(STATES), sorted(STATES, reverse=True)])
def test_who_joins_whom(tmp_path: Path, order: list[str]) -> None:
    """Whatever the inventory's order: a server names another one that lives, and who has a good one keeps it."""
    numbers = {name: number for number, name in enumerate(("a", "b", "c", "d", "e", "x", "y"), 1)} | {"gone": 9}
    hosts = {name: {"ansible_host": f"10.0.0.{numbers[name]}", "state": STATES[name]} for name in order}
    groups = {
        group: {"hosts": {name: host for name, host in hosts.items() if (name in ("x", "y")) is (group == "agent")}}
        for group in ("server", "agent")
    }
    (tmp_path / "hosts.yml").write_text(json.dumps(groups))
    (tmp_path / "play.yml").write_text(JOINS.replace("DEST", str(tmp_path)))
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "hosts.yml"), str(tmp_path / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    first, second = "https://10.0.0.1:6443", "https://10.0.0.2:6443"
    assert found == {
        "a": [True, second],
        "b": [True, "https://10.0.0.9:6443"],
        "c": [True, first],
        "d": [False, first],
        "e": [False, first],
        "x": [False, first],
        "y": [False, second],
    }

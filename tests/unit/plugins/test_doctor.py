"""The doctor names every fault of a node with its place and its remedy, and calls nothing a fault that is none."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from ansible.module_utils.slipway.doctor import (
    Lifetime,
    Limits,
    Site,
    judge_members,
    judge_nodes,
    lifetime,
    summary_line,
    thresholds,
)
from ansible.module_utils.slipway.preflight import Node, Problem

from .authorities import NOW, make

VERSION = "v1.35.8+k3s1"
SITE = Site("ansible-playbook -i inventories/x playbooks/", "kubectl", VERSION, domain="ml.example")
GIB, HOUR = 2**30, 3600
TIME = NOW.timestamp()
LEAF = make("leaf", days=(-1, 365)).pem
AUTHORITY = make("authority", authority=True, days=(-1, 3650)).pem
DOOR = make("door", names=("ml.example", "*.ml.example"), days=(-1, 90)).pem
DATA = "/var/lib/rancher/k3s/"
GOOD: dict[str, Any] = {
    "time": TIME,
    "root": True,
    "time_sync": "synchronized",
    "service": {
        "unit": "k3s.service",
        "there": True,
        "active": "active",
        "enabled": "enabled",
        "restarts": 0,
        "reload": False,
        "started": TIME - 5 * 24 * HOUR,
        "last": "",
    },
    "k3s": {"state": "ours", "version": VERSION, "changed": []},
    "file_systems": [
        {
            "paths": ["/var/lib/kubelet", "/var/lib/rancher/k3s", "/var/lib/rancher/k3s/agent/containerd"],
            "size": 100 * GIB,
            "free": 50 * GIB,
            "inodes": 1000,
            "inodes_free": 900,
        }
    ],
    "memory_mb": 8000,
    "available_mb": 4096,
    "kubelet": ["evictionHard: {imagefs.available: 5%, nodefs.available: 5%}\n"],
    "certificates": {f"{DATA}server/tls/client-admin.crt": LEAF, f"{DATA}server/tls/server-ca.crt": AUTHORITY},
    "served": {"kubelet": LEAF, "API": LEAF, "front door": DOOR},
    "modes": [{"path": "/etc/rancher/k3s/token", "mode": "0600", "uid": 0, "open": False}],
    "api": {"status": 200, "failed": [], "error": ""},
    "etcd": {
        "member": "server-1-0123abcd",
        "begun": TIME - 100 * HOUR,
        "size": 20 * 2**20,
        "metrics": {
            "etcd_server_has_leader": 1.0,
            "etcd_server_is_leader": 1.0,
            "etcd_server_quota_backend_bytes": 2.0 * GIB,
            "etcd_mvcc_db_total_size_in_bytes": 20.0 * 2**20,
            "etcd_mvcc_db_total_size_in_use_in_bytes": 10.0 * 2**20,
        },
        "alarm": "",
        "members": [{"name": "server-1-0123abcd", "urls": [], "learner": False}],
        "snapshots": {
            "folder": f"{DATA}server/db/snapshots",
            "count": 5,
            "newest": "etcd-snapshot-1",
            "time": TIME - 6 * HOUR,
        },
    },
}


def node(name: str = "server-1", role: str = "server", *, offset: float | None = 0.0, **changes: Any) -> Node:
    """A good node; `changes` are laid over its probe, one level deep."""
    probe = copy.deepcopy(GOOD)
    if role == "agent":
        probe |= {"api": None, "etcd": None}
        probe["service"]["unit"] = "k3s-agent.service"
        probe["certificates"] = {f"{DATA}agent/client-kubelet.crt": LEAF, f"{DATA}agent/server-ca.crt": AUTHORITY}
        del probe["served"]["API"]
    for key, value in changes.items():
        probe[key] = probe[key] | value if isinstance(value, dict) and isinstance(probe[key], dict) else value
    return Node(name, role, address="10.0.0.1", probe=probe, offset=offset)


def faults(*nodes: Node, site: Site = SITE, limits: Limits = Limits()) -> list[Problem]:  # noqa: B008
    return [each for each in judge_nodes(nodes, site, limits, NOW) if each.severity != "ok"]


def test_good_nodes_have_no_fault_and_tell_what_was_looked_at() -> None:
    found = judge_nodes([node(), node("agent-1", "agent")], SITE, Limits(), NOW)
    assert {each.severity for each in found} == {"ok"}
    checks = {(each.node, each.check) for each in found}
    common = {"k3s", "certificates", "disk", "memory", "secret files", "clock"}
    assert checks == {
        *(("agent-1", check) for check in common),
        *(("server-1", check) for check in common | {"API", "etcd", "snapshots"}),
        *(("cluster", check) for check in ("etcd members", "front door")),
    }


def file_system(**changes: Any) -> dict[str, Any]:
    return {"file_systems": [GOOD["file_systems"][0] | changes]}


def etcd(**metrics: float) -> dict[str, Any]:
    names = {"size": "etcd_mvcc_db_total_size_in_bytes", "used": "etcd_mvcc_db_total_size_in_use_in_bytes"}
    given = {names.get(name, f"etcd_server_{name}"): value for name, value in metrics.items()}
    return {"etcd": {"metrics": GOOD["etcd"]["metrics"] | given}}


def snapshots(**changes: Any) -> dict[str, Any]:
    return {**GOOD["etcd"]["snapshots"], "time": None, "newest": "", "count": 0, **changes}


STOPPED = {"active": "failed", "started": None, "last": "no space left on device"}


@pytest.mark.parametrize(
    ("changes", "severity", "check", "found", "remedy"),
    [
        ({"root": False}, "error", "sudo", "did not look as root", "ansible_become"),
        ({"service": {"there": False}}, "error", "k3s", "there is no k3s.service", "playbooks/site.yml"),
        (
            {"service": STOPPED},
            "error",
            "k3s",
            "k3s.service is failed; it said last: no space left",
            "systemctl start k3s",
        ),
        (
            {"served": {"kubelet": ""}},
            "error",
            "k3s",
            "nobody answers on the kubelet's port",
            "journalctl -u k3s.service",
        ),
        ({"service": {"enabled": "disabled"}}, "warning", "k3s", "k3s.service is disabled", "systemctl enable k3s"),
        ({"service": {"restarts": 5, "started": TIME - HOUR}}, "warning", "k3s", "anew 5 times", "journalctl"),
        (
            {"service": {"reload": True}},
            "warning",
            "k3s",
            "its unit changed after k3s was started",
            "restart k3s.service",
        ),
        (
            {"k3s": {"changed": ["/etc/rancher/k3s/config.yaml"]}},
            "warning",
            "k3s",
            "config.yaml changed after",
            "restart k3s",
        ),
        (
            {"k3s": {"version": "v1.35.4+k3s1"}},
            "warning",
            "version",
            "v1.35.4+k3s1, the bundle has",
            "playbooks/upgrade.yml",
        ),
        (
            {"k3s": {"version": "v1.36.0+k3s1"}},
            "warning",
            "version",
            "v1.36.0+k3s1, the bundle",
            "v1.36.0+k3s1 or newer",
        ),
        ({"k3s": {"version": ""}}, "warning", "version", "of no version", "playbooks/upgrade.yml"),
        (file_system(free=4 * GIB), "error", "disk", "4.0 of 100.0 GiB (4 %) free at /var/lib/kubelet", "du -xhd3"),
        (file_system(free=14 * GIB), "warning", "disk", "(14 %) free", "du -xhd3 /var/lib/kubelet"),
        (file_system(inodes_free=40), "error", "disk", "4 % of inodes free", "du -x --inodes"),
        (file_system(inodes_free=80), "warning", "disk", "8 % of inodes free", "du -x --inodes"),
        ({"available_mb": 90}, "error", "memory", "90 of 8000 MiB available", "ps -eo rss"),
        ({"available_mb": 200}, "warning", "memory", "200 of 8000 MiB", "ps -eo rss"),
        ({"time_sync": "unsynchronized"}, "warning", "time", "not synchronized", "timesyncd"),
        ({"api": {"status": 500, "failed": ["etcd"]}}, "error", "API", "not ready: etcd", "readyz?verbose"),
        ({"api": {"status": 401}}, "error", "API", "status 401", "journalctl"),
        ({"api": {"status": 0, "error": "refused"}}, "error", "API", "no answer: refused", "journalctl"),
        (etcd(has_leader=0.0), "error", "etcd", "there is no leader", "start the other servers"),
        (etcd(is_learner=1.0), "warning", "etcd", "still a learner", "wait a minute"),
        ({"etcd": {"alarm": "ALARM NOSPACE"}}, "error", "etcd", "ALARM NOSPACE", "NOSPACE: on the node"),
        ({"etcd": {"metrics": {}}}, "warning", "etcd", "does not tell how it is", "127.0.0.1:2381/metrics"),
        (etcd(size=1.6 * GIB), "warning", "etcd", "1638 of 2048 MiB, 10 in use", "restart k3s, which defragments"),
        (etcd(size=1.6 * GIB, used=1.55 * GIB), "warning", "etcd", "1587 in use", "quota-backend-bytes=4294967296"),
        (etcd(size=1.99 * GIB), "error", "etcd", "2038 of 2048 MiB", "defragments"),
        (
            {"etcd": {"metrics": {}, "size": 2 * GIB}, "service": STOPPED},
            "error",
            "etcd",
            "2048 of 2048",
            "quota-backend",
        ),
        ({"etcd": None}, "error", "etcd", "no data of a member", "playbooks/site.yml"),
        (
            {"etcd": {"snapshots": snapshots()}},
            "warning",
            "snapshots",
            f"none in {DATA}server/db/snapshots",
            "etcd-snapshot save",
        ),
        (
            {"etcd": {"snapshots": snapshots(time=TIME - 30 * HOUR, newest="old")}},
            "warning",
            "snapshots",
            "the newest, old, is 30 hours old",
            "k3s etcd-snapshot save",
        ),
    ],
)
def test_a_fault_is_named_with_its_remedy(
    changes: dict[str, Any], severity: str, check: str, found: str, remedy: str
) -> None:
    problems = [each for each in faults(node(**changes)) if each.check == check]
    assert [(each.severity, each.node) for each in problems] == [(severity, "server-1")], problems
    assert found in problems[0].found
    assert remedy in problems[0].remedy
    assert problems[0].wanted


def test_one_fault_is_one_line() -> None:
    """A server that is stopped: neither its API nor its ports nor its member are missed once more."""
    stopped = node(
        service=STOPPED, served={"kubelet": "", "API": "", "front door": ""}, api={"status": 0, "error": "refused"}
    )
    (fault,) = faults(
        replace(stopped, probe={**(stopped.probe or {}), "etcd": GOOD["etcd"] | {"metrics": {}, "members": None}})
    )
    assert (fault.severity, fault.check) == ("error", "k3s")


def test_restarts_that_are_long_over_are_no_fault() -> None:
    assert faults(node(service={"restarts": 50})) == []
    (fault,) = faults(node(service={"restarts": 50, "active": "activating", "started": None}))[1:]
    assert "anew 50 times" in fault.found


def test_a_new_member_need_not_have_a_snapshot_yet() -> None:
    assert faults(node(etcd={"begun": TIME - HOUR, "snapshots": snapshots()})) == []


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        (31, "", ""),
        (29, "warning", "ends in 29 days"),
        (6, "error", "ends in 6 days"),
        (-2, "error", "expired 2 days ago"),
    ],
)
def test_certificates_end(days: int, severity: str, words: str) -> None:
    pem = make("leaf", days=(-400, days)).pem
    found = [
        each
        for each in faults(node(certificates={f"{DATA}agent/client-kubelet.crt": pem}))
        if each.check == "certificates"
    ]
    assert [each.severity for each in found] == ([severity] if severity else [])
    for each in found:
        assert f"agent/client-kubelet.crt: client-kubelet.crt {words}" in each.found
        assert "systemctl restart k3s.service" in each.remedy and "120 days" in each.remedy


def test_a_certificate_that_is_served_is_judged_besides_the_file() -> None:
    """Renewed on disk, but k3s was not started since."""
    (fault,) = faults(node(served={"API": make("old", days=(-400, 3)).pem}))
    assert "that served by the API" in fault.found and "systemctl restart" in fault.remedy


def test_certificates_of_the_future_and_many_at_once() -> None:
    early = make("leaf", days=(1, 300)).pem
    (fault,) = faults(node(certificates={f"{DATA}server/tls/{name}.crt": early for name in "abcde"}))
    assert (
        "server/tls/a.crt, server/tls/b.crt, server/tls/c.crt and 2 more: a.crt is valid only in 1.0 days"
        in fault.found
    )


@pytest.mark.parametrize(("days", "severity"), [(200, ""), (170, "warning"), (20, "error")])
def test_authorities_are_not_renewed(days: int, severity: str) -> None:
    pem = make("authority", authority=True, days=(-1, days)).pem
    for name in ("server/tls/server-ca.crt", "server/tls/client-ca.nochain.crt", "server/tls/etcd/peer-ca.crt"):
        found = faults(node(certificates={f"{DATA}{name}": pem}))
        assert [(each.severity, each.check) for each in found] == ([(severity, "authority")] if severity else [])
        assert all("rotate-ca" in each.remedy for each in found)


def test_a_file_without_a_certificate_is_no_end() -> None:
    assert lifetime("nothing", NOW) is None
    assert str(Lifetime(3.4)) == "ends in 3 days"


def test_limits_of_the_kubelet() -> None:
    """k3s' own, those of files over them in order, those of arguments over all."""
    own = node(kubelet=[])
    assert thresholds(own, own.probe or {})["nodefs.available"] == "5%"
    texts = ["evictionHard: {nodefs.available: 7%}", "evictionHard: {nodefs.available: 20Gi}", "- none", ": ["]
    given = node(kubelet=texts, **file_system(free=19 * GIB))
    assert thresholds(given, given.probe or {})["nodefs.available"] == "20Gi"
    (fault,) = [each for each in faults(given) if each.check == "disk"]
    assert fault.severity == "error" and "more than 20 %" in fault.wanted
    argument = replace(given, kubelet_args=("v=2", "eviction-hard=nodefs.available<10%,memory.available<1Gi"))
    found = thresholds(argument, argument.probe or {})
    assert (found["nodefs.available"], found["memory.available"]) == ("10%", "1Gi")
    unreadable = node(kubelet=["evictionHard: {nodefs.available: much, imagefs.available: much}"])
    assert faults(unreadable) == []


def test_a_disk_of_the_datastore_alone() -> None:
    apart = [GOOD["file_systems"][0] | {"paths": ["/var/lib/rancher/k3s"], "free": 4 * GIB}]
    (fault,) = faults(node(file_systems=apart))
    assert fault.severity == "error"


@pytest.mark.parametrize(
    ("mode", "uid", "reachable", "expected"),
    [
        ("0600", 0, False, []),
        ("0400", 0, False, []),
        ("0644", 0, True, [("error", "everybody may read it", "chmod 0600 /etc/x")]),
        ("0640", 0, False, [("warning", "a group may read it", "chmod 0600 /etc/x")]),
        ("0604", 0, False, [("warning", "others, but for its folder", "chmod 0600 /etc/x")]),
        ("0755", 0, True, [("error", "everybody may read it", "chmod 0700 /etc/x")]),
        ("0600", 1000, False, [("error", "belongs to user 1000", "chown root: /etc/x")]),
    ],
)
def test_secret_files(mode: str, uid: int, reachable: bool, expected: list[tuple[str, str, str]]) -> None:
    found = faults(node(modes=[{"path": "/etc/x", "mode": mode, "uid": uid, "open": reachable}]))
    assert [each.severity for each in found] == [severity for severity, _, _ in expected]
    for each, (_, words, remedy) in zip(found, expected, strict=True):
        assert words in each.found and remedy in each.remedy


def test_clocks() -> None:
    found = judge_nodes([node(), node("agent-1", "agent", offset=30.0), node("agent-2", "agent")], SITE, Limits(), NOW)
    clocks = {each.node: each for each in found if each.check == "clock"}
    assert {name: each.severity for name, each in clocks.items()} == {
        "server-1": "ok",
        "agent-1": "error",
        "agent-2": "ok",
    }
    assert "+30.0 s" in clocks["agent-1"].found


def test_nodes_that_cannot_be_looked_at() -> None:
    """One is a line, and the others are judged; one that was left out is no fault."""
    away = Node("agent-1", "agent", "10.0.0.2", failure="timed out", unreachable=True)
    skipped = Node("agent-2", "agent", asked=False)
    (fault,) = faults(node(), away, skipped)
    assert (fault.severity, fault.node, fault.check) == ("error", "agent-1", "reachable")
    assert "ssh 10.0.0.2" in fault.remedy
    assert "not looked at" in summary_line(away, NOW) and "--limit" in summary_line(skipped, NOW)


def members(*names: str, learner: str = "") -> dict[str, Any]:
    return {"members": [{"name": name, "urls": [], "learner": name == learner} for name in names]}


@pytest.mark.parametrize(
    ("names", "learner", "expected"),
    [
        (("server-1-0123abcd", "server-2-0123abcd", "server-3-0123abcd"), "", []),
        (
            ("server-1-0123abcd", "server-3-0123abcd", "gone-0123abcd"),
            "",
            ["error gone is one", "error server-2 is none"],
        ),
        (("server-1-0123abcd", "server-2-0123abcd"), "", ["error server-3 is none", "warning 2: an even number"]),
        (
            ("server-1-0123abcd", "server-2-0123abcd", "server-3-0123abcd"),
            "server-3-0123abcd",
            ["warning server-3-0123abcd without"],
        ),
        (
            ("server-1-0123abcd", "server-2-0123abcd", "server-3-0123abcd", "server-3-4567abcd", "server-3-8901abcd"),
            "",
            ["error more than one of server-3"],
        ),
    ],
)
def test_members_are_the_servers(names: tuple[str, ...], learner: str, expected: list[str]) -> None:
    nodes = [node(etcd=members(*names, learner=learner)), node("Server-2"), node("server-3")]
    found = [each for each in judge_members(nodes, SITE) if each.severity != "ok"]
    assert len(found) == len(expected)
    for each, words in zip(found, expected, strict=True):
        assert f"{each.severity} {each.found}".startswith(words)


def test_a_server_that_is_down_is_a_member_still_or_nobody_knows() -> None:
    down = node("server-2", service=STOPPED, etcd={"members": None})
    found = judge_members([node(etcd=members("server-1-0123abcd")), down], SITE)
    assert [each.severity for each in found] == ["ok"]
    assert judge_members([node(etcd={"members": None}), node("agent-1", "agent")], SITE) == []


def test_the_front_door() -> None:
    nobody = node(served={"front door": ""})
    (fault,) = faults(nobody)
    assert "no node answers" in fault.found
    # Nodes that get no traffic are no fault as long as one does.
    assert faults(node(), node("agent-1", "agent", served={"front door": ""})) == []
    assert faults(nobody, site=replace(SITE, domain="")) == []
    (other,) = faults(node(served={"front door": make("TRAEFIK DEFAULT CERT", names=("x.traefik.default",)).pem}))
    assert (other.severity, other.check) == ("error", "front door") and "another name" in other.found
    (soon,) = faults(node(served={"front door": make("door", names=("ml.example",), days=(-80, 5)).pem}))
    assert "ends in 5 days" in soon.found and "describe certificate" in soon.remedy


def test_a_line_for_each_node() -> None:
    assert summary_line(node(), NOW) == (
        "server  k3s v1.35.8+k3s1 active for 5 d, etcd 20 MiB, certificates 365 d, disk 50 % free, memory 4.0 GiB free, clock +0.0 s"
    )
    young = node("agent-1", "agent", service={"started": TIME - HOUR}, offset=None)
    assert "active for 1.0 h, certificates" in summary_line(young, NOW + timedelta(seconds=0))

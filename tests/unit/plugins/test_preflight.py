"""Preflight reports every problem of every node at once, and nothing that is none."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway.gpus import Declared
from ansible.module_utils.slipway.preflight import (
    PORTS,
    Node,
    Problem,
    Release,
    Requirements,
    judge,
    judge_clocks,
    summary_line,
    table,
)
from ansible.module_utils.slipway.variables import Known, judge_values, judge_variables, load_known, locate

from modules import preflight_report

from .conftest import PLUGINS
from .fakes import run_module

WANT = Requirements(3500, 2, 40, 5, 2.0, False, {"debian": "12"})
RELEASE = Release("amd64", "v1.35.4+k3s1")
GOOD: dict[str, Any] = {
    "os": {"id": "debian", "version_id": "12", "pretty_name": "Debian 12"},
    "arch": "x86_64",
    "kernel": "6.1",
    "features": dict.fromkeys(("overlay", "br_netfilter", "vxlan", "nat"), "usable") | {"wireguard": "missing"},
    "cgroup": {"version": 2, "controllers": ["cpu", "cpuset", "io", "memory", "pids"]},
    "cpus": 4,
    "memory_mb": 8000,
    "swap_mb": 0,
    "disks": [{"path": "/var/lib/rancher", "free_gb": 100}],
    "ports": {},
    "hostname": "server-1",
    "machine_id": "a" * 32,
    "default_route": True,
    "nameservers": ["10.0.0.1"],
    "resolves_itself": True,
    "python": [3, 11, 2],
    "time_sync": "synchronized",
    "time": 0.0,
    "root": True,
    "keepalived": False,
    "k3s": {"state": "none", "found": []},
    "gpu": {
        "devices": [],
        "nouveau": False,
        "secure_boot": False,
        "host_driver": False,
        "libraries": [],
        "loaded": "",
        "module": False,
        "headers": True,
    },
}


def node(name: str = "server-1", role: str = "server", **changes: Any) -> Node:
    """A good node; `changes` are laid over its probe, one level deep."""
    probe = copy.deepcopy(GOOD) | {"hostname": name, "machine_id": name * 4}
    for key, value in changes.items():
        probe[key] = probe[key] | value if isinstance(value, dict) else value
    return Node(name, role, probe=probe, offset=0.0)


def lines(*nodes: Node, want: Requirements = WANT, release: Release = RELEASE) -> list[str]:
    return [f"{p.severity} {p.node} {p.check}: {p.found}" for p in judge(nodes, want, release)]


def test_good_nodes_have_no_problem() -> None:
    assert lines(node(), node("agent-1", "agent")) == []


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"os": {"version_id": "11", "pretty_name": "Debian 11"}}, "error server-1 os: Debian 11"),
        ({"os": {"id": "arch", "pretty_name": "Arch"}}, "warning server-1 os: Arch"),
        ({"arch": "aarch64"}, "error server-1 architecture: arm64"),
        ({"root": False}, "error server-1 sudo: the probe did not run as root"),
        ({"python": [3, 7, 9]}, "error server-1 python: 3.7.9"),
        ({"features": {"vxlan": "missing"}}, "error server-1 kernel: vxlan missing in 6.1"),
        ({"features": {"nat": "unknown"}}, "warning server-1 kernel: nat: the kernel does not tell"),
        ({"cgroup": {"controllers": ["cpu", "cpuset", "pids"]}}, "error server-1 cgroups: no controller memory"),
        ({"cgroup": {"version": 1}}, "error server-1 cgroups: version 1"),
        ({"cpus": 1}, "error server-1 cpus: 1"),
        ({"memory_mb": 3499}, "error server-1 memory: 3499 MB"),
        ({"disks": [{"path": "/d", "free_gb": 39.9}]}, "error server-1 disk: 39.9 GB free at /d"),
        ({"swap_mb": 512}, "warning server-1 swap: 512 MB"),
        ({"time_sync": "unsynchronized"}, "warning server-1 time: the clock is not synchronized"),
        ({"ports": {"6443/tcp": "nginx"}}, "error server-1 ports: 6443/tcp is taken by nginx"),
        ({"ports": {"8472/udp": ""}}, "error server-1 ports: 8472/udp is taken by the kernel or an unknown process"),
        ({"default_route": False}, "error server-1 network: no default route"),
        ({"nameservers": []}, "warning server-1 dns: /etc/resolv.conf names no server"),
        ({"nameservers": ["127.0.0.1"]}, "warning server-1 dns: only a name server on loopback"),
        ({"resolves_itself": False}, "warning server-1 dns: server-1 does not resolve on itself"),
        ({"machine_id": ""}, "error server-1 machine_id: empty"),
        ({"k3s": {"state": "foreign", "found": ["/x"]}}, "error server-1 k3s: not made by Slipway: /x"),
        ({"k3s": {"state": "data", "found": ["/x"]}}, "warning server-1 k3s: data of an earlier k3s: /x"),
        ({"k3s": {"state": "interrupted"}}, "warning server-1 k3s: an earlier run was interrupted here"),
        ({"k3s": {"state": "incomplete"}}, "warning server-1 k3s: parts are missing; there: nothing"),
    ],
)
def test_each_problem_of_a_node_is_found_alone(changes: dict[str, Any], line: str) -> None:
    assert lines(node(**changes)) == [line]


def test_cgroup_v1_is_fine_before_1_35_or_when_opted_out() -> None:
    old = node(cgroup={"version": 1})
    assert lines(old, release=Release("amd64", "v1.34.9+k3s1")) == []
    assert lines(replace(old, kubelet_args=("a=b", "fail-cgroupv1=false"))) == []
    assert lines(replace(old, kubelet_args=("fail-cgroupv1=true",))) == ["error server-1 cgroups: version 1"]


def test_the_backend_decides_on_features_and_ports() -> None:
    wireguard = replace(node(features={"vxlan": "missing"}, ports={"8472/udp": "x"}), backend="wireguard-native")
    assert lines(wireguard) == ["error server-1 kernel: wireguard missing in 6.1"]
    assert lines(replace(node(features={"vxlan": "missing"}), backend="host-gw")) == []


def test_agents_need_no_server_ports() -> None:
    assert lines(node(), node("agent-1", "agent", ports={"6443/tcp": "nginx"})) == []
    assert "6443/tcp" in PORTS["server"]


def test_web_ports_must_be_free_where_nodes_answer_there() -> None:
    taken = node(ports={"80/tcp": "nginx", "443/tcp": "nginx"})
    wanted = ["error server-1 ports: 80/tcp is taken by nginx", "error server-1 ports: 443/tcp is taken by nginx"]
    assert lines(taken) == wanted
    assert lines(replace(taken, disable=("metrics-server",))) == wanted
    for component in ("traefik", "servicelb"):
        assert lines(replace(taken, disable=(component,))) == []


def test_a_running_node_of_ours_is_judged_as_such() -> None:
    ports = {"6443/tcp": "/usr/local/bin/k3s", "8472/udp": "", "10250/tcp": "/var/lib/rancher/k3s/data/a/bin/k3s"}
    disks = [{"path": "/d", "free_gb": 20}]
    assert lines(node(k3s={"state": "ours"}, ports=ports, disks=disks)) == []
    assert lines(node(k3s={"state": "ours"}, ports={"6443/tcp": "nginx"}, disks=[{"path": "/d", "free_gb": 4}])) == [
        "error server-1 disk: 4 GB free at /d",
        "error server-1 ports: 6443/tcp is taken by nginx",
    ]


def test_all_problems_of_all_nodes_come_together() -> None:
    bad = node("agent-1", "agent", cpus=1, memory_mb=1, default_route=False)
    away = Node("agent-2", "agent", "10.0.0.9", failure="timed out", unreachable=True)
    assert lines(node(swap_mb=1), bad, away) == [
        "error agent-1 cpus: 1",
        "error agent-1 memory: 1 MB",
        "error agent-1 network: no default route",
        "error agent-2 reachable: timed out",
        "warning server-1 swap: 1 MB",
    ]


@pytest.mark.parametrize(
    ("failure", "check"),
    [
        ("Missing sudo password", "sudo"),
        ("sudo: a password is required", "sudo"),
        ("Timeout (12s) waiting for privilege escalation prompt", "sudo"),
        ("/bin/sh: 1: /usr/bin/python3: not found", "python"),
        ("No space left on device", "probe"),
        ("", "probe"),
    ],
)
def test_why_a_node_could_not_be_looked_at(failure: str, check: str) -> None:
    problems = judge([node(), Node("a", "agent", failure=failure)], WANT, RELEASE)
    assert [(problem.node, problem.check) for problem in problems] == [("a", check)]


def test_inventory() -> None:
    assert lines(node("a", "agent")) == ["error controller inventory: group server has no host"]
    assert lines(node("a"), node("b")) == ["error controller inventory: group server has 2 hosts"]
    assert lines(node("a"), node("b"), want=replace(WANT, allow_even_servers=True)) == []
    assert lines(node("a"), node("b"), node("c")) == []
    assert lines(node("a"), node("b", "server+agent"), node("c")) == [
        "error b inventory: in the groups server and agent"
    ]
    assert lines(node("a"), node("b", "none")) == ["error b inventory: in neither group"]
    assert lines(node("Big_Name")) == ["error Big_Name inventory: name 'Big_Name'"]
    twice = [replace(node(name, role), address="10.0.0.1") for name, role in (("a", "server"), ("b", "agent"))]
    assert lines(*twice) == [
        "error a inventory: ansible_host 10.0.0.1, as b",
        "error b inventory: ansible_host 10.0.0.1, as a",
    ]


def test_an_even_number_of_servers_is_refused_with_the_reason() -> None:
    (problem,) = judge([node("a"), node("b"), node("c"), node("d")], WANT, RELEASE)
    assert problem.wanted == "an odd number: 4 servers survive the loss of 1, no more than 3 would"
    assert "preflight_allow_even_servers" in problem.remedy


def test_a_machine_that_is_declared_absent_is_left_out() -> None:
    """It need not answer, and what is left may run although its number is even; another one that does not answer is named with the way."""
    gone = Node("gone", "server", "10.0.0.9", asked=False, absent=True)
    assert lines(gone, node("a"), node("b")) == ["warning controller inventory: group server has 2 hosts without gone"]
    assert lines(gone, node("a"), node("b"), node("c")) == []
    assert lines(gone) == ["error controller inventory: group server has no host"]
    assert "declared absent" in summary_line(gone)
    away = Node("away", "server", "10.0.0.8", failure="timed out", unreachable=True)
    (problem,) = judge([away, node("a"), node("b")], WANT, RELEASE)
    assert (problem.severity, problem.node, problem.check) == ("error", "away", "reachable")
    assert "slipway_absent: [away]" in problem.remedy


def test_a_quorum_that_cannot_be_reached_is_named() -> None:
    away = [Node(name, "server", failure="timed out", unreachable=True) for name in ("b", "c")]
    installed = node("a", k3s={"state": "ours"})
    found = "error controller quorum: 1 of 3 servers can be reached, not b, c"
    assert found in lines(installed, *away)
    (problem,) = [each for each in judge([installed, *away], WANT, RELEASE) if each.check == "quorum"]
    assert problem.wanted == "at least 2: the datastore needs more than half of its members"
    assert "Quorum lost" in problem.remedy
    # Nothing is installed yet, and no quorum that could be lost.
    assert found not in lines(node("a"), *away)
    assert found not in lines(installed, away[0], node("c"))


def test_an_address_that_servers_share() -> None:
    def server(name: str, shared: str, **changes: Any) -> Node:
        return replace(node(name, **changes), shared=shared, address=f"10.0.0.{ord(name)}")

    good = [server(name, "10.0.0.9", keepalived=True) for name in ("a", "b", "c")]
    assert lines(*good) == []
    assert lines(*good[:2], server("c", "10.0.0.9")) == ["error c api address: no keepalived"]
    (problem,) = judge([*good[:2], server("c", "10.0.0.9")], WANT, RELEASE)
    assert problem.remedy == "apt-get install keepalived; or api_address_provider: external"
    for given, found in (
        ("api.example", "k3s_api_address is 'api.example'"),
        ("10.0.0.97", "k3s_api_address 10.0.0.97 is that of a"),
    ):
        taken = [server(name, given, keepalived=True) for name in ("a", "b", "c")]
        assert lines(*taken) == [f"error controller api address: {found}"]


def test_hosts_left_out_by_limit_count_for_the_inventory_only() -> None:
    assert lines(Node("a", "server", asked=False), node("b", "agent")) == []
    assert "left out by --limit" in summary_line(Node("a", "server", asked=False))


def test_names_and_machine_ids_must_be_unique() -> None:
    twin = node("agent-1", "agent", hostname="server-1", machine_id="server-1" * 4)
    assert [line for line in lines(node(), twin) if "agent-1 " in line.split(":")[0] + " "] == [
        "error agent-1 hostname: server-1, as server-1",
        f"error agent-1 machine_id: {'server-1' * 4}, as server-1",
    ]
    assert len(lines(node(), twin)) == 4


def at(name: str, offset: float, error: float = 0.1) -> Node:
    return replace(node(name), offset=offset, error=error)


def test_clocks_are_compared_with_the_one_in_the_middle() -> None:
    problems = judge_clocks([at("a", 0), at("b", 0.5), at("late", -9)], 2)
    assert [(problem.node, problem.found) for problem in problems] == [("late", "-9.0 s against a")]
    assert judge_clocks([at("a", 0), at("b", 2.1)], 2) == []
    assert len(judge_clocks([at("a", 0), at("b", 2.3)], 2)) == 1


def test_a_slow_connection_is_no_skew() -> None:
    assert judge_clocks([at("a", 0), at("slow", 5, error=4)], 2) == []


def test_a_controller_with_a_wrong_clock_is_warned_about() -> None:
    problems = judge_clocks([at("a", 60), at("b", 60)], 2)
    assert [(problem.severity, problem.node) for problem in problems] == [("warning", "controller")]
    assert judge_clocks([], 2) == judge_clocks([replace(node(), offset=None)], 2) == []


def test_table() -> None:
    problems = [Problem("error", "server-1", "cpus", "1", "at least 2", "buy one")]
    text = table(problems, {"server-1": summary_line(node()), "b": summary_line(Node("b", "agent"))})
    assert text.splitlines() == [
        "server-1  server  Debian 12, 4 CPUs, 7.8 GB memory, 100 GB free, cgroup v2, k3s: none",
        "b         agent   not looked at",
        "",
        "ERROR    server-1  cpus  1",
        "                         wanted: at least 2",
        "                         remedy: buy one",
        "",
        "preflight: 1 error, 0 warnings",
    ]


# GPUs


HOST_DRIVER: dict[str, Any] = {"host_driver": True, "loaded": "595.91.07", "libraries": ["595.91.07"], "module": True}
TWO = {"devices": ["0000:65:00.0", "0000:66:00.0"]}


def gpu_node(declared: Declared, **gpu: Any) -> Node:
    return replace(node(gpu={**TWO, **gpu}), gpus=declared)


def test_good_gpu_nodes_have_no_problem() -> None:
    assert lines(gpu_node(Declared(2))) == lines(gpu_node(Declared(2), **HOST_DRIVER)) == []
    assert lines(gpu_node(Declared(2, driver="host"), **HOST_DRIVER)) == []
    # Signed, as it is loaded.
    assert lines(gpu_node(Declared(2), **HOST_DRIVER | {"secure_boot": True, "headers": False})) == []
    assert summary_line(gpu_node(Declared(2))).endswith("k3s: none, 2 GPUs")


@pytest.mark.parametrize(
    ("declared", "gpu", "line", "remedy"),
    [
        (Declared(), {}, "warning server-1 gpus: 2 NVIDIA GPUs on the PCI bus", "gpu_operator_gpus: 2"),
        (Declared(gpus=4), {}, "error server-1 gpus: 2 NVIDIA GPUs on the PCI bus", "lspci"),
        (Declared(gpus=1), {"devices": []}, "error server-1 gpus: 0 NVIDIA GPUs on the PCI bus", "lspci"),
        (
            Declared(gpus=2),
            {"nouveau": True},
            "error server-1 gpus: the kernel module nouveau holds the GPUs",
            "update-initramfs -u && reboot",
        ),
        (Declared(gpus=2), {"secure_boot": True}, "error server-1 gpu driver: Secure Boot is on", "mokutil"),
        (
            Declared(gpus=2),
            {"headers": False},
            "warning server-1 gpu driver: no headers of kernel 6.1",
            "apt-get install linux-headers-6.1",
        ),
        (
            Declared(gpus=2, driver="operator"),
            HOST_DRIVER,
            "error server-1 gpu driver: the host has one, so the operator builds none",
            "gpu_operator_driver: host",
        ),
        (
            Declared(gpus=2, driver="host"),
            {},
            "error server-1 gpu driver: no nvidia-smi",
            "gpu_operator_driver: operator",
        ),
        (
            Declared(gpus=2),
            {**HOST_DRIVER, "loaded": ""},
            "error server-1 gpu driver: the host's driver is not loaded",
            "modprobe nvidia",
        ),
        (
            Declared(gpus=2),
            {**HOST_DRIVER, "loaded": "", "secure_boot": True},
            "error server-1 gpu driver: the host's driver is not loaded",
            "mokutil",
        ),
        (
            Declared(gpus=2),
            {**HOST_DRIVER, "loaded": "", "module": False, "headers": False},
            "error server-1 gpu driver: the host's driver was not built for kernel 6.1",
            "apt-get install linux-headers-6.1 && dkms autoinstall",
        ),
        (
            Declared(gpus=2),
            {**HOST_DRIVER, "libraries": ["600.1.2"]},
            "error server-1 gpu driver: module 595.91.07, libraries 600.1.2",
            "reboot",
        ),
        (
            Declared(gpus=2, share=2, mig="all-1g.10gb"),
            {},
            "error server-1 gpus: gpu_operator_mig all-1g.10gb and gpu_operator_share 2",
            "inventory",
        ),
    ],
)
def test_each_problem_of_a_gpu_node_comes_with_its_remedy(
    declared: Declared, gpu: dict[str, Any], line: str, remedy: str
) -> None:
    (problem,) = judge([gpu_node(declared, **gpu)], WANT, RELEASE)
    assert f"{problem.severity} {problem.node} {problem.check}: {problem.found}".startswith(line)
    assert remedy in problem.remedy


def test_remedies_are_those_of_the_distribution() -> None:
    rocky = replace(WANT, operating_systems={"rocky": "9"})
    bad = gpu_node(Declared(2), nouveau=True, headers=False)
    assert bad.probe is not None
    changed = replace(bad, probe={**bad.probe, "os": {"id": "rocky", "version_id": "9", "pretty_name": "Rocky"}})
    remedies = " ".join(problem.remedy for problem in judge([changed], rocky, RELEASE))
    assert "dracut --force && reboot" in remedies and "dnf install kernel-devel-6.1" in remedies


def test_the_bundle_must_have_the_operator_where_gpus_are_declared(tmp_path: Path) -> None:
    arguments = report_arguments(tmp_path)
    arguments["nodes"][0]["gpus"] = {"gpus": "2"}
    arguments["nodes"][0]["probe"]["gpu"] |= TWO
    manifest = {"schema": 1, "release": "r", "origin": "lab", "arch": "amd64", "versions": {}, "images": {}}
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.yml").write_text(yaml.safe_dump({**manifest, "artifacts": []}))

    def errors(components: list[str]) -> list[str]:
        result = run_module(preflight_report, {**arguments, "components": components})
        return [problem["found"] for problem in result["problems"] if problem["severity"] == "error"]

    assert errors(["minio"]) == []
    assert errors(["gpu_operator"]) == [f"{tmp_path}/bundle: there is no chart gpu-operator, which this site needs"]


def test_a_declaration_of_a_wrong_form_is_the_variables_problem(tmp_path: Path) -> None:
    arguments = report_arguments(tmp_path)
    arguments["nodes"][0]["gpus"] = {"gpus": "many"}
    assert "many" not in run_module(preflight_report, arguments)["table"]


# Variables


KNOWN = Known(
    {
        "minio": {"minio_values": {"type": "dict"}, "minio_tenants": {"type": "list", "elements": "dict"}},
        "k3s": {
            "k3s_disable": {"type": "list", "elements": "str", "choices": ["traefik", "coredns"]},
            "k3s_timeout": {"type": "int", "required": True},
            "k3s_secret": {"type": "int", "no_log": True},
        },
        "slipway": {"slipway_bundle_dir": {"type": "raw"}},
    }
)


def test_unknown_and_misspelt_variables(tmp_path: Path) -> None:
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text("# minio_valeus: old\nx: 1\nminio_valeus: {}\n")
    (tmp_path / "hosts.yml").write_text("k3s_cluster: {hosts: {a: {ansible_host: h, k3s_zzzz: 1}}}\n")
    used = {
        "a": ["minio_valeus", "k3s_zzzz", "ansible_host", "_minio_values", "my_own", "minio_tenants"],
        "b": ["minio_valeus", "mnio_values", "slipway_bundel_dir"],
    }
    problems = judge_variables(used, KNOWN, [tmp_path])
    assert [(p.severity, p.node, p.found, p.remedy) for p in problems] == [
        ("error", "a", f"k3s_zzzz in {tmp_path}/hosts.yml:1", "see roles/k3s/meta/argument_specs.yml"),
        ("error", "controller", f"minio_valeus in {tmp_path}/group_vars/all.yml:3", "did you mean minio_values?"),
        ("warning", "b", "mnio_values", "did you mean minio_values?"),
        ("error", "b", "slipway_bundel_dir", "did you mean slipway_bundle_dir?"),
    ]


def test_the_longest_prefix_owns_a_name() -> None:
    known = Known({"k3s": {}, "k3s_node": {}})
    assert known.owner("k3s_node_x") == "k3s_node"
    assert known.owner("other") == ""


def test_values_of_a_wrong_form(tmp_path: Path) -> None:
    (tmp_path / "all.yml").write_text("k3s_timeout: soon\n")
    good = {"k3s_disable": ["traefik"], "k3s_timeout": "300", "minio_values": {}, "slipway_bundle_dir": 1, "x": object}
    bad = {"k3s_disable": ["treafik"], "k3s_timeout": "soon", "k3s_secret": "hunter2"}
    assert judge_values({"a": good}, KNOWN, []) == []
    problems = judge_values({"a": {**good, **bad}, "b": {"k3s_timeout": "soon"}}, KNOWN, [tmp_path])
    assert [problem.node for problem in problems] == ["a", "controller"]
    assert "treafik" in problems[0].found and problems[0].found.endswith("(k3s_disable)")
    assert "cannot be converted" in problems[1].found and f"({tmp_path}/all.yml:1)" in problems[1].found
    assert "hunter2" not in repr(problems)


def test_this_projects_own_variables_are_known() -> None:
    root = PLUGINS.parent
    known = load_known(root / "roles", root / "playbooks/group_vars")
    assert "preflight_min_cpus" in known.by_role["preflight"]
    defaults = {
        name for file in (root / "roles").glob("*/defaults/main.yml") for name in yaml.safe_load(file.read_text()) or {}
    }
    assert judge_variables({"host": defaults}, known, []) == []


def test_this_projects_inventories_are_accepted() -> None:
    root = PLUGINS.parent
    known = load_known(root / "roles", root / "playbooks/group_vars")
    for site in (root / "inventories").iterdir():
        files = [yaml.safe_load(file.read_text()) or {} for file in site.glob("group_vars/**/*.yml")]
        values = {name: value for file in files for name, value in file.items()}
        assert judge_variables({site.name: values}, known, []) == judge_values({site.name: values}, known, []) == []


def test_locate_finds_ini_and_reads_no_binaries(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe")
    (tmp_path / "hosts").write_text("[server]\nnode k3s_disable=x\n")
    assert locate("k3s_disable", [tmp_path]) == f"{tmp_path}/hosts:2"
    assert locate("k3s", [tmp_path]) == ""


# The module


def report_arguments(tmp_path: Path) -> dict[str, Any]:
    keys = ("min_memory_mb", "min_cpus", "min_disk_gb", "min_disk_gb_installed", "max_clock_skew_seconds")
    requirements = {key: getattr(WANT, key) for key in keys} | {"allow_even_servers": False, "operating_systems": {}}
    return {
        "nodes": [{"name": "server-1", "role": "server", "probe": node().probe, "offset": 0.0}],
        "requirements": requirements,
        "roles": str(PLUGINS.parent / "roles"),
        "site_defaults": str(PLUGINS.parent / "playbooks/group_vars"),
        "bundle": str(tmp_path / "bundle"),
        "report": str(tmp_path / "report/preflight.json"),
    }


def test_the_report_counts_a_missing_bundle_and_is_written(tmp_path: Path) -> None:
    result = run_module(preflight_report, report_arguments(tmp_path))
    assert (result["changed"], result["errors"]) == (False, 1)
    assert "bundle.yml: missing" in result["table"] and "tested" in result["table"]
    report = json.loads((tmp_path / "report/preflight.json").read_text())
    assert (report["ok"], report["errors"], report["warnings"]) == (False, 1, 1)
    assert report["problems"] == result["problems"]
    assert report["nodes"]["server-1"]["probe"]["cpus"] == 4


def test_the_bundles_own_faults_and_architecture_are_in_the_report(tmp_path: Path) -> None:
    arguments = report_arguments(tmp_path)
    artifact = {"path": "bin/k3s", "kind": "binary", "name": "k3s", "sha256": "0" * 64, "size": 1}
    manifest = {"schema": 1, "release": "r", "origin": "lab", "arch": "arm64", "versions": {}, "images": {}}
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/bundle.yml").write_text(yaml.safe_dump({**manifest, "artifacts": [artifact]}))
    found = {problem["check"]: problem["found"] for problem in run_module(preflight_report, arguments)["problems"]}
    assert found["bundle"] == f"{tmp_path}/bundle/bin/k3s: missing"
    assert found["architecture"] == "amd64"


def test_a_wrong_requirement_is_an_error(tmp_path: Path) -> None:
    arguments = report_arguments(tmp_path)
    arguments["requirements"]["min_cpu"] = 1
    assert "min_cpu" in run_module(preflight_report, arguments)["msg"]

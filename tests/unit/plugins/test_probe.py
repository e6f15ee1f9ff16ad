"""The probe reads a machine right, shown on made file systems and on this one."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path

import pytest
from ansible.module_utils.slipway import probe

from modules import preflight_probe

from .fakes import run_module


def put(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_this_machine(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = f"{server.getsockname()[1]}/tcp"
        result = run_module(preflight_probe, {"disk_paths": ["/no/such/place", "/"], "ports": [port, "1/tcp"]})
    found = result["probe"]
    assert result["changed"] is False
    assert list(found["ports"]) == [port] and found["ports"][port]
    assert [disk["path"] for disk in found["disks"]] == ["/no/such/place"] and found["disks"][0]["free_gb"] > 0
    assert found["cpus"] >= 1 and found["memory_mb"] > 100 and found["cgroup"]["version"] in (1, 2)
    assert found["hostname"] == socket.gethostname() and found["root"] == (os.geteuid() == 0)
    assert set(found["features"].values()) <= {"usable", "loadable", "missing", "unknown"}


@pytest.mark.parametrize("kind", ["config", "gzip"])
def test_kernel_features(tmp_path: Path, kind: str) -> None:
    options = "CONFIG_OVERLAY_FS=y\nCONFIG_BRIDGE_NETFILTER=m\n# CONFIG_VXLAN is not set\n"
    if kind == "config":
        put(tmp_path, "boot/config-6.1", options)
    else:
        put(tmp_path, "proc/config.gz")
        (tmp_path / "proc/config.gz").write_bytes(gzip.compress(options.encode()))
    put(tmp_path, "lib/modules/6.1/modules.dep", "kernel/net/bridge/br_netfilter.ko.xz: x\nkernel/nft-chain-nat.ko:\n")
    put(tmp_path, "sys/module/wireguard/version")
    assert probe.features(tmp_path, "6.1") == {
        "overlay": "usable",
        "br_netfilter": "loadable",
        "vxlan": "missing",
        "wireguard": "usable",
        "nat": "loadable",
    }


def test_a_kernel_whose_modules_are_gone_or_that_tells_nothing(tmp_path: Path) -> None:
    assert set(probe.features(tmp_path, "6.1").values()) == {"unknown"}
    # Upgraded and not rebooted: the option says module, the file is no longer there.
    put(tmp_path, "boot/config-6.1", "CONFIG_BRIDGE_NETFILTER=m\n")
    assert probe.features(tmp_path, "6.1")["br_netfilter"] == "missing"


def test_cgroups(tmp_path: Path) -> None:
    put(tmp_path, "proc/cgroups", "#subsys_name\thierarchy\tnum\tenabled\ncpu\t1\t1\t1\nmemory\t0\t1\t0\n")
    assert probe.cgroups(tmp_path) == {"version": 1, "controllers": ["cpu"]}
    put(tmp_path, "sys/fs/cgroup/cgroup.controllers", "memory cpu\n")
    assert probe.cgroups(tmp_path) == {"version": 2, "controllers": ["cpu", "memory"]}


def test_only_listening_tcp_and_all_udp_ports_count(tmp_path: Path) -> None:
    def row(port: int, state: str, inode: int) -> str:
        return f"0: 00000000:{port:04X} 00000000:0000 {state} 0:0 0:0 0 0 0 {inode} 1\n"

    put(tmp_path, "proc/net/tcp", "head\n" + row(6443, "0A", 7) + row(10250, "01", 8))
    put(tmp_path, "proc/net/udp6", "head\n" + row(8472, "07", 9))
    put(tmp_path, "proc/42/comm", "nginx\n")
    (tmp_path / "proc/42/fd").mkdir()
    (tmp_path / "proc/42/fd/3").symlink_to("socket:[7]")
    assert probe.ports(["6443/tcp", "10250/tcp", "8472/udp", "8472/tcp"], tmp_path) == {
        "6443/tcp": "nginx",
        "8472/udp": "",
    }
    (tmp_path / "proc/42/exe").symlink_to("/usr/sbin/nginx (deleted)")
    assert probe.ports(["6443/tcp"], tmp_path) == {"6443/tcp": "/usr/sbin/nginx"}


def test_routes(tmp_path: Path) -> None:
    head = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU\n"
    put(tmp_path, "proc/net/route", head + "eth0 0000000A 00000000 0001 0 0 0 000000FF 0\n")
    assert not probe.has_default_route(tmp_path)
    put(tmp_path, "proc/net/route", head + "eth0 00000000 0100000A 0003 0 0 0 00000000 0\n")
    assert probe.has_default_route(tmp_path)
    put(tmp_path, "proc/net/route", head)
    put(tmp_path, "proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 0 0 0 0 eth0\n")
    assert probe.has_default_route(tmp_path)
    put(tmp_path, "proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} 0 0 0 0 lo\n")
    assert not probe.has_default_route(tmp_path)


def test_name_servers_behind_the_stub(tmp_path: Path) -> None:
    put(tmp_path, "etc/resolv.conf", "search x\nnameserver 127.0.0.53\n")
    assert probe.nameservers(tmp_path) == ["127.0.0.53"]
    put(tmp_path, "run/systemd/resolve/resolv.conf", "nameserver 10.0.0.1\n")
    assert probe.nameservers(tmp_path) == ["10.0.0.1"]
    assert not probe.resolves("no-such-host.invalid")


def test_a_container_has_its_hosts_clock(tmp_path: Path) -> None:
    put(tmp_path, "proc/1/environ", "PATH=/\0container=podman\0")
    assert probe.time_sync(tmp_path) == "host"
    put(tmp_path, "proc/1/environ", "PATH=/")
    put(tmp_path, "run/systemd/timesync/synchronized")
    assert probe.time_sync(tmp_path) == "synchronized"


BINARY, UNIT, TOKEN = "usr/local/bin/k3s", "etc/systemd/system/k3s.service", "var/lib/rancher/k3s/server/token"
COMPLETE, BEGUN = json.dumps({"complete": True}), json.dumps({"complete": False})


@pytest.mark.parametrize(
    ("files", "state"),
    [
        ({}, "none"),
        ({"var/lib/rancher/k3s/agent/images/a.tar": ""}, "none"),
        ({"etc/rancher/node/password": ""}, "none"),
        ({probe.MARKER: COMPLETE, BINARY: "", UNIT: "", TOKEN: ""}, "ours"),
        ({probe.MARKER: COMPLETE, BINARY: "", "etc/systemd/system/k3s-agent.service": ""}, "ours"),
        ({probe.MARKER: COMPLETE, UNIT: ""}, "incomplete"),
        ({probe.MARKER: COMPLETE, BINARY: ""}, "incomplete"),
        ({probe.MARKER: BEGUN}, "interrupted"),
        ({probe.MARKER: '{"compl', BINARY: "", TOKEN: ""}, "interrupted"),
        ({BINARY: ""}, "foreign"),
        ({UNIT: "", TOKEN: ""}, "foreign"),
        ({TOKEN: ""}, "data"),
        ({TOKEN: "", probe.DATA_MARKER: ""}, "none"),
        ({"usr/local/bin/k3s-uninstall.sh": "", probe.MARKER: COMPLETE, BINARY: "", UNIT: ""}, "foreign"),
        ({"etc/rancher/rke2/config.yaml": ""}, "foreign"),
        ({"etc/systemd/system/kubelet.service": ""}, "foreign"),
        ({"var/snap/microk8s/current": ""}, "foreign"),
    ],
)
def test_whose_k3s_it_is(tmp_path: Path, files: dict[str, str], state: str) -> None:
    for path, text in files.items():
        put(tmp_path, path, text)
    found = probe.k3s(tmp_path)
    assert found["state"] == state
    assert bool(found["found"]) == (
        state in ("ours", "incomplete", "foreign", "data") or BINARY in files or TOKEN in files
    )

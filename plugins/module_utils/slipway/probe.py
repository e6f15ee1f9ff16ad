"""Looks at a machine without changing it. Runs on nodes: standard library only, Python 3.8 or newer.

Every reader takes the root of the file system, so that tests can give it a made one.
"""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.slipway.gpu_probe import gpu_probe

if TYPE_CHECKING:
    from collections.abc import Iterable

# Kernel features: how each shows that it works, its modules, and the options that build it in (=y) or as a module (=m).
FEATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "overlay": {"paths": ("sys/module/overlay",), "modules": ("overlay",), "options": ("CONFIG_OVERLAY_FS",)},
    "br_netfilter": {
        "paths": ("proc/sys/net/bridge/bridge-nf-call-iptables",),
        "modules": ("br_netfilter",),
        "options": ("CONFIG_BRIDGE_NETFILTER",),
    },
    "vxlan": {"paths": ("sys/module/vxlan",), "modules": ("vxlan",), "options": ("CONFIG_VXLAN",)},
    "wireguard": {"paths": ("sys/module/wireguard",), "modules": ("wireguard",), "options": ("CONFIG_WIREGUARD",)},
    "nat": {
        "paths": ("sys/module/iptable_nat", "sys/module/nft_chain_nat"),
        "modules": ("iptable_nat", "nft_chain_nat"),
        "options": ("CONFIG_IP_NF_NAT", "CONFIG_NFT_NAT"),
    },
}
# What other distributions of Kubernetes leave where they are installed.
FOREIGN = {
    "RKE2": ("etc/rancher/rke2", "var/lib/rancher/rke2", "usr/local/bin/rke2"),
    "a kubelet": (
        "etc/kubernetes/kubelet.conf",
        "etc/kubernetes/manifests",
        "etc/systemd/system/kubelet.service",
        "usr/lib/systemd/system/kubelet.service",
    ),
    "MicroK8s": ("var/snap/microk8s", "snap/microk8s"),
    "k0s": ("etc/k0s", "var/lib/k0s"),
    "a k3s by its install script": ("usr/local/bin/k3s-uninstall.sh", "usr/local/bin/k3s-agent-uninstall.sh"),
}
# Where every distribution has it.
KEEPALIVED = "usr/sbin/keepalived"
MARKER = "etc/rancher/k3s/slipway.json"
DATA_MARKER = "var/lib/rancher/k3s/slipway.json"
# Written by the module bundle_files.
RECORD = "var/lib/rancher/k3s/slipway-files.json"
_BINARIES = ("usr/local/bin/k3s", "usr/bin/k3s", "opt/bin/k3s")
_UNITS = ("k3s.service", "k3s-agent.service")
# Only a k3s that has run leaves these; empty directories and image archives may have been prepared.
_DATA = ("var/lib/rancher/k3s/server/token", "var/lib/rancher/k3s/server/db", "var/lib/rancher/k3s/agent/client-ca.crt")
_LISTEN = "0A"


def read(path: Path) -> str:
    """Text of a file, empty where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def os_release(root: Path) -> dict[str, str]:
    """The fields of os-release(5)."""
    fields = {}
    for line in (read(root / "etc/os-release") or read(root / "usr/lib/os-release")).splitlines():
        key, _, value = line.partition("=")
        fields[key] = value.strip().strip("\"'")
    return fields


def kernel_options(root: Path, release: str) -> dict[str, str]:
    """The options that the running kernel was built with, where it tells them."""
    text = read(root / "boot" / ("config-" + release)) or read(root / "lib/modules" / release / "config")
    if not text:
        try:
            text = gzip.decompress((root / "proc/config.gz").read_bytes()).decode()
        except (OSError, EOFError):
            return {}
    return dict(re.findall(r"^(CONFIG_\w+)=([ym])$", text, re.MULTILINE))


def features(root: Path, release: str) -> dict[str, str]:
    """For each feature: `usable` now, `loadable`, `missing`, or `unknown` where the kernel tells nothing."""
    options = kernel_options(root, release)
    directory = root / "lib/modules" / release
    listed = read(directory / "modules.dep") + read(directory / "modules.builtin")
    names = set(re.findall(r"^(?:\S*/)?([\w-]+)\.ko", listed, re.MULTILINE))
    result = {}
    for feature, signs in FEATURES.items():
        working = any((root / path).exists() for path in signs["paths"])
        if working or any(options.get(option) == "y" for option in signs["options"]):
            result[feature] = "usable"
        elif any(name in names or name.replace("_", "-") in names for name in signs["modules"]):
            result[feature] = "loadable"
        else:
            result[feature] = "missing" if options or names else "unknown"
    return result


def cgroups(root: Path) -> dict[str, Any]:
    """Version of the cgroup hierarchy at its usual place, and the controllers in it."""
    unified = root / "sys/fs/cgroup/cgroup.controllers"
    if unified.exists():
        return {"version": 2, "controllers": sorted(read(unified).split())}
    rows = [line.split() for line in read(root / "proc/cgroups").splitlines() if not line.startswith("#")]
    return {"version": 1, "controllers": sorted(row[0] for row in rows if len(row) == 4 and row[3] == "1")}


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in MiB."""
    return {
        name: int(value) // 1024
        for name, value in re.findall(r"^(\w+):\s+(\d+) kB", read(root / "proc/meminfo"), re.MULTILINE)
    }


def disks(paths: Iterable[str], root: Path) -> list[dict[str, Any]]:
    """Free space (GiB, for root's processes without the reserve) of the file systems that hold `paths`, each once."""
    seen: dict[int, dict[str, Any]] = {}
    for path in paths:
        place = root / path.lstrip("/")
        while not place.exists():
            place = place.parent
        status = os.statvfs(str(place))
        entry = {"path": path, "free_gb": round(status.f_bavail * status.f_frsize / 2**30, 1)}
        seen.setdefault(place.stat().st_dev, entry)
    return list(seen.values())


def sockets(root: Path) -> dict[tuple[str, int], str]:
    """Inode of every listening TCP and bound UDP socket by (protocol, port)."""
    found: dict[tuple[str, int], str] = {}
    for protocol in ("tcp", "udp"):
        for suffix in ("", "6"):
            for line in read(root / "proc/net" / (protocol + suffix)).splitlines()[1:]:
                fields = line.split()
                if len(fields) > 9 and (protocol == "udp" or fields[3] == _LISTEN):
                    found[(protocol, int(fields[1].rsplit(":", 1)[1], 16))] = fields[9]
    return found


def owners(inodes: set[str], root: Path) -> dict[str, str]:
    """Program of the process that holds each socket inode (path, else name); needs root to see those of others."""
    found: dict[str, str] = {}
    for process in (root / "proc").glob("[0-9]*"):
        try:
            for link in (process / "fd").iterdir():
                match = re.match(r"socket:\[(\d+)\]", os.readlink(str(link)))  # noqa: PTH115 (Python 3.8)
                if match and match.group(1) in inodes:
                    found[match.group(1)] = program(process)
        except OSError:
            # It ended meanwhile.
            continue
    return found


def program(process: Path) -> str:
    """Path of the program that the process with this folder in /proc runs; its name where that is hidden."""
    try:
        # A program that was replaced under a running process is marked so.
        return re.sub(r" \(deleted\)$", "", os.readlink(str(process / "exe")))  # noqa: PTH115 (Python 3.8)
    except OSError:
        return read(process / "comm").strip()


def ports(wanted: Iterable[str], root: Path) -> dict[str, str]:
    """Those of `wanted` (`6443/tcp`) that are taken, with the program that holds them, empty where unknown."""
    listening = sockets(root)
    taken = {}
    for text in wanted:
        port, _, protocol = text.partition("/")
        inode = listening.get((protocol, int(port)))
        if inode is not None:
            taken[text] = inode
    names = owners(set(taken.values()), root) if taken else {}
    return {text: names.get(inode, "") for text, inode in taken.items()}


def has_default_route(root: Path) -> bool:
    """Whether some route leads everywhere, by IPv4 or IPv6."""
    fields = [line.split() for line in read(root / "proc/net/route").splitlines()[1:]]
    if any(len(row) > 7 and row[1] == "00000000" and row[7] == "00000000" for row in fields):
        return True
    rows = [line.split() for line in read(root / "proc/net/ipv6_route").splitlines()]
    return any(len(row) == 10 and row[0] == "0" * 32 and row[1] == "00" and row[9] != "lo" for row in rows)


def nameservers(root: Path) -> list[str]:
    """The name servers that pods would be given: systemd-resolved's real ones, else resolv.conf's."""
    servers = re.findall(r"^nameserver\s+(\S+)", read(root / "etc/resolv.conf"), re.MULTILINE)
    if servers and all(server.startswith("127.") or server == "::1" for server in servers):
        behind = read(root / "run/systemd/resolve/resolv.conf")
        servers = re.findall(r"^nameserver\s+(\S+)", behind, re.MULTILINE) or servers
    return servers


def resolves(name: str) -> bool:
    """Whether the machine finds an address for a name."""
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def time_sync(root: Path) -> str:
    """`synchronized`, `unsynchronized`, or `host` in a container, whose clock is another machine's business."""
    if (root / "run/systemd/container").exists() or b"container=" in _bytes(root / "proc/1/environ"):
        return "host"
    if (root / "run/systemd/timesync/synchronized").exists():
        return "synchronized"
    try:
        import ctypes

        # adjtimex(2) with modes 0 only reads; 5 (TIME_ERROR) is the kernel's word for an undisciplined clock.
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return "unknown"
    return "unsynchronized" if state in (-1, 5) else "synchronized"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def k3s(root: Path) -> dict[str, Any]:
    """What is installed: `state` is one of none, ours, interrupted, incomplete, data, foreign; `found` are the proofs.

    ours: complete by its marker, binary and unit. interrupted: a run of ours began and did not end. incomplete: complete
    by its marker, but parts are gone. data: data of a k3s and nothing else, as after a new system on a kept disk.
    """
    others = [name + " (/" + path + ")" for name, paths in FOREIGN.items() for path in paths if (root / path).exists()]
    binary = [path for path in _BINARIES if (root / path).exists()]
    units = [str(path.relative_to(root)) for path in sorted((root / "etc/systemd/system").glob("k3s*.service"))]
    data = [path for path in _DATA if (root / path).exists()]
    try:
        marker = json.loads((root / MARKER).read_text())
    except FileNotFoundError:
        marker = None
    except (OSError, ValueError):
        # Cut off while it was written: a run of ours was interrupted.
        marker = {}
    result = {"found": ["/" + path for path in binary + units + data]}
    if others:
        return {"state": "foreign", "found": others}
    if marker is None:
        if binary or units:
            return {"state": "foreign", **result}
        if data:
            return {"state": "none" if (root / DATA_MARKER).exists() else "data", **result}
        return {"state": "none", "found": []}
    if not isinstance(marker, dict) or not marker.get("complete"):
        return {"state": "interrupted", **result}
    if not binary or not any(unit.endswith("/" + name) for unit in units for name in _UNITS):
        return {"state": "incomplete", **result}
    return {"state": "ours", **result}


def files(root: Path) -> list[str]:
    """SHA-256 of what the bundle has placed and is still there, by the node's own record."""
    try:
        record = json.loads((root / RECORD).read_text())
        return sorted(entry["sha256"] for path, entry in record.items() if (root / path.lstrip("/")).exists())
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return []


def probe(
    disk_paths: Iterable[str], port_list: Iterable[str], hardware: Path = Path("/"), root: Path = Path("/")
) -> dict[str, Any]:
    """Everything that preflight wants to know of this machine; GPUs show themselves below `hardware`."""
    release = platform.release()
    memory = meminfo(root)
    hostname = socket.gethostname()
    system = os_release(root)
    return {
        "os": {key.lower(): system.get(key, "") for key in ("ID", "VERSION_ID", "PRETTY_NAME")},
        "arch": platform.machine(),
        "kernel": release,
        "features": features(root, release),
        "cgroup": cgroups(root),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mb": memory.get("MemTotal", 0),
        "swap_mb": memory.get("SwapTotal", 0),
        "disks": disks(disk_paths, root),
        "ports": ports(port_list, root),
        "hostname": hostname,
        "machine_id": read(root / "etc/machine-id").strip(),
        "default_route": has_default_route(root),
        "nameservers": nameservers(root),
        "resolves_itself": resolves(hostname),
        "python": list(sys.version_info[:3]),
        "time_sync": time_sync(root),
        "time": time.time(),
        "root": os.geteuid() == 0,
        "keepalived": (root / KEEPALIVED).exists(),
        "k3s": {**k3s(root), "files": files(root)},
        "gpu": gpu_probe(hardware, release),
    }

"""Judges what preflight found: every problem of every node, each with its remedy. No input or output here."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.slipway.gpus import Declared

Probe = Mapping[str, Any]
CONTROLLER = "controller"

# Ports that k3s listens on, by role (k3s documentation, installation/requirements); vxlan needs 8472/udp too.
_COMMON_PORTS = ("6444/tcp", "10248/tcp", "10249/tcp", "10250/tcp", "10256/tcp")
PORTS = {
    "server": (
        *("6443/tcp", "2379/tcp", "2380/tcp", "2381/tcp", "2382/tcp", "10257/tcp", "10258/tcp", "10259/tcp"),
        *_COMMON_PORTS,
    ),
    "agent": _COMMON_PORTS,
}
# What every node answers with Traefik behind servicelb. No process listens there: packets are led on before they reach one.
INGRESS_PORTS = ("80/tcp", "443/tcp")
BACKEND_PORTS = {"vxlan": ("8472/udp",), "wireguard-native": ("51820/udp", "51821/udp")}
# Kernel features that each flannel backend needs beside those that k3s always needs.
_FEATURES = ("overlay", "br_netfilter", "nat")
_BACKEND_FEATURES = {"vxlan": ("vxlan",), "wireguard-native": ("wireguard",)}
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
# Processes of k3s: their ports are taken rightly on a node where our k3s runs.
_OUR_PROGRAMS = re.compile(r"/usr/local/bin/k3s$|/var/lib/rancher/k3s/data/")
# Kubernetes node names: RFC 1123 subdomain.
_NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")


@dataclass(frozen=True)
class Problem:
    """One line of a report. `severity` is error (the run must stop), warning, or ok: looked at, and well."""

    severity: str
    node: str
    check: str
    found: str
    wanted: str
    remedy: str


@dataclass(frozen=True)
class Node:
    """A host of the inventory and what came of looking at it.

    `failure` says why there is no probe. A host that was not `asked` (left out by --limit) counts for the inventory only; one that is
    declared `absent` is gone for good, and nothing is asked of it.
    `offset` and `error` are seconds of the clock against the controller's, None where unknown.
    `kubelet_args` are the node's kubelet-arg entries, `backend` its flannel backend, `disable` the packaged components that the
    site leaves out, `gpus` what is declared of its GPUs, `shared` the address that servers keep among themselves (None: they do not).
    """

    name: str
    role: str
    address: str = ""
    probe: Probe | None = None
    failure: str = ""
    unreachable: bool = False
    asked: bool = True
    absent: bool = False
    offset: float | None = None
    error: float = 0.0
    kubelet_args: tuple[str, ...] = ()
    backend: str = "vxlan"
    disable: tuple[str, ...] = ()
    gpus: Declared = field(default_factory=Declared)
    shared: str | None = None


@dataclass(frozen=True)
class Requirements:
    """The thresholds; units are in the names."""

    min_memory_mb: int
    min_cpus: int
    min_disk_gb: float
    min_disk_gb_installed: float
    max_clock_skew_seconds: float
    allow_even_servers: bool
    operating_systems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Release:
    """What the bundle's manifest says of the release."""

    arch: str = ""
    k3s: str = ""


def judge(nodes: Sequence[Node], want: Requirements, release: Release) -> list[Problem]:
    """All problems of all nodes and of the inventory, errors first, then by node."""
    problems = judge_inventory(nodes, want)
    nodes = [node for node in nodes if not node.absent]
    problems += _judge_quorum(nodes)
    for node in nodes:
        problems += _judge_declaration(node)
        if node.probe is not None:
            problems += judge_node(node, node.probe, want, release)
        elif node.asked:
            problems += judge_access(node)
    problems += _judge_unique(nodes, "hostname", "hostnamectl set-hostname NAME on all but one")
    problems += _judge_unique(
        nodes, "machine_id", "on all but one: rm /etc/machine-id && systemd-machine-id-setup, then reboot"
    )
    problems += _judge_shared_address(nodes)
    problems += judge_clocks(nodes, want.max_clock_skew_seconds)
    return in_order(problems)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Errors first, then warnings, each by node; what belongs together stays in the order in which it was found."""
    ranks = ("error", "warning", "ok")
    return sorted(problems, key=lambda problem: (ranks.index(problem.severity), problem.node))


def judge_inventory(nodes: Sequence[Node], want: Requirements) -> list[Problem]:
    """Groups, names and addresses."""

    def error(node: str, found: str, wanted: str, remedy: str) -> Problem:
        return Problem("error", node, "inventory", found, wanted, remedy)

    problems: list[Problem] = []
    servers = [node for node in nodes if _is_server(node)]
    gone = [node.name for node in servers if node.absent]
    count = len(servers) - len(gone)
    if not count:
        problems.append(error(CONTROLLER, "group server has no host", "1, 3 or 5 servers", "name one in hosts.yml"))
    elif count % 2 == 0 and not want.allow_even_servers:
        found = f"group server has {count} hosts" + (f" without {', '.join(gone)}" if gone else "")
        wanted = (
            f"an odd number: {count} servers survive the loss of {(count - 1) // 2}, no more than {count - 1} would"
        )
        remedy = "add or remove one; while one is being replaced: -e preflight_allow_even_servers=true"
        # Whoever has lost one must be able to run what is left.
        severity = "warning" if gone else "error"
        problems.append(Problem(severity, CONTROLLER, "inventory", found, wanted, remedy))
    for node in nodes:
        if "+" in node.role:
            found = f"in the groups {node.role.replace('+', ' and ')}"
            problems.append(error(node.name, found, "server or agent", "a server runs pods too: take it out of agent"))
        elif node.role not in PORTS:
            problems.append(error(node.name, "in neither group", "server or agent", "put it into one of them"))
        if not _NODE_NAME.fullmatch(node.name) or len(node.name) > 63:
            wanted = "lower case letters, digits, hyphens and dots; at most 63"
            problems.append(error(node.name, f"name {node.name!r}", wanted, "rename it in hosts.yml"))
    addresses = Counter(node.address for node in nodes if node.address)
    for node in nodes:
        if addresses[node.address] > 1:
            others = ", ".join(other.name for other in nodes if other.address == node.address and other != node)
            found = f"ansible_host {node.address}, as {others}"
            problems.append(error(node.name, found, "an address of its own", "correct hosts.yml"))
    return problems


def _is_server(node: Node) -> bool:
    return "server" in node.role.split("+")


def _judge_quorum(nodes: Sequence[Node]) -> list[Problem]:
    """A cluster of which more than half of the servers cannot be reached."""
    servers = [node for node in nodes if _is_server(node) and node.asked]
    away = sorted(node.name for node in servers if node.unreachable)
    needed = len(servers) // 2 + 1
    runs = any(node.probe is not None and _installed(node.probe) for node in servers)
    if not runs or len(servers) - len(away) >= needed:
        return []
    found = f"{len(servers) - len(away)} of {len(servers)} servers can be reached, not {', '.join(away)}"
    wanted = f"at least {needed}: the datastore needs more than half of its members"
    remedy = "bring one back; if they are lost for good: docs/operations.md, Several servers: Quorum lost"
    return [Problem("error", CONTROLLER, "quorum", found, wanted, remedy)]


def _judge_shared_address(nodes: Sequence[Node]) -> list[Problem]:
    """The address that servers keep among themselves by keepalived."""
    problems: list[Problem] = []
    servers = [node for node in nodes if node.shared is not None]
    for address in sorted({node.shared or "" for node in servers}):
        owners = [node.name for node in nodes if node.address == address]
        try:
            ipaddress.IPv4Address(address)
        except ValueError:
            found = f"k3s_api_address is {address!r}"
        else:
            found = f"k3s_api_address {address} is that of {', '.join(owners)}" if owners else ""
        if found:
            remedy = "a free address of the servers' network segment; or api_address_provider: external"
            problems.append(Problem("error", CONTROLLER, "api address", found, "a free IPv4 address", remedy))
    for node in servers:
        if node.probe is not None and not node.probe["keepalived"]:
            install = "apt-get" if node.probe["os"]["id"] in _INITRAMFS else "dnf"
            remedy = f"{install} install keepalived; or api_address_provider: external"
            problems.append(
                Problem("error", node.name, "api address", "no keepalived", "the package keepalived", remedy)
            )
    return problems


def judge_access(node: Node) -> list[Problem]:
    """Why a node could not be looked at."""
    text = " ".join(node.failure.split()).removeprefix("Task failed: ")
    if node.unreachable:
        check, wanted = "reachable", "an SSH connection"
        remedy = (
            f"try: ssh {node.address or node.name}; a changed host key must be removed from known_hosts on purpose; "
            f"if the machine is gone for good: slipway_absent: [{node.name}]"
        )
    elif re.search(r"sudo|become|privilege escalation|password is required", text, re.IGNORECASE):
        check, wanted = "sudo", "sudo without a password, or ansible_become_password"
        remedy = "on the node: visudo, add `USER ALL=(ALL) NOPASSWD: ALL`"
    elif re.search(r"python|interpreter|SyntaxError", text, re.IGNORECASE):
        check, wanted, remedy = "python", "Python 3.8 or newer", "on the node: apt-get install python3, or its like"
    else:
        check, wanted, remedy = "probe", "an answer", "run again with -vvv"
    return [Problem("error", node.name, check, text[:300] or "no answer", wanted, remedy)]


def judge_node(node: Node, probe: Probe, want: Requirements, release: Release) -> list[Problem]:
    """Everything that can be told of one machine alone."""
    problems: list[Problem] = []

    def add(severity: str, check: str, found: str, wanted: str, remedy: str) -> None:
        problems.append(Problem(severity, node.name, check, found, wanted, remedy))

    for judge_part in (_judge_system, _judge_kernel, _judge_size, _judge_network, _judge_k3s, _judge_gpus):
        judge_part(node, probe, want, release, add)
    return problems


Add = Callable[[str, str, str, str, str], None]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _judge_system(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    system = probe["os"]
    oldest = want.operating_systems.get(system["id"])
    known = ", ".join(f"{name} {version}" for name, version in sorted(want.operating_systems.items()))
    name = system["pretty_name"] or system["id"] or "unknown"
    if oldest is None:
        add("warning", "os", name, f"one that is tested: {known}", "go on at your own risk")
    elif _version(system["version_id"]) < _version(oldest):
        add("error", "os", name, f"{system['id']} {oldest} or newer", "upgrade the operating system")
    arch: str = _ARCHITECTURES.get(probe["arch"]) or probe["arch"]
    if release.arch and arch != release.arch:
        add("error", "architecture", arch, release.arch, f"use a bundle for {arch}, or another machine")
    if not probe["root"]:
        add("error", "sudo", "the probe did not run as root", "root", "set ansible_become: true for this host")
    if tuple(probe["python"]) < (3, 8):
        found = ".".join(map(str, probe["python"]))
        add("error", "python", found, "3.8 or newer", "install a newer python3 on the node")


def _judge_kernel(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    for feature in _FEATURES + _BACKEND_FEATURES.get(node.backend, ()):
        state = probe["features"].get(feature, "unknown")
        if state == "missing":
            remedy = "reboot if the kernel was just upgraded; else install the kernel's extra modules package"
            add("error", "kernel", f"{feature} missing in {probe['kernel']}", "built in or loadable", remedy)
        elif state == "unknown":
            remedy = "check it with: zgrep CONFIG_ /proc/config.gz"
            add("warning", "kernel", f"{feature}: the kernel does not tell", "built in or loadable", remedy)
    cgroup = probe["cgroup"]
    missing = [name for name in _CONTROLLERS if name not in cgroup["controllers"]]
    if missing:
        remedy = "kernel command line: cgroup_enable=memory cgroup_memory=1, then reboot"
        add("error", "cgroups", f"no controller {', '.join(missing)}", "cpu, cpuset, memory, pids", remedy)
    opted_out = any(argument.replace(" ", "") == "fail-cgroupv1=false" for argument in node.kubelet_args)
    if cgroup["version"] == 1 and not opted_out and (not release.k3s or _version(release.k3s)[:2] >= (1, 35)):
        remedy = "kernel command line: systemd.unified_cgroup_hierarchy=1, or kubelet-arg fail-cgroupv1=false"
        add("error", "cgroups", "version 1", "version 2 (Kubernetes 1.35 refuses version 1)", remedy)


def _installed(probe: Probe) -> bool:
    """Whether a k3s of ours is (at least partly) there."""
    return probe["k3s"]["state"] in ("ours", "interrupted", "incomplete")


def _judge_size(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    if probe["cpus"] < want.min_cpus:
        add("error", "cpus", str(probe["cpus"]), f"at least {want.min_cpus}", "use a larger machine")
    if probe["memory_mb"] < want.min_memory_mb:
        add("error", "memory", f"{probe['memory_mb']} MB", f"at least {want.min_memory_mb} MB", "use a larger machine")
    # What an installation has taken it need not find again.
    least = want.min_disk_gb_installed if probe["k3s"]["state"] == "ours" else want.min_disk_gb
    for disk in probe["disks"]:
        if disk["free_gb"] < least:
            remedy = f"free space on the file system of {disk['path']}, or enlarge it"
            add("error", "disk", f"{disk['free_gb']} GB free at {disk['path']}", f"at least {least:g} GB", remedy)
    if probe["swap_mb"]:
        remedy = "swapoff -a, and remove it from /etc/fstab"
        add("warning", "swap", f"{probe['swap_mb']} MB", "none: memory limits of pods do not hold with it", remedy)
    if probe["time_sync"] == "unsynchronized":
        remedy = "install and enable systemd-timesyncd or chrony"
        add("warning", "time", "the clock is not synchronized", "a running time service", remedy)


def _judge_network(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    ingress = () if {"traefik", "servicelb"} & set(node.disable) else INGRESS_PORTS
    for port in PORTS.get(node.role, _COMMON_PORTS) + BACKEND_PORTS.get(node.backend, ()) + ingress:
        if port not in probe["ports"]:
            continue
        owner = probe["ports"][port]
        # The kernel itself holds vxlan's port, and has no name.
        if _installed(probe) and (not owner or _OUR_PROGRAMS.match(owner)):
            continue
        remedy = "stop it; or k3s_disable: [traefik, servicelb]" if port in ingress else "stop it"
        add("error", "ports", f"{port} is taken by {owner or 'the kernel or an unknown process'}", "free", remedy)
    if not probe["default_route"]:
        remedy = "add one; a dummy one is enough: ip route add default via GATEWAY"
        add("error", "network", "no default route", "one, or k3s does not find the node's address", remedy)
    servers = probe["nameservers"]
    if not servers:
        add("warning", "dns", "/etc/resolv.conf names no server", "one, or pods resolve no outer name", "add one")
    elif all(server.startswith("127.") or server == "::1" for server in servers):
        remedy = "name real servers in a file and give it to k3s as resolv-conf"
        add("warning", "dns", "only a name server on loopback", "one that pods can reach", remedy)
    if not probe["resolves_itself"]:
        remedy = f"add to /etc/hosts: 127.0.1.1 {probe['hostname']}"
        add("warning", "dns", f"{probe['hostname']} does not resolve on itself", "an address", remedy)
    if not probe["machine_id"] or probe["machine_id"] == "uninitialized":
        add("error", "machine_id", "empty", "an id", "systemd-machine-id-setup, then reboot")


def _judge_k3s(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    state, found = probe["k3s"]["state"], ", ".join(probe["k3s"]["found"])
    if state == "foreign":
        remedy = "remove it with its own uninstall program, or use another machine"
        add("error", "k3s", f"not made by Slipway: {found}", "no other Kubernetes", remedy)
    elif state == "data":
        remedy = "if it is not this site's, move /var/lib/rancher away first"
        add("warning", "k3s", f"data of an earlier k3s: {found}", "none; this run takes it over", remedy)
    elif state == "incomplete":
        add(
            "warning",
            "k3s",
            f"parts are missing; there: {found or 'nothing'}",
            "binary and unit",
            "this run repairs it",
        )
    elif state == "interrupted":
        add("warning", "k3s", "an earlier run was interrupted here", "a finished one", "this run continues it")


def _judge_declaration(node: Node) -> list[Problem]:
    """What is declared of a node's GPUs and cannot be."""
    wanted, remedy = "a declaration that can be met", "correct it in the inventory"
    return [Problem("error", node.name, "gpus", fault, wanted, remedy) for fault in node.gpus.faults()]


def _judge_gpus(node: Node, probe: Probe, want: Requirements, release: Release, add: Add) -> None:
    found, declared = probe["gpu"], node.gpus
    number = len(found["devices"])
    if number != declared.gpus:
        counted = f"{_count(number, 'NVIDIA GPU')} on the PCI bus"
        if not declared.gpus:
            remedy = f"gpu_operator_gpus: {number} for this host, if they are to be used"
            add("warning", "gpus", counted, "none, as none is declared", remedy)
            return
        remedy = f"look for them: lspci -nn -d 10de: ; or gpu_operator_gpus: {number} for this host"
        add("error", "gpus", counted, f"{declared.gpus}, as declared", remedy)
    if not declared.gpus:
        return
    if found["nouveau"]:
        remedy = (
            "printf 'blacklist nouveau\noptions nouveau modeset=0\n' > /etc/modprobe.d/blacklist-nouveau.conf && "
            f"{_INITRAMFS.get(probe['os']['id'], 'dracut --force')} && reboot"
        )
        add("error", "gpus", "the kernel module nouveau holds the GPUs", "not loaded", remedy)
    _judge_driver(probe, declared, add)


# How a distribution makes its initial file system anew; all others with dracut.
_INITRAMFS = {"debian": "update-initramfs -u", "ubuntu": "update-initramfs -u"}


def _judge_driver(probe: Probe, declared: Declared, add: Add) -> None:
    found, kernel = probe["gpu"], probe["kernel"]
    debian = probe["os"]["id"] in _INITRAMFS
    headers = f"apt-get install linux-headers-{kernel}" if debian else f"dnf install kernel-devel-{kernel}"
    if found["host_driver"] and declared.driver == "operator":
        remedy = f"gpu_operator_driver: host; or {'apt-get' if debian else 'dnf'} remove '*nvidia*' && reboot"
        add("error", "gpu driver", "the host has one, so the operator builds none", "none on the host", remedy)
    elif found["host_driver"]:
        _judge_host_driver(probe, headers, add)
    elif declared.driver == "host":
        add(
            "error",
            "gpu driver",
            "no nvidia-smi",
            "the host's own driver",
            "install it; or gpu_operator_driver: operator",
        )
    else:
        if found["secure_boot"]:
            remedy = "install the distribution's signed driver; or: mokutil --disable-validation && reboot"
            add("error", "gpu driver", "Secure Boot is on", "off: what the operator builds is not signed", remedy)
        if not found["headers"]:
            wanted = "those of a kernel that the distribution still offers, as the operator's build fetches them"
            remedy = f"{headers}; if that finds none, upgrade the kernel and reboot"
            add("warning", "gpu driver", f"no headers of kernel {kernel}", wanted, remedy)


def _judge_host_driver(probe: Probe, headers: str, add: Add) -> None:
    """A driver of the host: loaded, and of the same version as its libraries."""
    found, kernel = probe["gpu"], probe["kernel"]
    if not found["loaded"]:
        if found["module"]:
            hint = (
                "mokutil --list-new: its key must be enrolled, as Secure Boot is on; " if found["secure_boot"] else ""
            )
            remedy = f"{hint}modprobe nvidia; dmesg | grep -i nvrm"
            add("error", "gpu driver", "the host's driver is not loaded", "loaded", remedy)
        else:
            build = "dkms autoinstall && modprobe nvidia"
            remedy = build if found["headers"] else f"{headers} && {build}"
            add(
                "error", "gpu driver", f"the host's driver was not built for kernel {kernel}", "a module for it", remedy
            )
    elif found["libraries"] and found["loaded"] not in found["libraries"]:
        versions = ", ".join(found["libraries"])
        remedy = "reboot, as the driver was upgraded while it was in use"
        add("error", "gpu driver", f"module {found['loaded']}, libraries {versions}", "the same version", remedy)


def _judge_unique(nodes: Sequence[Node], key: str, remedy: str) -> list[Problem]:
    holders: dict[str, list[str]] = {}
    for node in nodes:
        if node.probe and node.probe[key]:
            holders.setdefault(node.probe[key], []).append(node.name)
    return [
        Problem(
            "error", name, key, f"{value}, as {', '.join(other for other in names if other != name)}", "unique", remedy
        )
        for value, names in holders.items()
        if len(names) > 1
        for name in names
    ]


def judge_clocks(nodes: Sequence[Node], most: float) -> list[Problem]:
    """Nodes whose clock is certainly further than `most` seconds from that of the node in the middle.

    What the measurement leaves open is given to the node: a slow connection is no skew.
    """
    known = sorted(((node.offset, node) for node in nodes if node.offset is not None), key=lambda pair: pair[0])
    problems: list[Problem] = []
    if known:
        # Of two in the middle the one that agrees better with the controller.
        middle, reference = min(known[(len(known) - 1) // 2], known[len(known) // 2], key=lambda pair: abs(pair[0]))
        for offset, node in known:
            skew = abs(offset - middle) - node.error - reference.error
            if node is not reference and skew > most:
                found = f"{offset - middle:+.1f} s against {reference.name}"
                remedy = "set the clock and run a time service on all nodes"
                problems.append(Problem("error", node.name, "clock", found, f"within {most:g} s", remedy))
        if abs(middle) - reference.error > most:
            found = f"nodes are {middle:+.1f} s against the controller"
            remedy = "set the controller's clock, or that of the nodes; certificates would not be valid yet"
            problems.append(Problem("warning", CONTROLLER, "clock", found, f"within {most:g} s", remedy))
    return problems


def table(
    problems: Sequence[Problem],
    summary: Mapping[str, str],
    plan: str = "",
    width: int = 120,
    title: str = "preflight",
) -> str:
    """The report for a person: a line for each node, the plan, then each problem with what is wanted and what to do.

    What is well is only counted.
    """
    number = Counter(problem.severity for problem in problems)
    problems = [problem for problem in problems if problem.severity != "ok"]
    names = [*summary, *(problem.node for problem in problems)]
    column = max((len(name) for name in names), default=0)
    lines = [f"{name:{column}}  {text}"[:width] for name, text in summary.items()]
    if plan:
        lines += ["", plan]
    if problems:
        lines.append("")
        check = max(len(problem.check) for problem in problems)
        for problem in problems:
            head = f"{problem.severity.upper():7}  {problem.node:{column}}  {problem.check:{check}}  "
            lines.append(f"{head}{problem.found}")
            lines.append(f"{'':{len(head)}}wanted: {problem.wanted}")
            lines.append(f"{'':{len(head)}}remedy: {problem.remedy}")
    well = f", {number['ok']} ok" if number["ok"] else ""
    lines += ["", f"{title}: {_count(number['error'], 'error')}, {_count(number['warning'], 'warning')}{well}"]
    return "\n".join(lines).lstrip("\n")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


def summary_line(node: Node) -> str:
    """One line about a machine."""
    if node.absent:
        return f"{node.role:6}  declared absent"
    if node.probe is None:
        return f"{node.role:6}  {'not looked at' if node.asked else 'left out by --limit'}"
    probe = node.probe
    disk = min((disk["free_gb"] for disk in probe["disks"]), default=0)
    parts = [
        probe["os"]["pretty_name"],
        f"{probe['cpus']} CPUs",
        f"{probe['memory_mb'] / 1024:.1f} GB memory",
        f"{disk:.0f} GB free",
        f"cgroup v{probe['cgroup']['version']}",
        f"k3s: {probe['k3s']['state']}",
    ]
    if number := len(probe["gpu"]["devices"]):
        parts.append(_count(number, "GPU"))
    return f"{node.role:6}  " + ", ".join(parts)

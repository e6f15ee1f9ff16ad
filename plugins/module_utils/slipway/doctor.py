"""Judges what the doctor found on nodes: every fault with its remedy, and what is well. No input or output here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml
from ansible.module_utils.slipway.certificates import covers, parse_chain
from ansible.module_utils.slipway.drain import listed
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import parse_version
from ansible.module_utils.slipway.needs import amount
from ansible.module_utils.slipway.preflight import Node, Probe, Problem, judge_access, judge_clocks

# Where a finding belongs that no single node has.
CLUSTER = "cluster"
MIB, GIB = 2**20, 2**30
DAY = 24 * 3600
# etcd's own, where nothing tells another one.
QUOTA = 2 * GIB
# From here on there is no time left to plan anything.
_QUOTA_ERROR_PERCENT = 95
# What k3s tells its kubelet, and the kubelet's own limit for memory.
EVICTION = {"nodefs.available": "5%", "imagefs.available": "5%", "memory.available": "100Mi"}
# Of inodes k3s sets no limit; without any nothing can be written either.
_INODES_ERROR_PERCENT, _INODES_PERCENT = 5, 10
_FILE_SYSTEMS = {"/var/lib/kubelet": "nodefs", "/var/lib/rancher/k3s/agent/containerd": "imagefs"}
_AUTHORITY = re.compile(r"-ca(\.nochain)?\.crt$")
_DATA = "/var/lib/rancher/k3s/"


@dataclass(frozen=True)
class Limits:
    """The thresholds; units are in the names."""

    certificate_days: int = 30
    certificate_error_days: int = 7
    authority_days: int = 180
    etcd_percent: int = 75
    snapshot_hours: float = 25
    max_clock_skew_seconds: float = 2.0
    min_free_percent: int = 15
    min_memory_mb: int = 256
    restarts: int = 5

    @property
    def certificates(self) -> tuple[int, int]:
        """Days before the end of a certificate that are an error and a warning."""
        return self.certificate_error_days, self.certificate_days

    @property
    def authorities(self) -> tuple[int, int]:
        """The same of an authority."""
        return self.certificate_days, self.authority_days


@dataclass(frozen=True)
class Site:
    """What the site wants, and how commands for it begin.

    `version` is that of k3s in the bundle and `images` are the references in it; both empty where it cannot be read. `domain` is that of
    the front door, empty where there is none. `namespaces` are those of k3s and of the platform.
    """

    playbook: str = "ansible-playbook playbooks/"
    kubectl: str = "kubectl"
    version: str = ""
    images: frozenset[str] = frozenset()
    domain: str = ""
    namespaces: tuple[str, ...] = ()


class Look:
    """The findings of one place; what was looked at without a fault is one, too."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[Problem] = []

    def add(self, severity: str, check: str, found: str, wanted: str, remedy: str) -> None:
        """A fault (error or warning)."""
        self.found.append(Problem(severity, self.where, check, found, wanted, remedy))

    def error(self, check: str, found: str, wanted: str, remedy: str) -> None:
        self.add("error", check, found, wanted, remedy)

    def warn(self, check: str, found: str, wanted: str, remedy: str) -> None:
        self.add("warning", check, found, wanted, remedy)

    def well(self, check: str, found: str) -> None:
        """What was found, unless the check has shown a fault."""
        if not any(problem.check == check for problem in self.found):
            self.add("ok", check, found, "", "")


def judge_nodes(nodes: Sequence[Node], site: Site, limits: Limits, now: datetime) -> list[Problem]:
    """Everything that the nodes themselves tell, without the API."""
    found: list[Problem] = []
    for node in nodes:
        if node.probe is not None:
            look = Look(node.name)
            _judge_service(look, node.probe, site, limits)
            _judge_certificates(look, node.probe, limits, now)
            _judge_room(look, node, node.probe, limits)
            _judge_modes(look, node.probe)
            if node.role == "server":
                _judge_server(look, node.probe, site, limits)
            _judge_clock(look, node)
            found += look.found
        elif node.asked:
            found += judge_access(node)
    skewed = judge_clocks(nodes, limits.max_clock_skew_seconds)
    names = {problem.node for problem in skewed}
    found = [
        each for each in found if (each.severity, each.check) != ("ok", "clock") or each.node not in names
    ] + skewed
    found += judge_members(nodes, site)
    if site.domain:
        found += _judge_front_door(nodes, site, limits, now)
    return found


def runs(probe: Probe) -> bool:
    """Whether k3s has said that it is ready."""
    return bool(probe["service"]["active"] == "active")


def _judge_service(look: Look, probe: Probe, site: Site, limits: Limits) -> None:
    service, k3s = probe["service"], probe["k3s"]
    unit = service["unit"]
    log = f"on the node: journalctl -u {unit} -n 50"
    if not probe["root"]:
        look.error("sudo", "the doctor did not look as root", "root", "set ansible_become: true for this host")
    if not service["there"]:
        look.error("k3s", f"there is no {unit}", "k3s, as the inventory says", f"{site.playbook}site.yml")
        return
    if not runs(probe):
        said = f"; it said last: {service['last']}" if service["last"] else ""
        remedy = f"on the node: systemctl start {unit}; if it does not come up: journalctl -u {unit} -n 50"
        look.error("k3s", f"{unit} is {service['active']}{said}", "active", remedy)
    elif not probe["served"].get("kubelet"):
        look.error("k3s", "nobody answers on the kubelet's port 10250", "the kubelet", log)
    if service["enabled"] != "enabled":
        found = f"{unit} is {service['enabled'] or 'not enabled'}"
        look.warn("k3s", found, "enabled, so that it starts with the machine", f"on the node: systemctl enable {unit}")
    # One that has lasted since is over.
    young = service["started"] is None or probe["time"] - service["started"] < DAY
    if service["restarts"] >= limits.restarts and young:
        found = f"systemd has started {unit} anew {service['restarts']} times"
        look.warn("k3s", found, "no restarts by itself", log)
    if k3s["changed"] or service["reload"]:
        what = listed(k3s["changed"]) or "its unit"
        remedy = f"on the node, one server at a time: systemctl daemon-reload && systemctl restart {unit}"
        look.warn("k3s", f"{what} changed after k3s was started", "what runs is what lies there", remedy)
    look.well("k3s", f"{unit} is active{_age(probe)}")
    if site.version and k3s["version"] != site.version:
        found = f"the program is k3s {k3s['version'] or 'of no version'}, the bundle has {site.version}"
        look.warn("version", found, "the same", version_remedy(k3s["version"], site))


def version_remedy(found: str, site: Site) -> str:
    """How a node gets to the bundle's version."""
    try:
        newer = parse_version(found) > parse_version(site.version)
    except SlipwayError:
        newer = False
    return f"take a bundle with {found} or newer" if newer else f"{site.playbook}upgrade.yml"


def _age(probe: Probe) -> str:
    start = probe["service"]["started"]
    if start is None:
        return ""
    seconds = max(0, probe["time"] - start)
    return f" for {seconds / DAY:.0f} d" if seconds >= 2 * DAY else f" for {seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Lifetime:
    """Days until a certificate ends (negative: since), and until it begins where it is not valid yet."""

    days: float
    early: float = 0

    def severity(self, error_days: int, warning_days: int) -> str:
        """error, warning, or empty, by the days that are left."""
        if self.days <= error_days or self.early > 0:
            return "error"
        return "warning" if self.days <= warning_days else ""

    def __str__(self) -> str:
        if self.early > 0:
            return f"is valid only in {self.early:.1f} days"
        if self.days <= 0:
            return f"expired {-self.days:.0f} days ago"
        return f"ends in {self.days:.0f} days"


def lifetime(pem: str, now: datetime) -> Lifetime | None:
    """That of the first certificate in a text; None where there is none that can be read."""
    try:
        first = parse_chain(pem, "")[0]
    except (SlipwayError, IndexError):
        return None
    left, early = first.not_valid_after_utc - now, first.not_valid_before_utc - now
    return Lifetime(left.total_seconds() / DAY, max(0.0, early.total_seconds() / DAY))


def _judge_certificates(look: Look, probe: Probe, limits: Limits, now: datetime) -> None:
    files = {path.replace(_DATA, ""): pem for path, pem in probe["certificates"].items()}
    ports = {f"that served by the {name}": pem for name, pem in probe["served"].items() if pem and name != "front door"}
    ages = {name: age for name, pem in {**files, **ports}.items() if (age := lifetime(pem, now))}
    leaves = {name: age for name, age in ages.items() if not _AUTHORITY.search(name)}
    restart = f"on the node, one server at a time: systemctl restart {probe['service']['unit']}; k3s renews at a start what ends within 120 days"
    _judge_ages(look, "certificates", leaves, limits.certificates, restart)
    rotate = "k3s does not renew it: k3s certificate rotate-ca, by the documentation of k3s"
    _judge_ages(
        look, "authority", {name: ages[name] for name in ages if name not in leaves}, limits.authorities, rotate
    )
    if leaves:
        first = min(leaves, key=lambda name: leaves[name].days)
        look.well("certificates", f"{len(leaves)}; the first, {first}, {leaves[first]}")


def _judge_ages(look: Look, check: str, ages: Mapping[str, Lifetime], days: tuple[int, int], remedy: str) -> None:
    """One line for all that are an error, one for all that are a warning; the first to end is told."""
    for severity in ("error", "warning"):
        bad = [name for name, age in ages.items() if age.severity(*days) == severity]
        bad.sort(key=lambda name: ages[name].days)
        if bad:
            found = f"{listed(bad, 3)}: {bad[0].rpartition('/')[2]} {ages[bad[0]]}"
            clock = "set the clock of the node, or of the server that has issued it"
            look.add(severity, check, found, f"at least {days[1]} days", clock if ages[bad[0]].early else remedy)


def thresholds(node: Node, probe: Probe) -> dict[str, str]:
    """The kubelet's limits for hard eviction, by signal: what k3s or a file of its folder says, over that its arguments."""
    limits = dict(EVICTION)
    for text in probe["kubelet"]:
        try:
            given = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        if isinstance(given, Mapping) and isinstance(given.get("evictionHard"), Mapping):
            limits.update({str(signal): str(value) for signal, value in given["evictionHard"].items()})
    for argument in node.kubelet_args:
        name, _, value = argument.partition("=")
        if name.strip() == "eviction-hard":
            for part in value.split(","):
                signal, _, limit = part.strip().partition("<")
                limits[signal] = limit
    return limits


def _bytes(threshold: str, size: float) -> float:
    """A limit of the kubelet, as a share of `size` or as it is; 0 where it cannot be read."""
    try:
        return size * float(threshold[:-1]) / 100 if threshold.endswith("%") else amount(threshold, "")
    except (SlipwayError, ValueError):
        return 0


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 100


def _judge_room(look: Look, node: Node, probe: Probe, limits: Limits) -> None:
    hard = thresholds(node, probe)
    free = []
    for system in probe["file_systems"]:
        paths = ", ".join(system["paths"])
        remedy = f"on the node: du -xhd3 {system['paths'][0]} | sort -h | tail; free space, or enlarge the file system"
        percent = _share(system["free"], system["size"])
        signals = [f"{_FILE_SYSTEMS[path]}.available" for path in system["paths"] if path in _FILE_SYSTEMS]
        # Where only the datastore lies nobody evicts, but it stops all the same.
        limit = max((_bytes(hard[signal], system["size"]) for signal in signals), default=0.05 * system["size"])
        least = _share(limit, system["size"])
        found = f"{system['free'] / GIB:.1f} of {system['size'] / GIB:.1f} GiB ({percent:.0f} %) free at {paths}"
        if percent < least:
            look.error("disk", found, f"more than {least:.0f} %, below which the kubelet ends pods", remedy)
        elif percent < limits.min_free_percent:
            look.warn(
                "disk",
                found,
                f"at least {limits.min_free_percent} %; from {least:.0f} % on the kubelet ends pods",
                remedy,
            )
        free.append(percent)
        if not system["inodes"]:
            continue
        percent = _share(system["inodes_free"], system["inodes"])
        if percent < _INODES_PERCENT:
            severity = "error" if percent < _INODES_ERROR_PERCENT else "warning"
            remedy = (
                f"on the node: du -x --inodes -d3 {system['paths'][0]} | sort -n | tail; remove files that nobody needs"
            )
            look.add(
                severity, "disk", f"{percent:.0f} % of inodes free at {paths}", f"at least {_INODES_PERCENT} %", remedy
            )
    if free:
        look.well("disk", f"{min(free):.0f} % free")
    memory = probe["available_mb"]
    found = f"{memory} of {probe['memory_mb']} MiB available"
    least_mb = _bytes(hard["memory.available"], probe["memory_mb"] * MIB) / MIB
    if memory < max(least_mb, limits.min_memory_mb):
        severity = "error" if memory < least_mb else "warning"
        remedy = "on the node: ps -eo rss,args --sort=-rss | head; end or limit what is largest"
        look.add(severity, "memory", found, f"at least {max(least_mb, limits.min_memory_mb):.0f} MiB", remedy)
    look.well("memory", found)


def _judge_modes(look: Look, probe: Probe) -> None:
    for secret in probe["modes"]:
        path, mode = secret["path"], int(secret["mode"], 8)
        # Only a folder is of use with x.
        private = "0700" if mode & 0o100 else "0600"
        if secret["uid"] != 0:
            found = f"{path} belongs to user {secret['uid']}"
            look.error("secret files", found, "to root", f"on the node: chown root: {path}")
        if mode & 0o077:
            severity = "error" if secret["open"] else "warning"
            who = "everybody" if secret["open"] else "a group" if mode & 0o070 else "others, but for its folder"
            found = f"{path} has mode {secret['mode']}: {who} may read it"
            look.add(severity, "secret files", found, private, f"on the node: chmod {private} {path}")
    look.well("secret files", f"{len(probe['modes'])} are root's alone")


def _judge_clock(look: Look, node: Node) -> None:
    if node.probe and node.probe["time_sync"] == "unsynchronized":
        remedy = "on the node: install and enable systemd-timesyncd or chrony"
        look.warn("time", "the clock is not synchronized", "a running time service", remedy)
    if node.offset is not None:
        look.well("clock", f"{node.offset:+.2f} s against the controller")


def _judge_server(look: Look, probe: Probe, site: Site, limits: Limits) -> None:
    api, etcd = probe["api"], probe["etcd"]
    if runs(probe) and api:
        remedy = "on the node: journalctl -u k3s -n 50; k3s kubectl get --raw '/readyz?verbose'"
        if api["status"] == 200:
            look.well("API", "ready")
        elif api["failed"]:
            look.error("API", f"not ready: {', '.join(api['failed'])}", "ready", remedy)
        else:
            found = f"status {api['status']}" if api["status"] else f"no answer: {api['error']}"
            look.error("API", found, "ready", remedy)
    if etcd is None:
        if probe["service"]["there"]:
            look.error("etcd", "this server has no data of a member", "a member", f"{site.playbook}site.yml")
        return
    _judge_member(look, probe, etcd, limits)
    _judge_snapshots(look, probe, etcd["snapshots"], etcd["begun"], limits)


def _judge_member(look: Look, probe: Probe, etcd: Mapping[str, Any], limits: Limits) -> None:
    metrics = etcd["metrics"]
    restart = "on the node, one server at a time: systemctl restart k3s, which defragments"
    size = metrics.get("etcd_mvcc_db_total_size_in_bytes") or etcd["size"]
    quota = metrics.get("etcd_server_quota_backend_bytes") or QUOTA
    used = metrics.get("etcd_mvcc_db_total_size_in_use_in_bytes") or size
    percent = 100 * size / quota
    found = f"{size / MIB:.0f} of {quota / MIB:.0f} MiB, {used / MIB:.0f} in use"
    if percent >= limits.etcd_percent:
        severity = "error" if percent >= _QUOTA_ERROR_PERCENT else "warning"
        remedy = restart
        if 100 * used / quota >= limits.etcd_percent:
            remedy = f"k3s_server_config: {{etcd-arg: [quota-backend-bytes={int(2 * quota)}]}}, then site.yml; find out what fills it"
        look.add(severity, "etcd", found, f"less than {limits.etcd_percent} %; a full one takes no changes", remedy)
    if runs(probe):
        if metrics.get("etcd_server_has_leader") == 0:
            remedy = (
                "start the other servers; if they are lost for good: k3s server --cluster-reset on the best survivor"
            )
            look.error("etcd", "there is no leader: too few members are up", "a majority of the members", remedy)
        elif etcd["alarm"]:
            remedy = f"NOSPACE: {restart} and clears it; CORRUPT: restore a snapshot, or let this server join anew"
            look.error("etcd", etcd["alarm"], "no alarm", remedy)
        if metrics.get("etcd_server_is_learner") == 1:
            remedy = "wait a minute; if it stays so: journalctl -u k3s -n 50"
            look.warn("etcd", "still a learner, without a vote", "a voter", remedy)
        if not metrics:
            remedy = "on the node: journalctl -u k3s -n 50; curl http://127.0.0.1:2381/metrics"
            look.warn("etcd", "it does not tell how it is (127.0.0.1:2381)", "metrics", remedy)
        role = "leader" if metrics.get("etcd_server_is_leader") == 1 else "follower"
        look.well("etcd", f"{role}, {found}")


def _judge_snapshots(look: Look, probe: Probe, snapshots: Mapping[str, Any], begun: float, limits: Limits) -> None:
    wanted = f"one within {limits.snapshot_hours:g} hours"
    remedy = "on the node: k3s etcd-snapshot save; why none was made: journalctl -u k3s | grep -i snapshot"
    newest = snapshots["time"]
    hours = (probe["time"] - (newest or begun)) / 3600
    if hours <= limits.snapshot_hours:
        name = snapshots["newest"] or "none yet, as the member is new"
        look.well("snapshots", f"{snapshots['count']}; the newest: {name}, {hours:.1f} h")
    elif newest:
        look.warn("snapshots", f"the newest, {snapshots['newest']}, is {hours:.0f} hours old", wanted, remedy)
    else:
        look.warn("snapshots", f"none in {snapshots['folder']}", wanted, remedy)


def judge_members(nodes: Sequence[Node], site: Site) -> list[Problem]:
    """Whether the members of etcd, as one that knows lists them, are the servers of the inventory."""
    look = Look(CLUSTER)
    etcds = [node.probe["etcd"] for node in nodes if node.probe and node.probe["etcd"]]
    members = next((etcd["members"] for etcd in etcds if etcd["members"]), None)
    if members is None:
        return []
    servers = {node.name.lower(): node for node in nodes if node.role == "server"}
    # Their names are those of the nodes and eight digits; a new one has none yet.
    names = [member["name"].rpartition("-")[0].lower() for member in members if member["name"]]
    for name in sorted(set(names) - set(servers)):
        remedy = f"if its machine is gone: {site.kubectl} delete node {name}, or, without such a node, etcdctl; else name it in hosts.yml"
        look.error(
            "etcd members", f"{name} is one, and no server of the inventory", "only servers that are there", remedy
        )
    for name in sorted(set(servers) - set(names)):
        probe = servers[name].probe
        if probe and runs(probe):
            remedy = "on the node: journalctl -u k3s -n 50"
            look.error("etcd members", f"{name} is none", "every server", remedy)
    if any(count > 1 for count in Counter(names).values()):
        twice = listed([name for name, count in Counter(names).items() if count > 1])
        remedy = "remove the one whose machine is gone, by the documentation of k3s"
        look.error("etcd members", f"more than one of {twice}", "one for each server", remedy)
    if learners := [member["name"] or "one without a name" for member in members if member["learner"]]:
        remedy = "wait a minute; if it stays so: journalctl -u k3s on that server"
        look.warn("etcd members", f"{listed(learners)} without a vote", "voters", remedy)
    if len(members) % 2 == 0:
        remedy = "add a server, or take one out"
        look.warn(
            "etcd members", f"{len(members)}: an even number", "an odd one: one more survives no more losses", remedy
        )
    look.well("etcd members", f"{len(members)}; {(len(members) - 1) // 2} may be lost")
    return look.found


def _judge_front_door(nodes: Sequence[Node], site: Site, limits: Limits, now: datetime) -> list[Problem]:
    """What people meet at the domain; the nodes that give no answer may not be meant to."""
    look = Look(CLUSTER)
    probed = [node for node in nodes if node.probe and runs(node.probe)]
    answers: dict[str, list[str]] = {}
    for node in probed:
        if node.probe and (pem := node.probe["served"].get("front door")):
            answers.setdefault(pem, []).append(node.name)
    check = f"{site.kubectl} -n front-door describe certificate; a given one: renew its file, then {site.playbook}platform.yml"
    if probed and not answers:
        remedy = f"{site.kubectl} -n kube-system get pods,services -o wide"
        look.error("front door", "no node answers with TLS on port 443", site.domain, remedy)
    for pem, names in answers.items():
        age = lifetime(pem, now)
        if age is None:
            continue
        if not covers(parse_chain(pem, "")[0], site.domain):
            look.error("front door", f"the certificate on {listed(names)} is for another name", site.domain, check)
        if severity := age.severity(*limits.certificates):
            look.add(
                severity, "front door", f"its certificate {age}", f"at least {limits.certificate_days} days", check
            )
        look.well("front door", f"its certificate {age}")
    return look.found


def summary_line(node: Node, now: datetime) -> str:
    """One line about a node."""
    if node.probe is None:
        return f"{node.role:6}  {'not looked at' if node.asked else 'left out by --limit'}"
    probe = node.probe
    parts = [f"k3s {probe['k3s']['version'] or '?'} {probe['service']['active']}{_age(probe)}"]
    if etcd := probe["etcd"]:
        parts.append(f"etcd {(etcd['metrics'].get('etcd_mvcc_db_total_size_in_bytes') or etcd['size']) / MIB:.0f} MiB")
    names = [name for name in probe["certificates"] if not _AUTHORITY.search(name)]
    if ages := [age.days for name in names if (age := lifetime(probe["certificates"][name], now))]:
        parts.append(f"certificates {min(ages):.0f} d")
    if rooms := [_share(system["free"], system["size"]) for system in probe["file_systems"]]:
        parts.append(f"disk {min(rooms):.0f} % free")
    parts.append(f"memory {probe['available_mb'] / 1024:.1f} GiB free")
    if node.offset is not None:
        parts.append(f"clock {node.offset:+.1f} s")
    return f"{node.role:6}  " + ", ".join(parts)

"""What may follow what when k3s is upgraded, which nodes are to be done, and in which order. No input or output here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import K3sVersion, parse_version
from ansible.module_utils.slipway.preflight import CONTROLLER, Problem, in_order

GUIDE = "docs/operations.md, Upgrade k3s"


@dataclass(frozen=True)
class NodeState:
    """One host of the inventory, as it shows itself and as the cluster knows it.

    `binary` is the version of the program that lies there, `started` the one that its service was last started with (empty: not
    known), `kubelet` the one that the node reports to the cluster (empty: it has not joined). `ours` says that an upgrade has
    cordoned it and has not ended.
    """

    name: str
    role: str
    installed: bool = True
    binary: str = ""
    started: str = ""
    kubelet: str = ""
    unready: str = ""
    ours: bool = False

    def is_done(self, target: str) -> bool:
        """Whether nothing is left to do for this version."""
        return (self.binary, self.kubelet) == (target, target) and self.started in ("", target) and not self.ours


@dataclass(frozen=True)
class Plan:
    """Names of the nodes to upgrade, in order: servers first.

    `snapshot` is the server to take a snapshot on; empty where none is needed, or where a server runs the new version already: what one
    could return to is then the snapshot of the run before.
    """

    servers: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    snapshot: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.servers + self.agents


def make_plan(nodes: Iterable[NodeState], target: str) -> Plan:
    """Which nodes to bring to `target`. A node that an interrupted run has begun comes first, before another one is disturbed."""
    members = [node for node in nodes if node.kubelet]

    def names(role: str) -> tuple[str, ...]:
        due = [node for node in members if node.role == role and not node.is_done(target)]
        return tuple(node.name for node in sorted(due, key=lambda node: (not node.ours, node.name)))

    servers = names("server")
    reached = any(node.role == "server" and node.kubelet == target for node in members)
    # One that is ready answers; where none is, the snapshot fails and says so.
    answering = {node.name for node in members if not node.unready}
    candidates = [name for name in servers if name in answering] or list(servers)
    return Plan(servers, names("agent"), "" if reached or not servers else candidates[0])


def judge_versions(nodes: Sequence[NodeState], target: str, released: str = "", built: str = "") -> list[Problem]:
    """Why the nodes cannot be brought to `target`, errors first.

    `released` is the day on which the target was released (2026-08-27), `built` when the API server that runs was built
    (2026-08-20T10:00:00Z); empty where nobody says. Raises SlipwayError when `target` is no version of k3s.
    """
    wanted = parse_version(target)
    problems: list[Problem] = []
    known: dict[str, K3sVersion] = {}
    for node in nodes:
        if not node.kubelet:
            problems += _judge_absence(node)
            continue
        try:
            known[node.name] = parse_version(node.kubelet)
        except SlipwayError as error:
            problems.append(Problem("error", node.name, "version", str(error), "k3s", "upgrade it by its own means"))
            continue
        if node.unready and not node.ours:
            remedy = "mend it, or run playbooks/site.yml, before anything is upgraded"
            problems.append(Problem("error", node.name, "node", node.unready, "Ready", remedy))
        problems += _judge_step(node, known[node.name], wanted, target)
    problems += _judge_skew(nodes, known)
    problems += _judge_dates(known.values(), wanted, target, released, built)
    return in_order(problems)


def _judge_absence(node: NodeState) -> list[Problem]:
    if node.installed:
        remedy = (
            "bring it back with playbooks/site.yml and the bundle of the version that runs, or take it out of hosts.yml"
        )
        return [
            Problem("error", node.name, "node", "k3s is installed, the cluster does not know it", "a member", remedy)
        ]
    remedy = "nothing: playbooks/site.yml lets it join after the upgrade"
    return [Problem("warning", node.name, "node", "not in the cluster yet", "a member", remedy)]


def _judge_step(node: NodeState, found: K3sVersion, wanted: K3sVersion, target: str) -> list[Problem]:
    """Whether one node may go from `found` to `wanted` in one step."""
    if found > wanted:
        remedy = f"take a bundle with {node.kubelet} or newer; an older version needs a restored snapshot ({GUIDE})"
        text = f"{node.kubelet}, newer than the bundle's {target}"
        return [Problem("error", node.name, "downgrade", text, f"at most {target}", remedy)]
    if found.major != wanted.major or wanted.minor - found.minor > 1:
        step = f"v{found.major}.{found.minor + 1}" if found.major == wanted.major else f"v{wanted.major}.0"
        remedy = f"upgrade with a bundle of {step} first, then minor by minor"
        text = f"{node.kubelet}, more than one minor before {target}"
        return [Problem("error", node.name, "skipped minor", text, "one minor at a time", remedy)]
    return []


def _judge_skew(nodes: Sequence[NodeState], known: dict[str, K3sVersion]) -> list[Problem]:
    """Kubernetes allows no kubelet that is newer than an API server, and servers that are one minor apart at most."""
    servers = {node.name: known[node.name] for node in nodes if node.role == "server" and node.name in known}
    if not servers:
        return []
    oldest = min(servers, key=lambda name: servers[name])
    newest = max(servers.values())
    problems = []
    if newest.minor - servers[oldest].minor > 1:
        remedy = "bring the older ones to the next minor first"
        text = f"servers are {newest.minor - servers[oldest].minor} minors apart"
        problems.append(Problem("error", oldest, "skew", text, "at most one", remedy))
    for node in nodes:
        if node.role == "agent" and node.name in known and known[node.name].line > servers[oldest].line:
            text = f"{node.kubelet}, newer than server {oldest}"
            problems.append(Problem("warning", node.name, "skew", text, "not newer than a server", "this run mends it"))
    return problems


def _judge_dates(
    known: Iterable[K3sVersion], wanted: K3sVersion, target: str, released: str, built: str
) -> list[Problem]:
    """A newer minor that was released before the patch that runs lacks what that patch has mended."""
    if not any(found.line < wanted.line for found in known):
        return []
    rule = "a release that is newer than the one that runs"
    try:
        day, running = datetime.fromisoformat(released).date(), datetime.fromisoformat(built).date()
    except ValueError:
        text = (
            f"the bundle says no release date of {target}" if not released else "the server says no date of its build"
        )
        remedy = "compare the release dates yourself; the key released of the artifact bin/k3s says it"
        return [Problem("warning", CONTROLLER, "release date", text, rule, remedy)]
    if day < running:
        text = f"{target} is of {day}, the API server that runs is of {running}"
        return [Problem("error", CONTROLLER, "release date", text, rule, "take a later patch of that minor")]
    return []

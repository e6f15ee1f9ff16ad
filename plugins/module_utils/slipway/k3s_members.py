"""What servers tell of a cluster's nodes: who votes in its datastore, and who is gone.

Runs on nodes too: standard library only, Python 3.8 or newer. No input or output here but `ask`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import kubectl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NODES = "/api/v1/nodes"
# k3s sets it on the Nodes of servers with embedded etcd.
LABEL = "node-role.kubernetes.io/etcd"
VOTER = "EtcdIsVoter"
GUIDE = "docs/operations.md, Several servers"


@dataclass(frozen=True)
class Member:
    """One Node of the cluster. `server` says that it belongs to a member of etcd, `votes` that the member votes, `reason` why not."""

    name: str
    server: bool
    ready: bool
    votes: bool
    reason: str = ""


def _condition(node: Mapping[str, Any], kind: str) -> dict[str, Any]:
    conditions = (node.get("status") or {}).get("conditions") or []
    return dict(next((each for each in conditions if each.get("type") == kind), {}))


def read_members(nodes: Iterable[Mapping[str, Any]]) -> list[Member]:
    """The Nodes that the API lists."""
    found = []
    for node in nodes:
        voter = _condition(node, VOTER)
        found.append(
            Member(
                name=node["metadata"]["name"],
                server=(node["metadata"].get("labels") or {}).get(LABEL) == "true",
                ready=_condition(node, "Ready").get("status") == "True",
                votes=voter.get("status") == "True",
                reason=str(voter.get("message") or voter.get("reason") or ""),
            )
        )
    return found


def ask(timeout: float = 15) -> list[Member]:
    """The Nodes, as the server on this machine lists them within `timeout` seconds. Raises SlipwayError where it does not answer."""
    # A raw path needs no discovery, which would be five requests and a cache.
    text = kubectl("get", "--raw", NODES, f"--request-timeout={timeout:g}s", timeout=timeout + 5)
    try:
        return read_members(json.loads(text)["items"])
    except (ValueError, KeyError, TypeError) as error:
        raise SlipwayError(f"the API server's list of nodes cannot be read: {error}") from error


def lagging(members: Iterable[Member], servers: Iterable[str]) -> dict[str, str]:
    """Which of the servers, named as in the inventory, cannot be counted on yet, and why: no Node, not Ready, or no vote."""
    known = {member.name: member for member in members}
    found = {}
    for server in servers:
        # Kubernetes registers nodes in lower case.
        member = known.get(server.lower())
        if member is None:
            found[server] = "it has not joined"
        elif not member.ready:
            found[server] = "its node is not Ready"
        elif not member.votes:
            found[server] = f"its member of etcd does not vote{': ' if member.reason else ''}{member.reason}"
    return found


@dataclass(frozen=True)
class Server:
    """A server of the site, as it shows itself: whether it holds data of a cluster, and the Nodes that it lists (None: no answer)."""

    name: str
    has_data: bool
    members: tuple[Member, ...] | None = None


def read_server(name: str, state: Mapping[str, Any]) -> Server:
    """A server in what the module k3s_state says of it."""
    members = state["members"]
    return Server(
        name, bool(state["has_data"]), None if members is None else tuple(Member(**member) for member in members)
    )


@dataclass(frozen=True)
class ClusterPlan:
    """What a run does with the servers, in order.

    `asked` is the server that speaks for the cluster; empty before there is one. `leaving`: Nodes of machines that are declared absent.
    `first`: servers that join or come up again, before those in `then`, which run, are given anything new: a change restarts
    them one at a time, and takes a vote away for that long. `unsettled`: running servers to wait for before anything.
    """

    asked: str = ""
    leaving: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    unsettled: tuple[str, ...] = ()


def make_cluster_plan(
    servers: Sequence[Server], absent: Sequence[str] = (), absent_servers: Sequence[str] = ()
) -> ClusterPlan:
    """Order the servers of a site without the machines in `absent`, which are declared gone for good; some of them were servers.

    Raises SlipwayError: what runs is not one cluster, or none of several servers with data answers.
    """
    running = sorted((server for server in servers if server.members is not None), key=lambda server: server.name)
    require_one_cluster(running)
    holders = sorted(server.name for server in servers if server.has_data)
    if holders and not running and len(servers) + len(absent_servers) > 1:
        raise SlipwayError(_no_quorum(holders, len(servers) + len(absent_servers), absent_servers))
    if not running:
        names = tuple(sorted(server.name for server in servers))
        # The one that began must know another one: removed from the cluster by anybody, it would begin a second one at its next start.
        return ClusterPlan(first=names, then=names[:1] if len(names) > 1 else ())
    then = tuple(server.name for server in running)
    members = running[0].members or ()
    gone = {name.lower() for name in absent}
    return ClusterPlan(
        asked=then[0],
        leaving=tuple(sorted(member.name for member in members if member.name in gone)),
        first=tuple(sorted(server.name for server in servers if server.members is None)),
        then=then,
        unsettled=tuple(lagging(members, then)) if len(then) > 1 else (),
    )


@dataclass(frozen=True)
class Removal:
    """How a node is taken out of its cluster.

    `asked` is the server that does it, `voters` are those that must be well afterwards, `known` says whether the cluster lists the node,
    `alive` whether pods can be moved off it in order. `even` is the number of servers that remain if that number is a bad one, else 0.
    """

    asked: str
    voters: tuple[str, ...] = ()
    known: bool = False
    alive: bool = False
    even: int = 0


def plan_removal(name: str, others: Sequence[Server]) -> Removal:
    """How to remove the node of that name, given the servers of the site beside it.

    Raises SlipwayError: no other server answers, or the others would be no quorum without it.
    """
    running = sorted((server for server in others if server.members is not None), key=lambda server: server.name)
    if not running:
        raise SlipwayError(
            f"No server but {name} answers, so there is no cluster that it could be taken out of. Nothing was changed. Start k3s on another "
            "server; to take Slipway off the whole site: playbooks/reset.yml."
        )
    require_one_cluster(running)
    members = {member.name: member for member in running[0].members or ()}
    node = members.pop(name.lower(), None)
    stay = [member for member in members.values() if member.server]
    well = [member.name for member in stay if member.ready and member.votes]
    if node is not None and node.server and len(well) <= len(stay) // 2:
        sick = sorted(member.name for member in stay if member.name not in well)
        raise SlipwayError(
            f"Without {name} the datastore would have {len(stay)} members, and {', '.join(sick)} cannot be counted on: that is no majority. "
            "Nothing was changed. Mend them first (playbooks/site.yml), or remove those before."
        )
    server = node is not None and node.server
    return Removal(
        asked=running[0].name,
        voters=tuple(sorted(well)) if server else (),
        known=node is not None,
        alive=node is not None and node.ready,
        even=len(stay) if server and len(stay) % 2 == 0 else 0,
    )


def require_one_cluster(running: Sequence[Server]) -> None:
    for server in running:
        names = {member.name for member in server.members or ()}
        # One that has just come up may not have registered its own Node yet.
        strangers = [other.name for other in running if other is not server and other.name.lower() not in names]
        others = {member.name for other in running if other is not server for member in other.members or ()}
        if strangers and server.name.lower() not in others:
            raise SlipwayError(
                f"{server.name} and {', '.join(strangers)} run different clusters: neither lists the other. Nothing was changed. "
                f"Decide which one is the site's, take k3s off the other machines (playbooks/remove_node.yml), and run this again ({GUIDE})."
            )


def _no_quorum(holders: Sequence[str], total: int, absent: Sequence[str]) -> str:
    gone = f"; declared absent: {', '.join(sorted(absent))}" if absent else ""
    verb = "holds" if len(holders) == 1 else "hold"
    return (
        f"No server answers, although {', '.join(holders)} {verb} the data of a cluster ({len(holders)} of the site's {total} servers{gone}). "
        "More than half of its members must run. Nothing was changed. Next: where other members can come back, start them (systemctl start k3s; "
        "journalctl -u k3s says what is missing) and run this again. Where they are lost for good, the quorum is lost: begin anew from one "
        f"server's data: playbooks/restore.yml -e restore_component=cluster -e restore_server=<name> ({GUIDE}: Quorum lost)."
    )

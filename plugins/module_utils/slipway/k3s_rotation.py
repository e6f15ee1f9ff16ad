"""What gives a cluster new secrets, one server after the other, and how far that has come.

Runs on nodes too: standard library only, Python 3.8 or newer. No input or output here but the record's.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.k3s_members import lagging, read_server, require_one_cluster

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# In the order in which they are done.
KINDS = ("server-token", "agent-token", "encryption-keys", "certificates", "kubeconfig")
# On the server that leads a rotation, from its beginning to its end.
RECORD = "/etc/rancher/k3s/rotation.json"

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:Z|[+-]\d\d:\d\d)")


def read_record(path: Path) -> dict[str, dict[str, float]]:
    """When each kind was begun, and some steps were done, in seconds since 1970 by this server's clock; empty without an unfinished rotation."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_record(path: Path, record: Mapping[str, Mapping[str, float]]) -> None:
    """Note how far a rotation has come; an empty record is the end of it."""
    if record:
        write_atomically(path, json.dumps(record, indent=2), 0o600)
    elif path.exists():
        path.unlink()


def begin(record: Mapping[str, Mapping[str, float]], kinds: Iterable[str], now: float) -> dict[str, dict[str, float]]:
    """The record with these kinds; one that was begun before keeps its time."""
    return {**{kind: {"begun": now} for kind in kinds}, **{kind: dict(times) for kind, times in record.items()}}


def key_time(name: str) -> float:
    """When k3s made a key for Secrets, as its name tells (`aescbckey-2026-11-27T18:44:03Z`); 0 for the first one, whose name does not."""
    found = _TIME.search(name)
    return datetime.datetime.fromisoformat(found[0].replace("Z", "+00:00")).timestamp() if found else 0.0


@dataclass(frozen=True)
class RotationPlan:
    """What a run does.

    `kinds` in their order, those of an interrupted run included, which are in `resumed`. `lead` is the server that makes what is new;
    `servers` and `agents` get it. `administrator` is the server whose kubeconfig the site has.
    """

    kinds: tuple[str, ...]
    resumed: tuple[str, ...]
    lead: str
    administrator: str
    servers: tuple[str, ...]
    agents: tuple[str, ...]


def plan_rotation(
    kinds: Iterable[str], servers: Mapping[str, Mapping[str, Any]], agents: Mapping[str, Mapping[str, Any]]
) -> RotationPlan:
    """How to rotate `kinds`, given what k3s_state says of the site's servers and agents; without servers, none of it.

    Raises SlipwayError: no cluster is there, or not every node is well and no interrupted rotation is the reason.
    """
    if not servers:
        return RotationPlan((), (), "", "", (), ())
    leads = sorted(name for name, state in servers.items() if state["rotation"])
    if len(leads) > 1:
        raise SlipwayError(
            f"{' and '.join(leads)} each hold {RECORD}, the record of an interrupted rotation. Nothing was changed. Keep the one of the server whose "
            "tokens are to be those of the site, delete the others, and run this again."
        )
    resumed = [kind for kind in KINDS if leads and kind in servers[leads[0]]["rotation"]]
    if not leads:
        _require_all_well(servers, agents)
    names = sorted(servers)
    return RotationPlan(
        kinds=tuple(kind for kind in KINDS if kind in {*kinds, *resumed}),
        resumed=tuple(resumed),
        # The last one, as servers are restarted by name: the one that made a new token goes on with it in memory, and comes last.
        lead=leads[0] if leads else names[-1],
        administrator=names[0],
        servers=tuple(names),
        agents=tuple(sorted(agents)),
    )


def _require_all_well(servers: Mapping[str, Mapping[str, Any]], agents: Mapping[str, Mapping[str, Any]]) -> None:
    found = [read_server(name, state) for name, state in sorted(servers.items())]
    reasons = {server.name: "its API does not answer" for server in found if server.members is None}
    running = [server for server in found if server.members is not None]
    require_one_cluster(running)
    if len(found) > 1 and running:
        reasons = {**lagging(running[0].members or (), servers), **reasons}
    reasons.update({name: "k3s does not run there" for name, state in sorted(agents.items()) if not state["active"]})
    if reasons:
        raise SlipwayError(
            "A rotation restarts one node after the other, and needs all of them well: "
            f"{_lines(reasons)}. Nothing was changed. Next: playbooks/site.yml, which mends what it can, then run this again."
        )


def _lines(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())

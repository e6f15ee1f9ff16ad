"""What podman leaves on a machine after its last container, and taking it away again.

netavark keeps its general chains, iptables its empty tables, podman a mount on /run/netns and empty cgroups. `remember`
notes before the first node what was there already; `restore` removes the rest once no container is left.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tests.lab.process import mounts, run

# Gone after a reboot like what it describes, and one for all caches and checkouts.
NOTE = Path("/run/slipway-lab-before.json")
CGROUPS = Path("/sys/fs/cgroup")
NETNS = Path("/run/netns")
# netavark 1.4's general rules: table, chain, rule; and its chains.
RULES = [
    ("filter", "FORWARD", ["-m", "comment", "--comment", "netavark firewall plugin rules", "-j", "NETAVARK_FORWARD"]),
    ("nat", "PREROUTING", ["-m", "addrtype", "--dst-type", "LOCAL", "-j", "NETAVARK-HOSTPORT-DNAT"]),
    ("nat", "OUTPUT", ["-m", "addrtype", "--dst-type", "LOCAL", "-j", "NETAVARK-HOSTPORT-DNAT"]),
    ("nat", "POSTROUTING", ["-j", "NETAVARK-HOSTPORT-MASQ"]),
]
CHAINS = [
    ("filter", "NETAVARK_FORWARD"),
    ("nat", "NETAVARK-HOSTPORT-DNAT"),
    ("nat", "NETAVARK-HOSTPORT-MASQ"),
    ("nat", "NETAVARK-HOSTPORT-SETMARK"),
]


def tables() -> list[str]:
    """The IPv4 tables that exist in the kernel's nftables."""
    listed = json.loads(run(["nft", "--json", "list", "tables", "ip"]).stdout)
    return sorted(item["table"]["name"] for item in listed["nftables"] if "table" in item)


def remember() -> None:
    """Note what the machine has before podman's first container, once."""
    if NOTE.exists() or run(["podman", "ps", "--quiet"]).stdout.strip():
        return
    chains = [f"{table} {chain}" for table, chain in CHAINS if _has_chain(table, chain)]
    state = {"tables": tables(), "chains": chains, "netns": NETNS in mounts()}
    draft = NOTE.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.rename(NOTE)


def restore() -> None:
    """Remove what podman has left since `remember`; does nothing while any container runs."""
    if not NOTE.exists() or run(["podman", "ps", "--quiet"]).stdout.strip():
        return
    before = json.loads(NOTE.read_text())
    if not before["chains"]:
        for table, chain, rule in RULES:
            run(["iptables", "--wait", "-t", table, "-D", chain, *rule], check=False)
        for table, chain in CHAINS:
            run(["iptables", "--wait", "-t", table, "-F", chain], check=False)
            run(["iptables", "--wait", "-t", table, "-X", chain], check=False)
    for table in {"filter", "nat"} & set(tables()) - set(before["tables"]):
        if not any(line.startswith(("-A", "-N")) for line in run(["iptables", "-t", table, "-S"]).stdout.splitlines()):
            run(["nft", "delete", "table", "ip", table])
    if not before["netns"] and NETNS in mounts() and not any(NETNS.iterdir()):
        run(["umount", NETNS])
    for parent in _cgroup_parents():
        for folder in (parent / "conmon", parent):
            with contextlib.suppress(OSError):  # somebody else's container has just started
                folder.rmdir()
    NOTE.unlink()


def remove_cgroups(container: str) -> None:
    """Remove the empty cgroups that a node's systemd left behind; podman removes only the one it made itself.

    Args:
        container: the full id.
    """
    for parent in _cgroup_parents():
        top = parent / f"libpod-{container}"
        if top.is_dir():
            for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            top.rmdir()


def _cgroup_parents() -> list[Path]:
    """Podman's own cgroup: one with cgroup v2, one in each hierarchy with v1."""
    return [*CGROUPS.glob("libpod_parent"), *CGROUPS.glob("*/libpod_parent")]


def _has_chain(table: str, chain: str) -> bool:
    return table in tables() and run(["iptables", "-t", table, "-S", chain], check=False).returncode == 0

"""Light nodes: a lab of one server and some agents, for clusters without components; and how the time grows with their number."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.probe import meminfo

from tests.bench.command import ANSIBLE, PROJECT, seconds
from tests.lab import nodes as lab
from tests.lab.cache import Cache
from tests.lab.process import run
from tests.lab.site import Site, read_site

NAME = "lab-bench"
NETWORK = "10.77.3"
# What every lab node needs.
SETTINGS = PROJECT / "inventories/lab/group_vars/k3s_cluster.yml"
# Growth is told against so many nodes.
FEW = 3
# More fit into many a machine, but its cores take long to bring them up.
MOST = 10
# One /24 holds no more.
LIMIT = 200
# Memory that an agent takes with its file caches, and what the server and this machine's own need.
AGENT_MB = 400
OTHERS_MB = 4000
# A shorter phase says nothing about growth.
WORTH_A_RATIO_S = 0.5


def count(wanted: str, available_mb: int) -> int:
    """How many nodes the many are: as the user says, else as many as the memory holds, at most MOST.

    Raises:
        SystemExit: no number, or there would be no more than the few.
    """
    if wanted and not (wanted.isdecimal() and FEW < int(wanted) <= LIMIT):
        sys.exit(f"BENCH_NODES={wanted}: must be a number from {FEW + 1} to {LIMIT}")
    number = int(wanted) if wanted else min(MOST, 1 + (available_mb - OTHERS_MB) // AGENT_MB)
    if number <= FEW:
        sys.exit(f"{available_mb} MB of memory are free, too few for more than {FEW} nodes; BENCH=up leaves them out")
    return number


def available_mb() -> int:
    """Memory of this machine that is free."""
    return meminfo(Path("/"))["MemAvailable"]


def groups(number: int) -> dict[str, Any]:
    """An inventory of so many nodes, one of them a server."""
    agents = {f"agent-{index}": {"ansible_host": f"{NETWORK}.{20 + index}"} for index in range(1, number)}
    servers = {"server-1": {"ansible_host": f"{NETWORK}.11"}}
    return {"k3s_cluster": {"children": {"server": {"hosts": servers}, "agent": {"hosts": agents}}}}


@dataclass(frozen=True)
class Light:
    """Fresh nodes, and a folder of this benchmark's own."""

    site: Site
    folder: Path

    @property
    def inventory(self) -> Path:
        """The folder of the site's inventory; its name is the site's."""
        return self.folder / NAME

    def ansible(self, *words: str | Path, cwd: Path = PROJECT, **variables: str) -> float:
        """Run ansible-playbook; return the seconds it took. No run finds open connections of the one before it."""
        sockets = self.folder / "ssh"
        try:
            return seconds([ANSIBLE, *words], cwd, ANSIBLE_SSH_CONTROL_PATH_DIR=str(sockets), **variables)
        finally:
            for socket in sockets.glob("*"):
                run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "nodes"], check=False)

    def playbook(self, name: str) -> dict[str, Any]:
        """Run a playbook of ours; return the seconds it took, and those of its plays."""
        timings = self.folder / "timings.json"
        whole = self.ansible("-i", self.inventory, f"playbooks/{name}.yml", SLIPWAY_TIMINGS=str(timings))
        return {"seconds": whole, "plays": json.loads(timings.read_text())["plays"]}


@contextlib.contextmanager
def light(number: int, bundle: Path) -> Iterator[Light]:
    """Start so many nodes; removed at the end, whether the block succeeded or not."""
    cache = Cache()
    with tempfile.TemporaryDirectory(prefix="slipway-bench-") as folder:
        variables = Path(folder) / NAME / "group_vars"
        variables.mkdir(parents=True)
        (variables / SETTINGS.name).symlink_to(SETTINGS)
        (variables / "all.yml").write_text("slipway_components: []\n")
        hosts = variables.parent / "hosts.yml"
        hosts.write_text(yaml.safe_dump(groups(number), sort_keys=False))
        site = read_site(NAME, hosts)
        # What a killed benchmark left.
        lab.down(NAME, site.state, cache)
        try:
            lab.up(site, cache)
            (site.state / "bundle").symlink_to(bundle)
            yield Light(site, Path(folder))
        finally:
            lab.down(NAME, site.state, cache)


def install(number: int, bundle: Path) -> dict[str, Any]:
    """Measure preflight, and a first and a second installation of the cluster, on so many fresh nodes."""
    with light(number, bundle) as nodes:
        return {
            "nodes": number,
            "preflight": nodes.playbook("preflight")["seconds"],
            "first": nodes.playbook("cluster"),
            "second": nodes.playbook("cluster"),
        }


def phases(measured: dict[str, Any]) -> dict[str, float]:
    """Seconds by phase: preflight, each play of the first run, and both runs in all."""
    plays = {f"  {name}": taken for name, taken in measured["first"]["plays"].items()}
    return {
        "preflight": measured["preflight"],
        "cluster, first run": measured["first"]["seconds"],
        **plays,
        "cluster, second run": measured["second"]["seconds"],
    }


def scale(few: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    """Both measurements, and by which factor each phase grows between them."""
    before, after = phases(few), phases(many)
    growth = {name: after[name] / taken for name, taken in before.items() if taken >= WORTH_A_RATIO_S}
    return {"few": few, "many": many, "growth": {name.strip(): factor for name, factor in growth.items()}}


def table(result: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    few, many, growth = result["few"], result["many"], result["growth"]
    lines = [f"{'nodes, one of them a server':42}{few['nodes']:9}{many['nodes']:9}{'growth':>9}  seconds"]
    after = phases(many)
    for name, taken in phases(few).items():
        factor = f"{growth[name.strip()]:9.2f}" if name.strip() in growth else ""
        lines.append(f"{name:42.42}{taken:9.1f}{after[name]:9.1f}{factor}")
    lines.append(f"there are {many['nodes'] / few['nodes']:.1f} times as many nodes")
    return lines

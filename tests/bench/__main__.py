"""Benchmark, run as `make bench`. Prints tables and writes .slipway/bench.json; what the commands print is in .slipway/bench.log.

| part | what it measures |
|---|---|
| up | a first and a second `make up` of the lab, by phase and role |
| scale | a cluster without components on many light nodes, against few |
| official | the same on few nodes, against the official k3s playbooks |

BENCH="scale official" chooses parts; without it all are run, the last one only where K3S_ANSIBLE names a copy of those playbooks.
BENCH_NODES is how many the many nodes are. The bundle is built before the clock starts; `build-times.json` in it has the figures of its builds.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from tests.bench import light, official, up
from tests.bench.command import LOG, PROJECT, seconds
from tests.lab import bundle as lab_bundle
from tests.lab import nodes as lab
from tests.lab.cache import Cache
from tests.lab.process import LabError

RESULT = PROJECT / ".slipway/bench.json"
PARTS = ("up", "scale", "official")


def chosen(wanted: str, copy: str) -> list[str]:
    """The parts to run, in order, by what the user says.

    Raises:
        SystemExit: there is no such part, or the official playbooks are missing.
    """
    names = wanted.split() or [name for name in PARTS if copy or name != "official"]
    if unknown := sorted(set(names) - set(PARTS)):
        sys.exit(f"BENCH: there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if "official" in names and not copy:
        sys.exit("BENCH: the part official needs K3S_ANSIBLE=<folder with a copy of github.com/k3s-io/k3s-ansible>")
    return [name for name in PARTS if name in names]


def main() -> None:
    """Run the benchmark."""
    copy = os.environ.get("K3S_ANSIBLE", "")
    parts = chosen(os.environ.get("BENCH", ""), copy)
    playbooks = Path(copy).absolute()
    version = official.check(playbooks) if "official" in parts else ""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    seconds(["make", "down"])
    many = light.count(os.environ.get("BENCH_NODES", ""), light.available_mb()) if "scale" in parts else 0
    seconds(["make", "bundle"])
    lab.use_own_settings()
    # Nodes without components need no other part of the lab's bundle; one that was given is taken as it is.
    given = os.environ.get("BUNDLE")
    bundle = Path(given).absolute() if given else lab_bundle.cluster(Cache())
    few = functools.cache(lambda: light.install(light.FEW, bundle))

    result: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": platform.processor() or platform.machine(),
            "kernel": platform.release(),
        }
    }
    for part in parts:
        match part:
            case "up":
                figures = up.measure()
                result |= figures
                lines = up.table(figures)
            case "scale":
                result[part] = light.scale(few(), light.install(many, bundle))
                lines = light.table(result[part])
            case _:
                result[part] = official.compare(version, few(), official.measure(playbooks, bundle))
                lines = official.table(result[part])
        print("\n".join(lines), end="\n\n", flush=True)
        # After each part, as a later one may fail.
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"on {os.cpu_count()} CPUs; also in {RESULT.relative_to(PROJECT)}")


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"bench: {error}")

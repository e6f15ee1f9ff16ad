"""Benchmark: how long a first and a second `make up` of the lab take, by phase and role.

Run as `make bench`. Prints a table and writes .slipway/bench.json: seconds of each phase of both runs, and their ratio; of the
pipeline's run the seconds of each task, and what the run took beside them. The bundle is built before the clock starts;
`build-times.json` in the bundle has the figures of its builds.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
TIMINGS = PROJECT / ".slipway/lab/timings.json"
TRAINING = PROJECT / ".slipway/lab/report/training.json"


def make(*words: str) -> float:
    """Run make with its output in .slipway/bench.log; return the seconds it took.

    Raises:
        SystemExit: it failed; the message names the log.
    """
    log = PROJECT / ".slipway/bench.log"
    start = time.monotonic()
    with log.open("a") as stream:
        status = subprocess.run(
            ["make", *words], cwd=PROJECT, stdout=stream, stderr=subprocess.STDOUT, check=False
        ).returncode
    if status:
        sys.exit(f"make {' '.join(words)} failed; see {log}")
    return time.monotonic() - start


def measure() -> dict[str, Any]:
    """Measure one run of `make up`: whole seconds, and those of Ansible's plays and roles."""
    seconds = make("up")
    timings = json.loads(TIMINGS.read_text())
    return {"seconds": seconds, "plays": timings["plays"], "roles": timings["roles"]}


def pipeline_run() -> dict[str, Any]:
    """Seconds of the pipeline's run, of its tasks, and of what it took beside them: its tasks run one after the other."""
    record = json.loads(TRAINING.read_text())
    tasks = {task["name"]: task["seconds"] for task in record["tasks"]}
    return {"seconds": record["run_seconds"], "tasks": tasks, "overhead": record["run_seconds"] - sum(tasks.values())}


def main() -> None:
    """Run the benchmark."""
    (PROJECT / ".slipway").mkdir(exist_ok=True)
    make("down")
    make("bundle")
    first, second = measure(), measure()
    result = {
        "machine": {
            "cpus": os.cpu_count(),
            "cpu": platform.processor() or platform.machine(),
            "kernel": platform.release(),
        },
        "first": first,
        "second": second,
        "pipeline": pipeline_run(),
        "ratio": second["seconds"] / first["seconds"],
    }
    (PROJECT / ".slipway/bench.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':42}{'first':>9}{'second':>9}  seconds")
    print(f"{'make up':42}{first['seconds']:9.1f}{second['seconds']:9.1f}")
    for part in ("plays", "roles"):
        for name in first[part]:
            print(f"  {part[:-1]} {name:35.35}{first[part][name]:9.1f}{second[part].get(name, 0.0):9.1f}")
    for name, seconds in result["pipeline"]["tasks"].items():
        print(f"  task {name:36.36}{seconds:9.1f}")
    print(f"{'pipeline, in all':42}{result['pipeline']['seconds']:9.1f}")
    print(f"{'  beside its tasks':42}{result['pipeline']['overhead']:9.1f}")
    print(
        f"the second run takes {result['ratio']:.2f} of the first, on {result['machine']['cpus']} CPUs; also in .slipway/bench.json"
    )


if __name__ == "__main__":
    main()

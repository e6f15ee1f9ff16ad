"""How long a first and a second `make up` of the lab take, by phase and role, and of the pipeline's run each task."""

from __future__ import annotations

import json
from typing import Any

from tests.bench.command import PROJECT, seconds

TIMINGS = PROJECT / ".slipway/lab/timings.json"
TRAINING = PROJECT / ".slipway/lab/report/training.json"


def measure() -> dict[str, Any]:
    """Measure both runs on a new lab, which is removed afterwards."""
    first, second = _up(), _up()
    result = {
        "first": first,
        "second": second,
        "pipeline": _pipeline_run(),
        "ratio": second["seconds"] / first["seconds"],
    }
    seconds(["make", "down"])
    return result


def _up() -> dict[str, Any]:
    """Measure one run of `make up`: whole seconds, and those of Ansible's plays and roles."""
    whole = seconds(["make", "up"])
    timings = json.loads(TIMINGS.read_text())
    return {"seconds": whole, "plays": timings["plays"], "roles": timings["roles"]}


def _pipeline_run() -> dict[str, Any]:
    """Seconds of the pipeline's run, of its tasks, and of what it took beside them: its tasks run one after the other."""
    record = json.loads(TRAINING.read_text())
    tasks = {task["name"]: task["seconds"] for task in record["tasks"]}
    return {"seconds": record["run_seconds"], "tasks": tasks, "overhead": record["run_seconds"] - sum(tasks.values())}


def table(result: dict[str, Any]) -> list[str]:
    """The figures for a person."""
    first, second, pipeline = result["first"], result["second"], result["pipeline"]
    lines = [
        f"{'':42}{'first':>9}{'second':>9}  seconds",
        f"{'make up':42}{first['seconds']:9.1f}{second['seconds']:9.1f}",
    ]
    for part in ("plays", "roles"):
        for name in first[part]:
            lines.append(f"  {part[:-1]} {name:35.35}{first[part][name]:9.1f}{second[part].get(name, 0.0):9.1f}")
    lines += [f"  task {name:36.36}{task:9.1f}" for name, task in pipeline["tasks"].items()]
    lines += [
        f"{'pipeline, in all':42}{pipeline['seconds']:9.1f}",
        f"{'  beside its tasks':42}{pipeline['overhead']:9.1f}",
        f"the second run takes {result['ratio']:.2f} of the first",
    ]
    return lines

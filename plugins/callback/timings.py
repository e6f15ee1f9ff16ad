"""Callback: where the time of a run went, by role, as a table and as JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: timings
type: aggregate
short_description: Prints time by play and role and writes it as JSON
description:
  - At the end of a run prints the time of each play and role and the slowest tasks.
  - A task that runs long says so when it ends, so that the log tells where the time goes.
  - The figures are wall time. Tasks that no role holds are booked under their play.
  - The file is also written when a play begins, with what was done before it, for whoever reports from inside a play.
options:
  path:
    description: File for the figures; without it none is written. Its directory is made.
    type: str
    default: ""
    env:
      - name: SLIPWAY_TIMINGS
    ini:
      - section: callback_timings
        key: path
  slow:
    description: Seconds from which on a task counts as long.
    type: float
    default: 5
    env:
      - name: SLIPWAY_TIMINGS_SLOW
    ini:
      - section: callback_timings
        key: slow
author: Slipway
"""

_SLOWEST = 10
# Whatever is quicker is no news to anybody.
_WORTH_A_LINE = 0.5


class CallbackModule(CallbackBase):
    """Every task ends where the next one begins: one clock, no bookkeeping by host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "timings"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._begun = time.monotonic()
        self._play = ""
        self._task: tuple[str, str, str, float] | None = None
        self._done: list[dict[str, Any]] = []

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._end_task()
        self._play = play.get_name().strip()
        self._write(summarise(self._done, time.monotonic() - self._begun))

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._begin(task)

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        self._begin(task)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._end_task()
        figures = summarise(self._done, time.monotonic() - self._begun)
        self._display.display(render(figures))
        self._write(figures)

    def _write(self, figures: dict[str, Any]) -> None:
        if path := self.get_option("path"):
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(json.dumps(figures, indent=2) + "\n")
            except OSError as error:
                self._display.warning(f"timings: {error}")

    def _begin(self, task: Any) -> None:
        self._end_task()
        role = task._role.get_name() if task._role else ""
        self._task = (self._play, role, task.name or task.action, time.monotonic())

    def _end_task(self) -> None:
        if not self._task:
            return
        play, role, name, begun = self._task
        self._task = None
        seconds = time.monotonic() - begun
        self._done.append({"play": play, "role": role, "task": name, "seconds": round(seconds, 3)})
        if seconds >= float(self.get_option("slow")):
            since = time.monotonic() - self._begun
            self._display.display(f"  {seconds:.0f} s for this task, {since:.0f} s since the start")


def summarise(tasks: list[dict[str, Any]], total: float) -> dict[str, Any]:
    """Figures of a run: seconds in all, by play, by role (tasks of no role under their play), and of each task."""
    plays: dict[str, float] = {}
    roles: dict[str, float] = {}
    for task in tasks:
        plays[task["play"]] = round(plays.get(task["play"], 0) + task["seconds"], 3)
        owner = task["role"] or f"({task['play']})"
        roles[owner] = round(roles.get(owner, 0) + task["seconds"], 3)
    return {"seconds": round(total, 3), "plays": plays, "roles": roles, "tasks": tasks}


def render(figures: dict[str, Any]) -> str:
    """The table for a person."""
    lines = ["", f"{figures['seconds']:8.1f} s in all"]
    for title in ("plays", "roles"):
        lines.append(f"by {title[:-1]}:")
        ranked = sorted(figures[title].items(), key=lambda pair: -pair[1])
        lines += [f"{seconds:8.1f} s {name}" for name, seconds in ranked if seconds >= _WORTH_A_LINE]
    slowest = sorted(figures["tasks"], key=lambda task: -task["seconds"])[:_SLOWEST]
    lines.append("slowest tasks:")
    lines += [
        f"{task['seconds']:8.1f} s {' : '.join(filter(None, (task['role'], task['task'])))}"
        for task in slowest
        if task["seconds"] >= _WORTH_A_LINE
    ]
    return "\n".join(lines)

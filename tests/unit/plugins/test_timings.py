"""The callback adds up times and writes them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callback import timings


def test_figures_by_play_and_role() -> None:
    tasks = [
        {"play": "p", "role": "minio", "task": "a", "seconds": 1.0},
        {"play": "p", "role": "", "task": "b", "seconds": 2.0},
        {"play": "q", "role": "minio", "task": "c", "seconds": 0.1},
    ]
    figures = timings.summarise(tasks, 4)
    assert figures["plays"] == {"p": 3.0, "q": 0.1}
    assert figures["roles"] == {"minio": 1.1, "(p)": 2.0}
    text = timings.render(figures)
    assert "     4.0 s in all" in text and "     2.0 s (p)" in text and "minio : a" in text
    assert "c" not in text.splitlines()[-1]


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    options: dict[str, Any] = {"path": str(tmp_path / "sub/timings.json"), "slow": 5}
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    callback = timings.CallbackModule()
    monkeypatch.setattr(callback, "_display", SimpleNamespace(display=shown.append, warning=shown.append))
    monkeypatch.setattr(callback, "get_option", options.get)
    callback.v2_playbook_on_play_start(SimpleNamespace(get_name=lambda: "Play"))
    role = SimpleNamespace(get_name=lambda: "k3s")
    for name, seconds in (("quick", 1), ("long", 7)):
        callback.v2_playbook_on_task_start(SimpleNamespace(name=name, action="a", _role=role), False)
        now += seconds
    callback.v2_playbook_on_handler_task_start(SimpleNamespace(name="", action="handler", _role=None))
    now += 1
    callback.v2_playbook_on_stats(None)
    assert shown[0] == "  7 s for this task, 8 s since the start"
    figures = json.loads((tmp_path / "sub/timings.json").read_text())
    assert figures["seconds"] == 9
    assert figures["roles"] == {"k3s": 8, "(Play)": 1}
    assert [task["task"] for task in figures["tasks"]] == ["quick", "long", "handler"]
    callback.v2_playbook_on_task_start(SimpleNamespace(name="more", action="a", _role=role), False)
    now += 2
    callback.v2_playbook_on_play_start(SimpleNamespace(get_name=lambda: "Report"))
    assert json.loads((tmp_path / "sub/timings.json").read_text())["seconds"] == 11
    options["path"] = "/proc/none/x.json"
    callback.v2_playbook_on_stats(None)
    assert shown[-1].startswith("timings: ")

"""Recurring runs: when they are due, and what they start."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.lab.kfp.kfp_server import schedules
from tests.lab.kfp.kfp_server.errors import ApiError
from tests.lab.kfp.kfp_server.store import RecurringRun, stamp
from tests.unit.lab.kfp.conftest import Server
from tests.unit.lab.kfp.test_api import SPEC, schedule

MIDNIGHT = datetime(2026, 3, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """A time of that day, or another day's with its date."""
    return datetime.fromisoformat(text if "-" in text else f"2026-03-01T{text}").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "following"),
    [
        ("0 0 2 * * *", "02:00:00"),
        ("*/15 * * * * ?", "00:00:15"),
        ("30 5 * * *", "00:05:30"),
        ("0 30 8 * * MON-FRI", "2026-03-02T08:30:00"),
        ("0 0 0 1 APR *", "2026-04-01T00:00:00"),
        ("@hourly", "01:00:00"),
        ("@daily", "2026-03-02T00:00:00"),
        ("@every 1h30m", "01:30:00"),
    ],
)
def test_cron(cron: str, following: str) -> None:
    assert schedules.after(cron)(MIDNIGHT) == at(following)


@pytest.mark.parametrize(
    "cron", ["", "* * * *", "0 0 0 0 0 0 0", "99 * * * * *", "0 0 2 L * *", "hello", "@never", "0 0 0 * * 1#2"]
)
def test_wrong_cron(cron: str) -> None:
    with pytest.raises(ApiError, match="not a supported format"):
        schedules.after(cron)


def cron(expression: str = "0 0 * * * *", **limits: str) -> dict[str, Any]:
    """A cron trigger."""
    return {"cron_schedule": {"cron": expression, **limits}}


def every(seconds: int, **limits: str) -> dict[str, Any]:
    """A periodic trigger."""
    return {"periodic_schedule": {"interval_second": seconds, **limits}}


@pytest.mark.parametrize(
    ("trigger", "last", "no_catchup", "now", "due"),
    [
        (cron(), "", False, "00:59:59", None),
        (cron(), "", False, "01:00:00", "01:00:00"),
        # One by one with catch-up, the last one without.
        (cron(), "", False, "05:30:00", "01:00:00"),
        (cron(), "01:00:00", False, "05:30:00", "02:00:00"),
        (cron(), "01:00:00", True, "05:30:00", "05:00:00"),
        (cron(), "05:00:00", True, "05:30:00", None),
        (cron(start_time="2026-03-01T03:00:00Z"), "", False, "03:30:00", None),
        (cron(start_time="2026-03-01T03:00:00Z"), "", False, "04:00:00", "04:00:00"),
        (cron(end_time="2026-03-01T02:30:00Z"), "02:00:00", False, "05:00:00", None),
        (cron(end_time="2026-03-01T02:30:00Z"), "", True, "05:00:00", "02:00:00"),
        (every(600), "", False, "00:09:59", None),
        (every(600), "", False, "00:10:00", "00:10:00"),
        (every(600), "00:10:00", False, "05:00:00", "00:20:00"),
        # As the real server does: now, when more than one was missed.
        (every(600), "00:10:00", True, "05:00:03", "05:00:03"),
        (every(600), "00:10:00", True, "00:21:00", "00:20:00"),
        (every(600, start_time="2026-03-01T02:00:00Z"), "", False, "01:59:00", None),
        (every(600, start_time="2026-03-01T02:00:00Z"), "", False, "02:10:00", "02:10:00"),
        (every(600, end_time="2026-03-01T00:15:00Z"), "00:10:00", False, "01:00:00", None),
        ({}, "", False, "00:00:01", "00:00:00"),
        ({}, "00:00:00", False, "05:00:00", None),
    ],
)  # fmt: skip
def test_due(trigger: dict[str, Any], last: str, no_catchup: bool, now: str, due: str | None) -> None:
    recurring = RecurringRun(
        trigger=trigger, no_catchup=no_catchup, created_at=stamp(MIDNIGHT), last_scheduled=last and stamp(at(last))
    )
    assert schedules.due(recurring, at(now)) == (due and at(due))


def fire(server: Server, seconds: int) -> list[str]:
    """Look at the schedules that many seconds from now; gives the names of all runs."""
    schedules.trigger(
        server.store, datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds), server.api.trigger
    )
    return [
        run["display_name"] for run in server.ask("GET", "runs", params={"sort_by": "scheduled_at"}).get("runs", [])
    ]


def test_runs_start_and_wait_for_each_other(server: Server) -> None:
    made = schedule(
        server,
        trigger=every(60),
        runtime_config={"parameters": {"number": 7, "text": "[[Index]] [[RunUUID]] [[ScheduledTime]]"}},
    )
    assert made["trigger"] == {"periodic_schedule": {"interval_second": "60"}}
    assert fire(server, 30) == []
    [name] = fire(server, 61)
    assert name.startswith("nightly") and name.split("-")[1] == "1"
    # One run may be active, so the next one waits until it has ended.
    assert len(fire(server, 200)) == 1
    [run] = server.store.list_runs()
    assert (run.recurring_run_id, run.workflow, run.pipeline_spec) == (made["recurring_run_id"], name, SPEC)
    scheduled = datetime.fromisoformat(run.scheduled_at).strftime("%Y%m%d%H%M%S")
    assert run.runtime_config["parameters"] == {"number": 7, "text": f"1 {run.run_id} {scheduled}"}
    assert server.ask("GET", f"runs/{run.run_id}")["recurring_run_id"] == made["recurring_run_id"]
    run.enter("SUCCEEDED")
    server.store.save_run(run)
    assert len(fire(server, 200)) == 2
    second = server.store.list_active_runs()[0]
    assert datetime.fromisoformat(second.scheduled_at) - datetime.fromisoformat(run.scheduled_at) == timedelta(
        seconds=60
    )


def test_disabled_schedules_rest(server: Server) -> None:
    address = f"recurringruns/{schedule(server, trigger=every(1), mode='DISABLE')['recurring_run_id']}"
    assert fire(server, 100) == []
    server.ask("POST", f"{address}:enable")
    assert len(fire(server, 100)) == 1
    server.ask("DELETE", address)
    assert len(fire(server, 300)) == 1


def test_schedule_of_a_pipeline_takes_the_latest_version_each_time(server: Server) -> None:
    pipeline_id = server.upload("adding", json.dumps(SPEC))["pipeline_id"]
    made = schedule(
        server,
        trigger=every(1),
        max_concurrency=10,
        pipeline_spec=None,
        pipeline_version_reference={"pipeline_id": pipeline_id},
    )
    assert made["pipeline_version_reference"] == {"pipeline_id": pipeline_id}
    fire(server, 100)
    [run] = server.store.list_runs()
    assert run.pipeline_version_reference["pipeline_id"] == pipeline_id and run.pipeline_spec == SPEC
    server.ask("DELETE", f"pipelines/{pipeline_id}", params={"cascade": "true"})
    # Its pipeline is gone: nothing starts, and the others go on.
    schedule(server, trigger=every(1))
    assert len(fire(server, 200)) == 2

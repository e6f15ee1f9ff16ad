"""Recurring runs: when one is due, and the run that it starts then."""

from __future__ import annotations

import logging
import math
import random
import re
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from croniter import croniter
from croniter.croniter import CroniterError

from .errors import ApiError, invalid
from .store import RecurringRun, Store, stamp

LOG = logging.getLogger(__name__)
EVERY = re.compile(r"@every ((?:\d+(?:\.\d+)?[hms])+)")
DESCRIPTORS = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
SECONDS = {"h": 3600, "m": 60, "s": 1}


def after(cron: str) -> Callable[[datetime], datetime]:
    """What gives the next moment of a cron expression: seconds first, day of the week optional, or @hourly, @every 90m."""
    every = EVERY.fullmatch(cron)
    if every:
        total = sum(float(number) * SECONDS[unit] for number, unit in re.findall(r"([\d.]+)([hms])", every[1]))
        return lambda time: time + timedelta(seconds=max(1, math.floor(total)))
    expression = DESCRIPTORS.get(cron, cron)
    parts = expression.split()
    if len(parts) not in (5, 6):
        raise _unsupported(f"Expected 5 to 6 fields, found {len(parts)}: {cron}")
    if not re.fullmatch(r"[\dA-Za-z*?/,\- ]+", expression) or re.search(r"(?i)\b[lw]\b|\br\b", expression):
        raise _unsupported(f"Failed to parse {cron}")
    expression = " ".join([*parts, "*"][:6]).replace("?", "*")
    try:
        croniter(expression, second_at_beginning=True)
    except (CroniterError, ValueError) as error:
        raise _unsupported(str(error)) from error

    def following(time: datetime) -> datetime:
        result: datetime = croniter(expression, time, ret_type=datetime, second_at_beginning=True).get_next()
        return result

    return following


def _unsupported(error: str) -> Exception:
    return invalid(f"Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {error}")


def due(recurring: RecurringRun, now: datetime) -> datetime | None:
    """The moment of the schedule that a run is to be started for now, if there is one.

    With catch-up, missed moments follow one by one; without it, only the last of them counts.
    """
    cron, periodic = recurring.trigger.get("cron_schedule"), recurring.trigger.get("periodic_schedule")
    limits = cron or periodic or {}
    start, end = (datetime.fromisoformat(limits[key]) if key in limits else None for key in ("start_time", "end_time"))
    created = datetime.fromisoformat(recurring.created_at)
    last = datetime.fromisoformat(recurring.last_scheduled) if recurring.last_scheduled else None
    if not cron and not periodic:
        return created if last is None else None
    base = last or start or created
    if cron:
        following = after(cron["cron"])
        moment = following(max(base, start) if start else base)
    else:
        interval = timedelta(seconds=limits["interval_second"])
        moment = start if start and start > base else base + interval
    if moment > now or (end and moment > end):
        return None
    if recurring.no_catchup and periodic and moment + interval <= now:
        return min(now, end) if end else now
    while recurring.no_catchup and cron and (later := following(moment)) <= now and not (end and later > end):
        moment = later
    return moment


def trigger(store: Store, now: datetime, start: Callable[[RecurringRun, str, str], object]) -> None:
    """Start what is due; `start` makes the run from the schedule, a name and the moment."""
    for recurring_id in [each.id for each in store.all(RecurringRun) if each.enabled]:
        with store.lock:
            recurring = store.get(RecurringRun, recurring_id)
            if recurring is None or not recurring.enabled:
                continue
            active = sum(not run.final for run in store.runs_of(recurring.id))
            moment = due(recurring, now)
            if moment is None or active >= recurring.max_concurrency:
                continue
            recurring.triggered += 1
            recurring.last_scheduled = stamp(moment)
            # Written first: whoever is killed in between leaves one run out, and never starts one twice.
            store.update(recurring)
            name = f"{recurring.workflow}-{recurring.triggered}"
            try:
                start(recurring, f"{name}-{_fnv(name)}", stamp(moment))
            except ApiError as error:
                LOG.error("recurring run %s did not start: %s", recurring.id, error)


def workflow_name(display_name: str) -> str:
    """The name of a schedule's Kubernetes object, as the real server lets Kubernetes make it."""
    name = re.sub("[^a-z0-9-]+", "", display_name.lower())[:25] or "job-"
    return name + "".join(random.choices(string.ascii_lowercase + string.digits, k=5))


def _fnv(text: str) -> int:
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def utc_now() -> datetime:
    """The time in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)

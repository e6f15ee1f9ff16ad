"""Which drops are complete, what is in them, and the trigger that looks."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from epos import store
from epos.bop import data_hash, file_hashes
from epos.errors import DataError, EposError, UsageError
from epos.store import Location
from slipway_dataops import connections, drops
from slipway_dataops.drops import Drop, select
from slipway_dataops.triggers import FinishedDropTrigger

from .conftest import connect
from .s3 import ObjectStore

DROPS = "s3://epos-drops"
PLACE = Location.parse(DROPS)


def day(number: int) -> datetime:
    return datetime(2026, 3, number, tzinfo=UTC)


def test_what_has_a_marker_is_complete(objects: ObjectStore) -> None:
    objects.put("epos-drops", "b/_COMPLETE", b"", day(1))
    objects.put("epos-drops", "a/_COMPLETE", b"", day(2))
    objects.put("epos-drops", "a/train/000001/rgb/000000.png", b"x")
    objects.put("epos-drops", "unfinished/camera.json", b"x")
    objects.put("epos-drops", "_COMPLETE", b"")
    objects.put("epos-drops", "deep/er/_COMPLETE", b"")
    objects.put("epos-drops", "bad name!/_COMPLETE", b"")
    found = drops.finished(connections.client("minio_default"), PLACE)
    assert found == [Drop("b", "2026-03-01T00:00:00+00:00"), Drop("a", "2026-03-02T00:00:00+00:00")]


def test_which_a_dag_run_is_about() -> None:
    found = [Drop(name, day(number).isoformat()) for number, name in enumerate("abc", 1)]
    assert select(found, [], day(1), day(3)) == ["a", "b"]
    assert select(found, ["c", "a", "gone"], day(1), day(2)) == ["a", "c"]
    assert select(found, [], None, None) == []


def test_a_snapshot_has_every_file(objects: ObjectStore, rendered: Path) -> None:
    objects.put_folder("epos-drops", "one", rendered)
    objects.put("epos-drops", "one/.DS_Store", b"x")
    objects.put("epos-drops", "one/train/.hidden/x", b"x")
    client = connections.client("minio_default")
    taken = drops.snapshot(client, PLACE, "one")
    assert json.loads(taken)["files"] == file_hashes(rendered)
    assert drops.hash_of(taken) == data_hash(file_hashes(rendered))
    with pytest.raises(DataError, match="s3://epos-drops/other: has no file"):
        drops.snapshot(client, PLACE, "other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda o: o.put("epos-drops", "one/camera.json", b"{}"), "files: camera.json: has another SHA-256"),
        (lambda o: o.objects.pop(("epos-drops", "one/camera.json")), "files: camera.json: is missing"),
        (lambda o: o.put("epos-drops", "one/more", b"x"), "files: more: is not listed"),
    ],
)
def test_a_drop_with_a_manifest_must_be_what_it_says(
    objects: ObjectStore, rendered: Path, change: Any, says: str
) -> None:
    client = connections.client("minio_default")
    store.push(client, rendered, PLACE.below("one"))
    drops.snapshot(client, PLACE, "one")
    change(objects)
    with pytest.raises(DataError, match=says):
        drops.snapshot(client, PLACE, "one")


def test_what_the_store_says_is_one_line(objects: ObjectStore) -> None:
    with pytest.raises(EposError, match=r"^s3://nowhere/: NoSuchBucket: no$"):
        drops.finished(connections.client("minio_default"), Location.parse("s3://nowhere"))


@pytest.mark.parametrize("extra", [{}, {"endpoint_url": "minio:9000"}])
def test_a_connection_without_address(monkeypatch: pytest.MonkeyPatch, extra: dict[str, str]) -> None:
    connect(monkeypatch, "s3", "", conn_type="aws", login="a", password="not-a-secret", extra=extra)
    with pytest.raises(UsageError, match="connection s3: extra: endpoint_url: expected http"):
        connections.client("s3")


class State:
    """Stands for Airflow's state of an asset."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


def announced(state: State | None, count: int, wait: float = 1.0) -> list[dict[str, str]]:
    """The first events of a trigger that was made anew; fewer if no more come for a while."""
    path, arguments = FinishedDropTrigger("minio_default", DROPS, 0.02).serialize()
    assert path == "slipway_dataops.triggers.FinishedDropTrigger"
    made = FinishedDropTrigger(**arguments)
    made.asset_state_store = state

    async def collect() -> list[dict[str, str]]:
        events = []
        running = made.run()
        try:
            while len(events) <= count:
                events.append((await asyncio.wait_for(anext(running), wait)).payload)
        except TimeoutError:
            pass
        return events

    return asyncio.run(collect())


def test_each_drop_is_announced_once(objects: ObjectStore) -> None:
    state = State()
    objects.put("epos-drops", "a/_COMPLETE", b"", day(1))
    objects.put("epos-drops", "b/x", b"")
    assert announced(state, 1) == [{"drop": "a", "completed": "2026-03-01T00:00:00+00:00"}]
    # A triggerer that starts again says nothing, until there is something new.
    assert announced(state, 0) == []
    objects.put("epos-drops", "b/_COMPLETE", b"", day(2))
    assert [event["drop"] for event in announced(state, 1)] == ["b"]


def test_a_drop_that_was_completed_anew_counts_again(objects: ObjectStore) -> None:
    state = State()
    objects.put("epos-drops", "a/_COMPLETE", b"", day(1))
    assert len(announced(state, 1)) == 1
    objects.put("epos-drops", "a/_COMPLETE", b"", day(3))
    assert announced(state, 1) == [{"drop": "a", "completed": "2026-03-03T00:00:00+00:00"}]
    del objects.objects["epos-drops", "a/_COMPLETE"]
    assert announced(state, 0) == [] and state.values == {"announced": {}}


def test_a_store_that_is_away_is_looked_at_again(objects: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    objects.put("epos-drops", "a/_COMPLETE", b"", day(1))
    real, tries = drops.finished, []

    def finished(client: Any, place: Location) -> list[Drop]:
        tries.append(1)
        if len(tries) < 3:
            raise EposError("cannot reach the server")
        return real(client, place)

    monkeypatch.setattr(drops, "finished", finished)
    assert [event["drop"] for event in announced(State(), 1)] == ["a"] and len(tries) >= 3


def test_without_state_nothing_is_lost(objects: ObjectStore) -> None:
    objects.put("epos-drops", "a/_COMPLETE", b"", day(1))
    assert len(announced(None, 1)) == 1 and len(announced(None, 1)) == 1

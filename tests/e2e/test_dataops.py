"""Data dropped into a bucket become a deployed model without further hands: the chain of hashes from the files to a prediction.

Data that lead to a worse model do not, and a backfill over old days starts nothing twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from .airflow import Airflow
from .front_door import eventually
from .model_service import ROLLOUT, ModelService, Picture, pictures
from .pipelines import Pipelines
from .site import Epos, Store
from .training import FEW_RENDERED, RENDERED, remove

DROPS, DATA = "epos-drops", "epos-data"
DAG = "dataops"
# Seconds from the last dropped file to the record: data operations, training, roll-out.
TIMEOUT = 1800.0
# The days of the backfill, by their logical dates: before anybody has dropped anything here.
OLD_DAYS = [datetime(2026, 2, day, 3, tzinfo=UTC) for day in (1, 2)]

# It leaves another model in dev than the one that other tests know.
pytestmark = [pytest.mark.fault, pytest.mark.last]


@contextmanager
def drop(epos: Epos, store: Store, folder: Path, *options: str) -> Iterator[str]:
    """A BOP folder that nobody has seen, dropped as a user does, but for its end: its name. The drop is removed at the end."""
    name = f"test-{time.time_ns()}"
    # Another data set every time: the same one would not be trained on again.
    epos.run("render", "--out", str(folder), "--seed", str(time.time_ns() % 100_000 + 2), *options)

    def upload(path: Path) -> None:
        store.client.fput_object(
            bucket_name=DROPS, object_name=f"{name}/{path.relative_to(folder)}", file_path=str(path)
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(upload, sorted(path for path in folder.rglob("*") if path.is_file())))
    try:
        yield name
    finally:
        remove(store, DROPS, f"{name}/")


@pytest.fixture
def dropped(airflow: Airflow, epos: Epos, store: Store, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Data as good as those that the site has: the drop's name and the folder."""
    folder = tmp_path / "bop"
    with drop(epos, store, folder, *RENDERED) as name:
        yield name, folder


@pytest.fixture
def worse(airflow: Airflow, epos: Epos, store: Store, tmp_path: Path) -> Iterator[str]:
    """A drop with far too few images to learn from."""
    with drop(epos, store, tmp_path / "bop", *FEW_RENDERED) as name:
        yield name


def complete(store: Store, name: str) -> None:
    """Say that a drop is complete."""
    store.client.put_object(bucket_name=DROPS, object_name=f"{name}/_COMPLETE", data=io.BytesIO(b""), length=0)


def runs(airflow: Airflow, query: str) -> list[dict[str, Any]]:
    """Runs of the DAG, the latest first; one that has failed fails the test."""
    listed: list[dict[str, Any]] = airflow.call("GET", f"/dags/{DAG}/dagRuns?order_by=-run_after&{query}")["dag_runs"]
    for run in listed:
        if run["state"] == "failed":
            pytest.fail(f"run {run['dag_run_id']} of {DAG} failed")
    return listed


def await_training(airflow: Airflow, since: str) -> None:
    """Wait until a task waits for a run of the pipeline."""

    def look() -> bool:
        listed = runs(airflow, f"run_after_gte={since}")
        waiting = airflow.call("GET", f"/dags/{DAG}/dagRuns/~/taskInstances?state=deferred")["task_instances"]
        assert waiting, [(run["dag_run_id"], run["state"]) for run in listed]
        return True

    eventually(look, TIMEOUT, interval=3)


def record_of(store: Store, airflow: Airflow, name: str, since: str) -> dict[str, Any]:
    """What is kept of a drop, once there is something; a run of the DAG that has failed since then fails the test."""

    def look() -> str:
        for item in store.client.list_objects(bucket_name=DATA, prefix=f"dataops/records/{name}/", recursive=True):
            return str(item.object_name)
        raise AssertionError([(run["dag_run_id"], run["state"]) for run in runs(airflow, f"run_after_gte={since}")])

    found: dict[str, Any] = json.loads(store.read(DATA, eventually(look, TIMEOUT, interval=3)))
    return found


def now() -> str:
    """The time, as a part of an address."""
    return quote(datetime.now(UTC).isoformat())


def begin_backfill(airflow: Airflow) -> None:
    """Have Airflow go over old days, whether it has done so before or not."""
    dates = {"from_date": OLD_DAYS[0].isoformat(), "to_date": OLD_DAYS[-1].isoformat()}
    airflow.call("POST", "/backfills", {"dag_id": DAG, **dates, "reprocess_behavior": "completed"})


def test_dropped_data_become_a_deployed_model(
    dropped: tuple[str, Path], airflow: Airflow, store: Store, pipelines: Pipelines, dev_service: ModelService
) -> None:
    """Files, data set, run, model and prediction are linked by their hashes; nobody did anything but drop the files."""
    name, folder = dropped
    since = now()
    complete(store, name)
    # Airflow has nothing to do while the pipeline trains; what comes of it is the next test.
    await_training(airflow, since)
    begin_backfill(airflow)
    record = record_of(store, airflow, name, since)

    # What was acquired is what was dropped.
    snapshot = json.loads(store.read(DATA, record["drop"]["snapshot"].removeprefix(f"s3://{DATA}/")))
    here = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
    there = {file: entry["sha256"] for file, entry in snapshot["files"].items()}
    assert there == {file: digest for file, digest in here.items() if file in there}
    assert set(here) - set(there) <= {"manifest.json"}
    assert snapshot["data_hash"] == record["drop"]["hash"]

    # What was trained on came of it, and the model of that.
    split = record["split"]
    location = split["location"].removeprefix(f"s3://{DATA}/")
    assert json.loads(store.read(DATA, f"{location}/manifest.json"))["data_hash"] == split["hash"]
    run = pipelines.run(record["run"]["run_id"])
    assert run["state"] == "SUCCEEDED"
    assert run["runtime_config"]["parameters"]["data"] == split["location"]
    model = record["model"]
    assert model["verdict"] == "released", model
    latest = store.latest()
    assert latest and latest["version"] == model["version"]
    card = json.loads(store.read("epos-models", f"{latest['prefix']}card.json"))
    assert card["data_hash"] == model["data_hash"] == split["hash"]

    # And that model answers.
    picture = pictures(folder, 1)[0]
    eventually(lambda: dev_service.predict(picture)["model_version"] == model["version"], ROLLOUT)


def test_a_backfill_goes_over_old_days(airflow: Airflow) -> None:
    """Both days that it was asked for by the test before have a run of their own, which finds nothing to train on."""
    dates = {"logical_date_gte": OLD_DAYS[0], "logical_date_lte": OLD_DAYS[-1]}
    query = "&".join(f"{key}={quote(date.isoformat())}" for key, date in dates.items())

    def ended() -> list[dict[str, Any]]:
        found = runs(airflow, f"run_type=backfill&{query}")
        assert [run["state"] for run in found] == ["success"] * len(OLD_DAYS), found
        return found

    found = eventually(ended, 300, interval=2)
    intervals = {(run["data_interval_start"], run["data_interval_end"]) for run in found}
    wanted = {(day, day + timedelta(days=1)) for day in OLD_DAYS}
    assert {tuple(map(datetime.fromisoformat, each)) for each in intervals} == wanted
    for run in found:
        path = f"/dags/{DAG}/dagRuns/{quote(run['dag_run_id'])}/taskInstances"
        states = {item["task_id"]: item["state"] for item in airflow.call("GET", path)["task_instances"]}
        assert states.pop("find") == "success"
        assert set(states.values()) == {"skipped"}, states


def test_worse_data_do_not_replace_the_model(
    worse: str, airflow: Airflow, store: Store, dev_service: ModelService, picture: Picture
) -> None:
    """The model that they lead to is judged beside the one in production and rejected; pointer and service stay as they are."""
    before = store.latest()
    assert before
    since = now()
    complete(store, worse)
    # By hand, as little training is enough: whether it beats the model in production decides alone.
    parameters = {"train_steps": 10, "min_recall": 0.0, "min_gain": 0.01}
    body = {"dag_run_id": worse, "logical_date": None, "conf": {"drops": [worse], "parameters": parameters}}
    airflow.call("POST", f"/dags/{DAG}/dagRuns", body)
    record = record_of(store, airflow, worse, since)
    assert record["model"]["verdict"] == "rejected", record["model"]
    assert record["model"]["data_hash"] == record["split"]["hash"]
    assert store.latest() == before
    assert dev_service.predict(picture)["model_version"] == before["version"]

"""Data dropped into a bucket become a deployed model without further hands: the chain of hashes from the files to a prediction."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .airflow import Airflow
from .front_door import eventually
from .model_service import ROLLOUT, ModelService, pictures
from .pipelines import Pipelines
from .site import Epos, Store
from .training import remove

DROPS, DATA = "epos-drops", "epos-data"
DAG = "dataops"
# Seconds from the last dropped file to the record: data operations, training, roll-out.
TIMEOUT = 1800.0

# It leaves another model in dev than the one that other tests know.
pytestmark = [pytest.mark.fault, pytest.mark.last]


@pytest.fixture
def dropped(airflow: Airflow, epos: Epos, store: Store, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A BOP folder that nobody has seen, dropped as a user does: its name and the folder. The drop is removed at the end."""
    folder, name = tmp_path / "bop", f"test-{time.time_ns()}"
    # Another data set every time: the same one would not be trained on again.
    epos.run("render", "--out", str(folder), "--seed", str(time.time_ns() % 100_000 + 2))
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.client.fput_object(
                bucket_name=DROPS, object_name=f"{name}/{path.relative_to(folder)}", file_path=str(path)
            )
    yield name, folder
    remove(store, DROPS, f"{name}/")


def complete(store: Store, name: str) -> None:
    """Say that a drop is complete."""
    store.client.put_object(bucket_name=DROPS, object_name=f"{name}/_COMPLETE", data=io.BytesIO(b""), length=0)


def record_of(store: Store, airflow: Airflow, name: str) -> dict[str, Any]:
    """What is kept of a drop, once there is something; a run of the DAG that has failed fails the test."""

    def look() -> str:
        for item in store.client.list_objects(bucket_name=DATA, prefix=f"dataops/records/{name}/", recursive=True):
            return str(item.object_name)
        listed = airflow.call("GET", f"/dags/{DAG}/dagRuns?limit=5&order_by=-run_after")["dag_runs"]
        failed = [run for run in listed if run["state"] == "failed"]
        if failed:
            pytest.fail(f"run {failed[0]['dag_run_id']} of {DAG} failed")
        raise AssertionError([(run["dag_run_id"], run["state"]) for run in listed])

    found: dict[str, Any] = json.loads(store.read(DATA, eventually(look, TIMEOUT, interval=3)))
    return found


def test_dropped_data_become_a_deployed_model(
    dropped: tuple[str, Path], airflow: Airflow, store: Store, pipelines: Pipelines, dev_service: ModelService
) -> None:
    """Files, data set, run, model and prediction are linked by their hashes; nobody did anything but drop the files."""
    name, folder = dropped
    complete(store, name)
    record = record_of(store, airflow, name)

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

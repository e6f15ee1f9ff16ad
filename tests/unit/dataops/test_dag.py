"""The DAG as a whole, run by Airflow on SQLite against the stand-ins: from dropped files to the parameters of the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from airflow.models.dagrun import DagRun
from airflow.utils.session import create_session
from sqlalchemy import select

from epos.bop import data_hash, file_hashes

from . import bop
from .conftest import DAGS, SETTINGS
from .s3 import ObjectStore
from .standin import EPOS, Pipelines

SITE = {"domain": "example.org", "image": "registry.example/epos:1", "train_steps": 300}
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
# Runs at this time have the interval from 28 February 03:00 to 1 March 03:00; the drop was completed in it.
COMPLETED = datetime(2026, 2, 28, 20, tzinfo=UTC)
OTHER_DAY = datetime(2026, 3, 9, 12, tzinfo=UTC)
TASKS = ("acquire", "observe", "clean", "transform", "split", "configure", "train", "record_lineage", "notify")


@pytest.fixture
def site(
    objects: ObjectStore, pipelines: Pipelines, database: None, monkeypatch: pytest.MonkeyPatch
) -> tuple[ObjectStore, Pipelines]:
    """A site with pipeline `epos`, whose models are released."""
    monkeypatch.setenv("AIRFLOW_VAR_DATAOPS_PARAMETERS", json.dumps(SITE))
    pipelines.upload(EPOS, "epos")

    def ended(step: str, run_id: str) -> None:
        if step == "register":
            run = pipelines.world.store.run(run_id)
            assert run is not None
            data = run.runtime_config["parameters"]["data"].removeprefix("s3://epos-data/")
            found = objects.json("epos-data", f"{data}/manifest.json")["data_hash"]
            latest = {"version": "v1", "run_id": run_id, "data_hash": found, "recall": 0.75}
            objects.put("epos-models", "models/latest.json", json.dumps(latest).encode())

    pipelines.ended = ended
    return objects, pipelines


def run(day: datetime = DAY, **conf: Any) -> dict[str, str]:
    """Runs the DAG; gives the state of each task, of mapped ones with their index."""
    spec = util.spec_from_file_location("dataops_dag", DAGS / "dataops.py")
    assert spec and spec.loader
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dag = module.dataops()
    for task in dag.tasks:
        task.retries = 0
    dag.get_task("process.train").poll = 0.05
    found = dag.test(logical_date=day, run_conf=conf)
    return {
        ti.task_id.removeprefix("process.") + (f"[{ti.map_index}]" if ti.map_index >= 0 else ""): str(ti.state)
        for ti in found.get_task_instances()
    }


def states(state: str, *drops: int) -> dict[str, str]:
    """All tasks of some drops in a state."""
    return {f"{task}[{number}]": state for task in TASKS for number in drops}


def test_from_dropped_files_to_the_parameters_of_one_run(site: tuple[ObjectStore, Pipelines], rendered: Path) -> None:
    objects, pipelines = site
    objects.put_folder("epos-drops", "one", rendered, when=COMPLETED)
    objects.put_folder("epos-drops", "unfinished", rendered, marker=False)
    assert run() == {"find": "success", **states("success", 0)}

    # Files, snapshot, data set, parameters, model: each names the one before.
    (started,) = pipelines.runs()
    (name,) = objects.keys("epos-data", "dataops/records/one/")
    chain = objects.json("epos-data", name)
    digest = data_hash(file_hashes(rendered))
    assert chain["drop"]["hash"] == digest and chain["drop"]["location"] == "s3://epos-drops/one"
    snapshot = objects.json("epos-data", chain["drop"]["snapshot"].removeprefix("s3://epos-data/"))
    assert (snapshot["data_hash"], snapshot["files"]) == (digest, file_hashes(rendered))
    place = chain["split"]["location"].removeprefix("s3://epos-data/")
    manifest = objects.json("epos-data", f"{place}/manifest.json")
    assert manifest["data_hash"] == chain["split"]["hash"] == data_hash(manifest["files"])
    assert place == f"dataops/sets/{chain['split']['hash'][:12]}"
    parameters = {**SITE, "data": chain["split"]["location"], "models": "s3://epos-models/models",
                  "train_split": "train", "test_split": "test"}  # fmt: skip
    assert started.runtime_config["parameters"] == parameters == chain["parameters"]
    assert (chain["run"]["run_id"], chain["run"]["state"]) == (started.run_id, "SUCCEEDED")
    assert started.display_name == f"epos data {chain['split']['hash'][:12]}"
    assert chain["model"] | {"commit": 0} == {"verdict": "released", "version": "v1", "recall": 0.75, "commit": 0,
                                               "data_hash": chain["split"]["hash"]}  # fmt: skip

    # What is of no more use is gone; what people look at is there.
    assert objects.keys("epos-data", "dataops/work/") == []
    assert b"Population" not in objects.objects["epos-data", f"dataops/reports/{digest[:12]}.html"]
    assert objects.json("epos-data", "dataops/accepted.json")["hash"] == digest

    # Once more: the same interval, and the same bytes under another name.
    assert run() == {"find": "success", **states("skipped", 0)}
    objects.put_folder("epos-drops", "copy", rendered, when=OTHER_DAY)
    assert run(OTHER_DAY, drops=["copy"]) == {"find": "success", **states("success", 0)}
    assert [each.run_id for each in pipelines.runs()] == [started.run_id]

    # On purpose.
    again = run(OTHER_DAY, drops=["one"], retrain=True, parameters={"train_steps": 5, "data": "s3://elsewhere"})
    assert again["train[0]"] == "success"
    assert len(pipelines.runs()) == 2
    (other,) = [each for each in pipelines.runs() if each.run_id != started.run_id]
    assert other.runtime_config["parameters"] == {**parameters, "train_steps": 5}


def test_a_backfill_goes_over_old_days(site: tuple[ObjectStore, Pipelines], rendered: Path, tmp_path: Path) -> None:
    """Airflow makes a run of each old day, whose drops have their own run of the pipeline; what was handled is left alone."""
    objects, pipelines = site
    # Airflow knows the DAG after this run.
    assert run(OTHER_DAY)["find"] == "success"
    objects.put_folder("epos-drops", "one", rendered, when=COMPLETED)
    other = bop.make(tmp_path / "two", {"train": 12, "test": 4}, seed=2)
    objects.put_folder("epos-drops", "two", other, when=COMPLETED + timedelta(days=1))
    dates = ("--from-date", "2026-02-28T03:00:00+00:00", "--to-date", "2026-03-01T03:00:00+00:00")
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", "dataops", *dates]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    with create_session() as session:
        made = session.scalars(
            select(DagRun).where(DagRun.backfill_id.is_not(None)).order_by(DagRun.logical_date)
        ).all()
        intervals = [(each.data_interval_start, each.data_interval_end) for each in made]
    first = datetime(2026, 2, 28, 3, tzinfo=UTC)
    assert intervals == [(first + timedelta(days=day), first + timedelta(days=day + 1)) for day in (0, 1)]

    # A run by hand at the end of an interval has that interval.
    for _, end in intervals:
        assert run(end) == {"find": "success", **states("success", 0)}
    started = [each.runtime_config["parameters"]["data"] for each in pipelines.runs()]
    assert len(set(started)) == len(started) == 2
    assert [len(objects.keys("epos-data", f"dataops/records/{drop}/")) for drop in ("one", "two")] == [1, 1]
    assert run(intervals[0][1]) == {"find": "success", **states("skipped", 0)}
    assert len(pipelines.runs()) == 2


def test_nothing_was_dropped(site: tuple[ObjectStore, Pipelines], rendered: Path) -> None:
    objects, pipelines = site
    objects.put_folder("epos-drops", "one", rendered, when=COMPLETED)
    found = run(OTHER_DAY)
    assert found.pop("find") == "success" and set(found.values()) == {"skipped"} and pipelines.runs() == []


def test_each_drop_goes_its_own_way(
    site: tuple[ObjectStore, Pipelines], rendered: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that is no data set fails with a message, without a run; the others do not care."""
    objects, pipelines = site
    objects.put("epos-drops", "a/readme.txt", b"no data")
    objects.put("epos-drops", "a/_COMPLETE", b"", COMPLETED)
    objects.put_folder("epos-drops", "b", bop.make(tmp_path / "b", {"train": 40}, seed=4), when=COMPLETED)
    found = run()
    assert (
        found["acquire[0]"] == "success" and found["observe[0]"] == "failed" and found["train[0]"] == "upstream_failed"
    )
    assert {name: found[name] for name in states("", 1)} == states("success", 1)
    assert len(pipelines.runs()) == 1 and objects.keys("epos-data", "dataops/records/a/") == []
    assert "DataError: s3://epos-drops/a/models: missing folder" in capfd.readouterr().out


def test_a_run_that_fails(
    site: tuple[ObjectStore, Pipelines], rendered: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    objects, pipelines = site
    objects.put_folder("epos-drops", "one", rendered, when=COMPLETED)
    pipelines.fate("train", "fail")
    found = run()
    assert found["train[0]"] == "failed" and found["record_lineage[0]"] == "upstream_failed"
    output = capfd.readouterr().out
    (failed,) = pipelines.runs()
    assert f"AirflowFailException: run {failed.run_id} (epos data " in output and "failed: train;" in output
    assert (
        objects.keys("epos-data", "dataops/records/") == []
        and ("epos-data", "dataops/accepted.json") not in objects.objects
    )
    # Who clears the task, or runs the interval again, gets another run.
    pipelines.fate("train", "ok")
    assert run()["record_lineage[0]"] == "success" and len(pipelines.runs()) == 2


def python(code: str) -> str:
    """What some code prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_parsing_the_dag_imports_little() -> None:
    """It takes a tenth of a second of computing then. Times are no test; what costs them is counted."""
    code = f"""
import sys, json
import airflow.sdk
before = set(sys.modules)
sys.path.insert(0, {str(DAGS)!r})
import dataops
after = set(sys.modules) - before
heavy = {{name for name in after if name.split(".")[0] in
         ("numpy", "PIL", "matplotlib", "minio", "boto3", "botocore", "kubernetes", "requests", "pandas", "sqlalchemy", "flask")}}
print(json.dumps([sorted(heavy), len(after)]))
"""
    heavy, count = json.loads(python(code))
    assert heavy == [] and count < 150


def test_the_environment_has_no_kfp_and_no_conflict() -> None:
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.version import Version

    assert util.find_spec("kfp") is None
    conflicts = []
    for distribution in metadata.distributions():
        for text in distribution.requires or []:
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            try:
                found = metadata.version(wanted.name)
            except metadata.PackageNotFoundError:
                found = ""
            if not found or not wanted.specifier.contains(Version(found), prereleases=True):
                conflicts.append(f"{distribution.metadata['Name']} wants {text}, has {found or 'none'}")
    assert conflicts == []
    assert Version(metadata.version("kubernetes")).major >= 36

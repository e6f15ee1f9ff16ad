"""What the tests run on: Airflow on SQLite, the stand-in for Kubeflow Pipelines with its engine, an object store, BOP folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]
SOURCES = [PROJECT / "pipelines/dataops/src", PROJECT / "pipelines/epos/src"]
DAGS = PROJECT / "pipelines/dataops/dags"
sys.path[:0] = map(str, SOURCES)

# Airflow reads its configuration when it is first imported.
HOME = Path(tempfile.mkdtemp(prefix="airflow-"))
SETTINGS = {
    "AIRFLOW_HOME": str(HOME),
    "AIRFLOW__CORE__DAGS_FOLDER": str(DAGS),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
    "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
}
os.environ |= SETTINGS

from slipway_dataops import kfp  # noqa: E402  (found by the lines above)

from . import bop  # noqa: E402
from .s3 import ObjectStore, serving_objects  # noqa: E402
from .standin import Pipelines, serving_pipelines  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _home() -> Iterator[None]:
    yield
    shutil.rmtree(HOME)


@pytest.fixture
def pipelines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipelines]:
    """The stand-in with its engine; connection kubeflow_pipelines_default leads to it. Nothing waits for long."""
    with serving_pipelines() as found:
        connect(monkeypatch, "kubeflow_pipelines_default", found.url)
        monkeypatch.setattr(kfp.Client.__init__, "__defaults__", (2.0, 0.02))
        monkeypatch.setattr(kfp, "_SETTLE", 0.0)
        yield found


def connect(monkeypatch: pytest.MonkeyPatch, name: str, url: str, **more: object) -> None:
    """Sets an Airflow connection."""
    value = {"conn_type": "http", "host": url, **more}
    monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(value))


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An object store with the flow's buckets; connection minio_default leads to it."""
    with serving_objects("epos-drops", "epos-data", "epos-models") as found:
        extra = {"endpoint_url": found.url}
        connect(monkeypatch, "minio_default", "", conn_type="aws", login="key", password="not-a-secret", extra=extra)
        yield found


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BOP folder that tests only read."""
    return bop.make(tmp_path_factory.mktemp("bop") / "set", {"train": 12, "test": 4})


@pytest.fixture
def copied(rendered: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(rendered, tmp_path / "copy"))


@pytest.fixture(scope="session")
def database(_home: None) -> None:
    """Airflow's database."""
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True, timeout=300)

"""How the lab puts Airflow's image and the stand-in for its chart together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.lab import dataops, wheels
from tests.lab.cache import PROJECT, Cache
from tests.lab.process import LabError

RELEASE = PROJECT / "playbooks/group_vars/all/release.yml"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock and sources that stand for the project's."""
    (tmp_path / "airflow.txt").write_text("# comment\napache-airflow==3.3.2 \\\n    --hash=sha256:0\n")
    sources = (tmp_path / "src/slipway_dataops", tmp_path / "dags", tmp_path / "src/epos")
    for source in sources:
        (source / "__pycache__").mkdir(parents=True)
        (source / "__init__.py").touch()
    monkeypatch.setattr(dataops, "LOCK", tmp_path / "airflow.txt")
    monkeypatch.setattr(dataops, "SOURCES", sources)
    return tmp_path


def test_the_context_has_what_the_recipe_copies(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "place", lambda cache, lock, target: target.mkdir(parents=True))
    context = inputs / "context"
    context.mkdir()
    dataops.prepare(Cache(inputs / "cache"), context)
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", (dataops.FOLDER / "Containerfile").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(path.name for path in context.iterdir())
    assert not list(context.rglob("__pycache__"))


def test_another_source_is_another_image(inputs: Path) -> None:
    before = dataops.image().reference
    (inputs / "src/epos/__init__.py").write_text("x = 1\n")
    assert dataops.image().reference != before


def test_what_is_missing_is_named(inputs: Path) -> None:
    shutil.rmtree(inputs / "src/slipway_dataops")
    with pytest.raises(LabError, match="slipway_dataops: not there"):
        dataops.image()


def test_the_locked_version_is_that_of_the_release(inputs: Path) -> None:
    assert dataops.airflow_version() == yaml.safe_load(RELEASE.read_text())["slipway_release"]["versions"]["airflow"]
    (inputs / "airflow.txt").write_text("requests==2.0\n")
    with pytest.raises(LabError, match="apache-airflow is not in it"):
        dataops.airflow_version()


def test_the_chart_has_its_content_in_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = tmp_path / "chart"
    shutil.copytree(dataops.CHART, chart)
    monkeypatch.setattr(dataops, "CHART", chart)
    version = dataops.chart_version()
    dataops.copy_chart(tmp_path / "copy")
    assert yaml.safe_load((tmp_path / "copy/Chart.yaml").read_text())["version"] == version
    (chart / "values.yaml").write_text("{}\n")
    assert dataops.chart_version() != version


# The entrypoint, by Airflow's own rules.


def run(tmp_path: Path, *words: str, **environment: str) -> list[str]:
    """What the entrypoint starts; `airflow` and `python3` are programs that print how they were called."""
    for name in ("airflow", "python3"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    answer = subprocess.run(
        [str(dataops.FOLDER / "entrypoint"), *words],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.splitlines()


def test_the_entrypoint_runs_what_it_is_given(tmp_path: Path) -> None:
    """A program as it is, all else as a sub-command of airflow."""
    assert run(tmp_path, "version") == ["airflow version"]
    assert run(tmp_path, "airflow", "db", "check") == ["airflow db check"]
    assert run(tmp_path, "bash", "-c", "exec airflow scheduler") == ["airflow scheduler"]


def test_the_entrypoint_waits_for_the_database(tmp_path: Path) -> None:
    """Not for probes, and not for pods of tasks, which never reach it."""
    database = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "postgresql://a@b/c"}
    assert run(tmp_path, "airflow", "version", **database) == ["python3 - 20 3", "airflow version"]
    assert run(tmp_path, "airflow", "jobs", **database, CONNECTION_CHECK_MAX_COUNT="0") == ["airflow jobs"]
    module = "airflow.sdk.execution_time.execute_workload"
    assert run(tmp_path, "python3", "-m", module, **database) == [f"python3 -m {module}"]

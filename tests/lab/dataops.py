"""Airflow's image and the stand-in for its chart: the locked Python packages and our own, put together by the product's recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs
from tests.lab.process import LabError

FOLDER = PROJECT / "pipelines/dataops/image"
LOCK = PROJECT / "requirements/airflow.txt"
# The data checks of the training package are used by the data operations.
SOURCES = (
    PROJECT / "pipelines/dataops/src/slipway_dataops",
    PROJECT / "pipelines/dataops/dags",
    PROJECT / "pipelines/epos/src/epos",
)
CHART = PROJECT / "tests/lab/charts/airflow"


def image() -> images.Built:
    """The image of Airflow's programs and of the pods of tasks.

    Raises:
        LabError: something that goes into it is missing.
    """
    for path in (LOCK, *SOURCES):
        if not path.exists():
            raise LabError(f"{path}: not there, but Airflow's image needs it")
    files = [LOCK, FOLDER, *SOURCES, Path(__file__), Path(wheels.__file__)]
    key = hash_inputs(wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=files)
    return images.derived("airflow", images.python(), key, FOLDER / "Containerfile", prepare)


def prepare(cache: Cache, context: Path) -> None:
    """Fill the build context: the locked packages in `site-packages`, our own, the entrypoint."""
    wheels.place(cache, LOCK, context / "site-packages")
    shutil.copy(FOLDER / "entrypoint", context / "entrypoint")
    for source in SOURCES:
        shutil.copytree(source, context / source.name, ignore=shutil.ignore_patterns("__pycache__"))


def chart_version() -> str:
    """The version of the stand-in chart, with a hash of its files: with other files it is another chart."""
    return f"{_chart()['version']}-{hash_inputs(files=[CHART])[:8]}"


def airflow_version() -> str:
    """The version of Airflow that the chart is told of, which is the locked one."""
    for line in LOCK.read_text().splitlines():
        if line.startswith("apache-airflow=="):
            return line.removeprefix("apache-airflow==").split()[0]
    raise LabError(f"{LOCK}: apache-airflow is not in it")


def copy_chart(target: Path) -> None:
    """Copy the stand-in chart to the folder `target`, with its version."""
    shutil.copytree(CHART, target)
    (target / "Chart.yaml").write_text(yaml.safe_dump({**_chart(), "version": chart_version()}, sort_keys=False))


def _chart() -> dict[str, str]:
    chart: dict[str, str] = yaml.safe_load((CHART / "Chart.yaml").read_text())
    return chart

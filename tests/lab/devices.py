"""The stand-in for NVIDIA's GPU operator: its image, and its chart with the same values keys."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs

SOURCE = Path(__file__).parent / "gpu_operator"
RECIPE = images.RECIPES / "gpu-operator/Containerfile"
LOCK = PROJECT / "requirements/devices.txt"
CHART = Path(__file__).parent / "charts/gpu-operator"


def image() -> images.Built:
    """The one image of the stand-in."""
    key = hash_inputs(
        wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=[LOCK, RECIPE, SOURCE, Path(__file__), Path(wheels.__file__)]
    )
    return images.derived("gpu-operator", images.python(), key, RECIPE, prepare)


def prepare(cache: Cache, context: Path) -> None:
    """Fill the build context: the locked packages in `site-packages`, the program in `gpu_operator`."""
    wheels.place(cache, LOCK, context / "site-packages")
    shutil.copytree(SOURCE, context / "gpu_operator", ignore=shutil.ignore_patterns("__pycache__"))


def chart_version() -> str:
    """The chart's version: another one whenever anything in it changes, so that Helm takes it for an upgrade."""
    version: str = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    return f"{version}-{hash_inputs(files=[CHART])[:8]}"


def copy_chart(target: Path) -> None:
    """Write the chart under its version to the new folder `target`."""
    shutil.copytree(CHART, target)
    file = target / "Chart.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "version": chart_version()}, sort_keys=False))

"""The training image: the locked Python packages and the epos source, put together by the product's own recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, hash_inputs
from tests.lab.process import LabError

SOURCE = PROJECT / "pipelines/epos/src/epos"
RECIPE = PROJECT / "pipelines/epos/image/Containerfile"
# What the variants of the image compute with; the lab's GPUs are simulated, so its own is the one without CUDA.
LOCKS = {"cpu": PROJECT / "requirements/pipelines.txt", "cuda": PROJECT / "requirements/pipelines-cuda.txt"}


def image(variant: str = "cpu") -> images.Built:
    """The training image.

    Args:
        variant: a key of LOCKS.

    Raises:
        LabError: its recipe is missing.
    """
    if not RECIPE.is_file():
        raise LabError(f"{RECIPE}: no recipe of the training image")
    lock = LOCKS[variant]

    def prepare(context: Path) -> None:
        wheels.install(lock, context / "site-packages")
        shutil.copytree(SOURCE, context / "epos", ignore=shutil.ignore_patterns("__pycache__"))

    files = [lock, RECIPE.parent, SOURCE, Path(__file__), Path(wheels.__file__)]
    key = hash_inputs(wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=files)
    name = "epos" if variant == "cpu" else f"epos-{variant}"
    return images.derived(name, images.python(), key, RECIPE, prepare, {"VARIANT": variant})

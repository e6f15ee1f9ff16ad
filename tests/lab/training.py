"""The training image: the locked Python packages and the pipelines' source, put together by the product's own recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs
from tests.lab.process import LabError, run

SOURCES = (PROJECT / "pipelines/epos/src/epos", PROJECT / "pipelines/iris/src/iris")
RECIPE = PROJECT / "pipelines/epos/image/Containerfile"
# What the variants of the image compute with; the lab's GPUs are simulated, so its own is the one without CUDA.
LOCKS = {"cpu": PROJECT / "requirements/pipelines.txt", "cuda": PROJECT / "requirements/pipelines-cuda.txt"}


def variant(inventory: Path) -> str:
    """The variant that a site needs: `cuda` where a host of its inventory declares GPUs.

    Raises:
        LabError: Ansible cannot read the inventory.
    """
    listed = json.loads(run(["ansible-inventory", "-i", inventory, "--list"]).stdout)
    declared = [host.get("gpu_operator_gpus", 0) for host in listed["_meta"]["hostvars"].values()]
    return "cuda" if any(str(number) != "0" for number in declared) else "cpu"


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

    def prepare(cache: Cache, context: Path) -> None:
        wheels.place(cache, lock, context / "site-packages")
        for source in SOURCES:
            shutil.copytree(source, context / source.name, ignore=shutil.ignore_patterns("__pycache__"))

    files = [lock, RECIPE.parent, *SOURCES, Path(__file__), Path(wheels.__file__)]
    key = hash_inputs(wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=files)
    name = "epos" if variant == "cpu" else f"epos-{variant}"
    return images.derived(name, images.python(), key, RECIPE, prepare, {"VARIANT": variant})

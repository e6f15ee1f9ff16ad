"""The training image: the locked Python packages and the epos source, put together by the product's own recipe."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.lab import images
from tests.lab.cache import PROJECT, hash_inputs
from tests.lab.process import LabError, run

SOURCE = PROJECT / "pipelines/epos/src/epos"
RECIPE = PROJECT / "pipelines/epos/image/Containerfile"
LOCK = PROJECT / "requirements/pipelines.txt"
# The Python of Debian 12, and the C libraries that it runs with.
PYTHON_VERSION = "3.11"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def image() -> images.Built:
    """The training image.

    Raises:
        LabError: its recipe is missing.
    """
    if not RECIPE.is_file():
        raise LabError(f"{RECIPE}: no recipe of the training image")
    key = hash_inputs(PYTHON_VERSION, *PLATFORMS, files=[LOCK, RECIPE.parent, SOURCE, Path(__file__)])
    return images.derived("epos", images.python(), key, RECIPE, prepare)


def prepare(context: Path) -> None:
    """Fill the build context: the locked packages in `site-packages`, the source in `epos`."""
    packages = context / "site-packages"
    run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--target", packages,
            "--no-compile", "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", LOCK,
            "--implementation", "cp", "--python-version", PYTHON_VERSION, *(f"--platform={name}" for name in PLATFORMS),
        ]
    )  # fmt: skip
    # Nobody runs the packages' own tests in a cluster, and every node must store them.
    for folder in sorted(path for path in packages.rglob("tests") if path.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(packages / "bin", ignore_errors=True)
    shutil.copytree(SOURCE, context / "epos", ignore=shutil.ignore_patterns("__pycache__"))

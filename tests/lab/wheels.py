"""Locked Python packages for images: wheels for the Python of Debian 12, whatever Python this machine has."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.lab.cache import Cache, hash_inputs
from tests.lab.process import run

# The Python of Debian 12, and the C libraries that it runs with.
PYTHON_VERSION = "3.11"
PLATFORMS = (
    "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64",
)  # fmt: skip


def install(lock: Path, target: Path) -> None:
    """Put the packages of a lock file into the folder `target`, verified against the hashes in it."""
    run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--target", target,
            "--no-compile", "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", lock,
            "--implementation", "cp", "--python-version", PYTHON_VERSION, *(f"--platform={name}" for name in PLATFORMS),
        ]
    )  # fmt: skip
    # Nobody runs the packages' own tests in a cluster, and every node must store them.
    for folder in sorted(path for path in target.rglob("tests") if path.is_dir()):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(target / "bin", ignore_errors=True)


def place(cache: Cache, lock: Path, target: Path) -> None:
    """Put the packages of a lock file into the new folder `target`, as hard links to the cache, which nobody may change there.

    They are installed once: an image whose own sources change needs the same ones again.
    """
    key = hash_inputs(PYTHON_VERSION, *PLATFORMS, files=[lock, Path(__file__)])
    packages = cache.entry("packages", lock.stem, key, lambda draft: install(lock, draft))
    shutil.copytree(packages, target, symlinks=True, copy_function=os.link)

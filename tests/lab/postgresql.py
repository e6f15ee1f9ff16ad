"""The image of PostgreSQL, put together by the product's own recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs

SOURCE = PROJECT / "services/postgresql"
RECIPE = SOURCE / "Containerfile"
PROGRAM = SOURCE / "postgres_pod.py"
LOCK = PROJECT / "requirements/postgresql.txt"


def image() -> images.Built:
    """The image of PostgreSQL."""
    key = hash_inputs(
        wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=[LOCK, RECIPE, PROGRAM, Path(__file__), Path(wheels.__file__)]
    )
    return images.derived("postgresql", images.python(), key, RECIPE, prepare)


def prepare(_: Cache, context: Path) -> None:
    """Fill the build context."""
    wheels.install(LOCK, context / "site-packages")
    shutil.copy(PROGRAM, context)

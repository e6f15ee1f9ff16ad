"""The image of PostgreSQL, put together by the product's own recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs
from tests.lab.process import LabError

SOURCE = PROJECT / "services/postgresql"
RECIPE = SOURCE / "Containerfile"
PROGRAM = SOURCE / "postgres_pod.py"
LOCK = PROJECT / "requirements/postgresql.txt"


def version() -> str:
    """The major version of PostgreSQL that the recipe installs."""
    found = re.search(r"\bpostgresql-(\d+)\b", RECIPE.read_text())
    if found is None:
        raise LabError(f"{RECIPE}: no package postgresql-<version>")
    return found[1]


def image() -> images.Built:
    """The image of PostgreSQL."""
    key = hash_inputs(
        wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=[LOCK, RECIPE, PROGRAM, Path(__file__), Path(wheels.__file__)]
    )
    return images.derived("postgresql", images.python(), key, RECIPE, prepare)


def prepare(cache: Cache, context: Path) -> None:
    """Fill the build context."""
    wheels.place(cache, LOCK, context / "site-packages")
    shutil.copy(PROGRAM, context)

"""The image of the project's own services, put together by the product's own recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import images
from tests.lab.cache import PROJECT, Cache, hash_inputs

SOURCE = PROJECT / "services"
RECIPE = SOURCE / "image/Containerfile"


def image() -> images.Built:
    """The image of the services."""
    key = hash_inputs(files=[*sorted(SOURCE.glob("*.py")), RECIPE, Path(__file__)])
    return images.derived("services", images.python(), key, RECIPE, prepare)


def prepare(_: Cache, context: Path) -> None:
    """Fill the build context."""
    for program in SOURCE.glob("*.py"):
        shutil.copy(program, context)

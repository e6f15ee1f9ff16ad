"""The image of the Git service, put together by the product's own recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import images
from tests.lab.cache import PROJECT, Cache, hash_inputs

PROGRAM = PROJECT / "pipelines/git/git_http.py"
RECIPE = PROJECT / "pipelines/git/image/Containerfile"


def image() -> images.Built:
    """The image of the Git service."""
    key = hash_inputs(files=[PROGRAM, RECIPE, Path(__file__)])
    return images.derived("git", images.python(), key, RECIPE, prepare)


def prepare(_: Cache, context: Path) -> None:
    """Fill the build context."""
    shutil.copy(PROGRAM, context)

"""Shared fixtures: a small rendered data set, and compiled steps kept between processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[3] / "pipelines" / "epos" / "src"
sys.path.insert(0, str(SOURCE))

from epos.render import RenderConfig, render  # noqa: E402  (the package is found by the line above)

from .fakes import FakeStore  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import jax

    folder = str(tmp_path_factory.mktemp("jax"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    yield
    del os.environ["JAX_COMPILATION_CACHE_DIR"]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that tests only read: 8 training and 3 test images of 64 px."""
    folder = tmp_path_factory.mktemp("data") / "set"
    render(folder, RenderConfig(train_images=8, test_images=3, image_size=64, seed=7))
    return folder


@pytest.fixture
def copied(rendered: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(rendered, tmp_path / "set"))


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m epos` in a process of its own."""

    def run(*args: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "epos", *map(str, args)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
            check=False,
        )

    return run


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()

"""Atomic checkpoints as .npz files."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np

from epos.progress import say

_NAME = re.compile(r"step-(\d{8})\.npz")


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces a file such that readers and a crash see either the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as .npz, the same bytes for the same arrays, atomically."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], order="C"), allow_pickle=False)
            # ZipInfo's default date is fixed; np.savez would store the time.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    write_atomic(path, buffer.getvalue())


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what save_arrays wrote.

    Raises:
        OSError, ValueError, zipfile.BadZipFile, KeyError: missing or damaged.
    """
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def save(folder: Path, step: int, arrays: dict[str, np.ndarray], keep: int) -> None:
    """Writes the checkpoint of a step and removes all but the last `keep`."""
    save_arrays(folder / f"step-{step:08d}.npz", arrays)
    for path in _found(folder)[:-keep]:
        path.unlink()


def load_latest(folder: Path) -> dict[str, np.ndarray] | None:
    """The newest readable checkpoint, or None."""
    for path in reversed(_found(folder)):
        try:
            return load_arrays(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            say(f"checkpoint {path} is unreadable ({error}); trying the one before")
    return None


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*.npz") if _NAME.fullmatch(p.name))

"""Atomic checkpoints as .npz archives."""

from __future__ import annotations

import io
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from epos.progress import say

# What a damaged archive raises.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
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


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of a .npz archive, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(arrays[name], order="C"), allow_pickle=False)
            # ZipInfo's default date is fixed; np.savez would store the time.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())
    return buffer.getvalue()


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as .npz, atomically."""
    write_atomic(path, pack_arrays(arrays))


def load_arrays(source: Path | BinaryIO) -> dict[str, np.ndarray]:
    """Reads what save_arrays wrote.

    Raises:
        DAMAGED: missing or damaged.
    """
    with np.load(source, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


class Checkpoints(Protocol):
    """Where a training keeps its state."""

    def load(self) -> dict[str, np.ndarray] | None:
        """The newest readable checkpoint, or None."""

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes the checkpoint of a step; one of a step before stays until this one is whole."""

    def remove(self) -> None:
        """Forgets all of them."""


@dataclass(frozen=True)
class Folder:
    """Checkpoints as files.

    Attributes:
        path: folder, made when it is needed.
        keep: number of checkpoints to keep.
    """

    path: Path
    keep: int = 2

    def load(self) -> dict[str, np.ndarray] | None:
        """The newest readable checkpoint, or None."""
        for path in reversed(self._found()):
            try:
                return load_arrays(path)
            except DAMAGED as error:
                say(f"checkpoint {path} is unreadable ({error}); trying the one before")
        return None

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Writes the checkpoint of a step and removes all but the last `keep`."""
        save_arrays(self.path / f"step-{step:08d}.npz", arrays)
        for path in self._found()[: -self.keep]:
            path.unlink()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _found(self) -> list[Path]:
        return sorted(p for p in self.path.glob("step-*.npz") if _NAME.fullmatch(p.name))

    def __str__(self) -> str:
        return str(self.path)

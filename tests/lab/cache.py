"""The build cache: results stored under the hash of everything that went into them.

An entry is written beside its final place and renamed into it, so an interrupted build leaves no half entry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tests.lab.process import mounts, run

PROJECT = Path(__file__).resolve().parents[2]
IGNORED_PARTS = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def say(text: str) -> None:
    """Tell the user about progress, on stderr: stdout is for results."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


def cache_root() -> Path:
    """Folder of the cache: $SLIPWAY_CACHE, else `slipway` in the user's cache folder."""
    base = os.environ.get("SLIPWAY_CACHE")
    return (
        Path(base).absolute() if base else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "slipway"
    )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def source_files(paths: Iterable[Path]) -> list[Path]:
    """The files among and below `paths`, sorted, without what tools leave behind.

    Raises:
        FileNotFoundError: one of the paths does not exist.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(f for f in path.rglob("*") if f.is_file() and not IGNORED_PARTS & set(f.parts))
        elif path.is_file():
            found.add(path)
        else:
            raise FileNotFoundError(path)
    return sorted(found)


def hash_inputs(*words: str, files: Iterable[Path] = ()) -> str:
    """One SHA-256 over words and over the name, mode and content of files, in hex.

    Names are taken relative to the project, so that two checkouts share a cache.
    """
    digest = hashlib.sha256()
    for word in words:
        digest.update(f"word {len(word)} {word}\n".encode())
    for path in source_files(files):
        name = path.resolve().relative_to(PROJECT) if path.resolve().is_relative_to(PROJECT) else Path(path.name)
        executable = bool(path.stat().st_mode & 0o100)
        digest.update(f"file {name} {executable} {hash_file(path)}\n".encode())
    return digest.hexdigest()


class Cache:
    """Entries below one root folder, `<kind>/<name>-<first 12 digits of the hash>`."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_root()
        self.times: dict[str, float] = {}

    def path(self, kind: str, name: str, key: str) -> Path:
        """Where the entry lies or would lie."""
        return self.root / kind / f"{name}-{key[:12]}"

    def entry(self, kind: str, name: str, key: str, build: Callable[[Path], None]) -> Path:
        """The entry's path; `build(path)` makes the file or folder first when it is not there yet.

        The duration of a build in seconds is noted in `times` under `kind/name`.
        """
        place = self.path(kind, name, key)
        if not place.exists():
            with self.lock(f"{kind}-{name}"):
                if not place.exists():
                    self._build(place, f"{kind}/{name}", build)
        os.utime(place)
        return place

    def _build(self, place: Path, step: str, build: Callable[[Path], None]) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with self.workdir() as work:
            draft = work / "entry"
            say(f"building {step} ...")
            start = time.monotonic()
            try:
                build(draft)
            except BaseException:
                say(f"building {step} failed")
                raise
            self.times[step] = round(time.monotonic() - start, 1)
            draft.rename(place)
        say(f"building {step} done in {self.times[step]:.0f} s")

    @contextlib.contextmanager
    def workdir(self) -> Iterator[Path]:
        """A temporary folder on the cache's own file system, removed afterwards with those of runs that were killed."""
        parent = self.root / "work"
        parent.mkdir(parents=True, exist_ok=True)
        for path in parent.iterdir():
            if not Path("/proc", path.name.partition("-")[0]).exists():
                _remove(path)
        path = Path(tempfile.mkdtemp(dir=parent, prefix=f"{os.getpid()}-"))
        try:
            yield path
        finally:
            _remove(path)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the cache's lock `name`; threads and other runs of the lab on this machine wait for each other."""
        path = self.root / "lock" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for somebody who holds {path} ...")
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def prune(self, kinds: Iterable[str], older_than_s: float, keep: int) -> list[Path]:
        """Forget entries of the given kinds; returns what went.

        Args:
            older_than_s: those that nobody has used for so many seconds.
            keep: those that are not among so many last used ones of the same name.
        """
        gone = []
        limit = time.time() - older_than_s
        for kind in kinds:
            used: dict[str, list[Path]] = {}
            for path in (self.root / kind).glob("*-*"):
                used.setdefault(path.name.rpartition("-")[0], []).append(path)
            for paths in used.values():
                paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
                gone += [path for number, path in enumerate(paths) if number >= keep or path.stat().st_mtime < limit]
        for path in gone:
            _remove(path)
        return gone


def _remove(path: Path) -> None:
    """Remove a file or folder; what an interrupted debootstrap has mounted in it is unmounted first."""
    for mount in reversed([mount for mount in mounts() if mount.is_relative_to(path)]):
        run(["umount", mount])
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

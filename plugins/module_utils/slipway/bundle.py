"""The manifest of a bundle, and whether the files are those that it lists."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import file_sha256, write_atomically

SCHEMA = 1
MANIFEST = "bundle.yml"
_HEAD = ("schema", "release", "origin", "arch", "versions", "images", "artifacts")
_ARTIFACT = {"path": str, "kind": str, "name": str, "sha256": str, "size": int}


@contextmanager
def locked(bundle: Path) -> Iterator[None]:
    """Keep other runs from filling the same bundle meanwhile; they wait. The kernel frees the lock of a dead one."""
    bundle.parent.mkdir(parents=True, exist_ok=True)
    with bundle.with_name(f".{bundle.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Seen:
    """A file as it was when it was hashed; `source` names what it was made from, where we made it."""

    size: int
    mtime_ns: int
    sha256: str
    source: str = ""


class Stamp:
    """Remembers hashes, so that files that did not change are not read again.

    It lies outside the bundle, which may be read-only; where it cannot be written either, the next run hashes again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: dict[str, Seen] = {}
        try:
            for name, entry in json.loads(path.read_text()).items():
                self._seen[name] = Seen(**entry)
        except (OSError, ValueError, TypeError, AttributeError):
            # Missing or of another make: everything is hashed again.
            self._seen = {}

    def sha256(self, file: Path) -> str:
        """Hash of `file`, from memory if size and time of change are the same. Raises OSError."""
        status, seen = file.stat(), self._seen.get(str(file))
        if seen and (seen.size, seen.mtime_ns) == (status.st_size, status.st_mtime_ns):
            return seen.sha256
        return self.learn(file)

    def learn(self, file: Path, source: str = "") -> str:
        """Hash `file` and remember it together with what it was made from. Raises OSError."""
        status = file.stat()
        seen = Seen(status.st_size, status.st_mtime_ns, file_sha256(file), source)
        self._seen[str(file)] = seen
        return seen.sha256

    def made_from(self, file: Path, source: str) -> bool:
        """Whether `file` is unchanged since it was made from `source`."""
        seen = self._seen.get(str(file))
        if not seen or seen.source != source or not file.is_file():
            return False
        status = file.stat()
        return (seen.size, seen.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def save(self) -> bool:
        """Keep it for the next run; False where the place is not writable."""
        entries = {name: asdict(seen) for name, seen in sorted(self._seen.items()) if Path(name).exists()}
        text = json.dumps(entries, indent=1)
        try:
            if not self._path.is_file() or self._path.read_text() != text:
                write_atomically(self._path, text)
        except OSError:
            return False
        return True


def default_stamp(bundle: Path) -> Path:
    """Where the stamp of a bundle lies unless told otherwise: beside it."""
    return bundle.with_name(f".{bundle.name}.stamp.json")


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The parsed manifest. Raises SlipwayError naming the file and the key that is wrong."""
    path = bundle / MANIFEST
    try:
        manifest = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise SlipwayError(f"{path}: missing; the bundle was never completed, make it with `make bundle`") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SlipwayError(f"{path}: cannot be read: {error}") from error
    if faults := manifest_faults(manifest):
        raise SlipwayError(f"{path}: " + "; ".join(faults))
    checked: dict[str, Any] = manifest
    return checked


def manifest_faults(manifest: Any) -> list[str]:
    """Everything wrong with the form of a parsed manifest."""
    if not isinstance(manifest, Mapping):
        return ["it is no mapping"]
    if manifest.get("schema") != SCHEMA:
        return [f"schema is {manifest.get('schema')!r}, this version of Slipway reads schema {SCHEMA}"]
    faults = [f"key {key} is missing" for key in _HEAD if key not in manifest]
    artifacts = manifest.get("artifacts")
    if not isinstance(artifacts, list):
        return [*faults, "artifacts is no list"]
    paths: set[str] = set()
    for index, artifact in enumerate(artifacts):
        if not isinstance(artifact, Mapping):
            faults.append(f"artifacts[{index}] is no mapping")
            continue
        for key, kind in _ARTIFACT.items():
            if not isinstance(artifact.get(key), kind):
                faults.append(f"artifacts[{index}].{key} is {artifact.get(key)!r}, not a {kind.__name__}")
        path = str(artifact.get("path"))
        if not is_inside(path):
            faults.append(f"artifacts[{index}].path {path!r} leads out of the bundle")
        if path in paths:
            faults.append(f"artifacts[{index}].path {path!r} is listed twice")
        paths.add(path)
    return faults


def is_inside(path: str) -> bool:
    """Whether a relative path stays below the directory it is relative to."""
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts


def verify(bundle: Path, artifacts: Iterable[Mapping[str, Any]], stamp: Stamp) -> list[str]:
    """Every way in which the files differ from the manifest, one line each, with what was expected and found."""

    def fault(artifact: Mapping[str, Any]) -> str:
        file = bundle / artifact["path"]
        try:
            size = file.stat().st_size
            if size != artifact["size"]:
                return f"{file}: {size} bytes, expected {artifact['size']}"
            actual = stamp.sha256(file)
        except FileNotFoundError:
            return f"{file}: missing"
        except OSError as error:
            return f"{file}: cannot be read: {error.strerror}"
        return "" if actual == artifact["sha256"] else f"{file}: SHA-256 {actual}, expected {artifact['sha256']}"

    # Hashing lets go of the interpreter, so threads use all cores.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [line for line in pool.map(fault, artifacts) if line]

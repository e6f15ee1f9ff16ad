"""Data that people drop into a bucket: which are complete, and what exactly is in them.

A drop is one BOP folder, s3://BUCKET/PREFIX/NAME/. It is complete when the object NAME/_COMPLETE is there, which whoever drops it
writes last; its content does not matter. A quiet time would do without, but then an upload that stalls looks like one that is done.
Whoever changes a drop writes the marker anew, and it counts as new.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import urllib3
from minio import Minio
from minio.error import S3Error

from epos import store
from epos.bop import MANIFEST, data_hash
from epos.errors import DataError, EposError
from epos.store import Location

MARKER = "_COMPLETE"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_THREADS = 8


@dataclass(frozen=True)
class Drop:
    """A complete drop: its name, and when it was completed (ISO 8601, UTC)."""

    name: str
    completed: str


def finished(client: Minio, place: Location) -> list[Drop]:
    """The complete drops at a place, the oldest first.

    Raises:
        EposError: access denied, or the server cannot be reached.
    """
    found = []
    for entry in listing(client, place, recursive=False):
        name = entry.object_name.rstrip("/").rpartition("/")[2]
        if entry.is_dir and _NAME.fullmatch(name):
            completed = _modified(client, place.below(name))
            if completed:
                found.append(Drop(name, completed.isoformat()))
    return sorted(found, key=lambda drop: (drop.completed, drop.name))


def select(found: Sequence[Drop], named: Collection[str], start: datetime | None, end: datetime | None) -> list[str]:
    """The drops that a DAG run is about, the oldest first.

    Args:
        found: all that are complete.
        named: those that the run was started for; where there are none, its data interval counts.
        start, end: of the data interval: what was completed in it, its end excluded.
    """
    if named:
        return [drop.name for drop in found if drop.name in named]
    if start is None or end is None:
        return []
    return [drop.name for drop in found if start <= datetime.fromisoformat(drop.completed) < end]


def _modified(client: Minio, drop: Location) -> datetime | None:
    with reading(f"{drop}/{MARKER}"):
        try:
            found: datetime | None = client.stat_object(
                bucket_name=drop.bucket, object_name=drop.key(MARKER)
            ).last_modified
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return None
            raise
    return found


def snapshot(client: Minio, place: Location, drop: str) -> bytes:
    """Describes a drop as it is now: a manifest with size and SHA-256 of every file, made by reading all of them.

    Where the drop has a manifest of its own, as `epos push` writes it, what is there must be what it says.

    Raises:
        DataError: the drop has no file, or others than its manifest says.
        EposError: access denied, or the server cannot be reached.
    """
    source = place.below(drop)
    names = [entry.object_name.removeprefix(source.key("")) for entry in listing(client, source, recursive=True)]
    # Hidden files are what operating systems leave.
    names = [name for name in names if name not in (MARKER, MANIFEST) and not name.endswith("/") and not _hidden(name)]
    if not names:
        raise DataError(f"{source}: has no file")

    def describe(name: str) -> dict[str, Any]:
        content = store.read_object(client, source, name)
        return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}

    with ThreadPoolExecutor(_THREADS) as pool:
        files = dict(zip(names, pool.map(describe, names), strict=True))
    own = store.find_object(client, source, MANIFEST)
    if own is not None:
        where = f"{source}/{MANIFEST}"
        listed = store.read_manifest(where, own)
        for name in sorted(listed.keys() | files.keys()):
            if listed.get(name, {}).get("sha256") != files.get(name, {}).get("sha256"):
                raise DataError(f"{where}: files: {name}: " + _difference(name in listed, name in files))
    return store.manifest_text(files)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _difference(listed: bool, there: bool) -> str:
    if listed and there:
        return "has another SHA-256"
    return "is missing" if listed else "is not listed"


def listing(client: Minio, place: Location, recursive: bool) -> list[Any]:
    """The objects below a place.

    Raises:
        EposError: access denied, or the server cannot be reached.
    """
    with reading(str(place)):
        prefix = f"{place.prefix}/" if place.prefix else None
        return list(client.list_objects(bucket_name=place.bucket, prefix=prefix, recursive=recursive))


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Says in one line where a request failed."""
    try:
        yield
    except S3Error as error:
        raise EposError(f"{where}: {error.code}: {error.message}") from error
    except urllib3.exceptions.HTTPError as error:
        raise EposError(f"{where}: cannot reach the server: {error}") from error


def hash_of(manifest: bytes) -> str:
    """The hash of the content that a manifest describes."""
    value = json.loads(manifest)
    return data_hash(value["files"])

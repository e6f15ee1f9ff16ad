"""All buckets of an object store as one stream, a tar archive with PAX headers that any tar unpacks to <bucket>/<name of the object>."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Protocol

# PAX headers of ours: the rest of the tar is for whoever unpacks it by hand. Names of objects may end in a slash or have other things in them
# that no file can be called.
_OURS = "SLIPWAY."
_BUCKET, _KEY, _ETAG, _HEADER = f"{_OURS}bucket", f"{_OURS}key", f"{_OURS}etag", f"{_OURS}header."
# How clients cut large objects, each into parts of one size.
_PART_SIZES = (5 << 20, 8 << 20, 16 << 20, 64 << 20)


@dataclass(frozen=True)
class Stored:
    """An object without its content: `headers` are those that a client gave it, by their names in lower case."""

    key: str
    size: int
    etag: str
    headers: Mapping[str, str]
    modified: datetime


class Source(Protocol):
    """A store to read from."""

    def buckets(self) -> list[str]: ...

    def keys(self, bucket: str) -> Iterable[str]: ...

    def read_object(self, bucket: str, key: str) -> AbstractContextManager[tuple[Stored, IO[bytes]] | None]:
        """The object as it is now, and its content; None where it is gone."""


class Target(Protocol):
    """A store to write to."""

    def has_bucket(self, bucket: str) -> bool: ...

    def make_bucket(self, bucket: str) -> None: ...

    def etag(self, bucket: str, key: str) -> str | None:
        """Of the object as it is now; None where there is none."""

    def write_object(self, bucket: str, item: Stored, content: IO[bytes], part_size: int) -> None: ...


@dataclass
class Count:
    """What went through. `same` are objects that were there already as they should be."""

    buckets: int = 0
    objects: int = 0
    size: int = 0
    same: int = 0


def save(source: Source, stream: IO[bytes]) -> Count:
    """Write every bucket with its current objects to `stream`. What is deleted meanwhile is left out."""
    count = Count()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for bucket in source.buckets():
            folder = tarfile.TarInfo(bucket)
            folder.type, folder.mode, folder.pax_headers = tarfile.DIRTYPE, 0o700, {_BUCKET: bucket}
            archive.addfile(folder)
            count.buckets += 1
            for key in source.keys(bucket):
                with source.read_object(bucket, key) as found:
                    if found:
                        item, content = found
                        archive.addfile(_entry(bucket, item), content)
                        count.objects += 1
                        count.size += item.size
                # It keeps every entry for somebody who asks for a list.
                archive.members.clear()  # type: ignore[attr-defined]
    return count


def _entry(bucket: str, item: Stored) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(f"{bucket}/{item.key}")
    entry.size, entry.mode, entry.mtime = item.size, 0o600, int(item.modified.timestamp())
    ours = {_BUCKET: bucket, _KEY: item.key, _ETAG: item.etag}
    entry.pax_headers = {**ours, **{f"{_HEADER}{name}": value for name, value in sorted(item.headers.items())}}
    return entry


def restore(target: Target, stream: IO[bytes]) -> Count:
    """Have the store hold every object of `stream` as it is there. Objects of the same name are overwritten, others stay."""
    count = Count()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        while entry := archive.next():
            archive.members.clear()  # type: ignore[attr-defined]
            bucket, key = entry.pax_headers[_BUCKET], entry.pax_headers.get(_KEY)
            if key is None:
                count.buckets += 1
                if not target.has_bucket(bucket):
                    target.make_bucket(bucket)
                continue
            item = _stored(entry, key)
            count.objects += 1
            count.size += item.size
            if target.etag(bucket, key) == item.etag:
                count.same += 1
                continue
            content = archive.extractfile(entry)
            assert content
            target.write_object(bucket, item, content, part_size(item))
    return count


def _stored(entry: tarfile.TarInfo, key: str) -> Stored:
    headers = {
        name.removeprefix(_HEADER): value for name, value in entry.pax_headers.items() if name.startswith(_HEADER)
    }
    return Stored(key, entry.size, entry.pax_headers[_ETAG], headers, datetime.fromtimestamp(entry.mtime, UTC))


def part_size(item: Stored) -> int:
    """The size of the parts in which it was written, as far as that can be told, so that it gets the same ETag again."""
    parts = int(item.etag.rpartition("-")[2]) if "-" in item.etag else 0
    if not parts and item.size <= _PART_SIZES[-1]:
        return max(item.size, _PART_SIZES[0])
    fitting = [size for size in _PART_SIZES if -(-item.size // size) == parts]
    return (fitting or _PART_SIZES[-1:])[0]

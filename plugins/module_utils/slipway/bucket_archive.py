"""All buckets of an object store as one stream, a tar archive with PAX headers that any tar unpacks to <bucket>/<name of the object>; or in a
bucket of another store, with a list of what belongs to this archive.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import IO, Protocol

from ansible.module_utils.slipway.errors import SlipwayError

# PAX headers of ours: the rest of the tar is for whoever unpacks it by hand. Names of objects may end in a slash or have other things in them
# that no file can be called.
_OURS = "SLIPWAY."
_BUCKET, _KEY, _ETAG, _HEADER = f"{_OURS}bucket", f"{_OURS}key", f"{_OURS}etag", f"{_OURS}header."
# In another store: what the object's ETag was in its own.
_ORIGIN = "x-amz-meta-slipway-etag"
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

    def listed(self, bucket: str, prefix: str = "") -> Iterable[tuple[str, str]]:
        """Names and ETags of the objects whose names begin so."""

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
    """What went through. `same` are objects that were there already as they should be, `newer` those of a later time than the archive."""

    buckets: int = 0
    objects: int = 0
    size: int = 0
    same: int = 0
    newer: int = 0


def save(source: Source, stream: IO[bytes]) -> Count:
    """Write every bucket with its current objects to `stream`. What is deleted meanwhile is left out."""
    count = Count()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for bucket in source.buckets():
            folder = tarfile.TarInfo(bucket)
            folder.type, folder.mode, folder.pax_headers = tarfile.DIRTYPE, 0o700, {_BUCKET: bucket}
            archive.addfile(folder)
            count.buckets += 1
            for key, _ in source.listed(bucket):
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


class Store(Source, Target, Protocol):
    """A store to read from and to write to."""


@dataclass(frozen=True)
class Mirror:
    """A place in another store: the objects of all buckets below `prefix` in one bucket, each as <prefix>/<its bucket>/<its name>."""

    store: Store
    bucket: str
    prefix: str

    def place(self, bucket: str, key: str = "") -> str:
        """The name that an object has there."""
        return f"{self.prefix}/{bucket}/{key}"

    def read(self, bucket: str, key: str) -> AbstractContextManager[tuple[Stored, IO[bytes]] | None]:
        """An object there, as itself but for its name."""
        return self.store.read_object(self.bucket, self.place(bucket, key))

    def has(self, bucket: str, key: str, etag: str) -> bool:
        """Whether the object there is the one that had this ETag in its own store: parts of another size make another one of it."""
        with self.read(bucket, key) as found:
            return found is not None and found[0].headers.get(_ORIGIN) == etag

    def write(self, bucket: str, item: Stored, content: IO[bytes]) -> None:
        """Place an object."""
        placed = replace(item, key=self.place(bucket, item.key), headers={**item.headers, _ORIGIN: item.etag})
        self.store.write_object(self.bucket, placed, content, part_size(item))


def save_mirrored(source: Source, mirror: Mirror, stream: IO[bytes]) -> Count:
    """Bring what is new or changed of every bucket to `mirror`, and write what there is of them now to `stream`, one object a line.

    Nothing is removed there: earlier archives may need it.
    """
    count = Count()
    for bucket in source.buckets():
        count.buckets += 1
        stream.write(_line({"bucket": bucket}))
        known = dict(mirror.store.listed(mirror.bucket, mirror.place(bucket)))
        for key, etag in source.listed(bucket):
            place = mirror.place(bucket, key)
            if known.get(place) == etag or (place in known and mirror.has(bucket, key, etag)):
                count.same += 1
            else:
                with source.read_object(bucket, key) as found:
                    if not found:
                        continue
                    item, content = found
                    etag = item.etag
                    mirror.write(bucket, item, content)
                    count.size += item.size
            stream.write(_line({"bucket": bucket, "key": key, "etag": etag}))
            count.objects += 1
    return count


def _line(content: Mapping[str, str]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def restore_mirrored(target: Target, mirror: Mirror, stream: IO[bytes]) -> Count:
    """Have the store hold every object of the list `stream`; one that has changed since then comes back as it is in `mirror`.

    Raises SlipwayError, after all others, where some are not there any more.
    """
    count, missing = Count(), list[str]()
    for line in stream:
        wanted = json.loads(line)
        bucket, key = wanted["bucket"], wanted.get("key")
        if key is None:
            count.buckets += 1
            if not target.has_bucket(bucket):
                target.make_bucket(bucket)
            continue
        count.objects += 1
        if target.etag(bucket, key) == wanted["etag"]:
            count.same += 1
            continue
        with mirror.read(bucket, key) as found:
            if not found:
                missing.append(f"{bucket}/{key}")
                continue
            there, content = found
            origin = there.headers.get(_ORIGIN, there.etag)
            count.newer += origin != wanted["etag"]
            headers = {name: value for name, value in there.headers.items() if name != _ORIGIN}
            item = replace(there, key=key, etag=origin, headers=headers)
            target.write_object(bucket, item, content, part_size(item))
            count.size += item.size
    if missing:
        raise SlipwayError(
            f"{len(missing)} objects of the archive are not in bucket {mirror.bucket} below {mirror.prefix}/ any more, such as {missing[0]}; "
            "all others are restored"
        )
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

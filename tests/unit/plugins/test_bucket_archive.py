"""All objects of a store as one stream, and back: contents, headers, names that no file can have; and the module around it."""

from __future__ import annotations

import hashlib
import io
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.age import encrypt_bytes, read_recipients
from ansible.module_utils.slipway.backup import add_part, begin_archive, draft, finish_archive, read_archive
from ansible.module_utils.slipway.bucket_archive import (
    Mirror,
    Stored,
    part_size,
    restore,
    restore_mirrored,
    save,
    save_mirrored,
)
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.minio_access import Login
from ansible.module_utils.slipway.minio_client import MinioStore

from modules import bucket_archive
from tests.unit.dataops.s3 import serving_objects

from .archives import K3S, RECIPIENT, SITE, TIME, write_key
from .fakes import FakeKube, run_module

MOMENT = datetime(2026, 11, 27, 12, tzinfo=UTC)


class MemoryStore:
    """Both sides of it. `written` are the objects that came in, with the sizes of their parts."""

    def __init__(self, **buckets: dict[str, bytes]) -> None:
        self.content: dict[str, dict[str, tuple[Stored, bytes]]] = {}
        self.gone: set[str] = set()
        # The ETag of all that comes in, where it is not empty.
        self.recut = ""
        self.written: list[tuple[str, int]] = []
        for bucket, objects in buckets.items():
            self.content[bucket] = {}
            for key, data in objects.items():
                headers = {"content-type": "text/plain", "x-amz-meta-who": "me"}
                etag = hashlib.md5(data).hexdigest()
                self.content[bucket][key] = (Stored(key, len(data), etag, headers, MOMENT), data)

    def buckets(self) -> list[str]:
        return sorted(self.content)

    def listed(self, bucket: str, prefix: str = "") -> Iterable[tuple[str, str]]:
        return [(key, item.etag) for key, (item, _) in sorted(self.content[bucket].items()) if key.startswith(prefix)]

    @contextmanager
    def read_object(self, bucket: str, key: str) -> Iterator[tuple[Stored, IO[bytes]] | None]:
        item, data = self.content[bucket].get(key, (None, b""))
        yield (item, io.BytesIO(data)) if item and key not in self.gone else None

    def has_bucket(self, bucket: str) -> bool:
        return bucket in self.content

    def make_bucket(self, bucket: str) -> None:
        self.content[bucket] = {}

    def etag(self, bucket: str, key: str) -> str | None:
        found = self.content[bucket].get(key)
        return found[0].etag if found else None

    def write_object(self, bucket: str, item: Stored, content: IO[bytes], part_size: int) -> None:
        self.written.append((f"{bucket}/{item.key}", part_size))
        etag = self.recut or item.etag
        self.content[bucket][item.key] = (replace(item, etag=etag), content.read())


NAMES = {"a/b.txt": b"1", "folder/": b"", "ü & ?\n=.txt": b"22", "../up": b"333", "x" * 300: b"4444"}


def saved(store: MemoryStore) -> io.BytesIO:
    stream = io.BytesIO()
    save(store, stream)
    stream.seek(0)
    return stream


def test_a_store_comes_back_as_it_was() -> None:
    store, target = MemoryStore(one=NAMES, empty={}, two={"big": b"z" * 100_000}), MemoryStore()
    count = restore(target, saved(store))
    assert target.content == store.content
    assert (count.buckets, count.objects, count.same) == (3, 6, 0)
    assert restore(target, saved(store)).same == 6


def test_what_is_there_already_is_overwritten_or_stays() -> None:
    store, target = (
        MemoryStore(one={"same": b"1", "other": b"2"}),
        MemoryStore(one={"same": b"1", "other": b"x", "new": b"3"}),
    )
    count = restore(target, saved(store))
    assert [name for name, _ in target.written] == ["one/other"]
    assert {key: data for key, (_, data) in target.content["one"].items()} == {"same": b"1", "other": b"2", "new": b"3"}
    assert (count.objects, count.same) == (2, 1)


def test_what_is_deleted_meanwhile_is_left_out() -> None:
    store = MemoryStore(one={"a": b"1", "b": b"2"})
    store.gone = {"a"}
    assert save(store, io.BytesIO()).objects == 1


def mirrored(store: MemoryStore, mirror: Mirror) -> tuple[io.BytesIO, int]:
    """The list, and how many objects had to be copied."""
    stream = io.BytesIO()
    count = save_mirrored(store, mirror, stream)
    stream.seek(0)
    return stream, count.objects - count.same


@pytest.mark.parametrize("recut", ["", "other-2"])
def test_another_store_gets_what_is_new_or_changed(recut: str) -> None:
    """Also where it cuts large objects otherwise. They come back with their own headers; what has changed since comes as it is now."""
    store, other, target = MemoryStore(one=NAMES, empty={}), MemoryStore(backup={"site/one/mine": b"0"}), MemoryStore()
    other.recut = recut
    mirror = Mirror(other, "backup", "site")
    first, copied = mirrored(store, mirror)
    assert copied == 5
    assert mirrored(store, mirror)[1] == 0
    assert "site/one/a/b.txt" in other.content["backup"]
    assert restore_mirrored(target, mirror, first).objects == 5
    assert target.content == store.content
    first.seek(0)
    assert restore_mirrored(target, mirror, first).same == 5

    store.content["one"]["a/b.txt"] = MemoryStore(one={"a/b.txt": b"changed"}).content["one"]["a/b.txt"]
    del store.content["one"]["folder/"]
    assert mirrored(store, mirror)[1] == 1
    first.seek(0)
    target.content["one"].clear()
    count = restore_mirrored(target, mirror, first)
    assert (count.newer, target.content["one"]["a/b.txt"][1]) == (1, b"changed")
    assert "folder/" in target.content["one"]
    del other.content["backup"]["site/one/folder/"]
    first.seek(0)
    target.content["one"].clear()
    with pytest.raises(SlipwayError, match="1 objects of the archive are not in bucket backup below site/ any more"):
        restore_mirrored(target, mirror, first)
    assert len(target.content["one"]) == 4


def test_any_tar_unpacks_it(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(saved(MemoryStore(one={"a/b.txt": b"1"}, two={"c": b"2"})).read())
    subprocess.run(["tar", "-xf", "x.tar"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "one/a/b.txt").read_bytes() == b"1"
    assert (tmp_path / "two/c").read_bytes() == b"2"


@pytest.mark.parametrize(
    ("size", "etag", "wanted"),
    [
        (10, "abc", 5 << 20),
        (20 << 20, "abc", 20 << 20),
        (20 << 20, "abc-4", 5 << 20),
        (20 << 20, "abc-3", 8 << 20),
        (100 << 20, "abc-2", 64 << 20),
        (100 << 20, "abc-9", 64 << 20),
        (1 << 30, "abc", 64 << 20),
    ],
)
def test_objects_are_cut_as_they_were(size: int, etag: str, wanted: int) -> None:
    item = replace(Stored("x", 0, etag, {}, MOMENT), size=size)
    assert part_size(item) == wanted


def test_the_client_speaks_s3() -> None:
    """Names, contents and ETags pass an S3 server both ways."""
    with serving_objects("one") as store:
        client = MinioStore(urlsplit(store.url).netloc, Login("root", "long-enough"))
        store.put("one", "a b/ü.txt", b"text")
        assert [key for key, _ in client.listed("one", "a ")] == ["a b/ü.txt"]
        with client.read_object("one", "a b/ü.txt") as found:
            assert found
            assert (found[0].size, found[1].read()) == (4, b"text")
            item = found[0]
        with client.read_object("one", "nowhere") as found:
            assert found is None
        assert client.etag("one", "nowhere") is None
        client.write_object("one", replace(item, key="copy"), io.BytesIO(b"text"), 5 << 20)
        assert store.objects["one", "copy"] == b"text"
        assert client.etag("one", "copy") == item.etag


def test_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the store to a part of an archive and back; the key of the store is not shown."""
    kube = FakeKube()
    keys = {"rootUser": "root", "rootPassword": "never-to-be-shown"}
    secrets.ensure(kube, "minio", "minio-root", [secrets.Key(key, value=value) for key, value in keys.items()], {})
    monkeypatch.setattr(bucket_archive, "KubeClient", lambda kubeconfig: kube)
    store = MemoryStore(one={"a": b"1"})
    monkeypatch.setattr(MinioStore, "await_ready", lambda self, timeout: None)
    for name in ("buckets", "listed", "read_object", "has_bucket", "make_bucket", "etag", "write_object"):
        monkeypatch.setattr(MinioStore, name, lambda self, *words, name=name: getattr(store, name)(*words))
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "Forwarding from 127.0.0.1:9 -> 9000"\nexec sleep 30\n')
    kubectl.chmod(0o755)
    archive = tmp_path / TIME
    begin_archive(archive, SITE, K3S, ("a",))
    common = {"kubeconfig": "/k", "kubectl": str(kubectl), "path": str(archive)}
    result = run_module(bucket_archive, {**common, "state": "saved", "recipients": [RECIPIENT]})
    assert result["changed"] and result["objects"] == 1
    assert "never-to-be-shown" not in str(result)
    names = ("agent-token", "snapshot.zip", "token")
    to = read_recipients([RECIPIENT])
    add_part(archive, "cluster", {each: encrypt_bytes(draft(archive) / f"{each}.age", to, b"") for each in names}, {})
    finish_archive(archive)
    assert read_archive(archive).parts["minio"].facts == {"buckets": 1, "objects": 1, "size": 1}

    (tmp_path / "secret").write_text("also-not-shown\n")
    keys = dict.fromkeys(("access_key_file", "secret_key_file"), str(tmp_path / "secret"))
    target = {"endpoint": "127.0.0.1:1", "bucket": "one", "prefix": "site", **keys}
    answer = run_module(bucket_archive, {**common, "state": "restored", "identity_file": "/k", "target": target})
    assert "its objects are in itself" in answer["msg"] and "also-not-shown" not in str(answer)
    target["bucket"] = "nowhere"
    answer = run_module(bucket_archive, {**common, "state": "restored", "identity_file": "/k", "target": target})
    assert "has no bucket nowhere" in answer["msg"]

    back = {**common, "state": "restored", "identity_file": str(write_key(tmp_path))}
    assert run_module(bucket_archive, back)["changed"] is False
    store.content["one"].clear()
    assert run_module(bucket_archive, back, check=True)["changed"] is True
    assert not store.content["one"]
    assert run_module(bucket_archive, back)["changed"] is True
    assert store.content["one"]["a"][1] == b"1"

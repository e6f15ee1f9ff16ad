"""The object store gives each user its own buckets and nothing else."""

from __future__ import annotations

import io
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from minio.error import S3Error

from .site import Site, Store

FOREIGN = "slipway-test-foreign"


@pytest.mark.smoke
def test_own_buckets(store: Store) -> None:
    """The training's user writes and reads in its bucket."""
    store.client.put_object(
        bucket_name="epos-data", object_name="slipway-test/object", data=io.BytesIO(b"content"), length=7
    )
    assert store.read("epos-data", "slipway-test/object") == b"content"
    store.client.remove_object(bucket_name="epos-data", object_name="slipway-test/object")


@pytest.mark.smoke
def test_strangers_are_refused(store: Store) -> None:
    """Without credentials nothing is listed."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"http://{store.endpoint}/epos-data/", timeout=10)
    assert refusal.value.code == 403


@pytest.fixture
def foreign_bucket(site: Site) -> Iterator[str]:
    """A bucket of somebody else, with an object in it."""
    with Store.open(site, "minio", "minio-root", ("rootUser", "rootPassword")) as root:
        root.client.make_bucket(bucket_name=FOREIGN)
        root.client.put_object(bucket_name=FOREIGN, object_name="object", data=io.BytesIO(b"x"), length=1)
        yield FOREIGN
        root.client.remove_object(bucket_name=FOREIGN, object_name="object")
        root.client.remove_bucket(bucket_name=FOREIGN)


@pytest.mark.fault
def test_foreign_bucket_is_refused(store: Store, foreign_bucket: str) -> None:
    """The training's user neither reads nor writes nor lists nor makes a bucket that is not its own."""
    attempts: dict[str, Callable[[], Any]] = {
        "read": lambda: store.read(foreign_bucket, "object"),
        "write": lambda: store.client.put_object(
            bucket_name=foreign_bucket, object_name="y", data=io.BytesIO(b"y"), length=1
        ),
        "list": lambda: list(store.client.list_objects(bucket_name=foreign_bucket)),
        "delete": lambda: store.client.remove_object(bucket_name=foreign_bucket, object_name="object"),
        "make": lambda: store.client.make_bucket(bucket_name=f"{foreign_bucket}-2"),
    }
    for name, attempt in attempts.items():
        with pytest.raises(S3Error) as refusal:
            attempt()
        assert refusal.value.code == "AccessDenied", name
    assert foreign_bucket not in {bucket.name for bucket in store.client.list_buckets()}

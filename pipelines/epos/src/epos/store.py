"""Data sets and models in S3 (MinIO).

Access comes from the environment alone: S3_ENDPOINT (host:port), S3_ACCESS_KEY, S3_SECRET_KEY, S3_SECURE (true or
false, default true), S3_CA_FILE (PEM file of the authority that signed the server's certificate).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import urllib3
from minio import Minio
from minio.error import S3Error
from minio.helpers import check_bucket_name

from epos.bop import MANIFEST, data_hash, file_hashes
from epos.checkpoint import DAMAGED, load_arrays, pack_arrays, write_atomic
from epos.errors import DataError, EposError, UsageError
from epos.progress import say

POINTER = "latest.json"
_THREADS = 8
_TIMEOUT = urllib3.Timeout(connect=10, read=60)  # seconds
_BUCKET_RULE = "lower case letters, digits, dots and hyphens"
_MISSING = ("NoSuchKey", "NoSuchBucket", "NoSuchObject")


class Client(Protocol):
    """What is used of minio.Minio."""

    def get_object(self, bucket_name: str, object_name: str) -> Any: ...
    def put_object(self, bucket_name: str, object_name: str, data: Any, length: int) -> Any: ...
    def remove_object(self, bucket_name: str, object_name: str) -> Any: ...


@dataclass(frozen=True)
class Location:
    """A place in S3: s3://bucket/prefix."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, url: str) -> Location:
        """Reads s3://bucket/prefix.

        Raises:
            UsageError: something else.
        """
        scheme, _, rest = url.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if scheme != "s3" or not bucket or any(p in ("", ".", "..") for p in prefix.split("/") if prefix):
            raise UsageError(f"{url!r} is not of the form s3://bucket/prefix")
        try:
            # What the client refuses before it asks the server.
            check_bucket_name(bucket)
        except ValueError as error:
            raise UsageError(f"{url!r}: {error}; a bucket's name has 3 to 63 characters, {_BUCKET_RULE}") from error
        return cls(bucket, prefix)

    def key(self, name: str) -> str:
        """Key of a file below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def below(self, name: str) -> Location:
        """A place inside this one."""
        return Location(self.bucket, self.key(name))

    def beside(self, name: str) -> Location:
        """A place next to this one, below the same prefix."""
        return Location(self.bucket, self.prefix.rpartition("/")[0]).below(name)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def connect(environment: dict[str, str] | None = None) -> Minio:
    """A client from the environment's variables.

    Raises:
        UsageError: a variable is missing or wrong.
    """
    values = os.environ if environment is None else environment
    missing = [n for n in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY") if not values.get(n)]
    if missing:
        raise UsageError(f"environment: {', '.join(missing)} not set")
    secure = values.get("S3_SECURE", "true").lower()
    if secure not in ("true", "false"):
        raise UsageError("environment: S3_SECURE must be true or false")
    ca_file = values.get("S3_CA_FILE") or None
    if ca_file and not Path(ca_file).is_file():
        raise UsageError(f"environment: S3_CA_FILE: {ca_file}: no such file")
    retry = urllib3.Retry(total=6, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504))
    tls = {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_file} if ca_file else {}
    pool = urllib3.PoolManager(maxsize=_THREADS, timeout=_TIMEOUT, retries=retry, **tls)
    try:
        return Minio(
            endpoint=values["S3_ENDPOINT"],
            access_key=values["S3_ACCESS_KEY"],
            secret_key=values["S3_SECRET_KEY"],
            secure=secure == "true",
            http_client=pool,
        )
    except ValueError as error:
        raise UsageError(f"environment: S3_ENDPOINT: {error}") from error


@contextmanager
def _errors(where: str) -> Iterator[None]:
    """Says which object a request failed for."""
    try:
        yield
    except S3Error as error:
        raise EposError(f"{where}: {error.code}: {error.message}") from error
    except urllib3.exceptions.HTTPError as error:
        raise EposError(f"{where}: cannot reach the server: {error}") from error


def read_object(client: Client, place: Location, name: str) -> bytes:
    """Downloads an object.

    Raises:
        DataError: it does not exist.
        EposError: access denied, or the server cannot be reached.
    """
    where = f"s3://{place.bucket}/{place.key(name)}"
    response = None
    with _errors(where):
        try:
            response = client.get_object(bucket_name=place.bucket, object_name=place.key(name))
            return bytes(response.read())
        except S3Error as error:
            if error.code in _MISSING:
                raise DataError(f"{where}: missing object") from error
            raise
        finally:
            if response is not None:
                response.close()
                response.release_conn()


def find_object(client: Client, place: Location, name: str) -> bytes | None:
    """Downloads an object; None when there is none.

    Raises:
        EposError: access denied, or the server cannot be reached.
    """
    try:
        return read_object(client, place, name)
    except DataError:
        return None


def write_object(client: Client, place: Location, name: str, data: bytes) -> None:
    """Uploads an object; readers see the old or the new one, never a part.

    Raises:
        EposError: access denied, or the server cannot be reached.
    """
    with _errors(f"s3://{place.bucket}/{place.key(name)}"):
        client.put_object(
            bucket_name=place.bucket, object_name=place.key(name), data=io.BytesIO(data), length=len(data)
        )


@dataclass(frozen=True)
class Checkpoint:
    """A training's state as one object, replaced at once: whoever resumes needs no volume of its predecessor.

    Attributes:
        client: of the store.
        place: where checkpoints live.
        name: of the object.
    """

    client: Client
    place: Location
    name: str

    @classmethod
    def of(cls, client: Client, place: Location, run: str) -> Checkpoint:
        """That of a run, by the run's fingerprint."""
        return cls(client, place, f"run-{run[:12]}.npz")

    def load(self) -> dict[str, np.ndarray] | None:
        """The checkpoint, or None when there is none that can be read.

        Raises:
            EposError: access denied, or the server cannot be reached.
        """
        data = find_object(self.client, self.place, self.name)
        if data is None:
            return None
        try:
            return load_arrays(io.BytesIO(data))
        except DAMAGED as error:
            say(f"checkpoint {self} is unreadable ({error}); starting anew")
            return None

    def save(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Replaces the checkpoint."""
        write_object(self.client, self.place, self.name, pack_arrays(arrays))

    def remove(self) -> None:
        """Deletes the object; S3 calls it a success when there is none."""
        with _errors(str(self)):
            self.client.remove_object(bucket_name=self.place.bucket, object_name=self.place.key(self.name))

    def __str__(self) -> str:
        return f"s3://{self.place.bucket}/{self.place.key(self.name)}"


def manifest_text(files: dict[str, dict[str, Any]]) -> bytes:
    """The manifest's content: every file with hash and size, and the hash of all."""
    value = {"schema": 1, "data_hash": data_hash(files), "files": files}
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def push(client: Client, root: Path, place: Location) -> dict[str, Any]:
    """Uploads a folder; its manifest comes last, so that a half uploaded folder has none or an old one.

    Returns:
        number of files, bytes, data hash.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder")
    files = file_hashes(root)
    if not files:
        raise UsageError(f"{root}: is empty")
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name: write_object(client, place, name, (root / name).read_bytes()), files))
    write_object(client, place, MANIFEST, manifest_text(files))
    return {"files": len(files), "bytes": sum(f["size"] for f in files.values()), "data_hash": data_hash(files)}


def read_manifest(where: str, text: bytes) -> dict[str, dict[str, Any]]:
    """Files by name, with hash and size.

    Raises:
        DataError: it is damaged, or contradicts itself.
    """
    try:
        value = json.loads(text)
        files: dict[str, dict[str, Any]] = value["files"]
        for name, entry in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or str(path) != name:
                raise DataError(f"{where}: files: unsafe path {name!r}")
            if len(entry["sha256"]) != 64 or int(entry["size"]) < 0:
                raise ValueError(name)
        if value["data_hash"] != data_hash(files):
            raise DataError(f"{where}: data_hash: does not match the files listed")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: damaged manifest: {error!r}") from error
    return files


def _everything(_: str) -> bool:
    return True


def pull(
    client: Client,
    place: Location,
    root: Path,
    manifest: bytes | None = None,
    wanted: Callable[[str], bool] = _everything,
) -> dict[str, Any]:
    """Downloads what push() uploaded; afterwards the folder holds exactly the wanted files of the manifest.

    Files that are there with the right hash stay. A folder that pull did not make is left alone.

    Args:
        client: of the store.
        place: where push() put it.
        root: folder to fill.
        manifest: which content to expect; by default that of the manifest which is there.
        wanted: which files are needed.

    Returns:
        number of files, of downloads, data hash.

    Raises:
        DataError: an object is missing or has another hash than the manifest says.
        UsageError: the folder holds other things.
    """
    where = f"s3://{place.bucket}/{place.key(MANIFEST)}"
    text = read_object(client, place, MANIFEST) if manifest is None else manifest
    listed = read_manifest(where, text)
    files = {name: entry for name, entry in listed.items() if wanted(name)}
    root.mkdir(parents=True, exist_ok=True)
    local = root / MANIFEST
    present = {p.name for p in root.iterdir()} - {"lost+found"}
    if present and not local.exists():
        raise UsageError(f"{root}: is not empty and was not made by pull")
    if not present:
        write_atomic(local, manifest_text({}))
    have = file_hashes(root)
    wrong = [name for name in files if have.get(name, {}).get("sha256") != files[name]["sha256"]]
    for name in have:
        if name not in files:
            (root / name).unlink()

    def download(name: str) -> None:
        data = read_object(client, place, name)
        if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
            raise DataError(f"s3://{place.bucket}/{place.key(name)}: has another SHA-256 than {MANIFEST} says")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(download, wrong))
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
        if not any(folder.iterdir()) and folder.name != "lost+found":
            shutil.rmtree(folder)
    write_atomic(local, text)
    return {"files": len(files), "downloaded": len(wrong), "data_hash": data_hash(listed)}


def write_json(client: Client, place: Location, name: str, value: Any) -> None:
    """Uploads an object as JSON text."""
    write_object(client, place, name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def point(client: Client, place: Location, version: str, facts: dict[str, Any]) -> None:
    """Moves <prefix>/latest.json to a version that is there.

    Args:
        client: of the store.
        place: where models live.
        version: of the model.
        facts: further content of latest.json.
    """
    write_json(client, place, POINTER, {"schema": 1, "version": version, "prefix": f"{place.key(version)}/", **facts})


def publish(client: Client, folder: Path, place: Location, version: str, facts: dict[str, Any]) -> None:
    """Uploads a model folder under <prefix>/<version>/ and, as the last single object, moves <prefix>/latest.json.

    Args:
        client: of the store.
        folder: model, metrics and pictures.
        place: where models live.
        version: of the model.
        facts: further content of latest.json.
    """
    push(client, folder, place.below(version))
    point(client, place, version, facts)


def find_pointer(client: Client, place: Location) -> dict[str, Any] | None:
    """The content of <prefix>/latest.json, which names a version; None before the first release.

    Raises:
        DataError: it is damaged.
    """
    text = find_object(client, place, POINTER)
    if text is None:
        return None
    where = f"s3://{place.bucket}/{place.key(POINTER)}"
    try:
        value = json.loads(text)
        return {**value, "version": str(value["version"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: damaged pointer: {error!r}") from error


def pull_latest(client: Client, place: Location, root: Path) -> str:
    """Downloads the model that latest.json points at; returns its version."""
    pointer = find_pointer(client, place)
    if pointer is None:
        raise DataError(f"s3://{place.bucket}/{place.key(POINTER)}: missing object")
    version: str = pointer["version"]
    pull(client, place.below(version), root)
    return version

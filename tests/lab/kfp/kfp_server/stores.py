"""Object stores as the launcher of the real server finds them, by ConfigMap kfp-launcher, and copies from and to them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from minio import Minio
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

Json = dict[str, Any]
T = TypeVar("T")

DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
# What the real launcher uses for minio:// without a configuration.
_DEFAULT_SESSION: Json = {
    "endpoint": "seaweedfs.kubeflow:9000",
    "region": "minio",
    "disableSSL": True,
    "secretName": "mlpipeline-minio-artifact",
    "accessKeyKey": "accesskey",
    "secretKeyKey": "secretkey",
}
# How long a store may be away before a task fails.
PATIENCE_S = 600.0

log = logging.getLogger("kfp.stores")


class StoreError(Exception):
    """A store that refuses, or that was away for too long."""


def split(uri: str) -> tuple[str, str, str]:
    """Scheme, bucket and key of a URI."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in ("minio", "s3") or not bucket:
        raise StoreError(f"{uri} is neither minio://BUCKET/KEY nor s3://BUCKET/KEY: the stand-in has no other stores")
    return scheme, bucket, key


def session(config: Mapping[str, str], root: str) -> Json:
    """How to reach the store of a pipeline root; {} for what the environment of the task says."""
    scheme, bucket, key = split(root)
    provider = (yaml.safe_load(config.get("providers", "")) or {}).get(scheme) or {}
    if not provider:
        return dict(_DEFAULT_SESSION) if scheme == "minio" else {}
    found: Json = dict(provider.get("default") or {})
    for override in provider.get("overrides") or provider.get("Overrides") or []:
        if override.get("bucketName") == bucket and f"{key}/".startswith(override.get("keyPrefix", "")):
            found.update({key: override[key] for key in ("endpoint", "region", "disableSSL") if key in override})
            found["credentials"] = override.get("credentials")
            break
    credentials = found.pop("credentials", None)
    if credentials is None:
        raise StoreError(f"ConfigMap kfp-launcher: providers: {scheme}: credentials are missing")
    if credentials.get("fromEnv"):
        return found
    return {**found, **credentials.get("secretRef", {})}


def client(settings: Json, secret: Callable[[str], Mapping[str, str]]) -> Minio:
    """A client for a session; `secret` reads a Secret of the namespace."""
    access_key, secret_key = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if name := settings.get("secretName"):
        data = secret(name)
        access_key, secret_key = data.get(settings.get("accessKeyKey", "")), data.get(settings.get("secretKeyKey", ""))
        if not access_key or not secret_key:
            keys = f"{settings.get('accessKeyKey')}, {settings.get('secretKeyKey')}"
            raise StoreError(f"Secret {name} has no value under {keys}, as ConfigMap kfp-launcher says")
    endpoint = settings.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    scheme, _, host = endpoint.rpartition("://")
    secure = scheme == "https" if scheme else not settings.get("disableSSL", False)
    region = settings.get("region") or os.environ.get("AWS_REGION")
    return Minio(host, access_key=access_key, secret_key=secret_key, secure=secure, region=region)


def server_reader(environment: Mapping[str, str] = os.environ) -> Callable[[str], bytes]:
    """Reads artifacts with the store that the variables of the API server name."""
    host = f"{environment.get('OBJECTSTORECONFIG_HOST')}:{environment.get('OBJECTSTORECONFIG_PORT', '9000')}"
    store = Minio(
        host,
        access_key=environment.get("OBJECTSTORECONFIG_ACCESSKEY"),
        secret_key=environment.get("OBJECTSTORECONFIG_SECRETACCESSKEY"),
        secure=environment.get("OBJECTSTORECONFIG_SECURE", "false") == "true",
        region=environment.get("OBJECTSTORECONFIG_REGION") or None,
    )

    def read(uri: str) -> bytes:
        _, bucket, key = split(uri)
        response = store.get_object(bucket, key)
        try:
            return response.data
        finally:
            response.release_conn()

    return read


def download(store: Minio, uri: str, target: Path) -> None:
    """Fetch an artifact: one object, or all below it. What is not there is no error: the component may not need it."""
    _, bucket, prefix = split(uri)
    objects = patiently(lambda: [item.object_name for item in store.list_objects(bucket, prefix, recursive=True)])
    for key in objects:
        relative = (key or "").removeprefix(prefix)
        if not key or (relative and not relative.startswith("/")):
            continue
        if ".." in key.split("/"):
            raise StoreError(f"{uri}: object {key!r} would be stored elsewhere")
        file = target / relative.strip("/") if relative else target
        patiently(lambda key=key, file=file: store.fget_object(bucket, key, str(file)))  # type: ignore[misc]


def upload(store: Minio, source: Path, uri: str) -> None:
    """Store a file or all files of a folder. Raises FileNotFoundError."""
    _, bucket, key = split(uri)
    if not source.exists():
        raise FileNotFoundError(source)
    for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if file.is_file():
            name = f"{key}/{file.relative_to(source)}" if file != source else key
            patiently(lambda name=name, file=file: store.fput_object(bucket, name, str(file)))  # type: ignore[misc]


def patiently(action: Callable[[], T], patience: float = PATIENCE_S, pause: Callable[[float], None] = time.sleep) -> T:
    """Do something with a store, again while it is away. A refusal counts at once."""
    waited, wait = 0.0, 1.0
    while True:
        try:
            return action()
        except (MinioException, HTTPError, OSError) as error:
            refused = isinstance(error, S3Error) and error.response.status < 500
            local = isinstance(error, OSError) and error.filename is not None
            if refused or local or waited >= patience:
                raise StoreError(str(error)) from error
            log.warning("the object store is away: %s; again in %.0f s", error, wait)
            pause(wait)
            waited, wait = waited + wait, min(wait * 2, 30.0)

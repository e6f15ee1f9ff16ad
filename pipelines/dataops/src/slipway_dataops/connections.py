"""The object store by an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.sdk import BaseHook, Connection

from epos import store
from epos.errors import UsageError
from epos.store import Location

if TYPE_CHECKING:
    from minio import Minio


def client(conn_id: str) -> Minio:
    """A client, for a task.

    The connection is of type aws, as that of Airflow's logs: login and password are the keys, the extra has `endpoint_url` and, where
    an authority that the system does not know signed the certificate, `verify`, a PEM file.

    Raises:
        UsageError: the connection lacks something.
    """
    return _connect(BaseHook.get_connection(conn_id))


async def object_store(conn_id: str, location: str) -> tuple[Minio, Location]:
    """A client and a place, for a trigger."""
    return _connect(await BaseHook.aget_connection(conn_id)), Location.parse(location)


def _connect(connection: Connection) -> Minio:
    extra = connection.extra_dejson
    url = urlsplit(extra.get("endpoint_url") or "")
    if url.scheme not in ("http", "https") or not url.netloc:
        raise UsageError(f"connection {connection.conn_id}: extra: endpoint_url: expected http(s)://host:port")
    verify = extra.get("verify")
    return store.connect({
        "S3_ENDPOINT": url.netloc,
        "S3_ACCESS_KEY": connection.login or extra.get("aws_access_key_id") or "",
        "S3_SECRET_KEY": connection.password or extra.get("aws_secret_access_key") or "",
        "S3_SECURE": "true" if url.scheme == "https" else "false",
        "S3_CA_FILE": verify if isinstance(verify, str) else "",
    })  # fmt: skip

"""What is kept of each drop: the data it became, the run that learned from them, the model that came of it, and how all of it is linked.

Below one place in S3, <data>:

    snapshots/<drop>/<hash>.json   every file of a drop with its hash, as acquired
    reports/<hash>.html, .json     what these data look like, and how far they are from the last accepted ones
    work/<stage>/<hash>/           between two tasks; removed when the record is written
    sets/<hash>/                   what is trained on, with manifest.json
    records/<drop>/<hash>.json     the chain, by drop and hash of its snapshot
    accepted.json                  statistics of the data that last led to a trained model
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minio import Minio

from epos import store
from epos.bop import MANIFEST, data_hash, file_hashes
from epos.errors import DataError
from epos.store import Location
from slipway_dataops.drops import listing, reading

Json = dict[str, Any]

SCHEMA = 1
ACCEPTED = "accepted.json"
_REJECTED = "rejected"


def read(client: Minio, place: Location, name: str) -> Json | None:
    """A JSON object that is kept, None where there is none.

    Raises:
        DataError: it is damaged.
    """
    text = store.find_object(client, place, name)
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DataError(f"{place}/{name}: damaged: {error}") from error


def record_name(drop: str, snapshot_hash: str) -> str:
    """Where the record of a drop is kept."""
    return f"records/{drop}/{snapshot_hash[:12]}.json"


def snapshot_name(drop: str, snapshot_hash: str) -> str:
    """Where the snapshot of a drop is kept."""
    return f"snapshots/{drop}/{snapshot_hash[:12]}.json"


def model_of(client: Minio, models: Location, run_id: str) -> Json:
    """What came of a run of the pipeline `epos`.

    Returns:
        `verdict`: released, rejected or, where neither is recorded (any more), unknown; with version, recall and reason.

    Raises:
        DataError: a record is damaged.
    """
    latest = store.find_pointer(client, models)
    if latest and run_id in (latest.get("run_id"), latest.get("registered_by")):
        return {"verdict": "released"} | {n: latest.get(n) for n in ("version", "recall", "data_hash", "commit")}
    place = models.beside(_REJECTED)
    for entry in listing(client, place, recursive=True):
        found = read(client, place, entry.object_name.removeprefix(place.key("")))
        if found and found.get("run_id") == run_id:
            return {"verdict": "rejected"} | {n: found.get(n) for n in ("version", "recall", "data_hash", "reason")}
    return {"verdict": "unknown"}


def write(client: Minio, place: Location, chain: Json) -> str:
    """Keeps the record of a drop; returns its address."""
    name = record_name(chain["drop"]["name"], chain["drop"]["hash"])
    store.write_json(client, place, name, {"schema": SCHEMA, **chain})
    return f"{place}/{name}"


def keep(client: Minio, place: Location, folder: Path) -> str:
    """Uploads a folder under the hash of its content; one that is there is not uploaded again. Returns the hash."""
    digest = data_hash(file_hashes(folder))
    target = place.below(digest[:12])
    there = store.find_object(client, target, MANIFEST)
    if there is None or json.loads(there).get("data_hash") != digest:
        store.push(client, folder, target)
    return digest


def remove(client: Minio, place: Location) -> int:
    """Removes what lies below a place; returns the number of objects."""
    entries = listing(client, place, recursive=True)
    for entry in entries:
        with reading(f"s3://{place.bucket}/{entry.object_name}"):
            client.remove_object(bucket_name=place.bucket, object_name=entry.object_name)
    return len(entries)

"""The training as the suite runs it, and what it records of it."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minio.error import S3Error

from .gpus import gpu_nodes
from .site import Epos, Job, Site, Store

DATA = "s3://epos-data/lab"
MODELS = "s3://epos-models/models"
# Between a barely trained model and a trained one; pipelines/epos/README.md has the figures.
MIN_RECALL = 0.5
ARGUMENTS = [
    *("--data", DATA, "--models", MODELS, "--data-dir", "/data/set", "--work-dir", "/work"),
    *("--min-recall", str(MIN_RECALL)),
]
# For runs that need no good model.
SMALL = ["--data", DATA, "--data-dir", "/data/set", "--work-dir", "/work", "--overlays", "0"]
# Written by this suite beside the models: what the published model was made of.
RECORD = "models/verified.json"


def read_record(store: Store) -> dict[str, Any]:
    """Return what the last verified training was made of, empty when there was none."""
    try:
        record: dict[str, Any] = json.loads(store.read("epos-models", RECORD))
    except S3Error as error:
        if error.code != "NoSuchKey":
            raise
        return {}
    return record


def is_current(site: Site, store: Store) -> bool:
    """Return whether the published model was made by this image, with these arguments, of the data in the store."""
    record = read_record(store)
    latest = store.latest()
    if not record or not latest or latest["version"] != record["version"]:
        return False
    try:
        store.client.stat_object(bucket_name="epos-models", object_name=f"{latest['prefix']}manifest.json")
        data = json.loads(store.read("epos-data", "lab/manifest.json"))["data_hash"]
    except S3Error as error:
        if error.code == "NoSuchKey":
            return False
        raise
    return bool(
        record["image"] == site.manifest["images"]["epos"]
        and record["arguments"] == ARGUMENTS
        and data == latest["data_hash"]
    )


def train(site: Site, store: Store, epos: Epos, dataset: Path) -> dict[str, Any]:
    """Push the data, run the Job, follow its log; return the record of the run."""
    epos.run("push", str(dataset), DATA)
    start = time.monotonic()
    with Job(site, "epos-train", ARGUMENTS, gpus=1 if gpu_nodes(site) else 0) as job:
        log = job.follow(timeout=1500)
        assert job.finished() == "Complete", log[-3000:]
    latest = store.latest()
    assert latest, "the Job completed, but no model was published"
    prefix = latest["prefix"]
    card = json.loads(store.read("epos-models", f"{prefix}card.json"))
    record = {
        "version": latest["version"],
        "image": site.manifest["images"]["epos"],
        "arguments": ARGUMENTS,
        "data_hash": latest["data_hash"],
        "recall": latest["metrics"]["recall"],
        "min_recall": MIN_RECALL,
        "device": card["built_with"]["device"],
        "gpus": card["built_with"]["gpus"],
        "train_seconds": time.monotonic() - start,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = json.dumps(record, indent=1).encode()
    store.client.put_object(
        bucket_name="epos-models", object_name=RECORD, data=io.BytesIO(content), length=len(content)
    )
    return record


def remove(store: Store, bucket: str, prefix: str) -> None:
    """Delete every object below `prefix`."""
    for item in store.client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True):
        store.client.remove_object(bucket_name=bucket, object_name=str(item.object_name))

"""The training as the suite runs it, and what it records of it.

Where the site has all that releases a model, the EPOS pipeline does it: data, training, judgement, commit, roll-out, prediction.
Where it has not, the same training runs as a Kubernetes Job and ends with the published model.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.client.exceptions import ApiException
from minio.error import S3Error

from .argocd import API as ARGO_API
from .argocd import NAMESPACE as ARGO_NAMESPACE
from .front_door import NAMESPACE as DOOR_NAMESPACE
from .front_door import PAGE, FrontDoor
from .git import Git
from .gpus import gpu_nodes
from .pipelines import COMPONENT, HOST, SERVICE, Pipelines, compiled, seconds_between, steps, task_times
from .site import Job, Site, Store

Json = dict[str, Any]

IMAGES = (".png", ".jpg", ".jpeg")

DATA = "s3://epos-data/lab"
MODELS = "s3://epos-models/models"
# Between a barely trained model and a trained one; pipelines/epos/README.md has the figures.
MIN_RECALL = 0.5
ARGUMENTS = [
    *("--data", DATA, "--models", MODELS, "--data-dir", "/data/set", "--work-dir", "/work"),
    *("--min-recall", str(MIN_RECALL)),
]
# The same as parameters of the pipeline, whose own defaults are for data sets of full size. So many steps pass the gate clearly.
# A verification asks whether the platform works: a model that another release made a little better must not fail it.
PARAMETERS = {"data": DATA, "models": MODELS, "min_recall": str(MIN_RECALL), "min_gain": "-1", "train_steps": "300"}
# For runs that need no good model.
SMALL = ["--data", DATA, "--data-dir", "/data/set", "--work-dir", "/work", "--overlays", "0"]
# So many images are asked of the published model; it was judged on all that it has not seen.
HELD_OUT = 4
# Written by this suite beside the models: what the published model was made of.
RECORD = "models/verified.json"
PIPELINE = "epos"
# The application that the pipeline brings; each environment is an Argo CD Application of that name and the environment's.
APP = "epos"
ENVIRONMENT = "dev"


@dataclass(frozen=True)
class Way:
    """How models are made here.

    Attributes:
        namespace: of Kubeflow Pipelines; empty where a Job trains.
        reason: why a Job does.
    """

    namespace: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return "the pipeline" if self.namespace else f"a Kubernetes Job: {self.reason}"


def there(read: Callable[[], object]) -> bool:
    """Whether an object exists."""
    try:
        read()
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


def find_way(site: Site, components: list[str]) -> Way:
    """Look how models are made here.

    Args:
        site: the site.
        components: that it must have; where none is named it has what is found.
    """
    servers = site.core.list_service_for_all_namespaces(field_selector=f"metadata.name={SERVICE}").items
    found = {
        COMPONENT: bool(servers),
        "argocd": there(lambda: site.apps.read_namespaced_deployment("argocd-server", ARGO_NAMESPACE)),
        "front_door": there(lambda: site.networking.read_namespaced_ingress(PAGE, DOOR_NAMESPACE)),
    }
    lost = [name for name, is_there in found.items() if name in components and not is_there]
    assert not lost, f"the inventory names {', '.join(lost)}, and the cluster has none of it"
    # A repository on another host is released to by hand: nobody has given the pipeline a user there.
    found["git"] = there(lambda: site.apps.read_namespaced_deployment("git", "git"))
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        return Way(reason=f"the site has no {' and no '.join(missing)} of its own")
    return Way(namespace=servers[0].metadata.namespace)


def download_images(store: Store, folder: Path) -> None:
    """Download what is needed to predict in the first held-out images."""
    targets = json.loads(store.read("epos-data", "lab/test_targets_bop19.json"))
    images = sorted({(target["scene_id"], target["im_id"]) for target in targets})[:HELD_OUT]
    names = {f"test/{scene:06d}/{kind}/{image:06d}" for scene, image in images for kind in ("rgb", "gray")}
    for name in json.loads(store.read("epos-data", "lab/manifest.json"))["files"]:
        if name.startswith("train/") or (name.endswith(IMAGES) and name.rpartition(".")[0] not in names):
            continue
        content = store.read("epos-data", f"lab/{name}")
        path = folder / name
        if path.name.startswith("scene_"):
            # An image that these name must be there.
            kept = {key: of for key, of in json.loads(content).items() if (int(path.parent.name), int(key)) in images}
            content = json.dumps(kept).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    chosen = [target for target in targets if (target["scene_id"], target["im_id"]) in images]
    (folder / "test_targets_bop19.json").write_text(json.dumps(chosen))


def read_record(store: Store) -> Json:
    """Return what the last verified training was made of, empty when there was none."""
    try:
        record: Json = json.loads(store.read("epos-models", RECORD))
    except S3Error as error:
        if error.code != "NoSuchKey":
            raise
        return {}
    return record


def write_record(store: Store, record: Json) -> None:
    """Keep what a training was made of."""
    content = json.dumps(record, indent=1).encode()
    store.client.put_object(
        bucket_name="epos-models", object_name=RECORD, data=io.BytesIO(content), length=len(content)
    )


def ingredients(site: Site, way: Way, domain: str = "") -> Json:
    """What decides, beside the data, whether a training would give another model or another release."""
    made_of: Json = {"image": site.manifest["images"]["epos"]}
    if way.namespace:
        pipeline = hashlib.sha256(compiled(PIPELINE).read_bytes()).hexdigest()
        return made_of | {"pipeline": pipeline, "parameters": {**PARAMETERS, "domain": domain}}
    return made_of | {"arguments": ARGUMENTS}


def is_current(site: Site, store: Store, way: Way, domain: str = "") -> bool:
    """Return whether the published model was made by this image and pipeline, with these parameters, of the data in the store."""
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
    made_of = ingredients(site, way, domain)
    if data != latest["data_hash"] or any(record.get(key) != value for key, value in made_of.items()):
        return False
    # A repository that was lost and made anew has no application, whatever the bucket says.
    return not way.namespace or there(
        lambda: site.custom.get_namespaced_custom_object(
            **ARGO_API, namespace=ARGO_NAMESPACE, plural="applications", name=f"{APP}-{ENVIRONMENT}"
        )
    )


def published(site: Site, store: Store, way: Way, seconds: float, domain: str = "") -> Json:
    """The record of the model that the pointer names, which a run has just published."""
    latest = store.latest()
    assert latest, "the training ended well, but no model was published"
    card = json.loads(store.read("epos-models", f"{latest['prefix']}card.json"))
    return {
        "version": latest["version"],
        **ingredients(site, way, domain),
        "way": str(way),
        "data_hash": latest["data_hash"],
        "recall": latest["metrics"]["recall"],
        "min_recall": MIN_RECALL,
        "device": card["built_with"]["device"],
        "gpus": card["built_with"]["gpus"],
        "train_seconds": seconds,
        "trained_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "urls": {"Model": f"s3://epos-models/{latest['prefix']}"},
    }


def train(site: Site, store: Store, way: Way) -> Json:
    """Run the Job, follow its log; return the record of the run."""
    start = time.monotonic()
    with Job(site, "epos-train", ARGUMENTS, gpus=1 if gpu_nodes(site) else 0) as job:
        log = job.follow(timeout=1500)
        assert job.finished() == "Complete", log[-3000:]
    return published(site, store, way, time.monotonic() - start)


def release(site: Site, store: Store, way: Way, front_door: FrontDoor, git: Git) -> Json:
    """Run the pipeline, follow its tasks; return the record of the run."""
    start = time.monotonic()
    parameters = ingredients(site, way, front_door.domain)["parameters"]
    with (
        Pipelines.open(site, way.namespace) as pipelines,
        pipelines.submit(PIPELINE, parameters, gpu=bool(gpu_nodes(site))) as run,
    ):
        ended = run.succeed()
    seconds = time.monotonic() - start
    tasks = task_times(ended, steps(compiled(PIPELINE)))
    done = {task["name"] for task in tasks if task["state"] == "SUCCEEDED"}
    assert "deploy" in done, f"the run ended well without a release: {run.output[-3000:]}"
    record = published(site, store, way, seconds, front_door.domain)
    record["urls"] |= {
        "Run": f"https://{front_door.host(HOST)}/#/runs/details/{run.id}",
        "Application": f"https://{front_door.host('argocd')}/applications/{ARGO_NAMESPACE}/{APP}-{ENVIRONMENT}",
        "Service": f"https://{front_door.host(f'{APP}-{ENVIRONMENT}')}/v1/model",
    }
    return record | {
        "run_id": run.id,
        "commit": deployed(git),
        "run_seconds": seconds_between(ended["created_at"], ended.get("finished_at")),
        "tasks": tasks,
    }


def deployed(git: Git) -> str:
    """The commit that has last changed the application."""
    with git.clone("argocd") as clone:
        return clone.run("log", "-1", "--format=%H", "--", f"apps/{APP}").strip()


def remove(store: Store, bucket: str, prefix: str) -> None:
    """Delete every object below `prefix`."""
    for item in store.client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True):
        store.client.remove_object(bucket_name=bucket, object_name=str(item.object_name))

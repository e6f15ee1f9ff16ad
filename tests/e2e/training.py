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
# What is rendered where nobody brings data, and a training that passes the gate on it clearly, in little more than a minute of two CPUs.
IMAGE_SIZE = "96"
RENDERED = ["--image-size", IMAGE_SIZE, "--train-images", "240", "--test-images", "24"]
SETTING = {"image_size": IMAGE_SIZE, "train_steps": "200", "learning_rate": "0.006"}
ARGUMENTS = [
    *("--data", DATA, "--models", MODELS, "--data-dir", "/data/set", "--work-dir", "/work"),
    *("--min-recall", str(MIN_RECALL)),
    *(word for key, value in SETTING.items() for word in (f"--{key.replace('_', '-')}", value)),
]
# The same as parameters of the pipeline, whose own defaults are for data sets of full size.
# A verification asks whether the platform works: a model that another release made a little better must not fail it.
PARAMETERS = {"data": DATA, "models": MODELS, "min_recall": str(MIN_RECALL), "min_gain": "-1", **SETTING}
# For runs that need no good model: so few images that pulling, checking and judging them takes no time.
FEW = "s3://epos-data/test-few"
FEW_RENDERED = ["--image-size", IMAGE_SIZE, "--train-images", "32", "--test-images", "6"]
SMALL = [
    *("--data", FEW, "--data-dir", "/data/set", "--work-dir", "/work"),
    *("--overlays", "0", "--image-size", IMAGE_SIZE),
]
# So many images are asked of the published model; it was judged on all that it has not seen.
HELD_OUT = 4
# Written by this suite beside the models: what the published model was made of.
RECORD = "models/verified.json"
PIPELINE = "epos"
# Of the data operations, in the bucket of the data: what came of each drop.
RECORDS = "dataops/records/"
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
    # Nothing that releases a model needs it: its tests would be left out without a word.
    flows = there(lambda: site.apps.read_namespaced_deployment("airflow-api-server", "airflow"))
    lost = [name for name, is_there in {**found, "airflow": flows}.items() if name in components and not is_there]
    assert not lost, f"the inventory names {', '.join(lost)}, and the cluster has none of it"
    # A repository on another host is released to by hand: nobody has given the pipeline a user there.
    found["git"] = there(lambda: site.apps.read_namespaced_deployment("git", "git"))
    missing = [name for name, is_there in found.items() if not is_there]
    if missing:
        return Way(reason=f"the site has no {' and no '.join(missing)} of its own")
    return Way(namespace=servers[0].metadata.namespace)


def download_images(store: Store, folder: Path, data: str = DATA) -> None:
    """Download what is needed to predict in the first held-out images of the data set at `data`."""
    bucket, _, place = data.removeprefix("s3://").partition("/")
    targets = json.loads(store.read(bucket, f"{place}/test_targets_bop19.json"))
    images = sorted({(target["scene_id"], target["im_id"]) for target in targets})[:HELD_OUT]
    names = {f"test/{scene:06d}/{kind}/{image:06d}" for scene, image in images for kind in ("rgb", "gray")}
    for name in json.loads(store.read(bucket, f"{place}/manifest.json"))["files"]:
        if name.startswith("train/") or (name.endswith(IMAGES) and name.rpartition(".")[0] not in names):
            continue
        content = store.read(bucket, f"{place}/{name}")
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
    record, latest = read_record(store), store.latest()
    if not latest or not same_making(site, record, way, domain) or latest["version"] != record["version"]:
        return False
    if not is_whole(store, latest, record["data"]):
        return False
    # A repository that was lost and made anew has no application, whatever the bucket says.
    return not way.namespace or there(
        lambda: site.custom.get_namespaced_custom_object(
            **ARGO_API, namespace=ARGO_NAMESPACE, plural="applications", name=f"{APP}-{ENVIRONMENT}"
        )
    )


def same_making(site: Site, record: Json, way: Way, domain: str) -> bool:
    """Return whether the model of a record was made by this image and pipeline, or Job, with these parameters."""
    made_of = ingredients(site, way, domain)
    return {"version", "data"} <= record.keys() and all(record.get(key) == value for key, value in made_of.items())


def is_whole(store: Store, latest: Json, data: str) -> bool:
    """Return whether a released model is there, and at `data` what it was made of, with the list of what it was judged on."""
    bucket, _, place = data.removeprefix("s3://").partition("/")
    try:
        store.client.stat_object(bucket_name="epos-models", object_name=f"{latest['prefix']}manifest.json")
        store.client.stat_object(bucket_name=bucket, object_name=f"{place}/test_targets_bop19.json")
        found = json.loads(store.read(bucket, f"{place}/manifest.json"))["data_hash"]
    except S3Error as error:
        if error.code == "NoSuchKey":
            return False
        raise
    return bool(found == latest["data_hash"])


def lineage(site: Site, store: Store, way: Way, domain: str = "") -> Json:
    """What the data operations have recorded of the published model; empty unless the verified making can answer for it.

    Where dropped data lead to a better model, that one takes the place of the verified one. It counts as verified when the same
    version of the pipeline, which names the image, has made it, and it passes the verification's own gate.
    """
    record, latest = read_record(store), store.latest()
    if not way.namespace or not latest or not same_making(site, record, way, domain):
        return {}
    for item in store.client.list_objects(bucket_name="epos-data", prefix=RECORDS, recursive=True):
        chain: Json = json.loads(store.read("epos-data", str(item.object_name)))
        model, run = chain["model"], chain["run"]
        if (
            (model["verdict"], model.get("version")) == ("released", latest["version"])
            and run["run_id"] == latest.get("registered_by")
            and run["version_id"] == record.get("pipeline_version")
            and latest["metrics"]["recall"] >= MIN_RECALL
            and is_whole(store, latest, chain["split"]["location"])
        ):
            return chain
    return {}


def adopt(site: Site, store: Store, way: Way, front_door: FrontDoor, chain: Json) -> Json:
    """The record of a model that the data operations have released, as `release` gives it; `chain` is what `lineage` found."""
    latest = store.latest()
    assert latest
    with Pipelines.open(site, way.namespace) as pipelines:
        ended = pipelines.run(chain["run"]["run_id"])
    seconds = seconds_between(ended["created_at"], ended.get("finished_at"))
    data = chain["split"]["location"]
    record = published(site, store, way, seconds, front_door.domain, data)
    return record | of_run(front_door, ended, record["urls"]) | {"commit": latest["commit"]}


def published(site: Site, store: Store, way: Way, seconds: float, domain: str = "", data: str = DATA) -> Json:
    """The record of the model that the pointer names, which a run has published that learned from `data`."""
    latest = store.latest()
    assert latest, "the training ended well, but no model was published"
    card = json.loads(store.read("epos-models", f"{latest['prefix']}card.json"))
    return {
        "version": latest["version"],
        **ingredients(site, way, domain),
        "way": str(way),
        "data": data,
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
    record = published(site, store, way, seconds, front_door.domain)
    record |= of_run(front_door, ended, record["urls"])
    done = {task["name"] for task in record["tasks"] if task["state"] == "SUCCEEDED"}
    assert "deploy" in done, f"the run ended well without a release: {run.output[-3000:]}"
    return record | {"commit": deployed(git)}


def of_run(front_door: FrontDoor, ended: Json, urls: Json) -> Json:
    """What a record has of the run of the pipeline, beside the model's own `urls`."""
    return {
        "urls": urls
        | {
            "Run": f"https://{front_door.host(HOST)}/#/runs/details/{ended['run_id']}",
            "Application": f"https://{front_door.host('argocd')}/applications/{ARGO_NAMESPACE}/{APP}-{ENVIRONMENT}",
            "Service": f"https://{front_door.host(f'{APP}-{ENVIRONMENT}')}/v1/model",
        },
        "run_id": ended["run_id"],
        "pipeline_version": ended["pipeline_version_reference"]["pipeline_version_id"],
        "run_seconds": seconds_between(ended["created_at"], ended.get("finished_at")),
        "tasks": task_times(ended, steps(compiled(PIPELINE))),
    }


def deployed(git: Git) -> str:
    """The commit that has last changed the application."""
    with git.clone("argocd") as clone:
        return clone.run("log", "-1", "--format=%H", "--", f"apps/{APP}").strip()


def remove(store: Store, bucket: str, prefix: str) -> None:
    """Delete every object below `prefix`."""
    for item in store.client.list_objects(bucket_name=bucket, prefix=prefix, recursive=True):
        store.client.remove_object(bucket_name=bucket, object_name=str(item.object_name))

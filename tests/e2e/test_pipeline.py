"""The pipeline from data to a deployed model: what it released is the same wherever it is told, and what it must not release stays out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import requests

from .front_door import Answer, FrontDoor, eventually, watched
from .git import Git
from .gpus import gpu_nodes
from .model_service import Picture
from .pipelines import FINAL, HOST, SERVICE, Pipelines, compiled, named, task_times
from .pipelines import steps as steps_of
from .site import Site, Store
from .training import APP, ENVIRONMENT, FEW, MIN_RECALL, PARAMETERS, PIPELINE, deployed, remove

IRIS = "iris"
SCHEDULE = "slipway-test"
# Where submit.py has its runs.
EXPERIMENT = "slipway"


@pytest.fixture
def parameters(front_door: FrontDoor, few_images: Path) -> dict[str, str]:
    """For runs that need no good model: as little training as shows that it goes on from a checkpoint."""
    few = {"data": FEW, "train_steps": "40", "checkpoint_every": "5", "overlays": "0"}
    return {**PARAMETERS, **few, "domain": front_door.domain}


@pytest.fixture
def gpu(site: Site) -> bool:
    """As the released model was made: whoever runs the pipeline next takes its newest version."""
    return bool(gpu_nodes(site))


@pytest.mark.train
def test_run_model_and_commit_agree(
    released: dict[str, Any], store: Store, git: Git, pipelines: Pipelines, site: Site
) -> None:
    """Run, data, recall, model version and commit are the same in the bucket, in the repository and in Kubeflow Pipelines."""
    latest = store.latest()
    assert latest
    card, metrics = (
        json.loads(store.read("epos-models", f"{latest['prefix']}{name}.json")) for name in ("card", "metrics")
    )
    # Since then people may have tried other versions in dev, and taken them back.
    commit = released["commit"]
    with git.clone("argocd") as clone:
        told = dict(
            line.split(": ", 1) for line in clone.run("show", "--no-patch", "--format=%b", commit).strip().splitlines()
        )
        served = [clone.run("show", f"{each}:apps/epos/dev/serving.yaml") for each in (commit, "HEAD")]

    assert {latest["version"], card["version"], metrics["model_version"], told["version"]} == {released["version"]}
    assert all(f"--serve={released['version']}=" in each for each in served)
    assert {latest["data_hash"], card["data_hash"], metrics["data_hash"], told["data"]} == {released["data_hash"]}
    assert metrics["recall"] == latest["recall"] == released["recall"] == pytest.approx(float(told["recall"]), abs=1e-6)
    assert latest["commit"] == commit
    assert latest["registered_by"] == released["run_id"]
    # The same version made again is that of the run which made it first, and needs no further commit.
    assert latest["run_id"] == card["run_id"] == metrics["run_id"] == told["run"]

    try:
        known = pipelines.run(released["run_id"])
    except requests.HTTPError:
        since = site.core.read_namespace(pipelines.namespace).metadata.creation_timestamp
        assert since > datetime.fromisoformat(released["trained_at"]), "the server has forgotten a run"
        pytest.skip("the database of Kubeflow Pipelines is younger than the release; bucket and repository agree")
    assert known["state"] == "SUCCEEDED"
    assert {key: str(value) for key, value in known["runtime_config"]["parameters"].items()}["data"] == released["data"]
    done = {task["name"] for task in task_times(known, steps_of(compiled(PIPELINE))) if task["state"] == "SUCCEEDED"}
    assert done >= {
        "ingest",
        "validate",
        "fragments",
        "train",
        "evaluate",
        "gate",
        "register",
        "deploy",
        "await-rollout",
        "smoke",
    }


@pytest.mark.smoke
@pytest.mark.train
def test_the_model_answers_at_the_front_door(
    released: dict[str, Any], picture: Picture, front_door: FrontDoor, report_dir: Path
) -> None:
    """Over TLS, with poses in a held-out image, and in every answer with the version that was released."""
    host, path = f"{APP}-{ENVIRONMENT}", "/v1/predict"
    began = time.monotonic()
    answer = front_door.request(
        "POST",
        host,
        f"{path}?{urlencode({'camera': picture.camera})}",
        headers={"Content-Type": picture.kind},
        body=picture.data,
    )
    seconds = time.monotonic() - began
    assert answer.status == 200, answer.text[:500]
    found = json.loads(answer.body)
    assert answer.headers["x-model-version"] == found["model_version"] == released["version"]
    assert found["poses"]
    poses = [
        {"object": pose["obj_id"], "score": pose["score"], "distance_mm": math.hypot(*pose["cam_t_m2c"])}
        for pose in found["poses"]
    ]
    told = {"url": f"https://{front_door.host(host)}{path}", "status": answer.status, "seconds": seconds}
    (report_dir / "prediction.json").write_text(
        json.dumps({**told, "version": found["model_version"], "poses": poses}, indent=1) + "\n"
    )


def test_the_smallest_pipeline_runs(pipelines: Pipelines) -> None:
    """Iris: data, check, training and gate, each a pod with what the step before has left."""
    with pipelines.submit(IRIS, {}, timeout=300) as run:
        ended = run.succeed()
    names = steps_of(compiled(IRIS))
    states = {task["name"]: task["state"] for task in task_times(ended, names)}
    assert states == dict.fromkeys(names, "SUCCEEDED")


@pytest.mark.smoke
def test_strangers_run_nothing(pipelines: Pipelines, front_door: FrontDoor) -> None:
    """Pages and API at the front door ask for its login: whoever gets in has code run as the platform."""
    host, path = HOST, "/apis/v2beta1/healthz"
    for asked in ("/", path, "/apis/v2beta1/runs"):
        for login in (None, (front_door.login[0], "wrong")):
            assert front_door.get(host, asked, login=login).status == 401, asked
    assert front_door.get(host, path, login=front_door.login).status == 200


def test_the_same_pipeline_has_one_version(pipelines: Pipelines) -> None:
    """Submitted again it is not uploaded again: a version is a content."""
    found = []
    for _ in range(2):
        with pipelines.submit(IRIS, {}, timeout=300):
            found.append(sorted(version["pipeline_version_id"] for version in pipelines.versions(IRIS)))
    assert found[0] == found[1]
    assert found[0]


def recurring(pipelines: Pipelines) -> list[dict[str, Any]]:
    """The recurring runs of these tests."""
    listed: list[dict[str, Any]] = pipelines.call("GET", "recurringruns", page_size=100).get("recurringRuns", [])
    return [each for each in listed if each["display_name"] == SCHEDULE]


def triggered(pipelines: Pipelines, schedule: str) -> list[dict[str, Any]]:
    """The runs that a recurring run has started."""
    listed: list[dict[str, Any]] = pipelines.call("GET", "runs", page_size=100, sort_by="created_at desc").get(
        "runs", []
    )
    return [run for run in listed if run.get("recurring_run_id") == schedule]


@pytest.fixture
def schedule(pipelines: Pipelines) -> Iterator[str]:
    """A recurring run of the smallest pipeline: every 10 s, one at a time."""
    for left in recurring(pipelines):
        pipelines.call("DELETE", f"recurringruns/{left['recurring_run_id']}")
    version = max(pipelines.versions(IRIS), key=lambda each: str(each["created_at"]))
    (experiment,) = pipelines.call("GET", "experiments", filter=named(EXPERIMENT))["experiments"]
    made = pipelines.call(
        "POST",
        "recurringruns",
        {
            "display_name": SCHEDULE,
            "experiment_id": experiment["experiment_id"],
            "pipeline_version_reference": {key: version[key] for key in ("pipeline_id", "pipeline_version_id")},
            "max_concurrency": 1,
            "no_catchup": True,
            "trigger": {"periodic_schedule": {"interval_second": 10}},
            "mode": "ENABLE",
        },
    )
    yield str(made["recurring_run_id"])
    pipelines.call("DELETE", f"recurringruns/{made['recurring_run_id']}")


def test_a_recurring_run_runs_once_at_a_time(pipelines: Pipelines, schedule: str) -> None:
    """When its time has come there is one run, although the next is due before it ends; switched off there is no other one."""
    eventually(lambda: triggered(pipelines, schedule), 60)
    pipelines.call("POST", f"recurringruns/{schedule}:disable")

    def ended() -> bool:
        return all(run["state"] in FINAL for run in triggered(pipelines, schedule))

    eventually(ended, 180)
    # Two more would be due by now.
    time.sleep(20)
    (run,) = triggered(pipelines, schedule)
    assert run["state"] == "SUCCEEDED", pipelines.evidence(run["run_id"])


def rejected(store: Store, run: str) -> dict[str, Any]:
    """What was recorded of the model that a run has rejected."""
    for item in store.client.list_objects(bucket_name="epos-models", prefix="rejected/", recursive=True):
        record: dict[str, Any] = json.loads(store.read("epos-models", str(item.object_name)))
        if record["run_id"] == run:
            return {**record, "object": str(item.object_name)}
    raise AssertionError(f"nothing in s3://epos-models/rejected/ is of run {run}")


def kill(site: Site, namespace: str, selector: str) -> None:
    """Delete the pods chosen at once, as a lost machine would; there must be some."""
    pods = site.core.list_namespaced_pod(namespace, label_selector=selector).items
    assert pods, f"no pod with {selector} in {namespace}"
    for pod in pods:
        site.core.delete_namespaced_pod(pod.metadata.name, namespace, grace_period_seconds=0)


@pytest.mark.fault
def test_a_rejected_model_and_lost_pods_change_nothing(
    released: dict[str, Any],
    pointer: dict[str, Any],
    parameters: dict[str, str],
    gpu: bool,
    pipelines: Pipelines,
    site: Site,
    store: Store,
    git: Git,
    front_door: FrontDoor,
) -> None:
    """The run goes on although its training, then server, database and store are killed; its poor model reaches nobody, and no request fails."""
    commit = deployed(git)
    with (
        watched(front_door, f"{APP}-{ENVIRONMENT}", "/v1/model") as answers,
        pipelines.submit(PIPELINE, parameters, gpu=gpu) as run,
    ):
        first = run.await_log("train", "step 20", 400)
        site.core.delete_namespaced_pod(first.metadata.name, pipelines.namespace, grace_period_seconds=0)
        second = run.await_log("train", "resuming from step", 200)
        # Argo gives the pod in its place the same name.
        assert second.metadata.uid != first.metadata.uid
        for namespace, selector in (
            (pipelines.namespace, f"app={SERVICE}"),
            (pipelines.namespace, "app=mysql"),
            ("minio", "app=minio"),
        ):
            kill(site, namespace, selector)
        ended = run.succeed()
        said = pipelines.site.pod_log(pipelines.namespace, run.pods("gate")[-1].metadata.name, "main")
    states = {task["name"]: task["state"] for task in task_times(ended, steps_of(compiled(PIPELINE)))}
    assert states["reject"] == "SUCCEEDED"
    assert not {"register", "deploy", "await-rollout", "smoke"} & {
        name for name, state in states.items() if state == "SUCCEEDED"
    }
    assert "rejected: gate not passed: recall" in said

    record = rejected(store, run.id)
    store.client.remove_object(bucket_name="epos-models", object_name=record["object"])
    assert record["recall"] < MIN_RECALL
    assert record["reason"].startswith("gate not passed: recall")
    assert store.latest() == pointer
    assert deployed(git) == commit
    served = {
        (answer.status, answer.headers.get("x-model-version")) if isinstance(answer, Answer) else repr(answer)
        for answer in answers
    }
    assert served == {(200, released["version"])}, f"{len(answers)} requests"


@pytest.mark.fault
def test_bad_data_fails_in_validate_and_says_why(
    pointer: dict[str, Any],
    parameters: dict[str, str],
    gpu: bool,
    corrupt: tuple[str, list[str]],
    pipelines: Pipelines,
    store: Store,
) -> None:
    """The run fails in `validate`; file and key are in the log of its pod, which is in the message of whoever waited for the run."""
    location, named = corrupt
    with pipelines.submit(PIPELINE, {**parameters, "data": location}, gpu=gpu, timeout=600) as run:
        with pytest.raises(AssertionError) as failure:
            run.succeed()
        states = {
            task["name"]: task["state"] for task in task_times(pipelines.run(run.id), steps_of(compiled(PIPELINE)))
        }
    remove(store, "epos-models", f"reports/{run.id}/")
    message = str(failure.value)
    assert states["validate"] == "FAILED"
    assert "train" not in {name for name, state in states.items() if state != "SKIPPED"}
    for text in ("task validate failed", *named):
        assert text in message, message
    assert store.latest() == pointer

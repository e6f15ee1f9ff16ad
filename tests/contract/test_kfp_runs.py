"""Runs of compiled pipelines by the unmodified SDK: what holds for the real Kubeflow Pipelines and for its stand-in.

What differs is listed in tests/lab/kfp/README.md; a test of such a thing asks which of the two it has before it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import Kubectl, Node, wait_for
from tests.contract.kfp.server import (
    PYTHON,
    RUN_S,
    Json,
    Pipelines,
    answers,
    argument,
    condition,
    find_namespace,
    forwarded,
    patiently,
)

pytestmark = pytest.mark.timeout(RUN_S + 300)


@pytest.fixture(scope="module")
def kfp(server: Node, kubectl: Kubectl, busybox: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipelines]:
    """The site's server."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: bin/environment kfp makes it")
    namespace = find_namespace(kubectl)
    folder: Path = tmp_path_factory.mktemp("kfp")
    with forwarded(server, namespace) as url:
        stand_in = (answers(url) or {}).get("tag_name") == "slipway-stand-in"
        yield Pipelines(url, namespace, kubectl, busybox, folder, stand_in)


@pytest.fixture(scope="module")
def started(kfp: Pipelines, kubectl: Kubectl) -> dict[str, str]:
    """Runs that do not disturb each other, by what they show: all started at once, as each takes its time."""
    nodes = json.loads(kubectl("get node -o json"))["items"]
    has_gpu = any(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in nodes)
    wanted: dict[str, tuple[str, Json]] = {
        "happy": ("happy", {"count": 10}),
        "other": ("happy", {"count": 2, "greeting": "hi"}),
        **{name: (name, {}) for name in ("fail", "user", "volume", *["gpu"] * has_gpu)},
    }
    return dict(zip(wanted, kfp.start_all(list(wanted.values())), strict=True))


@pytest.fixture(scope="module")
def happy(kfp: Pipelines, started: dict[str, str]) -> str:
    """A run of happy.yaml that has ended well."""
    run = kfp.sdk("wait", started["happy"], str(RUN_S))
    assert run["state"] == "SUCCEEDED", kfp.get(started["happy"])
    return started["happy"]


def test_states(kfp: Pipelines, happy: str) -> None:
    """Of the run and of the tasks of both branches."""
    run = kfp.get(happy)
    assert [entry["state"] for entry in run["state_history"]] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert not run.get("error")
    states = kfp.states(run)
    assert {"root", "make", "make-driver", "read", "condition-branches-1", "for-loop-5", "total"} <= set(states)
    assert "SUCCEEDED" in states["condition-2"] and states["condition-3"] == {"SKIPPED"}


def test_pods_look_as_documented(kfp: Pipelines, happy: str) -> None:
    """Account, labels, annotations, security, folders of the stores."""
    (pod,) = kfp.pods_of(happy, "make")
    assert pod["spec"]["serviceAccountName"] == "pipeline-runner"
    assert pod["metadata"]["annotations"]["pipelines.kubeflow.org/runtime-role"] == "launcher"
    main = next(container for container in pod["spec"]["containers"] if container["name"] == "main")
    assert main["image"] == kfp.image
    assert main["securityContext"]["allowPrivilegeEscalation"] is False
    assert main["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounts = {mount["mountPath"] for mount in main["volumeMounts"]}
    assert {"/gcs", "/s3", "/minio", "/.local", "/.cache", "/.config"} <= mounts


def test_artifacts_travel(kfp: Pipelines, happy: str) -> None:
    """A file and a folder of files, whatever their modes; the URI is the documented one."""
    (artifact,) = executor_input(kfp, happy, "read")["inputs"]["artifacts"]["data"]["artifacts"]
    assert artifact["uri"].startswith("minio://") and f"/contract-happy/{happy}/make/" in artifact["uri"]
    if kfp.stand_in:
        # The real launcher puts it into the command line when the pod runs already.
        (reader,) = kfp.pods_of(happy, "read")
        path = next(word for word in argument(reader) if word.endswith("/data"))
        assert path.startswith("/minio/") and f"/contract-happy/{happy}/make/" in path
    assert kfp.states(kfp.get(happy))["read"] == {"SUCCEEDED"}
    (lister,) = kfp.pods_of(happy, "listing")
    assert lister["status"]["phase"] == "Succeeded"
    # `tr` joined what both files hold; a missing one would have failed the component.
    assert kfp.states(kfp.get(happy))["listing"] == {"SUCCEEDED"}


def test_metadata_travel(kfp: Pipelines, happy: str) -> None:
    """What the executor output file says of an artifact is in the executor input of who takes it."""
    told = executor_input(kfp, happy, "read")
    (artifact,) = told["inputs"]["artifacts"]["data"]["artifacts"]
    assert artifact["metadata"]["rows"] == 10
    assert artifact["uri"].startswith("minio://")
    assert told["outputs"]["parameters"]["content"] == {"outputFile": "/tmp/kfp/outputs/content"}


def executor_input(kfp: Pipelines, run_id: str, task: str) -> Json:
    """What a component is told; the real launcher fills it in later, but has it among its own arguments."""
    (pod,) = kfp.pods_of(run_id, task)
    main = next(container for container in pod["spec"]["containers"] if container["name"] == "main")
    line = [*main.get("command", []), *main.get("args", [])]
    found: Json = json.loads(
        next(word for word in line if word.startswith("{") and "outputFile" in word).replace("$$", "$")
    )
    return found


def test_parameters_and_placeholders(kfp: Pipelines, happy: str) -> None:
    """OneOf, Collected, IfPresent, the name of the run."""
    said = [line for pod in kfp.pods(happy) if "says" in " ".join(argument(pod)) for line in kfp.log(pod).splitlines()]
    assert "says many" in said and f"says {kfp.get(happy)['display_name']}" in said
    (total,) = kfp.pods_of(happy, "total")
    assert json.loads(argument(total)[-2]) == [1, 2, 3]
    (options,) = kfp.pods_of(happy, "options")
    assert argument(options)[-1] == "--silent"


def test_the_other_branch(kfp: Pipelines, started: dict[str, str]) -> None:
    """Other parameters, other tasks."""
    run_id = started["other"]
    run = kfp.finish(run_id)
    states = kfp.states(run)
    assert run["state"] == "SUCCEEDED" and states["condition-2"] == {"SKIPPED"}
    (options,) = kfp.pods_of(run_id, "options")
    assert argument(options)[-2:] == ["--greeting", "hi"]


def test_cache(kfp: Pipelines) -> None:
    """The same again takes what was made: no pod for it, and an executor that is SKIPPED."""
    count = int(time.time())
    first = kfp.finish(kfp.start("cached", caching=True, count=count))
    run_id = kfp.start("cached", caching=True, count=count)
    run = kfp.finish(run_id)
    assert first["state"] == run["state"] == "SUCCEEDED"
    assert not kfp.pods_of(run_id, "make") and "SKIPPED" in kfp.states(run)["executor"]


def test_failure(kfp: Pipelines, started: dict[str, str]) -> None:
    """The handler runs, what depends on the failure does not, the reason is in the log and not in the run."""
    run_id = started["fail"]
    run = kfp.finish(run_id)
    assert run["state"] == "FAILED" and not run.get("error")
    states = kfp.states(run)
    assert "FAILED" in states["fail"] and "FAILED" in states["exit-handler-1"] and "SUCCEEDED" in states["say"]
    assert "exit-handler-1.onExit" in " ".join(states)
    assert not kfp.pods_of(run_id, "say-2")
    (pod,) = kfp.pods_of(run_id, "fail")
    assert "on purpose" in kfp.log(pod)


def test_retry(kfp: Pipelines, started: dict[str, str]) -> None:
    """A failed run goes on when it is asked to, and fails again with the same task."""
    run_id = started["fail"]
    run = kfp.finish(run_id)
    kfp.sdk("retry", run_id)
    wait_for("it runs again", lambda: len(kfp.get(run_id)["state_history"]) > len(run["state_history"]))
    again = kfp.finish(run_id)
    assert [entry["state"] for entry in again["state_history"]].count("FAILED") == 2


def test_termination(kfp: Pipelines) -> None:
    """CANCELING, then FAILED; the component is ended, the handler cut off before it does anything."""
    run_id = kfp.start("slow")
    kfp.running(run_id, "sleep")
    kfp.sdk("terminate", run_id)
    assert kfp.get(run_id)["state"] in ("CANCELING", "FAILED")
    run = kfp.finish(run_id)
    assert run["state"] == "FAILED"
    assert condition(kfp.get(run_id), "CANCELING")
    ended = [pod for pod in kfp.pods_of(run_id, "sleep") if pod["status"]["phase"] == "Running"]
    assert not ended
    assert not kfp.pods_of(run_id, "say")


def test_a_deleted_pod(kfp: Pipelines) -> None:
    """A task with an attempt left starts again."""
    run_id = kfp.start("slow", seconds=20)
    pod = kfp.running(run_id, "sleep")
    kfp.kubectl(f"delete pod -n {kfp.namespace} {pod['metadata']['name']} --wait=false --grace-period=1")
    assert kfp.finish(run_id)["state"] == "SUCCEEDED"


def test_the_server_is_killed(kfp: Pipelines) -> None:
    """A run goes on, and nothing of it is done twice."""
    run_id = kfp.start("slow", seconds=20)
    kfp.running(run_id, "sleep")
    kfp.kubectl(f"delete pod -n {kfp.namespace} -l app=ml-pipeline --grace-period=0 --force")
    patiently(kfp.get, run_id)
    wait_for("the run ends", lambda: patiently(kfp.get, run_id)["state"] in ("SUCCEEDED", "FAILED"), RUN_S)
    assert kfp.get(run_id)["state"] == "SUCCEEDED"
    assert len(kfp.pods_of(run_id, "sleep")) == 1


def test_another_user(kfp: Pipelines, started: dict[str, str]) -> None:
    """A component that may not be root writes its outputs, readable for nobody else, and they arrive."""
    run_id = started["user"]
    run = kfp.finish(run_id)
    assert run["state"] == "SUCCEEDED", kfp.states(run)
    (pod,) = kfp.pods_of(run_id, "make")
    main = next(container for container in pod["spec"]["containers"] if container["name"] == "main")
    assert main["securityContext"]["runAsUser"] == 1234 and main["securityContext"]["runAsNonRoot"] is True


def test_an_image_that_is_not_there(kfp: Pipelines) -> None:
    """The run does not end by itself; the pod says why, and so does the task of the stand-in."""
    run_id = kfp.start("image")

    def waiting() -> str | None:
        for pod in kfp.pods_of(run_id, "say"):
            for container in pod["status"].get("containerStatuses", []):
                why: str = container["state"].get("waiting", {}).get("reason", "")
                if why in ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"):
                    return why
        return None

    wait_for("the image is missed", waiting, RUN_S)
    run = kfp.get(run_id)
    assert run["state"] == "RUNNING"
    if kfp.stand_in:
        wait_for("the task says why", lambda: "Image" in reason(kfp.get(run_id), "say"))
    kfp.sdk("terminate", run_id)
    assert kfp.finish(run_id)["state"] == "FAILED"


def reason(run: Json, name: str) -> str:
    """What a task says of itself."""
    tasks = [task for task in run["run_details"]["task_details"] if task.get("display_name") == name]
    return " ".join(task.get("error", {}).get("message", "") for task in tasks)


@pytest.mark.parametrize("name", ["volume", "gpu"])
def test_volumes_and_gpus(kfp: Pipelines, started: dict[str, str], kubectl: Kubectl, name: str) -> None:
    """A claim is made, mounted and removed; a GPU is asked for by limit and request."""
    if name not in started:
        pytest.skip("this site has no GPU")
    run_id = started[name]
    run = kfp.finish(run_id)
    assert run["state"] == "SUCCEEDED", kfp.states(run)
    (pod,) = kfp.pods_of(run_id, "mounted")
    said = kfp.log(pod).splitlines()
    # In the log of the real one are the launcher's lines, too.
    assert said == [name] if kfp.stand_in else name in said
    main = next(container for container in pod["spec"]["containers"] if container["name"] == "main")
    claim = next(mount["name"] for mount in main["volumeMounts"] if mount["mountPath"] == "/scratch")
    assert claim.endswith("-scratch")
    found = json.loads(kubectl(f"get pvc -n {kfp.namespace} -o json"))["items"]
    left = [item for item in found if item["metadata"]["name"] == claim]
    # It stays as long as the pod that used it, but is on its way.
    assert all(item["metadata"].get("deletionTimestamp") for item in left)
    if name == "gpu":
        assert main["resources"]["limits"]["nvidia.com/gpu"] == main["resources"]["requests"]["nvidia.com/gpu"] == "1"

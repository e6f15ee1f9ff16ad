"""What the suite tells of a pipeline's run: its tasks and their times, why it stands still, and why it failed."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests.e2e import pipelines as module
from tests.e2e.pipelines import Pipelines, compiled, does, progresses, seconds_between, steps, stuck, task_times

RUN = "0824c0d1-da25-4ea2-a508-0b0394a1a237"


def container(
    name: str = "main", waiting: tuple[str, str] | None = None, running: bool = False, code: int | None = None
) -> Any:
    """A container's status."""
    state = SimpleNamespace(
        waiting=SimpleNamespace(reason=waiting[0], message=waiting[1]) if waiting else None,
        running=SimpleNamespace() if running else None,
        terminated=None if code is None else SimpleNamespace(exit_code=code),
        to_str=lambda: f"waiting={waiting} running={running} code={code}",
    )
    return SimpleNamespace(name=name, state=state)


def pod(
    name: str = "p", phase: str = "Pending", *statuses: Any, refused: str = "", words: list[str] | None = None
) -> Any:
    """A pod of a run."""
    conditions = [SimpleNamespace(type="PodScheduled", status="False", message=refused)] if refused else []
    main = SimpleNamespace(name="main", command=words or ["true"], args=None)
    return SimpleNamespace(
        metadata=SimpleNamespace(name=name),
        spec=SimpleNamespace(containers=[SimpleNamespace(name="wait", command=["step"], args=["train"]), main]),
        status=SimpleNamespace(
            phase=phase, reason=None, conditions=conditions, init_container_statuses=[], container_statuses=list(statuses)
        ),
    )  # fmt: skip


def detail(
    name: str, state: str | None = "SUCCEEDED", begin: int = 0, end: int | None = 1, **more: Any
) -> dict[str, Any]:
    """An entry of a run's task_details."""
    found: dict[str, Any] = {"display_name": name, "start_time": f"2026-11-21T14:00:{begin:02}Z", **more}
    if state:
        found["state"] = state
    if end is not None:
        found["end_time"] = f"2026-11-21T14:00:{end:02}Z"
    return found


def run_of(*details: dict[str, Any], state: str = "SUCCEEDED", **more: Any) -> dict[str, Any]:
    """A run as the API tells it."""
    return {
        "run_id": RUN,
        "state": state,
        "created_at": "2026-11-21T14:00:00Z",
        "run_details": {"task_details": list(details)},
        **more,
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (pod("p", "Running", container(running=True)), ""),
        (pod("p", "Pending", container(waiting=("ContainerCreating", ""))), ""),
        (pod("p", "Pending"), ""),
        (
            pod("p", "Pending", refused="0/2 nodes: Insufficient nvidia.com/gpu"),
            "no node takes it: 0/2 nodes: Insufficient nvidia.com/gpu",
        ),
        (
            pod("p", "Pending", container(waiting=("CreateContainerConfigError", 'secret "git-pipeline" not found'))),
            'container main: CreateContainerConfigError: secret "git-pipeline" not found',
        ),
        (pod("p", "Pending", container("init", waiting=("ImagePullBackOff", ""))), "container init: ImagePullBackOff"),
    ],
)
def test_why_a_pod_does_not_start(found: Any, reason: str) -> None:
    assert stuck(found) == reason


def test_what_is_at_work() -> None:
    assert progresses([pod("a", "Pending"), pod("b", "Running", container(running=True))])
    assert not progresses(
        [pod("a", "Pending", container(waiting=("ImagePullBackOff", ""))), pod("b", "Failed", container(code=1))]
    )


def test_the_pod_of_a_step_is_known_with_and_without_a_launcher() -> None:
    words = ["python3", "-m", "epos", "step", "train", "--executor-input", "{}"]
    assert does(pod(words=words), "train")
    assert does(pod(words=["/launch", "--executor_type", "container", "--", *words]), "train")
    # The words of other containers and of other steps are not meant.
    assert not does(pod(words=["python3", "-m", "epos", "step", "evaluate"]), "train")


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A compiled pipeline with a condition."""
    text = """
    components:
      comp-load: {executorLabel: exec-load}
      comp-say: {executorLabel: exec-say}
      comp-condition-1: {dag: {tasks: {say-2: {componentRef: {name: comp-say}, taskInfo: {name: say aloud}}}}}
    root:
      dag:
        tasks:
          load: {componentRef: {name: comp-load}, taskInfo: {name: load}}
          condition-1: {componentRef: {name: comp-condition-1}, taskInfo: {name: condition-1}}
    ---
    platforms: {}
    """
    path = tmp_path / "pipeline.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def test_tasks_of_a_compiled_pipeline(pipeline: Path) -> None:
    assert steps(pipeline) == ["load", "say aloud"]


@pytest.mark.parametrize("name", ["epos", "iris"])
def test_tasks_of_the_pipelines_here(name: str) -> None:
    found = steps(compiled(name))
    assert found and len(set(found)) == len(found)


def test_times_of_tasks_by_their_own_names() -> None:
    run = run_of(
        detail("root"), detail("train-driver(0)", begin=2, end=3), detail("train(0)", begin=3, end=9), detail("executor", state="SKIPPED"),
        detail("train", begin=3, end=9), detail("ingest", begin=1, end=2), {"display_name": "", "task_id": "x"},
        detail("gate", state=None), detail("late", "RUNNING", begin=10, end=None), detail("other", "PENDING"),
        detail("twice", begin=4, end=5), detail("twice", "FAILED", begin=5, end=6),
    )  # fmt: skip
    found = task_times(run, ["ingest", "train", "gate", "late", "twice"])
    assert found == [
        {"name": "ingest", "state": "SUCCEEDED", "begin": 1.0, "seconds": 1.0},
        {"name": "train", "state": "SUCCEEDED", "begin": 3.0, "seconds": 6.0},
        {"name": "twice", "state": "FAILED", "begin": 5.0, "seconds": 1.0},
        {"name": "late", "state": "RUNNING", "begin": 10.0, "seconds": 0.0},
    ]


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        ("2026-11-21T14:00:00Z", "2026-11-21T14:01:01.500Z", 61.5),
        ("2026-11-21T14:00:00Z", None, 0.0),
        # What has not happened yet.
        ("2026-11-21T14:00:00Z", "0001-01-01T00:00:00Z", 0.0),
        (None, "2026-11-21T14:00:00Z", 0.0),
    ],
)
def test_seconds_between_times_of_the_api(begin: str | None, end: str | None, expected: float) -> None:
    assert seconds_between(begin, end) == expected


class Known(Pipelines):
    """Kubeflow Pipelines of which run and pods are as a test says."""

    def __init__(self, run: dict[str, Any], pods: list[Any]) -> None:
        site: Any = SimpleNamespace(
            manifest={"images": {"epos": "registry/epos:1"}},
            pod_evidence=lambda namespace, pod: [f"pod {pod.metadata.name}: {pod.status.phase}", "  main | the reason"],
            pod_log=lambda namespace, name, container: f"log of {name}",
        )
        super().__init__(site, "kubeflow-pipelines", "http://127.0.0.1:1")
        self.known, self.found = run, pods
        self.terminated: list[str] = []

    def run(self, run: str) -> dict[str, Any]:
        """The run."""
        return self.known

    def pods(self, run: str) -> list[Any]:
        """Its pods."""
        return self.found

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        """Only termination is expected."""
        self.terminated.append(f"{method} {path}")
        return {}


def test_evidence_names_task_pods_and_reasons() -> None:
    run = run_of(
        detail("ingest"), detail("train", "FAILED"), state="FAILED", error={"code": 9, "message": "a task has failed"}
    )
    pods = [
        pod("good", "Succeeded"),
        pod("bad", "Failed", container(code=137)),
        pod("slow", "Pending", container(waiting=("ImagePullBackOff", "no such image"))),
    ]
    told = Known(run, pods).evidence(RUN)
    for wanted in (
        *(f"run {RUN}: FAILED", "a task has failed", "task train failed", "pod bad: Failed", "main | the reason"),
        "pod slow does not start: container main: ImagePullBackOff: no such image",
    ):
        assert wanted in told, wanted
    assert not [name for name in ("good", "ingest", "root(0)", "executor", "task  failed") if name in told]


def test_evidence_without_api_and_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known(run_of(), [])

    def refuse(_: str) -> dict[str, Any]:
        raise requests.ConnectionError("refused")

    monkeypatch.setattr(known, "run", refuse)
    told = known.evidence(RUN)
    assert "does not tell about run" in told and "refused" in told
    assert f"no pod with pipeline/runid={RUN}" in told


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of submit.py; the test writes it."""
    path = tmp_path / "submit.py"
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(module, "SUBMIT", path)
    monkeypatch.setattr(module, "WAITING", 0.0)
    return path


def says(path: Path, code: int, seconds: float = 0, text: str = f"run {RUN}: PENDING") -> None:
    path.write_text(
        f"import json, sys, time\nprint({text!r}, flush=True)\n"
        f"time.sleep({seconds})\nprint(json.dumps(sys.argv[1:]))\nsys.exit({code})\n"
    )


def test_a_good_run_is_followed_to_its_end(submit: Path, capfd: pytest.CaptureFixture[str]) -> None:
    says(submit, 0)
    known = Known(run_of(), [])
    with known.submit("epos", {"train_steps": "500"}, timeout=60) as run:
        assert run.succeed() == known.known
        assert run.id == RUN
    arguments = json.loads(run.output.splitlines()[-1])
    assert arguments[:3] == [str(compiled("epos")), "--host", "http://127.0.0.1:1"]
    assert "--no-gpu" in arguments and "train_steps=500" in arguments and "registry/epos:1" in arguments
    assert f"  run {RUN}: PENDING\n" in capfd.readouterr().out
    assert known.terminated == []


def test_a_failed_run_tells_why(submit: Path) -> None:
    says(submit, 1)
    known = Known(run_of(detail("validate", "FAILED"), state="FAILED"), [pod("v", "Failed", container(code=4))])
    with known.submit("epos", {}, gpu=True, timeout=60) as run, pytest.raises(AssertionError) as failure:
        run.succeed()
    for wanted in ("task validate failed", "pod v: Failed", "main | the reason", "ended as FAILED"):
        assert wanted in str(failure.value)
    assert "--no-gpu" not in run.output


@pytest.mark.parametrize(("code", "state"), [(1, "SUCCEEDED"), (0, "FAILED"), (1, "RUNNING"), (0, "")])
def test_submit_and_the_api_must_agree(submit: Path, code: int, state: str) -> None:
    says(submit, code)
    known = Known(run_of(state=state), [])
    with (
        known.submit("epos", {}, timeout=60) as run,
        pytest.raises(AssertionError, match=r"submit\.py ended with status"),
    ):
        run.wait()


def test_a_run_that_stands_still_names_what_its_pods_wait_for(
    submit: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    says(submit, 0, seconds=60)
    monkeypatch.setattr(module, "STALL", 2.0)
    waits = pod(
        "driver",
        "Pending",
        container(waiting=("CreateContainerConfigError", "runAsNonRoot and image will run as root")),
    )
    known = Known(run_of(detail("ingest", "RUNNING", end=None), state="RUNNING"), [waits])
    with (
        known.submit("epos", {}, timeout=60) as run,
        pytest.raises(AssertionError, match="nothing has moved") as failure,
    ):
        run.wait()
    reason = "CreateContainerConfigError: runAsNonRoot and image will run as root"
    assert f"pod driver does not start: container main: {reason}" in str(failure.value)
    assert capfd.readouterr().out.count(f"  pod driver waits: container main: {reason}\n") == 1
    # Nobody waits for it any more.
    assert known.terminated == [f"POST runs/{RUN}:terminate"]


def test_a_run_at_work_may_take_its_time(submit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(submit, 0, seconds=3)
    monkeypatch.setattr(module, "STALL", 1.5)
    with Known(run_of(), [pod("t", "Running", container(running=True))]).submit("epos", {}, timeout=60) as run:
        assert run.wait() == "SUCCEEDED"


def test_a_run_that_is_let_go_goes_on(submit: Path) -> None:
    says(submit, 0, seconds=60)
    known = Known(run_of(state="RUNNING"), [])
    with known.submit("epos", {}, timeout=60) as run:
        run.let_go()
    assert known.terminated == []
    with pytest.raises(AssertionError, match="not over after 0 s"):
        known.await_end(RUN, 0)
    known.known["state"] = "FAILED"
    assert known.await_end(RUN, 0) == "FAILED"


def test_a_submission_that_makes_no_run_tells_what_it_said(submit: Path) -> None:
    says(submit, 2, text="submit: --parameter train_step: the pipeline has no such parameter")
    with pytest.raises(AssertionError, match="no such parameter"), Known(run_of(), []).submit("epos", {}):
        pass


def test_logs_are_awaited(submit: Path) -> None:
    says(submit, 0, seconds=60)
    words = ["step", "train"]
    known = Known(run_of(), [pod("old", words=words), pod("new", words=words), pod("other", words=["step", "gate"])])
    with known.submit("epos", {}, timeout=60) as run:
        assert run.await_log("train", "log of new", 5).metadata.name == "new"
        with pytest.raises(AssertionError, match="train has not said 'step 9' after 0 s"):
            run.await_log("train", "step 9", 0)


@pytest.fixture
def server() -> Iterator[tuple[str, list[int]]]:
    """An API that answers with the statuses of a list, then 200."""
    left: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = left.pop(0) if left else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps({"path": self.path}).encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", left
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_recovers_is_asked_again(server: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, left = server
    monkeypatch.setattr("time.sleep", lambda _: None)
    site: Any = None
    asked = Pipelines(site, "n", url)
    left[:] = [500, 503]
    assert asked.call("GET", "runs", page_size=2) == {"path": "/apis/v2beta1/runs?page_size=2"}
    left[:] = [404]
    with pytest.raises(requests.HTTPError, match="404"):
        asked.call("GET", "runs/x")
    monkeypatch.setattr(module, "RECOVERY", -1.0)
    left[:] = [500]
    with pytest.raises(requests.HTTPError, match="500"):
        asked.call("GET", "runs")
    with pytest.raises(requests.ConnectionError):
        Pipelines(site, "n", "http://127.0.0.1:1").call("GET", "runs")

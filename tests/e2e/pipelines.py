"""Kubeflow Pipelines of a site: runs submitted as people submit them, followed, and explained when they fail or stand still."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import requests
import urllib3
import yaml
from ansible.module_utils.slipway.port_forward import standing_port_forward
from kubernetes.client.exceptions import ApiException

from .site import PROJECT, Site, unschedulable

Json = dict[str, Any]

COMPONENT = "kubeflow_pipelines"
# Its name at the front door.
HOST = COMPONENT.replace("_", "-")
SERVICE = "ml-pipeline"
SUBMIT = PROJECT / "pipelines/submit.py"
PYTHON = PROJECT / ".venv/kfp/bin/python"
API = "apis/v2beta1"
# Every pod of a run has it.
RUN_LABEL = "pipeline/runid"
# Seconds in which a restarted server answers again.
RECOVERY = 120.0
# Seconds without a running pod and without a task that ends, after which nobody believes in a run any more. Image pulls are pods that wait.
STALL = 240.0
# Seconds after which a pod that does not start is worth a line.
WAITING = 20.0
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
# The line in which submit.py names the run.
SUBMITTED = re.compile(r"run ([0-9a-f-]{36})\b")
# Entries beside those of the tasks themselves: the real server lists every node of the workflow.
INNER = re.compile(r"|executor|root|.*\(\d+\)|.*-driver")
# Reasons of a waiting container that pass by themselves.
STARTING = ("ContainerCreating", "PodInitializing")


def compiled(name: str) -> Path:
    """The compiled pipeline `name` of this repository."""
    return PROJECT / "pipelines" / name / "pipeline.yaml"


def steps(pipeline: Path) -> list[str]:
    """The display names of a compiled pipeline's tasks that run a container, as written."""
    spec = next(iter(yaml.safe_load_all(pipeline.read_text())))
    components = spec["components"]

    def leaves(dag: Json) -> Iterator[str]:
        for task in dag["tasks"].values():
            component = components[task["componentRef"]["name"]]
            if "dag" in component:
                yield from leaves(component["dag"])
            else:
                yield task["taskInfo"]["name"]

    return list(leaves(spec["root"]["dag"]))


def seconds_between(begin: str | None, end: str | None) -> float:
    """Seconds between two times of the API, 0 where one of them is not known."""
    if not begin or not end or end.startswith("0001") or begin.startswith("0001"):
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds())


def task_times(run: Json, names: list[str]) -> list[Json]:
    """Name, state, begin (s since the run was made) and seconds of each task named, in the order in which they began.

    The real server lists several entries for a task, of drivers and executors: only those with the task's own name count.
    """
    found: dict[str, Json] = {}
    for detail in run.get("run_details", {}).get("task_details", []):
        name = detail.get("display_name", "")
        if name not in names or "state" not in detail or not detail.get("start_time"):
            continue
        entry = {
            "name": name,
            "state": detail["state"],
            "begin": seconds_between(run["created_at"], detail["start_time"]),
            "seconds": seconds_between(detail["start_time"], detail.get("end_time")),
        }
        # A loop's or a retried task's entries share a name; what failed is the one to tell of.
        if name not in found or entry["state"] == "FAILED":
            found[name] = entry
    return sorted(found.values(), key=lambda task: task["begin"])


def named(name: str) -> str:
    """The API's filter for what has that name; 1 is equality, as the SDK asks."""
    return json.dumps({"predicates": [{"operation": 1, "key": "display_name", "stringValue": name}]})


def words(pod: Any) -> list[str]:
    """Command and arguments of the container that does a pod's work."""
    main = next((each for each in pod.spec.containers if each.name == "main"), pod.spec.containers[0])
    return [*(main.command or []), *(main.args or [])]


def does(pod: Any, step: str) -> bool:
    """Whether a pod runs `epos step STEP`, with or without KFP's launcher before it."""
    said = words(pod)
    return any(pair == ("step", step) for pair in itertools.pairwise(said))


def stuck(pod: Any) -> str:
    """Why a pod that was made does not start, empty where it runs, has ended, or is just being started."""
    if pod.status.phase != "Pending":
        return ""
    if reason := unschedulable(pod):
        return f"no node takes it: {reason}"
    for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        waiting = status.state and status.state.waiting
        if waiting and waiting.reason and waiting.reason not in STARTING:
            return f"container {status.name}: {waiting.reason}: {waiting.message or ''}".rstrip(": ")
    return ""


def progresses(pods: list[Any]) -> bool:
    """Whether any container of the pods is at work."""
    states = [
        status.state
        for pod in pods
        for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
    ]
    return any(state and state.running for state in states)


class Pipelines:
    """KFP of a site.

    Attributes:
        namespace: where its server is and where runs have their pods.
        url: of its API, through a port forward that outlives the server's pods.
    """

    def __init__(self, site: Site, namespace: str, url: str) -> None:
        self.site = site
        self.namespace = namespace
        self.url = url

    @classmethod
    @contextmanager
    def open(cls, site: Site, namespace: str) -> Iterator[Pipelines]:
        """Yield the KFP in `namespace`."""
        with standing_port_forward(
            str(site.kubectl), str(site.kubeconfig), namespace, f"service/{SERVICE}", 8888
        ) as address:
            yield cls(site, namespace, f"http://{address}")

    def call(self, method: str, path: str, body: Json | None = None, **query: Any) -> Json:
        """Ask the API; a server that does not answer or fails by itself is asked again until it has had time to recover.

        Raises:
            requests.HTTPError: it says no.
        """
        end = time.monotonic() + RECOVERY
        while True:
            try:
                answer = requests.request(method, f"{self.url}/{API}/{path}", params=query, json=body, timeout=30)
                if answer.status_code < 500 or time.monotonic() > end:
                    break
            except requests.RequestException:
                if time.monotonic() > end:
                    raise
            time.sleep(1)
        if answer.status_code >= 400:
            raise requests.HTTPError(f"{method} {path}: {answer.status_code}: {answer.text[:500]}", response=answer)
        value: Json = answer.json() if answer.content else {}
        return value

    def run(self, run: str) -> Json:
        """A run as the API knows it."""
        return self.call("GET", f"runs/{run}")

    def pods(self, run: str) -> list[Any]:
        """The pods of a run that are still there, oldest first."""
        listed: list[Any] = self.site.core.list_namespaced_pod(
            self.namespace, label_selector=f"{RUN_LABEL}={run}"
        ).items
        return sorted(listed, key=lambda pod: pod.metadata.creation_timestamp)

    def pipeline(self, name: str) -> Json | None:
        """An uploaded pipeline by its name."""
        found = self.call("GET", "pipelines", filter=named(name)).get("pipelines", [])
        return found[0] if found else None

    def versions(self, name: str) -> list[Json]:
        """The versions of an uploaded pipeline; none where it was never uploaded."""
        pipeline = self.pipeline(name)
        if not pipeline:
            return []
        found: list[Json] = self.call("GET", f"pipelines/{pipeline['pipeline_id']}/versions", page_size=100).get(
            "pipeline_versions", []
        )
        return found

    def evidence(self, run: str) -> str:
        """Why a run failed or stands still: its failed tasks by name, and states, events and log of the pods that did not succeed."""
        lines = []
        try:
            known = self.run(run)
            lines.append(f"run {run}: {known.get('state')}")
            if known.get("error"):
                lines.append(f"  {known['error'].get('message', known['error'])}")
            for detail in known.get("run_details", {}).get("task_details", []):
                name = detail.get("display_name", "")
                if detail.get("state") == "FAILED" and not INNER.fullmatch(name):
                    said = (detail.get("error") or {}).get("message", "")
                    lines.append(f"task {name} failed{': ' if said else ''}{said}")
        except requests.RequestException as error:
            lines.append(f"the API of Kubeflow Pipelines does not tell about run {run}: {error}")
        pods = [pod for pod in self.pods(run) if pod.status.phase != "Succeeded"]
        for pod in pods:
            if reason := stuck(pod):
                lines.append(f"pod {pod.metadata.name} does not start: {reason}")
            lines += self.site.pod_evidence(self.namespace, pod)
        if not pods:
            lines.append(f"no pod with {RUN_LABEL}={run} in {self.namespace} that did not succeed is there any more")
        return "\n".join(lines)

    def await_end(self, run: str, timeout: float) -> str:
        """Wait until a run that nobody follows has ended; return its last state. The message of a run that does not end says why."""
        end = time.monotonic() + timeout
        while (state := self.run(run).get("state", "")) not in FINAL:
            assert time.monotonic() < end, f"not over after {timeout:g} s:\n{self.evidence(run)}"
            time.sleep(2)
        return str(state)

    @contextmanager
    def submit(
        self, pipeline: str, parameters: Mapping[str, str], *, gpu: bool = False, timeout: float = 1800
    ) -> Iterator[Run]:
        """Submit a pipeline of this repository with `pipelines/submit.py`; yield the run, followed.

        A run that the block leaves before its end is terminated, unless it was let go.

        Args:
            pipeline: folder in `pipelines/`.
            parameters: of the run.
            gpu: whether tasks that ask for a GPU get one.
            timeout: seconds that the run may take.
        """
        run = Run(self, pipeline, parameters, gpu, timeout)
        try:
            yield run
        finally:
            run.close()


class Run:
    """A run that `submit.py` follows, and what is seen of it meanwhile."""

    def __init__(
        self, pipelines: Pipelines, pipeline: str, parameters: Mapping[str, str], gpu: bool, timeout: float
    ) -> None:
        self.pipelines = pipelines
        self.pipeline = compiled(pipeline)
        self._folder = tempfile.TemporaryDirectory()
        self._answer = Path(self._folder.name) / "run.json"
        self._deadline = time.monotonic() + timeout
        self._lines: list[str] = []
        self._found = threading.Event()
        self.id = ""
        self._mine = True
        command = [str(PYTHON), str(SUBMIT), str(self.pipeline), "--host", pipelines.url, "--follow"]
        command += ["--image", pipelines.site.manifest["images"]["epos"], "--json", str(self._answer)]
        command += ["--timeout", str(int(timeout)), "--namespace", pipelines.namespace]
        command += [] if gpu else ["--no-gpu"]
        for key, value in parameters.items():
            command += ["--parameter", f"{key}={value}"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        # Whatever comes first: the run's name, or an end without one.
        self._found.wait(RECOVERY)
        if not self.id:
            self._stop()
            raise AssertionError(f"submit.py has made no run:\n{self.output}")

    def _read(self) -> None:
        """Show what submit.py says while it says it, and take the run's id from it."""
        assert self._process.stdout
        for line in self._process.stdout:
            print(f"  {line.rstrip()}", flush=True)
            self._lines.append(line.rstrip())
            if not self.id and (match := SUBMITTED.match(line)):
                self.id = match[1]
                self._found.set()
        self._found.set()

    @property
    def output(self) -> str:
        """What submit.py has said so far."""
        return "\n".join(self._lines)

    def pods(self, step: str) -> list[Any]:
        """The pods of a step of the epos package, oldest first."""
        return [pod for pod in self.pipelines.pods(self.id) if does(pod, step)]

    def await_log(self, step: str, text: str, timeout: float) -> Any:
        """Wait until the log of a step's newest pod contains `text`; return that pod."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for pod in self.pods(step)[-1:]:
                if text in self.pipelines.site.pod_log(self.pipelines.namespace, pod.metadata.name, "main"):
                    return pod
            assert self._process.poll() is None, f"the run ended before {step} said {text!r}:\n{self.evidence()}"
            time.sleep(0.5)
        raise AssertionError(f"{step} has not said {text!r} after {timeout:g} s:\n{self.evidence()}")

    def evidence(self) -> str:
        """What submit.py said at last, and what the cluster says of the run."""
        return "\n".join([*self._lines[-15:], self.pipelines.evidence(self.id)])

    def wait(self) -> str:
        """Follow the run to its end; return its last state, SUCCEEDED or FAILED.

        A run in which nothing moves fails the test with the reason for which its pods wait.
        """
        moved, seen, told = time.monotonic(), -1, ""
        while self._process.poll() is None:
            now = time.monotonic()
            pods = self._pods()
            if len(self._lines) != seen or progresses(pods):
                moved, seen, told = now, len(self._lines), ""
            reasons = [f"pod {pod.metadata.name} waits: {reason}" for pod in pods if (reason := stuck(pod))]
            if now - moved > WAITING and reasons and reasons[0] != told:
                told = reasons[0]
                print(f"  {told}", flush=True)
            assert now - moved < STALL, f"nothing has moved for {STALL:g} s:\n{self.evidence()}"
            assert now < self._deadline, f"the run is not over in time:\n{self.evidence()}"
            time.sleep(1)
        self._reader.join()
        state: str = self.pipelines.run(self.id).get("state", "")
        assert state in FINAL, (
            f"submit.py ended with status {self._process.returncode}, the run is {state}:\n{self.evidence()}"
        )
        assert (self._process.returncode == 0) == (state == "SUCCEEDED"), (
            f"submit.py ended with status {self._process.returncode}, the run is {state}:\n{self.evidence()}"
        )
        return state

    def succeed(self) -> Json:
        """Follow the run to its good end; return it as the API knows it. The message of a failure has tasks, pods and logs."""
        state = self.wait()
        assert state == "SUCCEEDED", f"the run of {self.pipeline.parent.name} ended as {state}:\n{self.evidence()}"
        return self.pipelines.run(self.id)

    def answer(self) -> Json:
        """What submit.py has written of the run."""
        value: Json = json.loads(self._answer.read_text())
        return value

    def let_go(self) -> None:
        """Follow the run no longer; it goes on."""
        self._stop()
        self._mine = False

    def close(self) -> None:
        """End what is still going on."""
        self._stop()
        if self.id and self._mine and self.pipelines.run(self.id).get("state") not in FINAL:
            self.pipelines.call("POST", f"runs/{self.id}:terminate")

    def _stop(self) -> None:
        """End submit.py."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join()
        self._folder.cleanup()

    def _pods(self) -> list[Any]:
        """The run's pods; none while the cluster's API does not answer."""
        try:
            return self.pipelines.pods(self.id)
        except (ApiException, urllib3.exceptions.HTTPError):
            return []

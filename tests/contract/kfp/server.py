"""The Kubeflow Pipelines of an installed site, seen through its API, its SDK and the pods of its runs."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests.contract.conftest import ROOT, Kubectl, Node, wait_for

Json = dict[str, Any]

PYTHON = ROOT / ".venv/kfp/bin/python"
COMPILED = Path(__file__).parent / "compiled"
FINAL = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
# A pod takes some seconds, and with the real server a task two of them.
RUN_S = 600


@dataclass
class Pipelines:
    """A server."""

    url: str
    namespace: str
    kubectl: Kubectl
    image: str
    folder: Path
    stand_in: bool

    def sdk(self, *arguments: str, timeout: float = RUN_S + 60) -> Any:
        """One act of the SDK."""
        command = [str(PYTHON), str(Path(__file__).parent / "sdk.py"), self.url, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def start(self, name: str, caching: bool = False, **parameters: Any) -> str:
        """Start a pipeline of compiled/ with an image that the site has; the run's id."""
        (run_id,) = self.start_all([(name, parameters)], caching)
        return run_id

    def start_all(self, wanted: list[tuple[str, Json]], caching: bool = False) -> list[str]:
        """Start several, by name and parameters, in one process of the SDK, which takes seconds to begin; the runs' ids."""
        words = []
        for name, parameters in wanted:
            file = self.folder / f"{name}.yaml"
            file.write_text((COMPILED / file.name).read_text().replace("registry.example/shell:1", self.image))
            words.append([str(file), parameters, caching])
        ids: list[str] = self.sdk("run", json.dumps(words))
        return ids

    def finish(self, run_id: str) -> Json:
        """A run when it is final."""
        return wait_for(f"run {run_id} ends", lambda: self._final(run_id), RUN_S)  # type: ignore[no-any-return]

    def _final(self, run_id: str) -> Json | None:
        run = self.get(run_id)
        return run if run["state"] in FINAL else None

    def get(self, run_id: str) -> Json:
        """A run as it is."""
        with urlopen(f"{self.url}/apis/v2beta1/runs/{run_id}", timeout=30) as answer:
            found: Json = json.loads(answer.read())
        return found

    def states(self, run: Json) -> dict[str, set[str]]:
        """States by the tasks' names: the real server has several entries of one name."""
        states: dict[str, set[str]] = {}
        for task in run["run_details"]["task_details"]:
            states.setdefault(task.get("display_name") or "", set()).add(task.get("state") or "")
        return states

    def pods(self, run_id: str) -> list[Json]:
        """The executors of a run: those of drivers are left out."""
        listed = json.loads(self.kubectl(f"get pod -n {self.namespace} -l pipeline/runid={run_id} -o json"))["items"]
        role = "pipelines.kubeflow.org/runtime-role"
        return [pod for pod in listed if pod["metadata"]["annotations"].get(role, "launcher") == "launcher"]

    def pods_of(self, run_id: str, task: str) -> list[Json]:
        """Those of a task, by the name that Argo has for it."""
        name = "workflows.argoproj.io/node-name"
        return [pod for pod in self.pods(run_id) if f".{task}(" in pod["metadata"]["annotations"][name]]

    def log(self, pod: Json) -> str:
        """What a component wrote."""
        return self.kubectl(f"logs -n {self.namespace} {pod['metadata']['name']} -c main")

    def running(self, run_id: str, task: str) -> Json:
        """The pod of a task, when its component runs."""

        def found() -> Json | None:
            for pod in self.pods_of(run_id, task):
                containers = {status["name"]: status["state"] for status in pod["status"].get("containerStatuses", [])}
                if "running" in containers.get("main", {}) and not pod["metadata"].get("deletionTimestamp"):
                    return pod
            return None

        running: Json = wait_for(f"{task} runs", found, RUN_S)
        return running


def argument(pod: Json) -> list[str]:
    """The component's own command line: behind the launcher's in the pods of the real server."""
    main = next(container for container in pod["spec"]["containers"] if container["name"] == "main")
    line: list[str] = [*main.get("command", []), *main.get("args", [])]
    return line[line.index("--") + 1 :] if "--" in line and "launch" in line[0] else line


def condition(run: Json, state: str) -> bool:
    """Whether a run went through a state."""
    return any(entry["state"] == state for entry in run["state_history"])


@contextmanager
def forwarded(server: Node, namespace: str) -> Iterator[str]:
    """The API on a port of this machine, through kubectl on the server and SSH; made again when the server's pod goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forward = f"k3s kubectl port-forward -n {namespace} --address 127.0.0.1 service/ml-pipeline {port}:8888"
    ssh = [
        "ssh", "-tt", "-i", str(server.state / "ssh" / "id_ed25519"), "-o", f"UserKnownHostsFile={server.state / 'known_hosts'}",
        "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none",
        "-L", f"127.0.0.1:{port}:127.0.0.1:{port}", f"{server.user}@{server.address}",
        f"sudo sh -c {shlex.quote(f'while {forward}; sleep 0.5; do :; done')}",
    ]  # fmt: skip
    process = subprocess.Popen(ssh, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("the API answers", lambda: process.poll() is None and answers(url))
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> Json | None:
    """What the server says of itself."""
    try:
        with urlopen(f"{url}/apis/v2beta1/healthz", timeout=5) as answer:
            found: Json = json.loads(answer.read())
        return found
    except OSError:
        return None


def patiently(call: Any, *arguments: Any, timeout: float = 60) -> Any:
    """Call again while the server's pod is exchanged."""
    end = time.monotonic() + timeout
    while True:
        try:
            return call(*arguments)
        except OSError:
            assert time.monotonic() < end, "the server did not come back"
            time.sleep(1)


def find_namespace(kubectl: Kubectl) -> str:
    """Where the server is; tests are skipped on sites without."""
    listed = json.loads(kubectl("get service -A --field-selector metadata.name=ml-pipeline -o json"))["items"]
    if not listed:
        pytest.skip("this site has no Kubeflow Pipelines")
    namespace: str = listed[0]["metadata"]["namespace"]
    return namespace

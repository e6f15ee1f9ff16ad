"""Our containers in a task's pod: `init` before the component, `wait` beside it. What they shall do is in KFP_TASK.

They do what the launcher of the real server does around a component: fetch the input artifacts, make the folders for outputs,
and afterwards collect output parameters, upload artifacts and the log, and report. The report is a WorkflowTaskResult, as that of
Argo's container of this name: the rights of ServiceAccount pipeline-runner are enough for that.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import placeholders, stores
from .kube import KubeClient, KubeError
from .pods import LOGS, RESULTS, SHARED, result
from .values import dump, from_text, normal

Json = dict[str, Any]

log = logging.getLogger("kfp.io")

# An object of Kubernetes has room for this and more.
_MOST = 250_000


class TaskError(Exception):
    """Why the task fails, in words for its user."""


class Stores:
    """Clients for the stores of a task, made when they are needed."""

    def __init__(self, kube: KubeClient, root: str, session: Json) -> None:
        self._kube = kube
        self._home = stores.split(root)[:2]
        self._session = session
        self._clients: dict[tuple[str, str], Any] = {}

    def of(self, uri: str) -> Any:
        """The client for a URI: what is not in the bucket of the pipeline root is reached as the environment says."""
        place = stores.split(uri)[:2]
        if place not in self._clients:
            session = self._session if place == self._home else {}
            self._clients[place] = stores.client(session, self._secret)
        return self._clients[place]

    def _secret(self, name: str) -> Mapping[str, str]:
        found = patient_get(self._kube, "secrets", name)
        if found is None:
            raise stores.StoreError(f"Secret {name}, which ConfigMap kfp-launcher names, is not in this namespace")
        return {key: base64.b64decode(value).decode() for key, value in found.get("data", {}).items()}


def patient_get(kube: KubeClient, kind: str, name: str, patience: float = stores.PATIENCE_S) -> Json | None:
    """An object of Kubernetes, asked for again while the API is away."""
    end = time.monotonic() + patience
    while True:
        try:
            return kube.get(kind, name)
        except KubeError as error:
            if not error.passing or time.monotonic() > end:
                raise TaskError(f"{kind} {name}: {error}") from error
            time.sleep(2.0)


def prepare(task: Json, kube: KubeClient) -> None:
    """Before the component: inputs, and folders that any user may write to."""
    os.umask(0)
    clients = Stores(kube, task["root"], task["session"])
    for artifact in task["inputs"]:
        if artifact["uri"].startswith("oci://"):
            raise TaskError(f"{artifact['uri']}: artifacts in images are not part of the stand-in")
        path = placeholders.artifact_path(artifact)
        if path is None:
            log.warning(
                "input artifact %s has no known storage: %s is not fetched", artifact.get("name"), artifact["uri"]
            )
            continue
        log.info("fetching %s", artifact["uri"])
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        stores.download(clients.of(artifact["uri"]), artifact["uri"], Path(path))
        for file in (Path(path), *Path(path).rglob("*")):
            if file.exists():
                file.chmod(0o777 if file.is_dir() else 0o666)
    outputs = [parameter["file"] for parameter in task["parameters"].values()]
    outputs += [placeholders.artifact_path(artifact) for artifact in task["artifacts"].values()]
    for output in (*outputs, task["file"]):
        if output is None:
            raise TaskError(f"the pipeline root {task['root']} is in a store that the stand-in does not know")
        Path(output).parent.mkdir(parents=True, exist_ok=True)


def conclude(task: Json, kube: KubeClient, pod: str) -> None:
    """After the component: its log, and if it succeeded what it left."""
    exit_code = _end_of_main(kube, pod)
    clients = Stores(kube, task["root"], task["session"])
    if logs := task["artifacts"].pop(LOGS, None):
        _upload_log(kube, pod, clients, logs["uri"])
    if exit_code != 0:
        log.info("the component ended with exit code %d", exit_code)
        return
    report = _collect(task)
    for name, artifact in report["artifacts"].items():
        path = placeholders.artifact_path(artifact)
        if path is None:
            log.warning("output artifact %s has no known storage: %s is not uploaded", name, artifact["uri"])
            continue
        try:
            stores.upload(clients.of(artifact["uri"]), Path(path), artifact["uri"])
        except FileNotFoundError:
            # Components may leave an output out; it is recorded all the same.
            log.warning("output artifact %s: the component did not write %s", name, path)
    if Path(task["file"]).exists():
        stores.upload(clients.of(task["root"]), Path(task["file"]), f"{task['folder']}/output_metadata.json")
    if (size := len(dump(report))) > _MOST:
        raise TaskError(f"output parameters and metadata take {size} bytes, more than {_MOST}: use artifacts for them")
    _report(kube, result(pod, os.environ["KFP_POD_UID"], report))


def _collect(task: Json) -> Json:
    """Output parameters and artifacts: what the executor output file says, then the files of the parameters."""
    file = Path(task["file"])
    said: Json = {}
    if file.exists():
        try:
            said = json.loads(file.read_text())
        except ValueError as error:
            raise TaskError(f"failed to unmarshall ExecutorOutput in file {file}: {error}") from error
    parameters: Json = dict(said.get("parameterValues") or {})
    for name, parameter in task["parameters"].items():
        if name in parameters:
            continue
        where = f"failed to read output parameter name={name} type={parameter['type']} path={parameter['file']}"
        try:
            parameters[name] = from_text(Path(parameter["file"]).read_text(), parameter["type"])
        except (OSError, ValueError) as error:
            raise TaskError(f"{where}: {error}") from error
    artifacts: Json = {}
    for name, artifact in task["artifacts"].items():
        listed = (said.get("artifacts") or {}).get(name, {}).get("artifacts") or [{}]
        merged = {**artifact, **{key: listed[0][key] for key in ("uri", "customPath") if listed[0].get(key)}}
        custom = merged.get("customPath", "")
        if custom and not custom.startswith(tuple(f"{folder}/" for folder in SHARED.values())):
            raise TaskError(
                f"output artifact {name} is at {custom}: the stand-in reaches {', '.join(SHARED.values())} only"
            )
        merged["metadata"] = {**artifact.get("metadata", {}), **(listed[0].get("metadata") or {})}
        artifacts[name] = merged
    return {"parameters": normal(parameters), "artifacts": artifacts}


def _end_of_main(kube: KubeClient, pod: str) -> int:
    """Wait for the component's container to end."""
    while True:
        try:
            for event in kube.watch("pods", field=f"metadata.name={pod}"):
                for container in event.get("object", {}).get("status", {}).get("containerStatuses", []):
                    ended = container.get("state", {}).get("terminated")
                    if container["name"] == "main" and ended:
                        return int(ended["exitCode"])
        except KubeError as error:
            log.warning("%s", error)
            if not error.passing:
                raise TaskError(f"the pod cannot be watched: {error}") from error
        time.sleep(1.0)


def _upload_log(kube: KubeClient, pod: str, clients: Stores, uri: str) -> None:
    """The log of the component as an artifact. Without it the task is none the worse."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "main.log"
        try:
            with file.open("wb") as target:
                for piece in kube.log(pod, "main"):
                    target.write(piece)
            stores.upload(clients.of(uri), file, uri)
        except KubeError as error:
            log.warning("%s", error)


def _report(kube: KubeClient, body: Json) -> None:
    end = time.monotonic() + stores.PATIENCE_S
    while True:
        try:
            kube.create(RESULTS, body)
            return
        except KubeError as error:
            if error.status == 409:
                # The answer to an earlier try was lost.
                return
            if not error.passing or time.monotonic() > end:
                raise TaskError(f"the outputs cannot be reported: {error}") from error
            time.sleep(2.0)


def main(arguments: list[str]) -> int:
    """`init` or `wait`; the exit status of the container."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # The first process of a container is not ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        task = json.loads(os.environ["KFP_TASK"])
        if arguments == ["init"]:
            prepare(task, KubeClient())
        elif arguments == ["wait"]:
            conclude(task, KubeClient(), os.environ["KFP_POD_NAME"])
        else:
            print(f"io: init or wait, not {arguments}", file=sys.stderr)
            return 2
    except (TaskError, stores.StoreError) as error:
        log.error("%s", error)
        Path("/dev/termination-log").write_text(str(error)[:4000])
        return 1
    return 0

"""What the suite needs of a site: its API, its object store, the training's command line, the training's Job."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.port_forward import service_of, standing_port_forward
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from minio import Minio
from minio.error import S3Error

PROJECT = Path(__file__).parents[2]
NAMESPACE = "epos"


class Site:
    """A cluster by its kubeconfig, and the bundle that it was installed from."""

    def __init__(self, kubeconfig: Path, bundle: Path) -> None:
        self.kubeconfig = kubeconfig
        self.kubectl = bundle / "bin/kubectl"
        self.manifest: dict[str, Any] = yaml.safe_load((bundle / "bundle.yml").read_text())
        new_client: Any = config.new_client_from_config
        api = new_client(str(kubeconfig))
        # The client's own types call every field of every object optional.
        self.core: Any = client.CoreV1Api(api)
        self.apps: Any = client.AppsV1Api(api)
        self.batch: Any = client.BatchV1Api(api)
        self.custom: Any = client.CustomObjectsApi(api)
        self.networking: Any = client.NetworkingV1Api(api)

    def secret(self, namespace: str, name: str) -> dict[str, str]:
        """Return the decoded values of a Secret."""
        data = self.core.read_namespaced_secret(name, namespace).data
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    @contextmanager
    def way_to(self, endpoint: str) -> Iterator[str]:
        """Yield where host:port is reached from here: a Service of the site by a port forward, all else as it is."""
        host, _, port = endpoint.rpartition(":")
        if not (service := service_of(host)):
            yield endpoint
            return
        place = (service[0], f"service/{service[1]}", int(port))
        with standing_port_forward(str(self.kubectl), str(self.kubeconfig), *place) as address:
            yield address

    def pod_log(self, namespace: str, name: str, container: str, lines: int | None = None) -> str:
        """Return the log of a pod's container so far, or its last `lines`; empty while it has none."""
        options = {"tail_lines": lines} if lines else {}
        try:
            # A log that is still empty arrives as None.
            return self.core.read_namespaced_pod_log(name, namespace, container=container, **options) or ""
        except ApiException as error:
            # Its container has not started yet, or the pod is gone.
            if error.status not in (400, 404):
                raise
            return ""

    def pod_evidence(self, namespace: str, pod: Any) -> list[str]:
        """Return states, events and last log lines of a pod, for the message of a failed test."""
        name = pod.metadata.name
        lines = [f"pod {name}: {pod.status.phase} {pod.status.reason or ''}".rstrip()]
        statuses = [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]
        lines += [f"  container {status.name}: {status.state.to_str()}" for status in statuses]
        events = self.core.list_namespaced_event(namespace, field_selector=f"involvedObject.name={name}").items
        lines += [f"  event {event.reason}: {event.message}" for event in events[-8:]]
        # What ended well has less to say than what did not.
        chosen = [each for each in statuses if not each.state.terminated or each.state.terminated.exit_code]
        for status in chosen or statuses[-1:]:
            log = self.pod_log(namespace, name, status.name, lines=30)
            lines += [f"  {status.name} | {line}" for line in log.splitlines()] or [f"  ({status.name} has no log)"]
        return lines

    def evidence(self, namespace: str, selector: str) -> str:
        """Return states, events and last log lines of the pods chosen, for the message of a failed test."""
        pods = self.core.list_namespaced_pod(namespace, label_selector=selector).items
        lines = [line for pod in pods for line in self.pod_evidence(namespace, pod)]
        return "\n".join(lines) or f"no pod with {selector} in {namespace}"


@dataclass
class Store:
    """The object store as one user sees it, through a port forward that outlives MinIO's pods."""

    client: Minio
    endpoint: str
    # A failing test shows its arguments.
    credentials: dict[str, str] = field(repr=False)

    @classmethod
    @contextmanager
    def open(
        cls, site: Site, namespace: str, secret: str, keys: tuple[str, str] = ("accessKey", "secretKey")
    ) -> Iterator[Store]:
        """Yield the store with the credentials in the Secret `namespace`/`secret`."""
        credentials = site.secret(namespace, secret)
        # An administrator's Secret says nothing of it.
        endpoint = credentials.get("endpoint", "minio.minio.svc:9000")
        with site.way_to(endpoint) as endpoint:
            user, password = (credentials[key] for key in keys)
            yield cls(
                Minio(endpoint=endpoint, access_key=user, secret_key=password, secure=False), endpoint, credentials
            )

    def read(self, bucket: str, name: str) -> bytes:
        """Return an object's content."""
        response = self.client.get_object(bucket_name=bucket, object_name=name)
        try:
            return response.read()
        finally:
            response.close()
            response.release_conn()

    def latest(self, prefix: str = "models") -> dict[str, Any] | None:
        """Return the pointer to the published model, or None when nothing was ever published."""
        try:
            pointer: dict[str, Any] = json.loads(self.read("epos-models", f"{prefix}/latest.json"))
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
        return pointer


class Epos:
    """The training's command line on this machine, in its locked environment."""

    def __init__(self, store: Store) -> None:
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT / "pipelines/epos/src"),
            "S3_ENDPOINT": store.endpoint,
            "S3_ACCESS_KEY": store.credentials["accessKey"],
            "S3_SECRET_KEY": store.credentials["secretKey"],
            "S3_SECURE": "false",
        }

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `python -m epos ARGUMENTS`; with `check` a failure raises with its output."""
        answer = subprocess.run(
            [str(PROJECT / ".venv/pipelines/bin/python"), "-m", "epos", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check:
            assert answer.returncode == 0, f"epos {' '.join(arguments)}: {answer.stdout[-2000:]}{answer.stderr[-2000:]}"
        return answer


def unschedulable(pod: Any) -> str:
    """Return why the scheduler finds no node for the pod, empty when it has one."""
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message)
    return ""


class Job:
    """One training Job on the site, from a manifest in pipelines/epos."""

    def __init__(
        self, site: Site, name: str, arguments: list[str], retries: int = 4, gpus: int = 0, manifest: str = "job.yml"
    ) -> None:
        """Prepare the Job; nothing is created before it is entered.

        Args:
            name: of the Job, instead of the manifest's.
            arguments: of `epos run`.
            retries: how many failed pods are replaced; for each index where the Job is an indexed one.
            gpus: how many GPUs each pod asks for, where the manifest does not ask.
            manifest: job.yml or distributed.yml.
        """
        self.site = site
        self.name = name
        self.selector = f"job-name={name}"
        objects = list(yaml.safe_load_all((PROJECT / "pipelines/epos" / manifest).read_text()))
        self.claims, self.services, (self.body,) = (
            [item for item in objects if item["kind"] == kind] for kind in ("PersistentVolumeClaim", "Service", "Job")
        )
        names = {
            claim["metadata"]["name"]: f"{name}-{claim['metadata']['name'].rpartition('-')[2]}" for claim in self.claims
        }
        for claim in self.claims:
            claim["metadata"]["name"] = names[claim["metadata"]["name"]]
        self.body["metadata"]["name"] = name
        indexed = self.body["spec"].get("completionMode") == "Indexed"
        self.body["spec"]["backoffLimitPerIndex" if indexed else "backoffLimit"] = retries
        pod = self.body["spec"]["template"]["spec"]
        pod["containers"][0]["image"] = site.manifest["images"]["epos"]
        pod["containers"][0]["args"] = ["run", *arguments]
        if gpus:
            pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = str(gpus)
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                volume["persistentVolumeClaim"]["claimName"] = names[volume["persistentVolumeClaim"]["claimName"]]

    def __enter__(self) -> Job:
        """Remove what an interrupted suite left and create the Job."""
        self.remove()
        for claim in self.claims:
            self.site.core.create_namespaced_persistent_volume_claim(NAMESPACE, claim)
        for service in self.services:
            self.site.core.create_namespaced_service(NAMESPACE, service)
        self.site.batch.create_namespaced_job(NAMESPACE, self.body)
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete Job, pods, Services and claims, and wait until they are gone."""
        deletions = [(self.site.batch.delete_namespaced_job, self.name)]
        deletions += [
            (self.site.core.delete_namespaced_persistent_volume_claim, c["metadata"]["name"]) for c in self.claims
        ]
        deletions += [(self.site.core.delete_namespaced_service, s["metadata"]["name"]) for s in self.services]
        for delete, name in deletions:
            try:
                delete(name, NAMESPACE, propagation_policy="Background")
            except ApiException as error:
                if error.status != 404:
                    raise
        names = {claim["metadata"]["name"] for claim in self.claims}
        end = time.monotonic() + 90
        while time.monotonic() < end:
            pods = self.pods()
            left = {
                c.metadata.name for c in self.site.core.list_namespaced_persistent_volume_claim(NAMESPACE).items
            } & names
            if not pods and not left:
                return
            time.sleep(0.5)
        raise AssertionError(
            f"Job {self.name} was not removed within 90 s:\n{self.site.evidence(NAMESPACE, self.selector)}"
        )

    def pods(self, index: int | None = None) -> list[Any]:
        """Return the Job's pods, those of an indexed Job's `index` if given, oldest first."""
        selector = self.selector
        if index is not None:
            selector += f",batch.kubernetes.io/job-completion-index={index}"
        items: list[Any] = self.site.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
        return sorted(items, key=lambda pod: pod.metadata.creation_timestamp)

    def await_pending(self, reason: str, timeout: float) -> None:
        """Wait until the scheduler says of the Job's pod, for everybody to see, that it waits for `reason`."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(reason in unschedulable(pod) for pod in self.pods()):
                return
            time.sleep(0.3)
        raise AssertionError(
            f"no pod waits for {reason!r} after {timeout} s:\n{self.site.evidence(NAMESPACE, self.selector)}"
        )

    def await_log(self, text: str, timeout: float, index: int | None = None) -> str:
        """Wait until the log of the newest pod (of an indexed Job's `index`) contains `text`; return that pod's name."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for pod in self.pods(index)[-1:]:
                try:
                    # A log that is still empty arrives as None.
                    if text in (self.site.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE) or ""):
                        return str(pod.metadata.name)
                except ApiException:
                    pass
            time.sleep(0.5)
        raise AssertionError(
            f"{text!r} not in the log after {timeout} s:\n{self.site.evidence(NAMESPACE, self.selector)}"
        )

    def follow(self, timeout: float) -> str:
        """Print the log of the Job's pods while they run; return all of it once the Job is finished."""
        log: list[str] = []
        seen: set[str] = set()
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for pod in self.pods():
                if pod.metadata.name not in seen and pod.status.phase != "Pending":
                    seen.add(pod.metadata.name)
                    for line in self._stream(pod.metadata.name, end):
                        print(f"  {line}", flush=True)
                        log.append(line)
            if self.finished():
                return "\n".join(log)
            time.sleep(0.5)
        raise AssertionError(
            f"Job {self.name} not finished after {timeout} s:\n{self.site.evidence(NAMESPACE, self.selector)}"
        )

    def _stream(self, pod: str, end: float) -> Iterator[str]:
        """Yield the lines of a pod's log until it ends."""
        response = self.site.core.read_namespaced_pod_log(
            pod, NAMESPACE, follow=True, _preload_content=False, _request_timeout=max(1.0, end - time.monotonic())
        )
        rest = b""
        for chunk in response.stream():
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def finished(self) -> str:
        """Return "Complete" or "Failed" once the Job is one of them, else an empty string."""
        for condition in self.site.batch.read_namespaced_job(self.name, NAMESPACE).status.conditions or []:
            if condition.status == "True" and condition.type in ("Complete", "Failed"):
                return str(condition.type)
        return ""

    def exit_codes(self) -> list[int]:
        """Return the exit codes of the pods that ended."""
        states = [status.state.terminated for pod in self.pods() for status in pod.status.container_statuses or []]
        return [state.exit_code for state in states if state]

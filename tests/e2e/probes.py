"""Pods that play both ends of the flows: made on the site, asked to connect, and taken away again."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ansible.module_utils.slipway.kube import Json, KubeClient
from kubernetes.client.exceptions import ApiException

from .flows import MANAGED, MARK, Check, End, Table, World, table
from .site import Site

T = TypeVar("T")
R = TypeVar("R")

OWNER = "slipway-flows"
SELECTOR = ",".join(f"{key}={value}" for key, value in MARK.items())
PROGRAM = Path(__file__).with_name("probe.py").read_text()


@dataclass(frozen=True)
class Outcome:
    """What became of a check."""

    answered: bool
    answers: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        return f"{'connected' if self.answered else ', '.join(self.answers)} after {self.seconds} s"


class Probes:
    """The test's pods on a site; those of an interrupted run are removed first, all at the end."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.addresses: dict[End, str] = {}
        self.world = World([], {}, [])
        self.table = Table()

    def __enter__(self) -> Probes:
        self.remove()
        kube = KubeClient(str(self.site.kubeconfig))
        self.world = World.read(lambda path: (kube.get(path) or {}).get("items") or [])
        self.table = table(self.world)
        try:
            self._start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _each(self, do: Callable[[T], R], things: Iterable[T]) -> list[R]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(do, things))

    def _start(self) -> None:
        core, probes = self.site.core, self.table.probes
        for name, labels in self.world.made.items():
            core.create_namespace({"metadata": {"name": name, "labels": {**labels, **MARK}}})
        # Owned by something, no controller takes a pod for its own, whatever its labels; and all go with the owner.
        owners = {
            namespace: core.create_namespaced_config_map(namespace, {"metadata": {"name": OWNER, "labels": MARK}}).metadata.uid
            for namespace in sorted({end.namespace for end in probes})
        }  # fmt: skip
        bodies = [(end.namespace, self._body(end, owners[end.namespace])) for end in probes]
        self._each(lambda one: self._create(*one), bodies)
        self._await_running(probes)

    def _create(self, namespace: str, body: Json) -> None:
        end = time.monotonic() + 10
        while True:
            try:
                self.site.core.create_namespaced_pod(namespace, body)
                return
            except ApiException as error:
                # A new namespace gets its service account a moment later.
                if error.status != 403 or "serviceaccount" not in str(error.body) or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _body(self, end: End, owner: str) -> Json:
        node = end.kind == "node"
        security: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        pod_security: Json = {"seccompProfile": {"type": "RuntimeDefault"}}
        if node:
            security["capabilities"]["add"] = ["NET_BIND_SERVICE"]
            pod_security["runAsUser"] = 0
        else:
            pod_security |= {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}],
            }
        ports = [f"{port}/{protocol}" for port, protocol in sorted(self.table.ports(end))]
        container = {
            "name": "probe",
            "image": self.site.manifest["images"]["services"],
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-c", PROGRAM, "listen", *ports],
            "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "securityContext": security,
        }
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": OWNER, "uid": owner, "controller": True}
        return {
            "metadata": {"name": end.name, "labels": dict(end.labels), "ownerReferences": [reference]},
            "spec": {
                "nodeName": end.node,
                "hostNetwork": node,
                "tolerations": [{"operator": "Exists"}],
                # Never ready: no Service sends anybody here.
                "readinessGates": [{"conditionType": "slipway-test/never"}],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "securityContext": pod_security,
                "containers": [container],
            },
        }

    def _await_running(self, probes: set[End]) -> None:
        names = {(end.namespace, end.name): end for end in probes}
        end = time.monotonic() + 60 + 2 * len(probes)
        while True:
            pods = self.site.core.list_pod_for_all_namespaces(label_selector=SELECTOR).items
            ended = [pod for pod in pods if pod.status.phase in ("Failed", "Succeeded")]
            for pod in pods:
                if pod.status.phase == "Running" and pod.status.pod_ip:
                    self.addresses[names[pod.metadata.namespace, pod.metadata.name]] = pod.status.pod_ip
            if len(self.addresses) == len(probes) and not ended:
                return
            if ended or time.monotonic() > end:
                late = ended or [pod for pod in pods if pod.status.phase != "Running"]
                text = "\n".join(self.site.evidence(pod.metadata.namespace, SELECTOR) for pod in late[:2])
                raise AssertionError(f"{len(late)} of {len(probes)} probes do not run:\n{text}")
            time.sleep(0.3)

    def run(self, checks: Iterable[Check]) -> dict[Check, Outcome]:
        """Try the connections, all at once; return what became of them."""
        tasks: dict[End, list[Check]] = {}
        for check in checks:
            tasks.setdefault(check.source, []).append(check)
        found = self._each(lambda source: self._run(source, tasks[source]), tasks)
        return {check: outcome for part in found for check, outcome in part.items()}

    def _run(self, source: End, checks: list[Check]) -> dict[Check, Outcome]:
        wanted = [
            {"id": number, "allowed": check.allowed, "ways": [self._way(way) for way in check.ways]}
            for number, check in enumerate(checks)
        ]
        words = [
            str(self.site.kubectl),
            "--kubeconfig",
            str(self.site.kubeconfig),
            "exec",
            "-i",
            "-n",
            source.namespace,
        ]
        words += [source.name, "--", "python3", "-c", PROGRAM, "check"]
        answer = subprocess.run(
            words, input=json.dumps(wanted), capture_output=True, text=True, check=False, timeout=120
        )
        assert answer.returncode == 0, f"{source} ({source.name}): {answer.stdout[-1000:]}{answer.stderr[-2000:]}"
        return {
            checks[each["id"]]: Outcome(each["answered"], tuple(each["answers"]), each["seconds"])
            for each in json.loads(answer.stdout)
        }

    def _way(self, way: Any) -> list[Any]:
        if way.service:
            return [way.service.address, way.service.port, way.service.protocol]
        return [self.addresses.get(way.target, way.target.addresses[0]), way.port, way.protocol]

    def remove(self) -> None:
        """Delete everything that carries the test's label, and wait until it is gone."""
        core = self.site.core
        end = time.monotonic() + 90
        while True:
            pods = core.list_pod_for_all_namespaces(label_selector=SELECTOR).items
            owners = core.list_config_map_for_all_namespaces(label_selector=SELECTOR).items
            # Somebody may have installed something into it meanwhile.
            spaces = [
                item
                for item in core.list_namespace(label_selector=SELECTOR).items
                if item.metadata.labels.get(MANAGED[0]) != MANAGED[1]
            ]
            if not pods and not owners and not spaces:
                return
            if time.monotonic() > end:
                left = [f"{item.metadata.namespace or ''}/{item.metadata.name}" for item in (*pods, *owners, *spaces)]
                raise AssertionError(f"not removed within 90 s: {', '.join(left)}")
            deletions: list[tuple[Any, ...]] = [(core.delete_namespace, item.metadata.name) for item in spaces]
            for do, found in ((core.delete_namespaced_pod, pods), (core.delete_namespaced_config_map, owners)):
                deletions += [(do, item.metadata.name, item.metadata.namespace) for item in found]
            self._each(lambda deletion: _delete(*deletion), deletions)
            time.sleep(0.5)


def _delete(do: Callable[..., object], *names: str) -> None:
    try:
        do(*names, grace_period_seconds=0, propagation_policy="Background")
    except ApiException as error:
        # 409: a namespace that is going already.
        if error.status not in (404, 409):
            raise

"""GPUs of a site: who has them, who uses them, and pods that ask for one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes.client.exceptions import ApiException

from .site import Site

RESOURCE = "nvidia.com/gpu"
# The operator's own namespace has no quota, and its own validation runs there too.
NAMESPACE = "gpu-operator"
# As `nvidia-smi -L` prints them: "GPU 0: NAME (UUID: GPU-...)", MIG devices indented below it.
UUID = re.compile(r"^\s*(?:GPU|MIG).*: ?(?P<name>.*?) *\(UUID: (?P<uuid>(?:GPU|MIG)-[^)]+)\)", re.MULTILINE)
# Tells the outcome and stays, so that no other pod is given the same GPU as long as others are examined.
EXAMINE = (
    'nvidia-smi -L; vectorAdd; status=$?; echo "exit status $status"; [ $status -eq 0 ] && exec sleep 900; exit $status'
)


@dataclass(frozen=True)
class GpuNode:
    """A node with GPUs: how many pods it takes, and how many devices these share."""

    name: str
    slots: int
    devices: int
    used: int


def gpu_nodes(site: Site) -> list[GpuNode]:
    """Return the nodes that advertise GPUs now."""
    used: dict[str, int] = {}
    for pod in site.core.list_pod_for_all_namespaces().items:
        if pod.spec.node_name and pod.status.phase in ("Pending", "Running"):
            used[pod.spec.node_name] = used.get(pod.spec.node_name, 0) + sum(
                int((container.resources.requests or {}).get(RESOURCE, 0)) for container in pod.spec.containers
            )
    nodes = []
    for node in site.core.list_node().items:
        slots = int(node.status.allocatable.get(RESOURCE, 0))
        # GPU feature discovery: pods per device when devices are shared in time.
        replicas = int(node.metadata.labels.get("nvidia.com/gpu.replicas", 1))
        if slots:
            nodes.append(GpuNode(node.metadata.name, slots, slots // max(replicas, 1), used.get(node.metadata.name, 0)))
    return nodes


class GpuPods:
    """Pods of one test, each with one GPU or more; gone when the test ends."""

    def __init__(self, site: Site, label: str) -> None:
        self.site = site
        self.selector = f"slipway-test={label}"
        self.label = label
        self.count = 0

    def start(self, command: str, node: str = "", gpus: int = 1, namespace: str = NAMESPACE) -> str:
        """Create a pod that runs the shell `command`; return its name."""
        self.count += 1
        name = f"{self.label}-{self.count}"
        container = {
            "name": "main",
            "image": self.site.manifest["images"]["gpu_validator"],
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", command],
            "resources": {
                "limits": {RESOURCE: str(gpus), "cpu": "1", "memory": "512Mi"},
                "requests": {"cpu": "10m", "memory": "32Mi"},
            },
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        spec: dict[str, Any] = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        }
        if node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": node}
        body = {"metadata": {"name": name, "labels": {"slipway-test": self.label}}, "spec": spec}
        self.site.core.create_namespaced_pod(namespace, body)
        return name

    def read(self, name: str) -> Any:
        """Return the pod as the API knows it."""
        return self.site.core.read_namespaced_pod(name, NAMESPACE)

    def log(self, name: str) -> str:
        """Return the pod's log so far."""
        try:
            return self.site.core.read_namespaced_pod_log(name, NAMESPACE) or ""
        except ApiException as error:
            if error.status not in (400, 404):
                raise
            return ""

    def remove(self, *names: str) -> None:
        """Delete the pods `names` (none: all) and wait until they are gone."""
        chosen = names or [
            pod.metadata.name
            for pod in self.site.core.list_namespaced_pod(NAMESPACE, label_selector=self.selector).items
        ]
        for name in chosen:
            try:
                self.site.core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)
            except ApiException as error:
                if error.status != 404:
                    raise
        end = time.monotonic() + 60
        while time.monotonic() < end:
            left = {
                p.metadata.name
                for p in self.site.core.list_namespaced_pod(NAMESPACE, label_selector=self.selector).items
            }
            if not left & set(chosen):
                return
            time.sleep(0.3)
        raise AssertionError(f"not removed within 60 s:\n{self.site.evidence(NAMESPACE, self.selector)}")

    def wait(self, what: str, names: list[str], ready: Any, timeout: float = 90) -> None:
        """Wait until `ready(pod)` holds for each of `names`."""
        end = time.monotonic() + timeout
        while not all(ready(self.read(name)) for name in names):
            if time.monotonic() > end:
                raise AssertionError(f"{what} after {timeout} s:\n{self.site.evidence(NAMESPACE, self.selector)}")
            time.sleep(0.3)


@contextmanager
def gpu_pods(site: Site, label: str) -> Iterator[GpuPods]:
    """Yield a maker of pods; those of an interrupted run are removed first, all at the end."""
    pods = GpuPods(site, label)
    pods.remove()
    try:
        yield pods
    finally:
        pods.remove()


def examine(site: Site, timeout: float = 180) -> list[dict[str, Any]]:
    """Run the check on every GPU of every node, all at once; return one finding per GPU.

    A pod cannot choose its GPU, so each keeps its own until every GPU of its node was seen or no slot is free. A finding has node, uuid,
    name, passed, seconds and output; GPUs that others hold all the time are one finding without uuid whose `passed` is None.
    """
    start = time.monotonic()
    findings: dict[str, dict[str, Any]] = {}
    nodes = {node.name: node for node in gpu_nodes(site)}
    free = {node.name: node.slots - node.used for node in nodes.values()}
    waiting: dict[str, str] = {}

    def missing(node: str) -> int:
        seen: int = sum(finding["node"] == node for finding in findings.values())
        return nodes[node].devices - seen - sum(place == node for place in waiting.values())

    with gpu_pods(site, "gpu-check") as pods:
        while True:
            for node in nodes:
                for _ in range(min(missing(node), free[node])):
                    free[node] -= 1
                    waiting[pods.start(EXAMINE, node)] = node
            if not waiting:
                break
            for name, node in list(waiting.items()):
                text = pods.log(name)
                if "exit status" not in text:
                    continue
                found = UUID.search(text)
                uuid = found["uuid"] if found else f"unknown ({name})"
                findings.setdefault(
                    uuid,
                    {
                        "node": node, "uuid": uuid, "name": found["name"] if found else "", "passed": "exit status 0" in text,
                        "seconds": round(time.monotonic() - start, 1), "output": text.strip().splitlines(),
                    },
                )  # fmt: skip
                del waiting[name]
            if waiting and time.monotonic() - start > timeout:
                raise AssertionError(
                    f"the check on {waiting} did not end within {timeout} s:\n{site.evidence(NAMESPACE, pods.selector)}"
                )
            time.sleep(0.3)
    busy: list[dict[str, Any]] = [
        {"node": node, "uuid": "", "name": f"{missing(node)} in use", "passed": None, "seconds": 0.0, "output": []}
        for node in nodes
        if missing(node) > 0
    ]
    return sorted([*findings.values(), *busy], key=lambda finding: (finding["node"], finding["uuid"]))

"""Whether what runs in a cluster is ready, and the evidence when it is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, items

NODES = "/api/v1/nodes"
# Resource name in API paths, by kind.
KINDS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
}
API = "Kubernetes API"
LOG_LINES = 15
EVENTS = 10
# More pods than this in one message help nobody.
PODS = 6


@dataclass(frozen=True)
class Waiting:
    """Something that is not ready: `what` (kind/namespace/name), why, and whether waiting can still help."""

    what: str
    reason: str
    hopeless: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Wanted:
    """What to wait for. `expect` holds (namespace, kind, name) that must exist even before anyone made them.

    `version` is the version of k3s that the nodes must report; empty takes any.
    """

    namespaces: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    expect: tuple[tuple[str, str, str], ...] = ()
    jobs: bool = False
    version: str = ""


def parse_expected(text: str) -> tuple[str, str, str]:
    """Split `namespace/Kind/name`. Raises SlipwayError."""
    parts = text.split("/")
    if len(parts) != 3 or not all(parts) or parts[1] not in KINDS:
        raise SlipwayError(f"expect: {text!r} must be namespace/Kind/name with a kind of {', '.join(KINDS)}")
    return parts[0], parts[1], parts[2]


def _count(source: Mapping[str, Any], key: str) -> int:
    return int(source.get(key) or 0)


def _condition(item: Json, kind: str) -> Json:
    """The status condition of that type, or an empty object."""
    for condition in (item.get("status") or {}).get("conditions") or []:
        if condition.get("type") == kind:
            return dict(condition)
    return {}


def judge(kind: str, item: Json) -> tuple[str, bool]:
    """Why a workload is not ready (empty: it is), and whether that is final."""
    spec, status = item.get("spec") or {}, item.get("status") or {}
    if kind == "Job":
        return _judge_job(item)
    if _count(status, "observedGeneration") < _count(item["metadata"], "generation"):
        return "its last change has not been taken up yet", False
    if kind == "DaemonSet":
        wanted = _count(status, "desiredNumberScheduled")
        updated, ready = _count(status, "updatedNumberScheduled"), _count(status, "numberAvailable")
    else:
        wanted = int(spec.get("replicas", 1))
        updated = _count(status, "updatedReplicas")
        ready = _count(status, "availableReplicas" if kind == "Deployment" else "readyReplicas")
    if (spec.get("updateStrategy") or {}).get("type") == "OnDelete":
        updated = wanted
    if updated < wanted:
        reason = f"{updated} of {wanted} pods are of its newest version"
    elif ready < wanted:
        reason = f"{ready} of {wanted} pods are ready"
    elif kind == "Deployment" and _count(status, "replicas") > wanted:
        reason = f"{_count(status, 'replicas') - wanted} pods of an older version are still there"
    else:
        return "", False
    refused = _condition(item, "ReplicaFailure").get("message")
    return f"{reason}; {refused}" if refused else reason, False


def _judge_job(item: Json) -> tuple[str, bool]:
    if (item.get("spec") or {}).get("suspend") or _condition(item, "Complete").get("status") == "True":
        return "", False
    failed = _condition(item, "Failed")
    if failed.get("status") == "True":
        return f"failed: {failed.get('reason', '')} {failed.get('message', '')}".rstrip(), True
    return "it has not completed", False


def judge_node(node: Json) -> str:
    """Why a node cannot take pods; empty when it can."""
    ready = _condition(node, "Ready")
    if ready.get("status") != "True":
        return f"not Ready: {ready.get('message') or 'its kubelet has not reported yet'}"
    # Set by kubelet and cloud controller until a node is usable; Ready can come before they go.
    for taint in (node.get("spec") or {}).get("taints") or []:
        if taint.get("key") in ("node.kubernetes.io/not-ready", "node.cloudprovider.kubernetes.io/uninitialized"):
            return f"tainted {taint['key']}"
    return ""


def _from_cron(item: Json) -> bool:
    return any(owner.get("kind") == "CronJob" for owner in item["metadata"].get("ownerReferences") or [])


def unready(kube: Kube, wanted: Wanted) -> list[Waiting]:
    """Everything of `wanted` that is not ready now. A namespace without any workload is not ready."""
    found: list[Waiting] = []
    namespaces = set(wanted.namespaces) | {namespace for namespace, _, _ in wanted.expect}
    seen: set[tuple[str, str, str]] = set()
    for namespace in sorted(namespaces):
        whole = namespace in wanted.namespaces
        for kind, path in KINDS.items():
            if kind == "Job" and not wanted.jobs:
                continue
            for item in items(kube, path.format(namespace)):
                name = item["metadata"]["name"]
                seen.add((namespace, kind, name))
                if not whole and (namespace, kind, name) not in wanted.expect:
                    continue
                if kind == "Job" and _from_cron(item):
                    continue
                reason, hopeless = judge(kind, item)
                if reason:
                    found.append(Waiting(f"{kind} {namespace}/{name}", reason, hopeless))
        if whole and not any(place == namespace for place, _, _ in seen):
            found.append(Waiting(f"Namespace {namespace}", "there is no workload in it"))
    found += [
        Waiting(f"{kind} {namespace}/{name}", "it does not exist yet")
        for namespace, kind, name in wanted.expect
        if (namespace, kind, name) not in seen
    ]
    return found + _unready_nodes(kube, wanted)


def read_nodes(kube: Kube) -> dict[str, Json]:
    """Every Node by its name. Raises KubeError."""
    return {node["metadata"]["name"]: node for node in items(kube, NODES)}


def node_version(node: Json) -> str:
    """The version that a node's kubelet reports; empty while it has not."""
    return str(((node.get("status") or {}).get("nodeInfo") or {}).get("kubeletVersion", ""))


def _unready_nodes(kube: Kube, wanted: Wanted) -> list[Waiting]:
    if not wanted.nodes:
        return []
    nodes = read_nodes(kube)
    reasons: dict[str, str] = {}
    for name in wanted.nodes:
        reasons[name] = judge_node(nodes[name]) if name in nodes else "it has not joined"
        if not reasons[name] and wanted.version not in ("", node_version(nodes[name])):
            reasons[name] = f"it runs {node_version(nodes[name])}, not {wanted.version}"
    return [Waiting(f"Node {name}", reason) for name, reason in reasons.items() if reason]


def await_ready(
    kube: Kube,
    wanted: Wanted,
    timeout: float,
    interval: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Waiting]:
    """Wait until all of `wanted` is ready and return what is not when `timeout` (seconds) is over: nothing is good.

    Asks every `interval` seconds. An API that does not answer counts as not ready. Stops early where waiting is
    hopeless.
    """
    deadline = clock() + timeout
    while True:
        try:
            waiting = unready(kube, wanted)
        except KubeError as error:
            waiting = [Waiting(API, str(error))]
        if not waiting or clock() >= deadline or any(item.hopeless for item in waiting):
            return waiting
        sleep(interval)


def evidence(kube: Kube, waiting: Sequence[Waiting], namespaces: Iterable[str], kubectl: str) -> str:
    """A report for a person: what is not ready, its pods, events and logs, and what to run next."""
    lines = ["Not ready:"] + [f"  {item}" for item in waiting]
    next_step = f"{kubectl} get pods --all-namespaces --output wide"
    if nodes := [item.what.split()[1] for item in waiting if item.what.startswith("Node ")]:
        next_step = f"on {nodes[0]}: sudo journalctl --unit k3s --unit k3s-agent --lines 50"
    if any(item.what == API for item in waiting):
        next_step = "on a server: sudo journalctl --unit k3s --lines 50"
    for namespace in namespaces:
        try:
            every_pod = items(kube, f"/api/v1/namespaces/{namespace}/pods")
            events = items(kube, f"/api/v1/namespaces/{namespace}/events")
        except KubeError as error:
            lines.append(f"Namespace {namespace}: {error}")
            continue
        pods = [pod for pod in every_pod if pod_fault(pod)]
        well = {pod["metadata"]["name"] for pod in every_pod} - {pod["metadata"]["name"] for pod in pods}
        if pods:
            next_step = f"{kubectl} --namespace {namespace} describe pod {pods[0]['metadata']['name']}"
            lines.append(f"Pods of {namespace} ({len(pods)} not ready):")
        for pod in pods[:PODS]:
            lines.append(f"  {pod['metadata']['name']} on {pod['spec'].get('nodeName', 'no node')}: {pod_fault(pod)}")
        lines += _event_lines(namespace, [event for event in events if not _about(event, well)])
        for pod in pods[:PODS]:
            lines += log_lines(kube, namespace, pod)
    return "\n".join([*lines, f"Next: {next_step}"])


def _container_states(pod: Json) -> list[Json]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def container_fault(container: Json) -> str:
    """What ails a container; empty when it runs and is ready, or ended well."""
    state = container.get("state") or {}
    text = ""
    if waiting := state.get("waiting"):
        text = f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".rstrip()
    elif ended := state.get("terminated"):
        text = f"ended with {ended.get('exitCode')} ({ended.get('reason', '')})" if ended.get("exitCode") else ""
    elif not container.get("ready") and not container.get("started"):
        text = "started, not ready"
    elif not container.get("ready"):
        text = "running, its readiness probe fails"
    last = (container.get("lastState") or {}).get("terminated")
    if text and last:
        text += f", before that ended with {last.get('exitCode')} ({last.get('reason', '')})"
    if text and container.get("restartCount"):
        text += f", {container['restartCount']} restarts"
    return text


def pod_fault(pod: Json) -> str:
    """What ails a pod, in one line; empty when it is ready or has completed."""
    phase = (pod.get("status") or {}).get("phase")
    if phase == "Succeeded" or _condition(pod, "Ready").get("status") == "True":
        return ""
    unscheduled = _condition(pod, "PodScheduled")
    if unscheduled.get("status") == "False":
        return f"{phase}: {unscheduled.get('message', '')}"
    faults = [f"{item['name']} {fault}" for item in _container_states(pod) if (fault := container_fault(item))]
    return f"{phase}: " + ("; ".join(faults) or str((pod.get("status") or {}).get("message") or "not ready"))


def _about(event: Json, pods: set[str]) -> bool:
    """Whether an event is about one of these pods."""
    about = event.get("involvedObject") or {}
    return about.get("kind") == "Pod" and about.get("name") in pods


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")


def _event_lines(namespace: str, events: Sequence[Json]) -> list[str]:
    warnings = sorted((event for event in events if event.get("type") != "Normal"), key=_event_time)[-EVENTS:]
    lines = [f"Last warnings in {namespace}:"] if warnings else []
    for event in warnings:
        about = event.get("involvedObject") or {}
        times = f" (x{event['count']})" if (event.get("count") or 1) > 1 else ""
        message = " ".join(str(event.get("message", "")).split())
        where = f"{about.get('kind')}/{about.get('name')}"
        lines.append(f"  {_event_time(event)} {where} {event.get('reason')}{times}: {message}")
    return lines


def log_lines(kube: Kube, namespace: str, pod: Json, only_faulty: bool = True) -> list[str]:
    """The last lines of each (faulty) container, of its last life where the present one has not begun."""
    lines: list[str] = []
    for container in _container_states(pod):
        if only_faulty and not container_fault(container):
            continue
        if not (container.get("restartCount") or container.get("containerID")):
            continue
        name = container["name"]
        query = {"container": name, "tailLines": str(LOG_LINES)}
        if (container.get("state") or {}).get("waiting") and container.get("restartCount"):
            query["previous"] = "true"
        try:
            text = kube.text(f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/log", **query)
        except KubeError as error:
            text = f"(no log: {error})"
        lines.append(f"Log of {pod['metadata']['name']}/{name}:")
        lines += [f"  {line}" for line in text.splitlines()[-LOG_LINES:]]
    return lines

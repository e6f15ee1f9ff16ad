"""GPU nodes of a cluster: what the inventory declares, the labels and taint that say so, and whether the GPUs are there."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, items
from ansible.module_utils.slipway.workloads import NODES, judge_node, log_lines, pod_fault, read_nodes

RESOURCE = "nvidia.com/gpu"
NAMESPACE = "gpu-operator"
# Prefix of the operator's and its parts' labels and annotations.
PREFIX = "nvidia.com/"
SHARING = "nvidia.com/device-plugin.config"
DRIVER = "nvidia.com/gpu.deploy.driver"
MIG = "nvidia.com/mig.config"
MIG_STATE = "nvidia.com/mig.config.state"
MIG_OFF = "all-disabled"
TAINT = {"key": RESOURCE, "value": "present", "effect": "NoSchedule"}
# Where a Node remembers what we have set on it.
OURS = "slipway/gpu"
# Two runs that meet retry in turn; more rounds than this mean that something keeps writing.
ATTEMPTS = 5
_DRIVERS = ("auto", "host", "operator")


@dataclass(frozen=True)
class Declared:
    """What the inventory says of a node's GPUs; the fields are the role's variables without its prefix.

    `driver` is auto, host or operator; auto is settled by looking at the host before labels are set.
    """

    gpus: int = 0
    share: int = 1
    mig: str = ""
    taint: bool = False
    driver: str = "auto"

    @property
    def partitioned(self) -> bool:
        """Whether the GPUs are cut into MIG devices, whose number the profile decides."""
        return self.mig not in ("", MIG_OFF)

    def faults(self) -> list[str]:
        """Why this cannot be, one line for each reason."""
        found = []
        if self.gpus < 0:
            found.append(f"gpu_operator_gpus is {self.gpus}, which is less than 0")
        if self.share < 1:
            found.append(f"gpu_operator_share is {self.share}, which is less than 1")
        if self.driver not in _DRIVERS:
            found.append(f"gpu_operator_driver is {self.driver!r}, not one of {', '.join(_DRIVERS)}")
        if self.partitioned and self.share > 1:
            found.append(
                f"gpu_operator_mig {self.mig} and gpu_operator_share {self.share}: parts of a GPU that are shared again "
                "cannot be told apart by whoever counts GPUs; take one of the two"
            )
        if self.mig and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", self.mig):
            found.append(f"gpu_operator_mig {self.mig!r} cannot be a label, so it is no name of a MIG profile")
        if not self.gpus:
            given = {"share": self.share != 1, "mig": bool(self.mig), "taint": self.taint}
            if names := [f"gpu_operator_{name}" for name, is_given in given.items() if is_given]:
                found.append(f"{', '.join(names)} without GPUs: gpu_operator_gpus is 0")
        return found

    def labels(self) -> dict[str, str]:
        """The labels that tell the operator."""
        wanted = {}
        if self.gpus:
            if self.share > 1:
                wanted[SHARING] = f"share-{self.share}"
            if self.mig:
                wanted[MIG] = self.mig
            if self.driver == "host":
                # The operator takes the value as it is and then deploys no driver there.
                wanted[DRIVER] = "pre-installed"
        return wanted

    def __str__(self) -> str:
        text = f"{self.gpus} GPU" + ("" if self.gpus == 1 else "s")
        if self.share > 1:
            text += f", each shared by {self.share} pods"
        return text + (f", MIG {self.mig}" if self.mig else "")


def declare(values: Mapping[str, Any]) -> Declared:
    """The declaration in `values`, which may hold other things too. Raises SlipwayError where a value has a wrong form."""
    try:
        return Declared(
            gpus=int(values.get("gpus", 0)),
            share=int(values.get("share", 1)),
            mig=str(values.get("mig", "")),
            taint=bool(values.get("taint", False)),
            driver=str(values.get("driver", "auto")),
        )
    except (TypeError, ValueError) as error:
        raise SlipwayError(f"declaration of GPUs: {error}") from error


def check_declarations(declared: Mapping[str, Declared]) -> None:
    """Raise SlipwayError with everything that is wrong with the declarations of the nodes."""
    lines = [f"{name}: {fault}" for name, item in sorted(declared.items()) for fault in item.faults()]
    if lines:
        raise SlipwayError("\n".join(lines))


@dataclass(frozen=True)
class Plan:
    """What to change on a node: labels and annotations (None removes), taints (None leaves them)."""

    labels: dict[str, str | None] = field(default_factory=dict)
    annotations: dict[str, str | None] = field(default_factory=dict)
    taints: list[Json] | None = None

    def __bool__(self) -> bool:
        return bool(self.labels or self.annotations or self.taints is not None)

    def patch(self, version: str) -> Json:
        """The merge patch, valid for the resource version `version` only."""
        body: Json = {"metadata": {"resourceVersion": version}}
        if self.labels:
            body["metadata"]["labels"] = self.labels
        if self.annotations:
            body["metadata"]["annotations"] = self.annotations
        if self.taints is not None:
            body["spec"] = {"taints": self.taints}
        return body


def _labels(node: Json) -> dict[str, str]:
    labels: dict[str, str] = node["metadata"].get("labels") or {}
    return labels


def _annotations(node: Json) -> dict[str, str]:
    annotations: dict[str, str] = node["metadata"].get("annotations") or {}
    return annotations


def _taints(node: Json) -> list[Json]:
    taints: list[Json] = (node.get("spec") or {}).get("taints") or []
    return taints


def _is_ours(taint: Json) -> bool:
    return all(taint.get(key) == value for key, value in TAINT.items())


def remembered(node: Json) -> tuple[dict[str, str], bool]:
    """The labels that we have set on a node, and whether we have set the taint."""
    try:
        ours = json.loads(_annotations(node).get(OURS, "{}"))
        return dict(ours.get("labels") or {}), bool(ours.get("taint"))
    except (ValueError, AttributeError, TypeError):
        # Somebody has written into it: whatever is there is then not ours.
        return {}, False


def plan_present(node: Json, declared: Declared) -> Plan:
    """What makes a node say what is declared of it.

    What we have set earlier and is no longer declared goes, unless somebody has changed it since. A MIG profile is not a
    mark but a state of the GPUs: ours is taken back by the profile that switches MIG off.
    """
    current, (old, was_tainted) = _labels(node), remembered(node)
    wanted = declared.labels()
    if MIG in old and MIG not in wanted and current.get(MIG) == old[MIG]:
        wanted[MIG] = MIG_OFF
    labels: dict[str, str | None] = {key: value for key, value in wanted.items() if current.get(key) != value}
    labels |= {key: None for key, value in old.items() if key not in wanted and current.get(key) == value}
    if MIG in labels and MIG_STATE in current:
        # It tells of the profile before.
        labels[MIG_STATE] = None
    taints: list[Json] | None = None
    tainted = any(_is_ours(taint) for taint in _taints(node))
    if declared.taint and not tainted:
        taints = [*_taints(node), TAINT]
    elif was_tainted and tainted and not declared.taint:
        taints = [taint for taint in _taints(node) if not _is_ours(taint)]
    # A taint that was there before us is not ours to take away.
    sets_taint = declared.taint and (was_tainted or not tainted)
    mark = json.dumps({"labels": wanted, "taint": sets_taint}, sort_keys=True) if wanted or sets_taint else None
    annotations = {} if _annotations(node).get(OURS) == mark else {OURS: mark}
    return Plan(labels, annotations, taints)


def plan_absent(node: Json) -> Plan:
    """What takes everything of the operator and of ours off a node."""
    _, was_tainted = remembered(node)
    taints = [taint for taint in _taints(node) if not _is_ours(taint)]
    return Plan(
        {key: None for key in _labels(node) if key.startswith(PREFIX)},
        {key: None for key in _annotations(node) if key.startswith(PREFIX) or key == OURS},
        taints if was_tainted and taints != _taints(node) else None,
    )


def plan_whole(node: Json) -> Plan:
    """What switches MIG off on a node where a profile cuts its GPUs."""
    current = _labels(node)
    if current.get(MIG, MIG_OFF) in ("", MIG_OFF):
        return Plan()
    return Plan({MIG: MIG_OFF} | ({MIG_STATE: None} if MIG_STATE in current else {}))


@dataclass(frozen=True)
class Change:
    """A changed node: labels, annotations and taints that it had and got, those that differ only."""

    node: str
    before: Json
    after: Json


def apply(kube: Kube, planned: Callable[[Json], Plan], names: Sequence[str], check: bool = False) -> list[Change]:
    """Bring each of the nodes to what `planned` says of it; with `check` only tell.

    Safe beside another writer: a node that was changed meanwhile (409) is read again.
    Raises SlipwayError when that happens over and over, KubeError when the API refuses.
    """
    changes = []
    nodes = read_nodes(kube)
    for name in names:
        node: Json | None = nodes[name]
        for _ in range(ATTEMPTS):
            if node is None or not (plan := planned(node)):
                break
            try:
                if not check:
                    kube.merge_patch(f"{NODES}/{name}", plan.patch(node["metadata"]["resourceVersion"]))
            except KubeError as error:
                if error.status != 409:
                    raise
                node = kube.get(f"{NODES}/{name}")
                continue
            changes.append(_change(node, plan))
            break
        else:
            raise SlipwayError(f"Node {name} kept changing while it was being labelled; who else writes it?")
    return changes


def _change(node: Json, plan: Plan) -> Change:
    before: Json = {}
    after: Json = {}
    for kind, old, new in (
        ("labels", _labels(node), plan.labels),
        ("annotations", _annotations(node), plan.annotations),
    ):
        if new:
            before[kind] = {key: old[key] for key in sorted(new) if key in old}
            after[kind] = {key: value for key, value in sorted(new.items()) if value is not None}
    if plan.taints is not None:
        before["taints"], after["taints"] = _taints(node), plan.taints
    return Change(node["metadata"]["name"], before, after)


def _amount(node: Json, kind: str) -> int:
    return int(((node.get("status") or {}).get(kind) or {}).get(RESOURCE) or 0)


def unready(node: Json | None, declared: Declared) -> tuple[str, bool]:
    """Why a node does not offer the GPUs declared (empty: it does), and whether waiting cannot help."""
    if node is None:
        return "it has not joined the cluster", False
    if reason := judge_node(node):
        return reason, False
    capacity, allocatable = _amount(node, "capacity"), _amount(node, "allocatable")
    found = f"it offers {allocatable} {RESOURCE}" + (
        f", {capacity - allocatable} more are not healthy" if capacity > allocatable else ""
    )
    if declared.partitioned:
        state = _labels(node).get(MIG_STATE, "not reported")
        if state == "failed":
            return f"the MIG manager could not apply {declared.mig}", True
        if state != "success":
            return f"MIG profile {declared.mig}: {state}; {found}", False
        return ("" if allocatable else f"{declared}; {found}"), False
    wanted = declared.gpus * declared.share
    return ("" if allocatable == wanted else f"{declared}, so {wanted} {RESOURCE} are wanted; {found}"), False


def not_whole(node: Json) -> tuple[str, bool]:
    """Why MIG is not off yet on a node where it was switched off (empty: it is), and whether waiting cannot help."""
    state = _labels(node).get(MIG_STATE, "not reported")
    if state == "success":
        return "", False
    return f"switching MIG off: {state}", state == "failed"


Reasons = dict[str, tuple[str, bool]]


def await_nodes(
    look: Callable[[], Reasons],
    timeout: float,
    interval: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, str]:
    """Wait until `look` gives no node a reason; return the reasons left when `timeout` (seconds) is over: none is good.

    Looks every `interval` seconds. An API that does not answer is asked again. Stops early where waiting is hopeless.
    Raises KubeError when the API does not answer at the end.
    """
    deadline = clock() + timeout
    while True:
        try:
            waiting = {name: answer for name, answer in look().items() if answer[0]}
        except KubeError:
            if clock() >= deadline:
                raise
        else:
            if not waiting or clock() >= deadline or any(hopeless for _, hopeless in waiting.values()):
                return {name: reason for name, (reason, _) in waiting.items()}
        sleep(interval)


def evidence(kube: Kube, waiting: Mapping[str, str], kubectl: str) -> str:
    """A report for a person: for each node what is missing, its labels, the operator's pods there with logs; what to run next."""
    lines = ["The GPUs declared in the inventory are not there:"]
    try:
        nodes = read_nodes(kube)
        pods = items(kube, f"/api/v1/namespaces/{NAMESPACE}/pods")
    except KubeError as error:
        nodes, pods = {}, []
        lines.append(f"  {error}")
    next_step = f"{kubectl} --namespace {NAMESPACE} get pods --output wide"
    for name, reason in waiting.items():
        lines.append(f"  {name}: {reason}")
        labels = {key: value for key, value in _labels(nodes.get(name, {"metadata": {}})).items() if PREFIX in key}
        lines.append(
            "    labels: " + (", ".join(f"{key}={labels[key]}" for key in sorted(labels)) or "none of NVIDIA's")
        )
        there = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == name]
        if not there:
            lines.append(f"    no pod of {NAMESPACE} runs there: is the PCI device visible (lspci -d 10de:)?")
        for pod in there:
            fault = pod_fault(pod)
            lines.append(f"    {pod['metadata']['name']}: {fault or 'ready'}")
            # Where all are ready, the device plugin knows best what it has found.
            if fault or "device-plugin" in pod["metadata"]["name"]:
                lines += [f"    {line}" for line in log_lines(kube, NAMESPACE, pod, only_faulty=bool(fault))]
            if fault:
                next_step = f"{kubectl} --namespace {NAMESPACE} describe pod {pod['metadata']['name']}"
    lines.append(
        f"Next: {next_step}; if a machine has other GPUs than declared, correct gpu_operator_gpus in the inventory"
    )
    return "\n".join(lines)


def users(kube: Kube) -> list[str]:
    """The pods outside the operator's namespace that hold GPUs, as namespace/name on node. Raises KubeError."""
    found = []
    for pod in items(kube, "/api/v1/pods"):
        metadata, spec = pod["metadata"], pod.get("spec") or {}
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if ended or not spec.get("nodeName") or metadata["namespace"] == NAMESPACE:
            continue
        limits = [(item.get("resources") or {}).get("limits") or {} for item in spec.get("containers") or []]
        if any(name.startswith(PREFIX) for limit in limits for name in limit):
            found.append(f"{metadata['namespace']}/{metadata['name']} on {spec['nodeName']}")
    return sorted(found)

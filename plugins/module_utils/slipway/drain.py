"""Taking a node out of use and giving it back: which pods go, which block, who has cordoned it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, items
from ansible.module_utils.slipway.volumes import VOLUMES, is_ready, reaches
from ansible.module_utils.slipway.workloads import NODES, read_nodes

# On a node that we have cordoned: what has no such mark was cordoned by a person, and stays so.
MARK = "slipway/cordoned"
PODS = "/api/v1/pods"
BUDGETS = "/apis/policy/v1/poddisruptionbudgets"
CLAIMS = "/api/v1/persistentvolumeclaims"
_MIRROR = "kubernetes.io/config.mirror"
_FINISHED = ("Succeeded", "Failed")
ATTEMPTS = 5
Clock = Callable[[], float]


@dataclass(frozen=True)
class Rules:
    """What may be lost: pods that nobody makes anew (`unmanaged`), and what pods keep in an emptyDir (`empty_dirs`)."""

    unmanaged: bool = False
    empty_dirs: bool = True


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of a drain (`blocks`), or what it costs; `passing` says that it may be gone in a while."""

    text: str
    blocks: bool
    passing: bool = False


@dataclass(frozen=True)
class Cluster:
    """What a decision about pods needs: read once, used for all nodes."""

    nodes: Mapping[str, Json]
    pods: Sequence[Json]
    budgets: Sequence[Json]
    claims: Mapping[str, Json]
    volumes: Mapping[str, Json]

    def staying(self, node: str) -> bool:
        """Whether pods stay on the node while it is upgraded: they survive a restart of k3s, and there is nowhere else to go."""
        others = (item for name, item in self.nodes.items() if name != node)
        return not any(is_ready(item) and not (item.get("spec") or {}).get("unschedulable") for item in others)

    def leaving(self, node: str) -> list[Json]:
        """The pods that a drain of the node evicts.

        Those that have ended stay, as do those of DaemonSets and static ones. On a node that a person has cordoned, those stay whose
        volume is there: they could not come back.
        """
        if self.staying(node):
            return []
        by_hand = is_cordoned(self.nodes[node]) and not is_ours(self.nodes[node])
        on_it = (pod for pod in self.pods if (pod.get("spec") or {}).get("nodeName") == node)
        return [pod for pod in on_it if _is_evicted(pod) and not (by_hand and self.pinned(pod))]

    def pinned(self, pod: Json) -> list[str]:
        """The pod's claims whose volumes its node alone reaches."""
        here = self.nodes[pod["spec"]["nodeName"]]
        others = [node for node in self.nodes.values() if node is not here]
        names = []
        for source in pod["spec"].get("volumes") or []:
            name = (source.get("persistentVolumeClaim") or {}).get("claimName")
            claim = self.claims.get(f"{pod['metadata']['namespace']}/{name}") if name else None
            volume = self.volumes.get((claim.get("spec") or {}).get("volumeName", "")) if claim else None
            if volume and reaches(volume, here) and not any(reaches(volume, node) for node in others):
                names.append(str(name))
        return names


def read_cluster(kube: Kube) -> Cluster:
    """All of it. Raises KubeError."""
    return Cluster(
        nodes=read_nodes(kube),
        pods=items(kube, PODS),
        budgets=items(kube, BUDGETS),
        claims={title(claim): claim for claim in items(kube, CLAIMS)},
        volumes={volume["metadata"]["name"]: volume for volume in items(kube, VOLUMES)},
    )


def title(item: Json) -> str:
    """Namespace and name of an object."""
    return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"


def is_cordoned(node: Json) -> bool:
    """Whether new pods stay away from the node."""
    return bool((node.get("spec") or {}).get("unschedulable"))


def is_ours(node: Json) -> bool:
    """Whether we have cordoned the node."""
    return MARK in (node["metadata"].get("annotations") or {})


def _owner(pod: Json) -> str:
    """Kind of the controller that would make the pod anew; empty where there is none."""
    owners = pod["metadata"].get("ownerReferences") or []
    return next((str(owner["kind"]) for owner in owners if owner.get("controller")), "")


def _is_evicted(pod: Json) -> bool:
    if (pod.get("status") or {}).get("phase") in _FINISHED or _MIRROR in (pod["metadata"].get("annotations") or {}):
        return False
    # Its controller ignores that the node is cordoned, and would make it anew there at once.
    return _owner(pod) != "DaemonSet"


def obstacles(cluster: Cluster, node: str, rules: Rules) -> list[Obstacle]:
    """What would block a drain of the node, or be lost by it."""
    pods = cluster.leaving(node)
    found: list[Obstacle] = []
    if unmanaged := [title(pod) for pod in pods if not _owner(pod)]:
        found.append(Obstacle(f"no controller makes them anew: {listed(unmanaged)}", not rules.unmanaged))
    if scratch := [title(pod) for pod in pods if _has_empty_dir(pod)]:
        found.append(Obstacle(f"an emptyDir of theirs is lost: {listed(scratch)}", not rules.empty_dirs))
    if pinned := [f"{title(pod)} ({', '.join(cluster.pinned(pod))})" for pod in pods if cluster.pinned(pod)]:
        found.append(Obstacle(f"their volume is on this node, so they wait until it is back: {listed(pinned)}", False))
    for pod in pods:
        if reason := held_by(cluster.budgets, pod):
            found.append(Obstacle(f"pod {title(pod)}: {reason}", True, True))
    return found + _crowded(cluster.budgets, pods)


def _crowded(budgets: Iterable[Json], pods: Sequence[Json]) -> list[Obstacle]:
    """Budgets that let some of the node's pods go, but not all of them before others are back."""
    found = []
    for budget in budgets:
        count = sum(selects(budget, pod) for pod in pods)
        allowed = _status(budget, "disruptionsAllowed")
        if count > allowed > 0:
            text = f"PodDisruptionBudget {title(budget)} lets {allowed} of {count} pods go at a time: the rest wait until others are ready"
            found.append(Obstacle(text, False))
    return found


def _has_empty_dir(pod: Json) -> bool:
    return any("emptyDir" in volume for volume in pod["spec"].get("volumes") or [])


def listed(names: Sequence[str], most: int = 6) -> str:
    """The names in one line, of many the first `most`."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _status(budget: Json, key: str) -> int:
    return int((budget.get("status") or {}).get(key) or 0)


def held_by(budgets: Iterable[Json], pod: Json) -> str:
    """Which budgets keep the pod where it is, and why; empty where none does. As the API server's eviction decides."""
    mine = [budget for budget in budgets if selects(budget, pod)]
    if len(mine) > 1:
        return f"it has several PodDisruptionBudgets, which Kubernetes never lets go: {listed([title(each) for each in mine])}"
    for budget in mine:
        if (pod.get("status") or {}).get("phase") == "Pending" or _status(budget, "disruptionsAllowed") > 0:
            continue
        healthy, needed = _status(budget, "currentHealthy"), _status(budget, "desiredHealthy")
        policy = (budget.get("spec") or {}).get("unhealthyPodEvictionPolicy", "IfHealthyBudget")
        if not is_ready(pod) and (policy == "AlwaysAllow" or healthy >= needed > 0):
            continue
        return f"PodDisruptionBudget {title(budget)} allows no disruption: {healthy} healthy pods, {needed} needed"
    return ""


def selects(budget: Json, pod: Json) -> bool:
    """Whether a budget is about a pod."""
    selector = (budget.get("spec") or {}).get("selector")
    if selector is None or budget["metadata"].get("namespace") != pod["metadata"].get("namespace"):
        return False
    labels = pod["metadata"].get("labels") or {}
    exact = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return exact and all(_fits(rule, labels) for rule in selector.get("matchExpressions") or [])


def _fits(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = rule["key"], rule.get("values") or []
    return {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[rule["operator"]]


class NodeDrain:
    """One node. The methods raise SlipwayError.

    Attributes:
        changed: whether anything was done, or in check mode would be.
        evicted: the pods that were.
    """

    def __init__(
        self,
        kube: Kube,
        node: str,
        check: bool = False,
        interval: float = 1,
        clock: Clock = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.kube = kube
        self.node = node
        self.check = check
        self.changed = False
        self.evicted: list[str] = []
        self._interval = interval
        self._clock = clock
        self._sleep = sleep

    def drain(self, rules: Rules, timeout: float) -> None:
        """Cordon the node and evict its pods, for at most `timeout` seconds. What blocks is named before anything changes."""
        cluster = read_cluster(self.kube)
        if self.node not in cluster.nodes:
            raise SlipwayError(f"{self.node} is not in the cluster")
        # Budgets may let go in time; the others never do.
        found = obstacles(cluster, self.node, rules)
        lasting = [each.text for each in found if each.blocks and not each.passing]
        if lasting:
            raise SlipwayError(f"{self.node} cannot be drained: {'; '.join(lasting)}")
        self._cordon()
        if self.check:
            self.evicted = [title(pod) for pod in cluster.leaving(self.node)]
            self.changed = self.changed or bool(self.evicted)
            return
        self._evict_all(timeout)

    def _evict_all(self, timeout: float) -> None:
        deadline = self._clock() + timeout
        while True:
            refused: dict[str, str] = {}
            try:
                cluster = read_cluster(self.kube)
                left = cluster.leaving(self.node)
                for pod in left:
                    if not pod["metadata"].get("deletionTimestamp"):
                        refused.update(self._evict(pod, cluster.budgets))
            except KubeError as error:
                left, refused = [], {"Kubernetes API": str(error)}
            if not left and not refused:
                return
            if self._clock() >= deadline:
                lines = [f"  pod {title(pod)}: {refused.pop(title(pod), 'it has not ended yet')}" for pod in left]
                lines += [f"  {what}: {reason}" for what, reason in refused.items()]
                raise SlipwayError(f"{self.node} was not drained within {timeout:g} s:\n" + "\n".join(lines))
            self._sleep(self._interval)

    def _evict(self, pod: Json, budgets: Sequence[Json]) -> dict[str, str]:
        """Ask for the eviction; who refuses it, by the pod's title."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            # One of the same name that was made meanwhile is another pod.
            "deleteOptions": {"preconditions": {"uid": pod["metadata"]["uid"]}},
        }
        try:
            self.kube.create(f"/api/v1/namespaces/{namespace}/pods/{name}/eviction", body)
        except KubeError as error:
            if error.status in (404, 409):
                return {}
            return {title(pod): held_by(budgets, pod) or str(error)}
        self.changed = True
        self.evicted.append(title(pod))
        return {}

    def _cordon(self) -> None:
        """Keep new pods away, and note that it was us, in one step; a node that is cordoned stays as it is."""

        def wanted(node: Json) -> Json:
            return {} if is_cordoned(node) else {"annotations": {MARK: "upgrade"}, "unschedulable": True}

        self._change(wanted)

    def release(self, timeout: float) -> None:
        """Uncordon the node if it was us who cordoned it. An API that does not answer is waited for, `timeout` seconds at most."""

        def wanted(node: Json) -> Json:
            return {"annotations": {MARK: None}, "unschedulable": None} if is_ours(node) else {}

        deadline = self._clock() + timeout
        while True:
            try:
                return self._change(wanted)
            except KubeError as error:
                if 400 <= error.status < 500 or self._clock() >= deadline:
                    raise
                self._sleep(self._interval)

    def _change(self, wanted: Callable[[Json], Json]) -> None:
        path = f"{NODES}/{self.node}"
        for attempt in range(ATTEMPTS):
            node = self.kube.get(path)
            if node is None:
                raise SlipwayError(f"{self.node} is not in the cluster")
            change = wanted(node)
            if not change:
                return
            self.changed = True
            if self.check:
                return
            metadata = {"annotations": change["annotations"], "resourceVersion": node["metadata"]["resourceVersion"]}
            try:
                self.kube.merge_patch(path, {"metadata": metadata, "spec": {"unschedulable": change["unschedulable"]}})
                return
            except KubeError as error:
                # Its kubelet writes to it, too.
                if error.status != 409 or attempt == ATTEMPTS - 1:
                    raise

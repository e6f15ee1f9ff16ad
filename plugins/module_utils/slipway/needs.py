"""What pods of a component ask of the nodes: read from its objects, from the values of its chart, or from a list of its parts.

The entries that come out are what `pods` of a role's `_<role>_needs` has: `name`, `count`, `cpu` (cores) and `memory` (bytes) of one pod,
`per_node` where each node runs `count` of them, and `variable`, which a person changes to make it smaller.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError

Json = dict[str, Any]

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)(m|k|Ki|[MGTPE]i?|[eE][+-]?\d+)?")
_FACTOR = {
    "m": Decimal("0.001"),
    "k": Decimal(1000),
    "Ki": Decimal(1024),
    **{letter: Decimal(1000 ** (power + 2)) for power, letter in enumerate("MGTPE")},
    **{letter + "i": Decimal(1024 ** (power + 2)) for power, letter in enumerate("MGTPE")},
}
# Those whose pods stay. Jobs come and go, and wait for room.
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


def amount(quantity: Any, where: str) -> float:
    """The number that a Kubernetes quantity stands for, in base units. Raises SlipwayError that names `where` it stands."""
    match = _QUANTITY.fullmatch(str(quantity).strip())
    if not match:
        raise SlipwayError(f"{where}: {quantity!r} is not a Kubernetes quantity such as 500m, 2Gi or 10")
    number, suffix = match.group(1), match.group(2) or ""
    # Exponents are Python's own.
    return float(Decimal(number) * _FACTOR[suffix] if suffix in _FACTOR else Decimal(number + suffix))


def requests(resources: Any, where: str) -> tuple[float, float]:
    """CPU (cores) and memory (bytes) that `resources` of a container reserve; what has only a limit reserves that.

    Raises SlipwayError.
    """
    given = resources if isinstance(resources, Mapping) else {}
    asked, limits = given.get("requests") or {}, given.get("limits") or {}

    def one(key: str) -> float:
        quantity = asked.get(key, limits.get(key))
        return 0.0 if quantity is None else amount(quantity, f"{where}: {key}")

    return one("cpu"), one("memory")


def object_needs(objects: Iterable[Mapping[str, Any]], variable: str) -> list[Json]:
    """Of the workloads among Kubernetes objects. Raises SlipwayError."""
    found = []
    for item in objects:
        if item["kind"] not in _WORKLOADS:
            continue
        name, spec = item["metadata"]["name"], item["spec"]
        pod = spec["template"]["spec"]
        running = _sizes(name, pod["containers"])
        # Init containers run one after the other, before the others: the scheduler takes the larger of the two.
        before = _sizes(name, pod.get("initContainers") or [])
        cpu, memory = (max(sum(part[at] for part in running), *(part[at] for part in before), 0.0) for at in (0, 1))
        each = item["kind"] == "DaemonSet"
        found.append(_pod(name, 1 if each else _number(spec.get("replicas")), (cpu, memory), variable, each))
    return found


def _sizes(name: str, containers: Iterable[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [requests(each.get("resources"), f"{name}/{each['name']}") for each in containers]


def values_needs(values: Mapping[str, Any], parts: Sequence[str], variable: str) -> list[Json]:
    """Of a chart's values: each of `parts` is the path of a mapping with `resources` and the number of pods; "" is all of it.

    A part that is not `enabled` needs nothing. Raises SlipwayError.
    """
    found = []
    for part in parts:
        here: Any = values
        for key in part.split(".") if part else []:
            here = here.get(key) or {}
        if part and here.get("enabled") is False:
            continue
        number = _number(here.get("replicas", here.get("replicaCount")))
        found.append(_pod(part or "the chart", number, requests(here.get("resources"), part or variable), variable))
    return found


def part_needs(resources: Mapping[str, Any], variable: str) -> list[Json]:
    """Of parts that run once each, by their `resources`. Raises SlipwayError."""
    return [_pod(part, 1, requests(given, f"{variable}.{part}"), variable) for part, given in resources.items()]


def _number(replicas: Any) -> int:
    return 1 if replicas is None else int(replicas)


def _pod(name: str, count: int, size: tuple[float, float], variable: str, per_node: bool = False) -> Json:
    return {
        "name": name,
        "count": count,
        "cpu": size[0],
        "memory": size[1],
        "variable": variable,
        "per_node": per_node,
    }

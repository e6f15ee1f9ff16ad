"""Filters for the pods that a site lets others speak to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def target_faults(targets: Sequence[Any], option: str) -> list[str]:
    """What is wrong with the targets that `option` lists, one line each."""
    return [fault for number, target in enumerate(targets) for fault in _faults(f"{option}[{number}]", target)]


def _faults(where: str, target: Any) -> list[str]:
    if not isinstance(target, Mapping) or not set(target) <= {"namespace", "pods", "ports"}:
        return [f"{where}: needs namespace and ports, may have pods"]
    faults: list[str] = []
    if not isinstance(target.get("namespace"), str) or not _LABEL.fullmatch(target["namespace"]):
        faults.append(f"{where}: namespace: {target.get('namespace')!r} is no name of a namespace")
    ports = target.get("ports")
    if not isinstance(ports, Sequence) or isinstance(ports, str) or not ports:
        faults.append(f"{where}: ports: a list of numbers is needed, of the pods and not of their Service")
    else:
        faults += [
            f"{where}: ports: {port!r} is no port"
            for port in ports
            if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536
        ]
    if not isinstance(target.get("pods", {}), Mapping):
        faults.append(f"{where}: pods: {target['pods']!r} is no mapping of labels")
    return faults


def target_flows(targets: Sequence[Mapping[str, Any]], pods: Mapping[str, Any]) -> list[Json]:
    """The flows from pods with labels `pods` to `targets`: each has `namespace` and `ports`, may have `pods`."""
    return [
        {
            "name": f"target-{number}",
            "of": dict(pods),
            "to": [{key: target[key] for key in ("namespace", "pods") if target.get(key)}],
            "ports": list(target["ports"]),
        }
        for number, target in enumerate(targets)
    ]


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {"target_faults": target_faults, "target_flows": target_flows}

"""Filters for the role minio: its tenants, as far as the site has what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

# As Ansible does for what it packs for a node.
_SHARED = str(Path(__file__).parents[1] / "module_utils")
if _SHARED not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_SHARED)
from ansible.module_utils.slipway.errors import SlipwayError  # noqa: E402
from ansible.module_utils.slipway.minio_access import problems, read_tenant  # noqa: E402
from ansible.module_utils.slipway.needs import amount  # noqa: E402
from ansible.module_utils.slipway.port_forward import service_of  # noqa: E402
from ansible.module_utils.slipway.volumes import LABEL  # noqa: E402

Json = dict[str, Any]
# Where the role's own store is.
OURS = "minio.minio.svc:9000"
_ENDPOINT = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}")
# Of a distributed MinIO; it spreads each object over one set of drives.
_MIN_DRIVES, _MAX_SET = 4, 16
# The claims of its drives: export-<server's pod>, or export-<drive>-<server's pod>.
_DRIVE = re.compile(r"export(?:-(\d+))?-minio-(\d+)")


def minio_tenants(tenants: Iterable[Mapping[str, Any]], active: Iterable[str], roles: str) -> list[Json]:
    """`tenants` without those, and without copies for those, of components that the site does not install.

    By convention a component's namespace has its role's name; `roles` is the folder of all roles, `active` names those installed.
    """
    present = set(active)
    absent = {each.name.replace("_", "-") for each in Path(roles).iterdir() if each.name not in present}
    return [
        {**tenant, "copies": [each for each in tenant.get("copies", []) if each not in absent]}
        for tenant in tenants
        if tenant["secret"]["namespace"] not in absent
    ]


def minio_namespaces(tenants: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where pods of tenants run: the namespaces of their Secrets and of the copies."""
    return sorted({name for tenant in tenants for name in (tenant["secret"]["namespace"], *tenant.get("copies", []))})


def minio_faults(tenants: Iterable[Mapping[str, Any]], size: Any, claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the tenants, and with the `size` that the volume is to have, of which `claims` has the claim if it is there.

    Raises AnsibleFilterError where `size` or that of a claim is no quantity.
    """
    faults = [f"minio_tenants: {fault}" for fault in problems([read_tenant(tenant) for tenant in tenants])]
    try:
        wanted = amount(size, "minio_storage_size")
        for claim in claims:
            there = claim["spec"]["resources"]["requests"]["storage"]
            if wanted < amount(there, "the volume"):
                place = f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"
                faults.append(
                    f"minio_storage_size is {size}, but the volume {place} already has {there}. A volume cannot shrink: "
                    "raise the value to at least that."
                )
    except SlipwayError as error:
        raise AnsibleFilterError(str(error)) from error
    return faults


def minio_layout_faults(
    options: Mapping[str, Any], claims: Sequence[Mapping[str, Any]], nodes: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What is wrong with how many servers and drives there are to be, where `claims` are those of MinIO's namespace.

    `options` are the role's by their names; whether `nodes` suffice is asked of a new installation only.
    """
    mode, servers, drives = (options[f"minio_{key}"] for key in ("mode", "servers", "drives_per_server"))
    fixed = [key for key in ("mode", "replicas", "drivesPerNode", "pools") if key in options["minio_values"]]
    faults = [f"minio_values: {key} follows minio_mode, minio_servers and minio_drives_per_server" for key in fixed]
    if mode not in ("standalone", "distributed"):
        return [*faults, f"minio_mode is {mode!r}, not standalone or distributed"]
    total = servers * drives
    if mode == "distributed":
        if servers < 2 or drives < 1:
            faults.append(f"minio_servers is {servers} and minio_drives_per_server {drives}: at least 2 and 1")
        elif total < _MIN_DRIVES:
            faults.append(
                f"minio_servers is {servers} with {drives} drives each, {total} together: a distributed MinIO needs at least {_MIN_DRIVES}"
            )
        elif not any(total % size == 0 for size in range(_MIN_DRIVES, _MAX_SET + 1)):
            faults.append(
                f"minio_servers times minio_drives_per_server is {total}, which sets of {_MIN_DRIVES} to {_MAX_SET} drives cannot share equally"
            )
    wanted = (1, 1) if mode == "standalone" else (servers, drives)
    if (found := _layout(claims)) and found != (mode, *wanted):
        faults.append(
            f"minio_mode is {_said(mode, *wanted)}, but the volumes in namespace minio are those of {_said(*found)}. MinIO cannot change that: "
            "set it back, or copy the data to another installation (mc mirror)"
        )
    elif not found and mode == "distributed":
        able = sum(_takes_pods(node) for node in nodes)
        if able < servers:
            faults.append(
                f"minio_servers is {servers}, but only {able} nodes take pods: each server needs a node of its own"
            )
    if found and found[0] == mode == "distributed":
        size = amount(options["minio_storage_size"], "minio_storage_size")
        faults += [
            f"minio_storage_size is {options['minio_storage_size']}, but the volume {claim['metadata']['name']} has {there}: those of a "
            "distributed MinIO keep their size"
            for claim in claims
            if _DRIVE.fullmatch(claim["metadata"]["name"])
            and amount(there := claim["spec"]["resources"]["requests"]["storage"], "the volume") < size
        ][:1]
    return faults


def minio_kept(volumes: Iterable[Mapping[str, Any]], claims: Iterable[Mapping[str, Any]]) -> list[Json]:
    """The claims that are made again: those of `volumes` kept for namespace minio that are not among `claims`, of the size of the volume."""
    there = {claim["metadata"]["name"] for claim in claims}
    found: dict[str, Json] = {}
    for volume in volumes:
        namespace, _, name = volume["metadata"]["labels"][LABEL].partition(".")
        if namespace == "minio" and name not in there:
            size = volume["spec"]["capacity"]["storage"]
            found[name] = {
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"resources": {"requests": {"storage": size}}},
            }
    return list(found.values())


def _layout(claims: Sequence[Mapping[str, Any]]) -> tuple[str, int, int] | None:
    """Mode, servers and drives of each, by the volumes; None where there are none."""
    names = [claim["metadata"]["name"] for claim in claims]
    drives = [match.groups(default="0") for name in names if (match := _DRIVE.fullmatch(name))]
    if drives:
        return "distributed", len({server for _, server in drives}), len({drive for drive, _ in drives})
    return ("standalone", 1, 1) if "minio" in names else None


def _said(mode: str, servers: int, drives: int) -> str:
    return mode if mode == "standalone" else f"{mode} ({servers} servers with {drives} drives each)"


def _takes_pods(node: Mapping[str, Any]) -> bool:
    spec = node.get("spec") or {}
    return not spec.get("unschedulable") and not any(
        taint["effect"] in ("NoSchedule", "NoExecute") for taint in spec.get("taints") or []
    )


def minio_volumes(mode: str, servers: int, drives: int, size: str, storage_class: str) -> list[Json]:
    """The claims that the chart makes, as preflight plans with them."""
    names = ["minio"]
    if mode == "distributed":
        exports = ["export"] if drives == 1 else [f"export-{drive}" for drive in range(drives)]
        names = [f"{export}-minio-{server}" for server in range(servers) for export in exports]
    return [{"name": name, "size": size, "class": storage_class, "variable": "minio_storage_size"} for name in names]


def minio_endpoint_faults(provider: str, endpoint: str) -> list[str]:
    """What is wrong with who runs the store, and where."""
    if provider not in ("minio", "external"):
        return [f"minio_provider is {provider!r}, not minio or external"]
    if provider == "minio":
        return [f"minio_external_endpoint is {endpoint!r}, but minio_provider is minio"] if endpoint else []
    if not _ENDPOINT.fullmatch(endpoint):
        plain = (
            " Encryption between the platform's pods and the store is not supported yet." if "https" in endpoint else ""
        )
        return [f"minio_external_endpoint is {endpoint!r}, not <host>:<port> such as store.example.com:9000.{plain}"]
    return []


def minio_answers(slices: Iterable[Mapping[str, Any]]) -> bool:
    """Whether one of the EndpointSlices of a Service has an endpoint that is ready."""
    return any(
        (endpoint.get("conditions") or {}).get("ready") for each in slices for endpoint in each.get("endpoints") or []
    )


def minio_way(endpoint: str) -> Json:
    """What a flow to the store at `endpoint` (host:port) has: `to`, and `ports` where those of the pods are known."""
    if endpoint == OURS:
        return {"to": [{"namespace": "minio", "pods": {"app": "minio"}}], "ports": [9000]}
    service = service_of(endpoint.rpartition(":")[0])
    return {"to": [{"namespace": service[0]} if service else "outside"]}


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "minio_tenants": minio_tenants,
            "minio_namespaces": minio_namespaces,
            "minio_faults": minio_faults,
            "minio_layout_faults": minio_layout_faults,
            "minio_kept": minio_kept,
            "minio_volumes": minio_volumes,
            "minio_endpoint_faults": minio_endpoint_faults,
            "minio_answers": minio_answers,
            "minio_way": minio_way,
        }

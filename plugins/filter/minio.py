"""Filters for the role minio: its tenants, as far as the site has what they are for."""

from __future__ import annotations

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

Json = dict[str, Any]


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


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {"minio_tenants": minio_tenants, "minio_namespaces": minio_namespaces, "minio_faults": minio_faults}

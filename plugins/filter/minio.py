"""Filters for the role minio: its tenants, as far as the site has what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

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


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {"minio_tenants": minio_tenants, "minio_namespaces": minio_namespaces}

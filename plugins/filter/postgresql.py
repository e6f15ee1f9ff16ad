"""Filters for the role postgresql: its consumers, as far as the site has them, and what is wrong with its settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]
# What the role sets itself, in postgresql.conf. What comes first there has no effect.
FIXED = (
    "archive_command",
    "archive_mode",
    "data_directory",
    "hba_file",
    "hot_standby",
    "listen_addresses",
    "password_encryption",
    "port",
    "restore_command",
    "ssl",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_min_protocol_version",
    "unix_socket_directories",
    "wal_level",
)


def postgresql_consumers(consumers: Iterable[Mapping[str, Any]], active: Iterable[str], roles: str) -> list[Json]:
    """`consumers` without those that are components which the site does not install, each with its `namespaces`.

    By convention a component's namespace has its role's name; `roles` is the folder of all roles, `active` names those installed.
    """
    present = set(active)
    absent = {each.name.replace("_", "-") for each in Path(roles).iterdir() if each.name not in present}
    return [
        {"name": item["name"], "namespaces": list(item.get("namespaces") or [item["name"]])}
        for item in consumers
        if item["name"] not in absent
    ]


def postgresql_namespaces(consumers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where pods of consumers run."""
    return sorted({name for consumer in consumers for name in consumer["namespaces"]})


def postgresql_faults(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the role's options, a line for each reason.

    `settings` has the options by their names, `components`: those of the site, and `issuer`: that of cert-manager.
    """
    provider = settings["postgresql_provider"]
    if provider not in ("embedded", "external"):
        return [f"postgresql_provider is {provider!r}, not embedded or external"]
    if provider == "external":
        return []
    faults = [
        f"postgresql_provider is embedded, which needs {name} in slipway_components: {why}"
        for name, why in (("cert_manager", "it signs the server's certificate"), ("minio", "the archive lies there"))
        if name not in settings["components"]
    ]
    faults += [
        f"postgresql_settings: {name} is the role's own"
        for name in sorted(settings["postgresql_settings"])
        if name in FIXED
    ]
    for name in ("postgresql_backup_interval_hours", "postgresql_backup_keep_days"):
        if settings[name] < 1:
            faults.append(f"{name} is {settings[name]}, not at least 1")
    return faults


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "postgresql_consumers": postgresql_consumers,
            "postgresql_namespaces": postgresql_namespaces,
            "postgresql_faults": postgresql_faults,
        }

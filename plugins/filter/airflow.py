"""Filters for the role airflow: what it is given, and the variables of Airflow's containers."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jsonschema
from ansible.errors import AnsibleFilterError

Json = dict[str, Any]

# What it takes credentials from.
SOURCES = {
    "minio": "keeps logs in MinIO",
    "git": "takes DAGs from Git",
    "postgresql": "keeps runs in PostgreSQL",
}
# By convention a tenant's Secret is called minio-<tenant>.
TENANTS = {
    "airflow": "buckets: [airflow-logs] and secret: {namespace: airflow, name: minio-airflow}",
    "epos": "copies: [airflow]",
}
# Inside the packed chart.
SCHEMA = "airflow/values.schema.json"


def airflow_faults(options: Mapping[str, Any], parts: Sequence[str], archive: str) -> list[str]:
    """What is wrong with the options of the role airflow, one line each: option, key and remedy.

    Args:
        options: those of the role by their names; `components`: those of the site in their order; `minio_tenants` and
            `git_users` where the site has its own.
        parts: the keys of airflow_resources.
        archive: path of the packed chart; empty where the bundle lacks it or the image.

    Raises:
        AnsibleFilterError: the chart has no schema of its values.
    """
    faults: list[str] = []
    components = list(options["components"])
    for other, reason in SOURCES.items():
        if other not in components:
            faults.append(f"slipway_components: airflow {reason}, but {other} is not listed")
        elif components.index(other) > components.index("airflow"):
            faults.append(f"slipway_components: {other} must come before airflow, which takes a credential from it")
    faults += _tenant_faults(options["minio_tenants"])
    users = options["git_users"]
    if users and not any((user.get("name"), user.get("right")) == ("airflow", "read") for user in users):
        faults.append("git_users: Airflow needs {name: airflow, right: read}")
    if options["airflow_parallelism"] < 1:
        faults.append(f"airflow_parallelism: {options['airflow_parallelism']} is less than 1")
    faults += _pool_faults(options["airflow_pools"])
    for name in sorted(set(options["airflow_resources"]) - set(parts)):
        faults.append(f"airflow_resources: {name}: unknown; there are {', '.join(sorted(parts))}")
    if not archive:
        return [*faults, "the bundle has no chart or no image of Airflow; is it one of this release?"]
    values = options["airflow_values"]
    if "extraEnv" in values:
        faults.append("airflow_values: extraEnv: the role's own variables are there; put yours into env and secret")
    return faults + [f"airflow_values: {fault}" for fault in value_faults(values, read_schema(archive))]


def _tenant_faults(tenants: Sequence[Mapping[str, Any]]) -> list[str]:
    """A site's own list replaces that of the role minio, which has both."""
    places = {
        tenant["secret"]["name"]: [tenant["secret"]["namespace"], *tenant.get("copies", [])] for tenant in tenants
    }
    return [
        f"minio_tenants: Airflow needs the Secret minio-{name} in its namespace: a tenant {name} with {remedy}"
        for name, remedy in TENANTS.items()
        if tenants and "airflow" not in places.get(f"minio-{name}", [])
    ]


def _pool_faults(pools: Sequence[Any]) -> list[str]:
    faults: list[str] = []
    names: set[str] = set()
    for number, pool in enumerate(pools):
        where = f"airflow_pools[{number}]"
        if not isinstance(pool, Mapping) or not {"name", "slots"} <= set(pool) <= {"name", "slots", "description"}:
            faults.append(f"{where}: needs name and slots, may have description")
            continue
        if pool["name"] in names:
            faults.append(f"{where}: name: {pool['name']} is there twice")
        names.add(pool["name"])
        if not isinstance(pool["slots"], int) or isinstance(pool["slots"], bool) or pool["slots"] < 1:
            faults.append(f"{where}: slots: {pool['slots']!r} is no number of at least 1")
    return faults


def read_schema(archive: str) -> Json:
    """The schema of a packed chart's values."""
    try:
        with tarfile.open(archive) as files:
            stream = files.extractfile(SCHEMA)
            assert stream
            schema: Json = json.load(stream)
            return schema
    except (OSError, KeyError, tarfile.TarError, ValueError) as error:
        raise AnsibleFilterError(f"{archive}: its {SCHEMA} cannot be read: {error}") from error


def value_faults(values: Mapping[str, Any], schema: Json) -> list[str]:
    """What the chart would not take of `values`, or would take and not heed: keys that its schema does not name."""
    validator = jsonschema.validators.validator_for(schema)(_closed(schema))
    # Helm takes null for a key that is not there.
    errors = sorted(validator.iter_errors(_without_null(values)), key=lambda error: [str(key) for key in error.path])
    return [": ".join([".".join(str(key) for key in error.path), error.message]).removeprefix(": ") for error in errors]


def _closed(schema: Any) -> Any:
    """The same schema, but an object that lists its keys has no others, unless it says so.

    The chart's own is open at its top and in several places below, so Helm takes many a misspelt key without a word.
    """
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), Mapping) and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value


def airflow_env(
    connections: Mapping[str, Mapping[str, Any]], secrets: Iterable[Mapping[str, str]], variables: Mapping[str, Any]
) -> list[Json]:
    """The environment by which Airflow knows `connections` and `variables`, as a container has it.

    A connection names values of Secrets as `$(NAME)`; `secrets` says from which (`name`, `secret`, `key`). Those that none
    names are left out.
    """
    texts = {f"AIRFLOW_CONN_{name.upper()}": json.dumps(each, sort_keys=True) for name, each in connections.items()}
    named = [item for item in secrets if any(f"$({item['name']})" in text for text in texts.values())]
    # First, as Kubernetes knows only earlier variables.
    values: list[Json] = [
        {"name": item["name"], "valueFrom": {"secretKeyRef": {"name": item["secret"], "key": item["key"]}}}
        for item in named
    ]
    texts |= {
        f"AIRFLOW_VAR_{name.upper()}": each if isinstance(each, str) else json.dumps(each, sort_keys=True)
        for name, each in variables.items()
    }
    return values + [{"name": name, "value": text} for name, text in texts.items()]


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {"airflow_faults": airflow_faults, "airflow_env": airflow_env}

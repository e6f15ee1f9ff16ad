"""What Helm has recorded of a release, and whether chart, values and cluster are still those."""

from __future__ import annotations

import base64
import gzip
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, ObjectKube, items
from ansible.module_utils.slipway.kustomize import LOADER
from ansible.module_utils.slipway.objects import Identity, Kinds, covers, identify, significant


@dataclass(frozen=True)
class Record:
    """The newest revision of a release: its Secret, status, chart (name and version), the values given, its objects."""

    secret: str
    status: str
    chart: tuple[str, str]
    values: Json
    objects: list[Json]


def read_record(kube: Kube, release: str, namespace: str) -> Record | None:
    """The newest record of a release; None where there is none. Raises SlipwayError if it cannot be read."""
    found = items(kube, f"/api/v1/namespaces/{namespace}/secrets", labelSelector=f"owner=helm,name={release}")
    newest = max(found, key=lambda item: int(item["metadata"]["labels"]["version"]), default=None)
    if newest is None:
        return None
    name = newest["metadata"]["name"]
    try:
        # Kubernetes encodes once, Helm once more (helm.sh/helm/v3/pkg/storage/driver/util.go).
        content = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(newest["data"]["release"]))))
        chart = content["chart"]["metadata"]
        documents = yaml.load_all(content.get("manifest") or "", Loader=LOADER)
        return Record(
            name,
            content["info"]["status"],
            (chart["name"], chart["version"]),
            content.get("config") or {},
            # A template whose condition is false leaves an empty document.
            [item for item in documents if item],
        )
    except (KeyError, TypeError, ValueError, OSError, yaml.YAMLError) as error:
        raise SlipwayError(f"Secret {namespace}/{name}, Helm's record, cannot be read: {error}") from error


def read_chart(archive: Path) -> tuple[str, str]:
    """Name and version of a packed chart. Raises SlipwayError if it is none."""
    try:
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.count("/") == 1 and member.name.endswith("/Chart.yaml"):
                    stream = files.extractfile(member)
                    assert stream is not None
                    chart = yaml.safe_load(stream)
                    return str(chart["name"]), str(chart["version"])
    except (OSError, tarfile.TarError, KeyError, TypeError, yaml.YAMLError) as error:
        raise SlipwayError(f"{archive}: {error}") from error
    raise SlipwayError(f"{archive}: no Chart.yaml in it")


def owned(item: Json, release: str, namespace: str) -> Json:
    """An object of a release's manifest as Helm creates it.

    Helm marks what it owns, and an installation refuses to adopt objects without these marks (helm.sh/helm/v3/pkg/action/validate.go).
    """
    metadata = item.get("metadata") or {}
    return {
        **item,
        "metadata": {
            **metadata,
            "labels": {**(metadata.get("labels") or {}), "app.kubernetes.io/managed-by": "Helm"},
            "annotations": {
                **(metadata.get("annotations") or {}),
                "meta.helm.sh/release-name": release,
                "meta.helm.sh/release-namespace": namespace,
            },
        },
    }


def drifted(kube: ObjectKube, record: Record, release: str, namespace: str) -> Iterator[tuple[Identity, Json]]:
    """The objects of a release that are missing or were changed by hand, each with what it should be."""
    kinds = Kinds(kube)
    for item in record.objects:
        wanted = kinds.located(owned(item, release, namespace), namespace)
        identity = identify(wanted)
        path = kinds.path(identity)
        before = kube.get(path) if path else None
        if (
            before is None
            or path is None
            # Where the words differ, the API server knows best how it would write what the manifest says.
            or (
                not covers(before, wanted)
                and significant(before) != significant(kube.apply(path, wanted, "helm", dry_run=True))
            )
        ):
            yield identity, wanted


def same_values(given: Mapping[str, Any], recorded: Mapping[str, Any]) -> bool:
    """Whether Helm would make the same of both; it takes a null for a key that is not there."""
    return bool(_without_null(given) == _without_null(recorded))


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list) else value

"""Secrets whose keys follow those of a Secret elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError
from ansible.module_utils.slipway.secrets import ATTEMPTS, fingerprint, path


@dataclass(frozen=True)
class Mirror:
    """What a Secret must hold: `values` as given, `keys` (own key -> the source's key), and with `exclusive` nothing else."""

    namespace: str
    name: str
    source_namespace: str
    source_name: str
    keys: Mapping[str, str]
    values: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False


@dataclass(frozen=True)
class Mirrored:
    """Names of what was (or in check mode would be) set and removed, and a fingerprint of what was taken over."""

    set: list[str]
    removed: list[str]
    labels: list[str]
    created: bool
    fingerprint: str

    @property
    def changed(self) -> bool:
        return bool(self.created or self.set or self.removed or self.labels)


def mirror(kube: Kube, wanted: Mirror, check: bool = False) -> Mirrored:
    """Bring the Secret in step with its source; writes only what differs.

    In check mode a source that is not there yet counts as one with unknown values. Raises SlipwayError: the source or
    one of its keys is missing, or the Secret keeps changing; KubeError when the API refuses.
    """
    taken = _source(kube, wanted, check)
    data = {**{key: _encode(value) for key, value in wanted.values.items()}, **taken}
    for _ in range(ATTEMPTS):
        secret = kube.get(path(wanted.namespace, wanted.name))
        present = (secret or {}).get("data") or {}
        metadata = (secret or {}).get("metadata") or {}
        labels = metadata.get("labels") or {}
        outcome = Mirrored(
            set=sorted(key for key, value in data.items() if present.get(key) != value),
            removed=sorted(set(present) - set(data)) if wanted.exclusive else [],
            labels=sorted(label for label, value in wanted.labels.items() if labels.get(label) != value),
            created=secret is None,
            fingerprint=fingerprint(taken),
        )
        if check or not outcome.changed:
            return outcome
        try:
            _write(kube, wanted, data, outcome, metadata)
        except KubeError as error:
            if error.status != 409:
                raise
        else:
            return outcome
    raise SlipwayError(
        f"Secret {wanted.namespace}/{wanted.name} kept changing while it was being written; who else does?"
    )


def _source(kube: Kube, wanted: Mirror, check: bool) -> dict[str, str]:
    """The encoded values to take over, by the Secret's own keys."""
    where = f"Secret {wanted.source_namespace}/{wanted.source_name}"
    source = kube.get(path(wanted.source_namespace, wanted.source_name))
    if source is None:
        if check:
            return dict.fromkeys(wanted.keys, "")
        raise SlipwayError(f"{where} does not exist; Secret {wanted.namespace}/{wanted.name} takes its values from it")
    data = source.get("data") or {}
    if missing := sorted({key for key in wanted.keys.values() if not data.get(key)}):
        raise SlipwayError(f"{where} has no {', '.join(missing)}; Secret {wanted.namespace}/{wanted.name} needs it")
    return {own: str(data[key]) for own, key in wanted.keys.items()}


def _write(kube: Kube, wanted: Mirror, data: Mapping[str, str], outcome: Mirrored, metadata: Json) -> None:
    changes: dict[str, str | None] = {key: data[key] for key in outcome.set}
    body: Json = {"metadata": {"labels": dict(wanted.labels)}, "data": {**changes, **dict.fromkeys(outcome.removed)}}
    if outcome.created:
        body["metadata"]["name"] = wanted.name
        kube.create(path(wanted.namespace), {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", **body})
    else:
        body["metadata"]["resourceVersion"] = metadata["resourceVersion"]
        kube.merge_patch(path(wanted.namespace, wanted.name), body)


def _encode(value: str) -> str:
    return base64.b64encode(value.encode()).decode()

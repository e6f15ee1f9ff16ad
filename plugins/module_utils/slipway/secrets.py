"""Kubernetes Secrets that are made once and only completed afterwards."""

from __future__ import annotations

import base64
import hashlib
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError

ALPHABETS = {
    "alphanumeric": string.ascii_letters + string.digits,
    "lowercase": string.ascii_lowercase + string.digits,
    "hex": "0123456789abcdef",
    "digits": string.digits,
}
# Two runs that meet retry in turn; more rounds than this mean that something keeps writing.
ATTEMPTS = 5


@dataclass(frozen=True)
class Key:
    """A wanted key: a given value, or `length` random characters of an alphabet."""

    name: str
    length: int = 32
    alphabet: str = "alphanumeric"
    value: str | None = field(default=None, repr=False)

    def make(self) -> str:
        """The value that a missing key gets."""
        if self.value is not None:
            return self.value
        return "".join(secrets.choice(ALPHABETS[self.alphabet]) for _ in range(self.length))


@dataclass(frozen=True)
class Outcome:
    """What was found and what was (or in check mode would be) done; names only.

    `fingerprint` changes with the values of the wanted keys; it is empty where check mode does not know them yet.
    """

    existing: list[str]
    added: list[str]
    labels: list[str]
    created: bool
    fingerprint: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.created or self.added or self.labels)


def path(namespace: str, name: str = "") -> str:
    """API path of a Secret, or of all of a namespace."""
    return f"/api/v1/namespaces/{namespace}/secrets" + (f"/{name}" if name else "")


def read(kube: Kube, namespace: str, name: str, keys: Sequence[str]) -> dict[str, str] | None:
    """The values of `keys` in a Secret, None where there is no such Secret.

    Raises SlipwayError when it lacks one of the keys.
    """
    secret = kube.get(path(namespace, name))
    if secret is None:
        return None
    data = secret.get("data") or {}
    missing = [key for key in keys if not data.get(key)]
    if missing:
        raise SlipwayError(f"Secret {namespace}/{name} has no {', '.join(missing)}")
    return {key: base64.b64decode(data[key]).decode() for key in keys}


def ensure(
    kube: Kube,
    namespace: str,
    name: str,
    keys: Sequence[Key],
    labels: Mapping[str, str],
    kind: str = "Opaque",
    check: bool = False,
) -> Outcome:
    """Make the Secret, or add the keys and labels that it lacks; existing keys keep their values.

    `kind` is the type of a Secret that is made.
    Safe beside another run of itself: an object made or changed meanwhile (409) is read again.
    Raises SlipwayError when that happens over and over, KubeError when the API refuses.
    """
    for _ in range(ATTEMPTS):
        secret = kube.get(path(namespace, name))
        data = (secret or {}).get("data") or {}
        metadata = (secret or {}).get("metadata") or {}
        present = metadata.get("labels") or {}
        missing = [key for key in keys if key.name not in data]
        outcome = Outcome(
            existing=sorted(data),
            added=sorted(key.name for key in missing),
            labels=sorted(label for label, value in labels.items() if present.get(label) != value),
            created=secret is None,
            fingerprint="" if missing else fingerprint({key.name: data[key.name] for key in keys}),
        )
        if check or not outcome.changed:
            return outcome
        made = {key.name: key.make() for key in missing}
        body: Json = {"metadata": {"labels": dict(labels)}, "stringData": made}
        try:
            if secret is None:
                body["metadata"]["name"] = name
                kube.create(path(namespace), {"apiVersion": "v1", "kind": "Secret", "type": kind, **body})
            else:
                body["metadata"]["resourceVersion"] = metadata["resourceVersion"]
                kube.merge_patch(path(namespace, name), body)
        except KubeError as error:
            if error.status != 409:
                raise
        else:
            encoded = {name: base64.b64encode(value.encode()).decode() for name, value in made.items()}
            values = {key.name: encoded.get(key.name, data.get(key.name, "")) for key in keys}
            return replace(outcome, fingerprint=fingerprint(values))
    raise SlipwayError(f"Secret {namespace}/{name} kept changing while it was being written; who else writes it?")


def fingerprint(values: Mapping[str, str]) -> str:
    """A text that changes with the values and does not give them away, as long as they are random."""
    return hashlib.sha256("\n".join(f"{key}={values[key]}" for key in sorted(values)).encode()).hexdigest()[:16]

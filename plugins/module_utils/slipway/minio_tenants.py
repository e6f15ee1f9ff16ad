"""Where the tenants of MinIO find their credentials: namespaces, generated Secrets, and copies of them elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, ObjectKube, items
from ansible.module_utils.slipway.mirror import Mirror, mirror
from ansible.module_utils.slipway.objects import MANAGED_BY, ObjectSet, namespace_object
from ansible.module_utils.slipway.secrets import Key, ensure, path

KEYS = ("accessKey", "secretKey", "endpoint")
# Marks a copy, by <namespace>.<name> of what it is a copy of.
COPY_OF = "slipway/copy-of"
LABEL_LENGTH = 63


@dataclass(frozen=True)
class Credential:
    """The Secret of a tenant, and the namespaces where a copy of the same name is kept."""

    tenant: str
    namespace: str
    name: str
    copies: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """The value of COPY_OF."""
        return f"{self.namespace}.{self.name}"


@dataclass
class Tenants:
    """Brings a cluster to `credentials`.

    Namespaces in `owned` are looked after by others, and only made where they are missing. Those of copies are made without the
    label of what is Slipway's own, so that Argo CD may take them over.
    """

    kube: ObjectKube
    endpoint: str
    owned: frozenset[str]
    check: bool = False
    changes: list[str] = field(default_factory=list)

    def apply(self, credentials: Sequence[Credential]) -> list[str]:
        """Make what is missing, and remove copies that are not listed any more. Raises SlipwayError."""
        if faults := problems(credentials):
            raise SlipwayError("nothing is changed; fix the tenants first: " + "; ".join(faults))
        for credential in credentials:
            self._home(credential.namespace)
            self._secret(credential)
        for credential in credentials:
            for namespace in credential.copies:
                self._make_namespace(namespace, {})
                self._copy(credential, namespace)
        self._remove_copies({(namespace, each.name) for each in credentials for namespace in each.copies})
        return self.changes

    def _home(self, namespace: str) -> None:
        if namespace in self.owned:
            self._make_namespace(namespace, MANAGED_BY)
            return
        made = ObjectSet(self.kube, "namespace", namespace, self.check).apply(
            [namespace_object(namespace, "restricted")]
        )
        self.changes += [f"{each} set" for each in (*made.created, *made.changed, *made.removed)]

    def _make_namespace(self, name: str, labels: Mapping[str, str]) -> None:
        place = f"/api/v1/namespaces/{name}"
        made = f"Namespace {name} made"
        if self.kube.get(place) is not None or made in self.changes:
            return
        self.changes.append(made)
        if not self.check:
            level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
            body: Json = {"metadata": {"name": name, "labels": {**labels, **level}}}
            self.kube.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", **body})

    def _secret(self, credential: Credential) -> None:
        keys = [Key("accessKey", value=credential.tenant), Key("secretKey", 40), Key("endpoint", value=self.endpoint)]
        done = ensure(self.kube, credential.namespace, credential.name, keys, MANAGED_BY, check=self.check)
        if done.changed:
            self.changes.append(
                f"Secret {credential.namespace}/{credential.name}: {', '.join(done.added) or 'labels'} set"
            )
        self._endpoint(credential)

    def _endpoint(self, credential: Credential) -> None:
        """The store may be another one than it was."""
        place = path(credential.namespace, credential.name)
        secret = self.kube.get(place)
        wanted = base64.b64encode(self.endpoint.encode()).decode()
        if secret is None or (secret.get("data") or {}).get("endpoint") in (None, wanted):
            return
        self.changes.append(f"Secret {credential.namespace}/{credential.name}: endpoint changed to {self.endpoint}")
        if not self.check:
            version = secret["metadata"]["resourceVersion"]
            self.kube.merge_patch(place, {"metadata": {"resourceVersion": version}, "data": {"endpoint": wanted}})

    def _copy(self, credential: Credential, namespace: str) -> None:
        wanted = Mirror(
            namespace=namespace,
            name=credential.name,
            source_namespace=credential.namespace,
            source_name=credential.name,
            keys={key: key for key in KEYS},
            labels={COPY_OF: credential.mark},
            exclusive=True,
        )
        if mirror(self.kube, wanted, self.check).changed:
            self.changes.append(f"Secret {namespace}/{credential.name} copied from {credential.namespace}")

    def _remove_copies(self, wanted: set[tuple[str, str]]) -> None:
        for item in items(self.kube, "/api/v1/secrets", labelSelector=COPY_OF):
            found = (item["metadata"]["namespace"], item["metadata"]["name"])
            if found not in wanted:
                self.changes.append(f"Secret {found[0]}/{found[1]} removed: a copy that nobody is to have any more")
                if not self.check:
                    self.kube.delete(path(*found))


def problems(credentials: Sequence[Credential]) -> list[str]:
    """What is wrong with the list itself, each with the tenant's name."""
    found: list[str] = []
    seen: dict[tuple[str, str], str] = {}
    for credential in credentials:
        where = f"tenant {credential.tenant!r}"
        if len(credential.mark) > LABEL_LENGTH:
            found.append(f"{where}: secret: {credential.mark} has more than {LABEL_LENGTH} characters")
        for namespace in (credential.namespace, *credential.copies):
            place = (namespace, credential.name)
            if place in seen:
                found.append(f"{where}: Secret {namespace}/{credential.name} is that of tenant {seen[place]!r} already")
            seen.setdefault(place, credential.tenant)
    return found

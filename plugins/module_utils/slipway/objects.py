"""Sets of Kubernetes objects: applied, compared, and taken away again when they are no longer wanted."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, ObjectKube

FIELD_MANAGER = "slipway"
MANAGED_BY = {"app.kubernetes.io/managed-by": "slipway"}
# Removing one of these removes what people have stored in it.
KEPT_KINDS = frozenset({"CustomResourceDefinition", "Namespace", "PersistentVolumeClaim"})
# Kinds that others need, first; as Helm and kustomize order them.
FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount", "Secret", "ConfigMap", "ClusterRole", "Role")
# Seconds until a kind that was just defined is served.
ESTABLISHED = 30.0


class Identity(NamedTuple):
    """What names an object; `namespace` is empty for those of the cluster."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace + '/' if self.namespace else ''}{self.name}"

    @property
    def same(self) -> tuple[str, str, str, str]:
        """Equal for all versions of one object."""
        return (self.api_version.rpartition("/")[0], self.kind, self.namespace, self.name)


class Kinds:
    """Where the API serves each kind."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._known: dict[str, dict[str, tuple[str, bool]]] = {}

    def path(self, identity: Identity) -> str | None:
        """Path of an object, None where the API does not serve its kind."""
        plural, namespaced = self._find(identity.api_version).get(identity.kind, ("", False))
        if not plural:
            return None
        scope = f"/namespaces/{identity.namespace}" if namespaced else ""
        return f"{self._root(identity.api_version)}{scope}/{plural}/{identity.name}"

    def is_namespaced(self, api_version: str, kind: str) -> bool:
        """Whether objects of a kind live in namespaces; kinds that are not served (yet) count as such."""
        return self._find(api_version).get(kind, ("", True))[1]

    def located(self, item: Json, namespace: str) -> Json:
        """An object with its namespace, `namespace` if it names none and lives in one."""
        metadata = item["metadata"]
        if "namespace" in metadata or not self.is_namespaced(item["apiVersion"], item["kind"]):
            return item
        return {**item, "metadata": {**metadata, "namespace": namespace}}

    def await_path(self, identity: Identity) -> str:
        """Path of an object whose kind may have been defined a moment ago. Raises SlipwayError if it is not served."""
        end = time.monotonic() + ESTABLISHED
        while (path := self.path(identity)) is None:
            if time.monotonic() > end:
                raise SlipwayError(f"{identity}: the API does not serve {identity.api_version} {identity.kind}")
            self._known.pop(identity.api_version, None)
            time.sleep(0.2)
        return path

    @staticmethod
    def _root(api_version: str) -> str:
        return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"

    def _find(self, api_version: str) -> dict[str, tuple[str, bool]]:
        if api_version not in self._known:
            listed = (self._kube.get(self._root(api_version)) or {}).get("resources") or []
            self._known[api_version] = {
                item["kind"]: (item["name"], item["namespaced"]) for item in listed if "/" not in item["name"]
            }
        return self._known[api_version]


@dataclass
class Changes:
    """What was done, or in check mode would be: texts of objects before and after, empty where there is none."""

    created: list[Identity] = field(default_factory=list)
    changed: list[Identity] = field(default_factory=list)
    removed: list[Identity] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.created or self.changed or self.removed)

    def note(self, kind: list[Identity], identity: Identity, before: Json | None, after: Json | None) -> None:
        """Add one object to the list `kind` and to the diff; contents of Secrets are left out."""
        kind.append(identity)
        self.diff.append(
            {
                "before_header": str(identity),
                "after_header": str(identity),
                "before": _text(identity, before),
                "after": _text(identity, after),
            }
        )


def _text(identity: Identity, item: Json | None) -> str:
    if item is None:
        return ""
    if identity.kind == "Secret":
        return "(a Secret's content is not shown)\n"
    return json.dumps(significant(item), indent=1, sort_keys=True) + "\n"


def covers(live: Any, wanted: Any) -> bool:
    """Whether all that `wanted` says is in `live` in the same words; the API server may say the same in others."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(key in live and covers(live[key], each) for key, each in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(live, list)
            and len(live) == len(wanted)
            and all(covers(one, other) for one, other in zip(live, wanted, strict=True))
        )
    return bool(live == wanted)


def _hash(item: Json) -> str:
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


def significant(item: Json) -> Json:
    """An object without what the API server and controllers write."""
    metadata = {
        key: value
        for key, value in item.get("metadata", {}).items()
        if key not in ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")
    }
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


class ObjectSet:
    """A named set of objects. ConfigMap `slipway-<name>` in `namespace` records which objects belong to it."""

    def __init__(self, kube: ObjectKube, name: str, namespace: str, check: bool = False) -> None:
        self._kube = kube
        self._name = name
        self._namespace = namespace
        self._check = check
        self._kinds = Kinds(kube)
        self.changes = Changes()

    def apply(self, objects: Iterable[Json]) -> Changes:
        """Bring the cluster to `objects` by server-side apply, and remove members that are not among them any more.

        Fields that others own and `objects` does not name stay. Raises SlipwayError; what was done until then stays.
        """
        wanted = [self._complete(item) for item in objects]
        wanted.sort(key=lambda item: FIRST.index(item["kind"]) if item["kind"] in FIRST else len(FIRST))
        identities = [identify(item) for item in wanted]
        if double := sorted({str(each) for each in identities if identities.count(each) > 1}):
            raise SlipwayError(f"{self._name}: given twice: {', '.join(double)}")
        applied = {identity: _hash(item) for item, identity in zip(wanted, identities, strict=True)}
        recorded = self._read_record()
        # Before anything is made: an interrupted run must not forget what it made.
        members = {**dict.fromkeys(identities, ""), **recorded}
        for item, identity in zip(wanted, identities, strict=True):
            if identity.kind == "Namespace":
                self._apply_one(item, identity, recorded.get(identity) == applied[identity])
        self._write_record(recorded, members)
        for item, identity in zip(wanted, identities, strict=True):
            if identity.kind != "Namespace":
                self._apply_one(item, identity, recorded.get(identity) == applied[identity])
        same = {identity.same for identity in identities}
        self._remove([identity for identity in recorded if identity.same not in same])
        self._write_record(members, applied)
        return self.changes

    def make_namespaces(self, names: Iterable[str]) -> None:
        """Make the namespaces that are missing, with Pod Security level baseline; they are no members of the set."""
        for name in names:
            path = f"/api/v1/namespaces/{name}"
            if self._kube.get(path) is not None:
                continue
            item = namespace_object(name, "baseline")
            self.changes.note(self.changes.created, identify(item), None, item)
            if not self._check:
                self._kube.apply(path, item, FIELD_MANAGER)

    def remove(self) -> Changes:
        """Remove all members but those of KEPT_KINDS, in the opposite order of their making, and the record."""
        recorded = self._read_record()
        self._remove(list(reversed(list(recorded))))
        path = self._record_path()
        if recorded and not self._check:
            self._kube.delete(path)
        return self.changes

    def _complete(self, item: Json) -> Json:
        for key in ("apiVersion", "kind"):
            if not item.get(key):
                raise SlipwayError(f"{self._name}: an object has no {key}: {json.dumps(item)[:200]}")
        if not (item.get("metadata") or {}).get("name"):
            raise SlipwayError(f"{self._name}: a {item['kind']} has no metadata.name")
        return self._kinds.located(item, self._namespace)

    def _apply_one(self, item: Json, identity: Identity, same: bool) -> None:
        """Apply an object; `same` says whether it was applied in these words the last time."""
        path = self._kinds.path(identity) if self._check else self._kinds.await_path(identity)
        before = self._kube.get(path) if path else None
        # Nothing to take away since the last time, and everything is there: most objects of most runs.
        if before is not None and same and covers(before, item):
            return
        if self._check and before is None:
            # Its namespace or kind may not be there yet, so the API cannot be asked what would become of it.
            self.changes.note(self.changes.created, identity, None, item)
            return
        assert path is not None
        try:
            after = self._kube.apply(path, item, FIELD_MANAGER, dry_run=self._check)
        except KubeError as error:
            raise SlipwayError(f"{identity}: {error}") from error
        if before is None:
            self.changes.note(self.changes.created, identity, None, after)
        elif significant(before) != significant(after):
            self.changes.note(self.changes.changed, identity, before, after)

    def _remove(self, identities: Sequence[Identity]) -> None:
        for identity in identities:
            if identity.kind in KEPT_KINDS:
                continue
            path = self._kinds.path(identity)
            before = self._kube.get(path) if path else None
            if path and before is not None:
                self.changes.note(self.changes.removed, identity, before, None)
                if not self._check:
                    self._kube.delete(path)

    def _record_path(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/configmaps/slipway-{self._name}"

    def _read_record(self) -> dict[Identity, str]:
        """The members, each with the hash of what was applied last."""
        found = self._kube.get(self._record_path())
        try:
            rows = json.loads(found["data"]["objects"]) if found else []
            return {Identity(*words): applied for *words, applied in rows}
        except (KeyError, TypeError, ValueError) as error:
            raise SlipwayError(f"ConfigMap {self._namespace}/slipway-{self._name} cannot be read: {error}") from error

    def _write_record(self, before: Mapping[Identity, str], after: Mapping[Identity, str]) -> None:
        if self._check or list(before.items()) == list(after.items()):
            return
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"slipway-{self._name}", "namespace": self._namespace, "labels": MANAGED_BY},
            "data": {"objects": json.dumps([[*identity, applied] for identity, applied in after.items()])},
        }
        self._kube.apply(self._record_path(), body, FIELD_MANAGER)


def namespace_object(name: str, pod_security: str, more: Mapping[str, str] | None = None) -> Json:
    """A Namespace that enforces a Pod Security Standard; `more` are labels besides."""
    label = "pod-security.kubernetes.io"
    warned = "restricted" if pod_security == "baseline" else pod_security
    labels = {**MANAGED_BY, f"{label}/enforce": pod_security, f"{label}/warn": warned, **(more or {})}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def identify(item: Json) -> Identity:
    """What names an object."""
    metadata = item["metadata"]
    return Identity(item["apiVersion"], item["kind"], metadata.get("namespace", ""), metadata["name"])

"""Doubles of the things outside: time, a Kubernetes API that holds objects in a dictionary, run modules in-process."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
from types import ModuleType

from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.testing import patch_module_args


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeKube:
    """A `Kube` over `objects` (path -> object or list) and `logs` (path -> text), with optimistic locking."""

    def __init__(self, objects: dict[str, Json] | None = None, logs: dict[str, str] | None = None) -> None:
        self.objects = objects or {}
        self.logs = logs or {}
        self.writes: list[str] = []
        self.queries: list[dict[str, str]] = []

    def get(self, path: str, **query: str) -> Json | None:
        return copy.deepcopy(self.objects.get(path))

    def text(self, path: str, **query: str) -> str:
        self.queries.append(query)
        if path not in self.logs:
            raise KubeError(f"GET {path}: 400 no log", 400)
        return self.logs[path]

    def create(self, path: str, body: Json) -> Json:
        full = f"{path}/{body['metadata']['name']}"
        if full in self.objects:
            raise KubeError(f"POST {path}: 409 exists", 409)
        self.objects[full] = {"metadata": {"resourceVersion": "0"}, "data": {}}
        return self._merge(full, body)

    def merge_patch(self, path: str, body: Json) -> Json:
        if body["metadata"].get("resourceVersion") != self.objects[path]["metadata"]["resourceVersion"]:
            raise KubeError(f"PATCH {path}: 409 changed", 409)
        return self._merge(path, body)

    def _merge(self, path: str, body: Json) -> Json:
        self.writes.append(path)
        item = self.objects[path]
        version = int(item["metadata"]["resourceVersion"])
        _merge_into(item, {key: value for key, value in body.items() if key != "stringData"})
        for key, value in (body.get("stringData") or {}).items():
            item["data"][key] = base64.b64encode(value.encode()).decode()
        item["metadata"]["resourceVersion"] = str(version + 1)
        return item


CORE = [("configmaps", "ConfigMap", True), ("secrets", "Secret", True), ("services", "Service", True)]
CORE += [("namespaces", "Namespace", False), ("persistentvolumeclaims", "PersistentVolumeClaim", True)]


class FakeObjects(FakeKube):
    """An API that serves some kinds and applies on the server: fields that were applied before and are not any more go."""

    def __init__(self) -> None:
        kinds = [{"name": name, "kind": kind, "namespaced": scoped} for name, kind, scoped in CORE]
        status = {"name": "services/status", "kind": "Service", "namespaced": True}
        super().__init__({"/api/v1": {"resources": [*kinds, status]}})
        self.applied: dict[str, Json] = {}
        self.deleted: list[str] = []
        self.refuse = ""

    def apply(self, path: str, body: Json, manager: str, dry_run: bool = False) -> Json:
        if self.refuse and self.refuse in path:
            raise KubeError(f"PATCH {path}: 422 refused", 422)
        before = self.objects.get(path, {"metadata": {"uid": "1", "resourceVersion": "1"}, "status": {"phase": "x"}})
        after = copy.deepcopy(before)
        for key in set(self.applied.get(path, {}).get("data") or {}) - set(body.get("data") or {}):
            after["data"].pop(key)
        for key, value in body.items():
            after[key] = {**after.get(key, {}), **value} if isinstance(value, dict) else value
        if not dry_run:
            self.objects[path] = after
            self.applied[path] = copy.deepcopy(body)
            self.writes.append(path)
        return after

    def delete(self, path: str) -> None:
        self.deleted.append(path)
        self.objects.pop(path, None)


def _merge_into(target: Json, patch: Json) -> None:
    """RFC 7386: mappings are merged at every depth, null removes, all else replaces."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            _merge_into(target.setdefault(key, {}), value)
        else:
            target[key] = value


def run_module(module: ModuleType, arguments: Json, check: bool = False) -> Json:
    """Run a module's main() in this process and return what it prints; `failed` is in it when it failed."""
    arguments = {**arguments, "_ansible_check_mode": check}
    printed = io.StringIO()
    with patch_module_args(arguments), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        module.main()
    result: Json = json.loads(printed.getvalue().strip().splitlines()[-1])
    return result

"""Tenants of MinIO find their credentials where they run, and nobody else finds them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.minio_tenants import COPY_OF, Credential, Tenants, problems

from filter.minio import minio_namespaces, minio_tenants
from modules import minio_tenants as module

from .fakes import FakeObjects, run_module

ENDPOINT = "minio.minio.svc:9000"
EPOS = Credential("epos", "epos", "minio-epos", ("kubeflow-pipelines", "epos-dev"))
PIPELINES = Credential("kubeflow-pipelines", "kubeflow-pipelines", "minio-kubeflow-pipelines")


class Cluster(FakeObjects):
    """One that lists Secrets with the label of copies."""

    def get(self, path: str, **query: str) -> Json | None:
        if query.get("labelSelector") == COPY_OF:
            found = [item for name, item in self.objects.items() if "/secrets/" in name]
            return {"items": [item for item in found if COPY_OF in (item["metadata"].get("labels") or {})]}
        return super().get(path, **query)

    def create(self, path: str, body: Json) -> Json:
        item = super().create(path, body)
        if path.endswith("/secrets"):
            item["metadata"]["namespace"] = path.split("/")[-2]
        return item


def apply(kube: Cluster, *credentials: Credential, check: bool = False) -> list[str]:
    return Tenants(kube, ENDPOINT, frozenset({"kubeflow-pipelines"}), check).apply(credentials)


def labels(kube: Cluster, namespace: str) -> dict[str, str]:
    found: dict[str, str] = kube.objects[f"/api/v1/namespaces/{namespace}"]["metadata"]["labels"]
    return found


def values(kube: Cluster, namespace: str, name: str) -> dict[str, str]:
    data = kube.objects[secrets.path(namespace, name)]["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_made_once_with_their_copies() -> None:
    kube = Cluster()
    planned = apply(kube, EPOS, PIPELINES, check=True)
    assert not kube.writes
    assert apply(kube, EPOS, PIPELINES) == planned
    own = values(kube, "epos", "minio-epos")
    assert (own["accessKey"], own["endpoint"], len(own["secretKey"])) == ("epos", ENDPOINT, 40)
    assert values(kube, "kubeflow-pipelines", "minio-epos") == values(kube, "epos-dev", "minio-epos") == own
    assert values(kube, "kubeflow-pipelines", "minio-kubeflow-pipelines")["accessKey"] == "kubeflow-pipelines"
    kube.writes.clear()
    assert apply(kube, EPOS, PIPELINES) == [] and not kube.writes


def test_namespaces_of_copies_are_argo_cds_to_take() -> None:
    """Its admission policy refuses those that are marked as Slipway's own."""
    kube = Cluster()
    apply(kube, EPOS)
    enforced = "pod-security.kubernetes.io/enforce"
    assert labels(kube, "epos-dev") == {enforced: "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    assert labels(kube, "epos")["app.kubernetes.io/managed-by"] == "slipway"


def test_a_namespace_that_is_there_stays_as_it_is() -> None:
    kube = Cluster()
    for name in ("kubeflow-pipelines", "epos-dev"):
        kube.create("/api/v1/namespaces", {"metadata": {"name": name, "labels": {"mine": "1"}}})
    apply(kube, EPOS, PIPELINES)
    assert labels(kube, "kubeflow-pipelines") == labels(kube, "epos-dev") == {"mine": "1"}


def test_a_copy_follows_and_goes() -> None:
    kube = Cluster()
    apply(kube, EPOS)
    del kube.objects[secrets.path("epos", "minio-epos")]
    apply(kube, EPOS)
    assert values(kube, "epos-dev", "minio-epos") == values(kube, "epos", "minio-epos")
    fewer = Credential("epos", "epos", "minio-epos", ("epos-dev",))
    assert apply(kube, fewer) == [
        "Secret kubeflow-pipelines/minio-epos removed: a copy that nobody is to have any more"
    ]
    assert kube.deleted == [secrets.path("kubeflow-pipelines", "minio-epos")]


def test_another_store_is_another_endpoint() -> None:
    kube = Cluster()
    apply(kube, EPOS)
    before = values(kube, "epos", "minio-epos")
    moved = Tenants(kube, "store.example.org:9000", frozenset())
    assert moved.apply([EPOS])[0] == "Secret epos/minio-epos: endpoint changed to store.example.org:9000"
    after = {**before, "endpoint": "store.example.org:9000"}
    assert values(kube, "epos", "minio-epos") == values(kube, "epos-dev", "minio-epos") == after


def test_two_tenants_of_one_secret_are_refused() -> None:
    other = Credential("other", "x", "minio-epos", ("epos-dev",))
    assert "tenant 'other': Secret epos-dev/minio-epos is that of tenant 'epos' already" in problems([EPOS, other])
    long = Credential("long", "n" * 40, "s" * 40)
    assert "has more than 63 characters" in "; ".join(problems([long]))


def test_the_module_shows_no_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = Cluster()
    monkeypatch.setattr(module, "KubeClient", lambda kubeconfig: kube)
    tenant = {
        "name": "epos",
        "buckets": ["epos-data"],
        "read": ["others"],
        "expire": [{"bucket": "epos-data", "days": 3}],
        "secret": {"namespace": "epos", "name": "minio-epos"},
        "copies": ["epos-dev"],
    }
    arguments = {"kubeconfig": "/k", "endpoint": ENDPOINT, "tenants": [tenant]}
    planned = run_module(module, arguments, check=True)
    first, again = run_module(module, arguments), run_module(module, arguments)
    assert planned["changes"] == first["changes"] and (first["changed"], again["changed"]) == (True, False)
    assert values(kube, "epos", "minio-epos")["secretKey"] not in json.dumps([planned, first, again])
    refused = run_module(module, {**arguments, "tenants": [tenant, {**tenant, "name": "b"}]})
    assert "is that of tenant 'epos' already" in refused["msg"]


def test_what_is_not_installed_gets_nothing(tmp_path: Path) -> None:
    for role in ("kubeflow_pipelines", "minio"):
        (tmp_path / role).mkdir()
    tenants = [
        {"name": "epos", "secret": {"namespace": "epos", "name": "a"}, "copies": ["kubeflow-pipelines", "epos-dev"]},
        {"name": "kubeflow-pipelines", "secret": {"namespace": "kubeflow-pipelines", "name": "b"}},
    ]
    without = minio_tenants(tenants, ["minio"], str(tmp_path))
    assert [(item["name"], item["copies"]) for item in without] == [("epos", ["epos-dev"])]
    assert minio_namespaces(without) == ["epos", "epos-dev"]
    everything = minio_tenants(tenants, ["minio", "kubeflow_pipelines"], str(tmp_path))
    assert minio_namespaces(everything) == ["epos", "epos-dev", "kubeflow-pipelines"]

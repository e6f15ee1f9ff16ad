"""The stand-in for upstream's manifests of Kubeflow Pipelines."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

from tests.lab import kfp_images
from tests.lab.cache import PROJECT, cache_root
from tests.lab.kfp import base
from tests.lab.process import LabError

ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
from ansible.module_utils.slipway.kustomize import render  # noqa: E402

Json = dict[str, Any]
MADE: list[Json] = list(yaml.safe_load_all(base.text()))


def of(kind: str) -> dict[str, Json]:
    """The objects of a kind by their names."""
    return {item["metadata"]["name"]: item for item in MADE if item["kind"] == kind}


def spec(deployment: Json) -> Json:
    """What its pods are made of."""
    content: Json = deployment["spec"]["template"]["spec"]
    return content


def walk(value: Any) -> Iterator[Json]:
    """Every mapping in `value`."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from walk(each)
    elif isinstance(value, list):
        for each in value:
            yield from walk(each)


def keys(item: Json) -> set[str]:
    """Those of a ConfigMap or Secret."""
    return set(item["data"] if item["kind"] == "ConfigMap" else item["stringData"])


def describe(item: Json) -> Json:
    """An object as the list records it."""
    found: Json = {"apiVersion": item["apiVersion"], "kind": item["kind"], "name": item["metadata"]["name"]}
    if "namespace" in item["metadata"]:
        found["namespace"] = item["metadata"]["namespace"]
    if item["kind"] == "CustomResourceDefinition":
        found["versions"] = [version["name"] for version in item["spec"]["versions"]]
    elif item["kind"] in ("ConfigMap", "Secret"):
        found["keys"] = sorted(keys(item))
    elif item["kind"] == "Service":
        ports = item["spec"]["ports"]
        found["ports"] = [{key: port.get(key) for key in ("name", "port", "targetPort")} for port in ports]
        found["selector"] = item["spec"]["selector"]
    elif item["kind"] == "PersistentVolumeClaim":
        found["size"] = item["spec"]["resources"]["requests"]["storage"]
    elif item["kind"] == "Deployment":
        pod = spec(item)
        found["serviceAccount"] = pod.get("serviceAccountName")
        found["initContainers"] = [each["name"] for each in pod.get("initContainers", [])]
        found["containers"] = [
            {
                "name": each["name"],
                "image": each["image"],
                "env": [variable["name"] for variable in each.get("env", [])],
                "ports": [port["containerPort"] for port in each.get("ports", [])],
                "requests": each.get("resources", {}).get("requests"),
            }
            for each in pod["containers"]
        ]
        found["volumes"] = [volume["name"] for volume in pod.get("volumes", [])]
    return found


def test_the_objects_are_those_of_the_list() -> None:
    wanted = [{key: value for key, value in record.items() if key != "from"} for record in base.recorded()]
    for record in wanted:
        if "keys" in record:
            record["keys"] = sorted(record["keys"])
    assert [describe(item) for item in MADE] == wanted


def test_it_is_always_the_same_and_has_no_anchors() -> None:
    before = base.text()
    for known in (base.recorded, base.details, base.images):
        known.cache_clear()
    assert base.text() == before
    assert "&id" not in before
    assert base.version() == "2.17.0-standin"


def test_upstreams_faults_are_there_to_be_mended() -> None:
    database = spec(of("Deployment")["mysql"])["containers"][0]
    assert {"name": "MYSQL_ALLOW_EMPTY_PASSWORD", "value": "true"} in database["env"]
    assert not [name for name in database if name.endswith("Probe")]
    server = spec(of("Deployment")["ml-pipeline"])["containers"][0]
    assert {"name": "OBJECTSTORECONFIG_HOST", "value": "seaweedfs.kubeflow"} in server["env"]
    assert "seaweedfs" in of("ConfigMap")["workflow-controller-configmap"]["data"]["artifactRepository"]
    assert "providers" not in of("ConfigMap")["kfp-launcher"]["data"]


def test_no_password_is_in_it() -> None:
    values = [value for item in of("Secret").values() for value in item["stringData"].values()]
    assert sorted(values) == ["", "", "", "root"]
    assert "minio" + "123" not in base.text()


def test_what_is_referred_to_is_there() -> None:
    """But for the certificate that the cache's Deployment makes, which nobody wants."""
    there = {(kind, name): keys(item) for kind in ("ConfigMap", "Secret") for name, item in of(kind).items()}
    for deployment in of("Deployment").values():
        pod = spec(deployment)
        for found in walk(pod):
            for kind, word in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
                if word in found and not found[word].get("optional"):
                    assert found[word]["key"] in there[kind, found[word]["name"]]
        for volume in pod.get("volumes", []):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in of("PersistentVolumeClaim")
            if "configMap" in volume and not volume["configMap"].get("optional"):
                assert volume["configMap"]["name"] in of("ConfigMap")
        if "serviceAccountName" in pod:
            assert pod["serviceAccountName"] in of("ServiceAccount")
        if "priorityClassName" in pod:
            assert pod["priorityClassName"] in of("PriorityClass")
        for container in pod["containers"]:
            named = {port.get("name") for port in container.get("ports", [])}
            assert all(found["tcpSocket"]["port"] in named for found in walk(container) if "tcpSocket" in found), (
                container["name"]
            )
    accounts = {**of("RoleBinding"), **of("ClusterRoleBinding")}
    for binding in accounts.values():
        assert binding["roleRef"]["name"] in of(binding["roleRef"]["kind"])
        (subject,) = binding["subjects"]
        assert subject["kind"] == "Group" or subject["name"] in of("ServiceAccount")


def test_every_service_has_one_deployment() -> None:
    for name, service in of("Service").items():
        selector = service["spec"]["selector"].items()
        behind = [
            item
            for item in of("Deployment").values()
            if selector <= item["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert len(behind) == 1, name
        (container,) = spec(behind[0])["containers"]
        ports = {key for port in container["ports"] for key in (port["containerPort"], port.get("name"))}
        for port in service["spec"]["ports"]:
            # SeaweedFS has a port more than its container names.
            assert port.get("targetPort", port["port"]) in ports or name == "seaweedfs"


def test_pods_may_do_little() -> None:
    for deployment in of("Deployment").values():
        pod = spec(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    for role in [*of("Role").values(), *of("ClusterRole").values()]:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]


def test_an_object_without_details_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {**base.recorded()[-2], "name": "new"}
    monkeypatch.setattr(base, "recorded", lambda: [record])
    with pytest.raises(LabError, match=r"base\.yml has nothing for Deployment new: 'new'"):
        base.text()


@pytest.fixture(scope="module")
def kubectl() -> str:
    """A kubectl, which renders overlays."""
    cached = sorted(cache_root().glob("bundle/*/bin/kubectl"), key=os.path.getmtime)
    found = str(cached[-1]) if cached else shutil.which("kubectl")
    if not found:
        pytest.skip("no kubectl: make bundle")
    return found


def test_the_roles_overlay_fits(kubectl: str, tmp_path: Path) -> None:
    found = importlib.util.spec_from_file_location("overlay", PROJECT / "plugins/filter/kubeflow_pipelines.py")
    assert found and found.loader
    overlay = importlib.util.module_from_spec(found)
    found.loader.exec_module(overlay)
    file = tmp_path / "base.yaml"
    file.write_text(base.text())
    images = {**kfp_images.references(), "busybox": "localhost/busybox:1"}
    store = {"host": "minio.minio.svc", "port": 9000, "bucket": "runs", "region": "us-east-1"}
    config = overlay.kubeflow_pipelines_config(store, 60, 1, "UTC", "baseline")
    kustomization = overlay.kubeflow_pipelines_overlay(
        images, "kubeflow-pipelines", store, config, {name: {} for name in overlay.WORKLOADS}, {}, []
    )
    rendered = render(kubectl, str(file), kustomization)
    assert "seaweedfs" not in str(rendered)
    pods = [spec(item) for item in rendered if item["kind"] == "Deployment"]
    assert len(pods) == len(overlay.WORKLOADS)
    used = {container["image"] for pod in pods for container in [*pod["containers"], *pod.get("initContainers", [])]}
    assert used <= set(images.values())
    assert {item["metadata"].get("namespace", "kubeflow-pipelines") for item in rendered} == {"kubeflow-pipelines"}

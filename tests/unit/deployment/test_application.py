"""The manifests of the model service: what Kubernetes and the platform ask of them. How they are pushed is tested with the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[3]
sys.path.insert(0, str(PROJECT / "pipelines/epos/src"))

from epos.application import ENVIRONMENTS, Application, render  # noqa: E402
from epos.errors import UsageError  # noqa: E402
from epos.versions import Share  # noqa: E402

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
APPLICATION = Application(
    "registry.example:5000/slipway-epos:0.1.0@sha256:" + "0" * 64,
    "site.example",
    "s3://epos-models/models",
    {"dev": [Share(NEW)], "prod": [Share(OLD, 90), Share(NEW, 10)]},
)


def objects(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(APPLICATION)[f"apps/epos/{path}"]))


def built(environment: str) -> Iterator[dict[str, Any]]:
    """What kustomize makes of an environment, as far as these kustomizations go."""
    (own,) = objects(f"{environment}/kustomization.yaml")
    (base,) = objects("base/kustomization.yaml")
    assert own["resources"][0] == "../base"
    files = [f"base/{name}" for name in base["resources"]] + [f"{environment}/{name}" for name in own["resources"][1:]]
    patch, serving = own["patches"]
    for item in (item for name in files for item in objects(name)):
        if item["kind"] == "Deployment":
            (merged,) = objects(f"{environment}/{patch['path']}")
            assert (merged["kind"], merged["metadata"]["name"]) == ("Deployment", item["metadata"]["name"])
            item["spec"]["replicas"] = merged["spec"]["replicas"]
            assert serving["target"] == {"kind": "Deployment", "name": item["metadata"]["name"]}
            (operations,) = objects(f"{environment}/{serving['path']}")
            for operation in operations:
                assert (operation["op"], operation["path"]) == ("add", "/spec/template/spec/containers/0/args/-")
                item["spec"]["template"]["spec"]["containers"][0]["args"].append(operation["value"])
        yield item


def of_kind(environment: str, kind: str) -> list[dict[str, Any]]:
    return [item for item in built(environment) if item["kind"] == kind]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_file_belongs_to_a_kustomization(environment: str) -> None:
    for folder in ("base", environment):
        (own,) = objects(f"{folder}/kustomization.yaml")
        named = {*own["resources"], *(patch["path"] for patch in own.get("patches", []))} - {"../base"}
        files = {path.rpartition("/")[2] for path in render(APPLICATION) if f"/{folder}/" in path}
        assert files == named | {"kustomization.yaml"}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_service_starts_with_its_versions(environment: str) -> None:
    (deployment,) = of_kind(environment, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == APPLICATION.image
    wanted = [f"--serve={share}" for share in APPLICATION.serve[environment]]
    assert container["args"] == ["listen", "--models=s3://epos-models/models", "--port=8080", *wanted]
    secrets = {item["valueFrom"]["secretKeyRef"]["name"] for item in container["env"] if "valueFrom" in item}
    assert secrets == {"minio-epos-serving"}
    assert deployment["spec"]["replicas"] == ENVIRONMENTS[environment][1]


def test_the_command_line_takes_these_arguments() -> None:
    from epos.cli import build_parser

    (deployment,) = of_kind("prod", "Deployment")
    arguments = build_parser().parse_args(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert [Share.parse(text) for text in arguments.serve] == [Share(OLD, 90), Share(NEW, 10)]
    grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # Of the service: requests that still come, and 30 s for those in flight.
    assert grace >= arguments.drain + 30 + 10


def test_no_pod_leaves_before_another_is_ready() -> None:
    (deployment,) = of_kind("prod", "Deployment")
    assert deployment["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    (budget,) = of_kind("prod", "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1 and "minAvailable" not in budget["spec"]


def test_pods_satisfy_the_level_restricted() -> None:
    (deployment,) = of_kind("dev", "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"} and container["resources"]["limits"]
    assert {volume["name"] for volume in pod["volumes"]} == {"tmp"} and "emptyDir" in pod["volumes"][0]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_all_speak_of_the_same_pods(environment: str) -> None:
    (deployment,) = of_kind(environment, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (service,) = of_kind(environment, "Service")
    chosen = [deployment["spec"]["selector"]["matchLabels"], service["spec"]["selector"]]
    chosen += [item["spec"]["selector"]["matchLabels"] for item in of_kind(environment, "PodDisruptionBudget")]
    chosen += [item["spec"]["podSelector"].get("matchLabels", {}) for item in of_kind(environment, "NetworkPolicy")]
    for selector in chosen:
        assert selector.items() <= labels.items()
    assert service["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    (ingress,) = of_kind(environment, "Ingress")
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == {"dev": "epos-dev.site.example", "prod": "epos.site.example"}[environment]
    assert rule["http"]["paths"][0]["backend"] == {
        "service": {"name": service["metadata"]["name"], "port": {"name": "http"}}
    }
    assert ingress["spec"]["ingressClassName"] == "traefik" and "tls" not in ingress["spec"]


def test_runs_reach_the_service_in_dev_only() -> None:
    callers: dict[str, set[str]] = {}
    for environment in ENVIRONMENTS:
        policies = of_kind(environment, "NetworkPolicy")
        (deny,) = (item for item in policies if item["metadata"]["name"] == "default-deny")
        assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        rules = [rule for item in policies for rule in item["spec"].get("ingress", [])]
        assert all(rule["ports"] == [{"port": 8080, "protocol": "TCP"}] for rule in rules)
        callers[environment] = {
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for rule in rules
            for peer in rule["from"]
        }
    assert callers == {"dev": {"kube-system", "kubeflow-pipelines"}, "prod": {"kube-system"}}


def test_versions_are_needed_for_each_environment() -> None:
    for serve in ({}, {"dev": [Share(NEW)]}, {"dev": [], "prod": [Share(NEW)]}):
        with pytest.raises(UsageError, match="serve: "):
            Application("image", "site.example", "s3://bucket/models", serve)

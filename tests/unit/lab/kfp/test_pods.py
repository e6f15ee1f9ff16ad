"""The pod of a task with all that can be said of it, and the fingerprint of its inputs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.kfp.kfp_server import pods
from tests.lab.kfp.kfp_server.engine import site_of
from tests.unit.lab.kfp.cluster import World, orders


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    """That of site.yaml."""
    world = World()
    world.finish(world.submit("site", secret="chosen", memory="2Gi"))
    return world.cluster.pods_made[0]


@pytest.fixture(scope="module")
def main(pod: dict[str, Any]) -> dict[str, Any]:
    """Its component's container."""
    found: dict[str, Any] = pod["spec"]["containers"][0]
    assert found["name"] == "main"
    return found


def test_who_it_is(pod: dict[str, Any]) -> None:
    """Labels, annotations and the account that real pods have; those of the pipeline beside them."""
    metadata = pod["metadata"]
    assert metadata["labels"]["pipelines.kubeflow.org/v2_component"] == "true"
    assert len(metadata["labels"]["pipeline/runid"]) == 36
    assert metadata["labels"]["team"] == "vision" and metadata["annotations"]["why"] == "because"
    assert metadata["annotations"]["pipelines.kubeflow.org/runtime-role"] == "launcher"
    assert metadata["annotations"]["workflows.argoproj.io/node-name"].endswith("(0).root(0).say(0).executor(0)")
    assert pod["spec"]["serviceAccountName"] == "pipeline-runner"
    assert pod["spec"]["restartPolicy"] == "Never"


def test_what_it_runs(main: dict[str, Any]) -> None:
    """The program first, for the image's entry point does not count; limits are requests as well."""
    assert main["command"] == ["say"] and main["args"] == ["hello", "/tmp/kfp/outputs/said"]
    assert main["imagePullPolicy"] == "IfNotPresent"
    assert main["resources"] == {
        "limits": {"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": "1"},
        "requests": {"cpu": "500m", "memory": "2Gi", "nvidia.com/gpu": "1"},
    }


def test_its_environment(main: dict[str, Any]) -> None:
    """Values, Secrets by a parameter of the pipeline, ConfigMaps, fields of the pod."""
    environment = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in main["env"]}
    assert environment["LEVEL"] == "info"
    assert environment["PASSWORD"] == {"secretKeyRef": {"name": "chosen", "key": "word", "optional": False}}
    assert environment["SETTING"] == {"configMapKeyRef": {"name": "settings", "key": "level", "optional": False}}
    assert environment["NODE"] == {"fieldRef": {"fieldPath": "spec.nodeName"}}
    assert "KFP_RETRY_INDEX" not in environment


def test_its_volumes(pod: dict[str, Any], main: dict[str, Any]) -> None:
    """Folders of the stores for all containers, the pipeline's own volumes for the component only."""
    volumes = {volume.pop("name"): volume for volume in [dict(volume) for volume in pod["spec"]["volumes"]]}
    mounts = {mount["mountPath"]: mount for mount in main["volumeMounts"]}
    assert set(pods.SHARED.values()) <= set(mounts) and volumes["minio-scratch"] == {"emptyDir": {}}
    claim = mounts["/scratch"]["name"]
    assert claim.endswith("-scratch") and mounts["/scratch"]["subPath"] == "a"
    assert volumes[claim] == {"persistentVolumeClaim": {"claimName": claim}}
    assert volumes["keys"] == {"secret": {"secretName": "keys", "optional": True}}
    assert volumes["settings"] == {"configMap": {"name": "settings", "optional": False}}
    assert volumes["shm"] == {"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}}
    template = volumes["work"]["ephemeral"]["volumeClaimTemplate"]
    assert template["spec"] == {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "fast",
    }  # fmt: skip
    ours = {mount["mountPath"] for mount in pod["spec"]["containers"][1]["volumeMounts"]}
    assert ours == set(pods.SHARED.values())


def test_where_it_may_run(pod: dict[str, Any]) -> None:
    """Selectors, tolerations, affinity, time limit."""
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    assert spec["affinity"] == {"nodeAffinity": required}
    assert spec["imagePullSecrets"] == [{"name": "registry"}] and spec["activeDeadlineSeconds"] == 600


def test_what_it_may_do(pod: dict[str, Any], main: dict[str, Any]) -> None:
    """As restricted as the real ones; the pipeline's wishes; ours read files of any user, and no more."""
    assert pod["spec"]["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert main["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        "runAsUser": 1001, "runAsGroup": 1001, "runAsNonRoot": True,
    }  # fmt: skip
    for container in (pod["spec"]["initContainers"][0], pod["spec"]["containers"][1]):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}
        assert container["image"] == "standin:1"


def test_what_ours_are_told(pod: dict[str, Any]) -> None:
    """Outputs, the log, and how the store is reached, without any secret."""
    told = orders(pod)
    assert told["parameters"] == {"said": {"file": "/tmp/kfp/outputs/said", "type": "STRING"}}
    assert list(told["artifacts"]) == ["executor-logs"]
    assert told["session"]["secretName"] == "mlpipeline-minio-artifact"
    assert [entry["name"] for entry in pod["spec"]["initContainers"][0]["env"]] == [
        "KFP_POD_NAME", "KFP_POD_UID", "KFP_TASK",
    ]  # fmt: skip


def test_optional_inputs() -> None:
    """IfPresent by what the run gives."""
    world = World()
    world.finish(world.submit("optional"))
    assert world.command("options") == ["options", "--silent", "--name", "world", "--times", "3"]
    world = World()
    world.finish(world.submit("optional", greeting="hi", mood="good"))
    expected = ["options", "--greeting", "hi", "--mood", "good", "--name", "world", "--times", "3"]
    assert world.command("options") == expected


def test_administrators_count_more(pod: dict[str, Any]) -> None:
    """Whom components run as, by the variables of the API server."""
    site = site_of(
        {
            "V2_LAUNCHER_IMAGE": "io:1",
            "PUBLISH_LOGS": "false",
            "DEFAULT_SECURITY_CONTEXT_RUN_AS_USER": "2000",
            "DEFAULT_SECURITY_CONTEXT_RUN_AS_NON_ROOT": "true",
        }
    )
    assert site == pods.Site("io:1", publish_logs=False, run_as={"runAsUser": 2000, "runAsNonRoot": True})
    world = World(site=site)
    world.finish(world.submit("site"))
    spec = world.cluster.pods_made[0]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        security = container["securityContext"]
        assert security["runAsUser"] == 2000 and security["runAsNonRoot"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
    assert orders(world.cluster.pods_made[0])["artifacts"] == {}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ({}, pods.Outcome("pending")),
        ({"phase": "Running"}, pods.Outcome("running")),
        (
            {"phase": "Pending", "initContainerStatuses": [{"name": "init", "state": {"running": {}}}]},
            pods.Outcome("running"),
        ),
        (
            {
                "phase": "Failed",
                "initContainerStatuses": [
                    {
                        "name": "init",
                        "state": {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such bucket"}},
                    }
                ],
            },
            pods.Outcome("failed", "init: Error (exit code 1): no such bucket"),
        ),
        (
            {"phase": "Failed", "reason": "DeadlineExceeded", "message": "Pod was active longer"},
            pods.Outcome("failed", "DeadlineExceeded: Pod was active longer"),
        ),
        ({"phase": "Failed"}, pods.Outcome("failed", "the pod failed, and its containers do not say why")),
    ],
)
def test_outcomes(status: dict[str, Any], outcome: pods.Outcome) -> None:
    """What a status says."""
    assert pods.outcome({"metadata": {}, "status": status}) == outcome


def test_success_counts_though_the_pod_is_deleted() -> None:
    """What has ended well has ended well."""
    ended = {
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": "Succeeded"},
    }
    assert pods.outcome(ended).state == "succeeded"
    ended["status"] = {"phase": "Failed"}
    assert pods.outcome(ended).state == "running"

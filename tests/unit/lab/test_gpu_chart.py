"""The chart of the GPU operator's stand-in, rendered by the bundle's own helm with values under NVIDIA's keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab import bundle, devices
from tests.lab.cache import Cache
from tests.lab.gpu_operator.agent import Settings
from tests.lab.process import run

IMAGE = {"repository": "localhost/slipway-lab", "image": "gpu-operator", "version": "1"}


@pytest.fixture(scope="module")
def helm() -> Path:
    """The helm command."""
    return bundle.HELM.build(Cache())


def render(helm: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The rendered objects by kind; there is one of each."""
    command: list[str | Path] = [
        helm,
        "template",
        "gpu-operator",
        devices.CHART,
        "--namespace",
        "gpu-operator",
        "--values",
        "-",
    ]
    objects = list(yaml.safe_load_all(run(command, stdin=json.dumps(values)).stdout))
    assert len({item["kind"] for item in objects}) == len(objects)
    return {item["kind"]: item for item in objects}


def pod(objects: dict[str, Any]) -> Any:
    """The DaemonSet's pod."""
    return objects["DaemonSet"]["spec"]["template"]["spec"]


def test_plain(helm: Path) -> None:
    objects = render(helm, {"devicePlugin": IMAGE})
    assert "ConfigMap" not in objects
    assert objects["DaemonSet"]["metadata"]["name"] == "nvidia-device-plugin-daemonset"
    (container,) = pod(objects)["containers"]
    assert container["image"] == "localhost/slipway-lab/gpu-operator:1"
    assert [volume["name"] for volume in pod(objects)["volumes"]] == ["hardware", "device-plugin", "cdi", "toolkit"]
    assert pod(objects)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert objects["Service"]["metadata"]["name"] == "nvidia-dcgm-exporter"
    assert objects["Service"]["spec"]["ports"][0]["port"] == 9400
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert (subject["name"], subject["namespace"]) == (objects["ServiceAccount"]["metadata"]["name"], "gpu-operator")


def test_program_gets_every_setting_it_asks_for(helm: Path) -> None:
    (container,) = pod(render(helm, {"devicePlugin": IMAGE}))["containers"]
    words = dict(word.removeprefix("--").split("=", 1) for word in container["args"])
    assert {name.replace("-", "_") for name in words} == set(Settings.__dataclass_fields__)
    assert (words["default-mig"], words["runtime-class"]) == ("all-disabled", "nvidia")


def test_configurations_of_the_device_plugin(helm: Path) -> None:
    config = {"create": True, "name": "shares", "default": "share-1", "data": {"share-1": "version: v1\n"}}
    objects = render(helm, {"devicePlugin": {**IMAGE, "config": config}})
    assert objects["ConfigMap"]["metadata"]["name"] == "shares"
    assert objects["ConfigMap"]["data"] == {"share-1": "version: v1\n"}
    assert "--default-config=share-1" in pod(objects)["containers"][0]["args"]
    assert {"name": "config", "configMap": {"name": "shares"}} in pod(objects)["volumes"]
    # Other configurations make another pod.
    config["data"] = {"share-1": "version: v1\n", "share-2": "version: v1\n"}
    other = render(helm, {"devicePlugin": {**IMAGE, "config": config}})
    assert other["DaemonSet"]["spec"]["template"]["metadata"] != objects["DaemonSet"]["spec"]["template"]["metadata"]


def test_values_of_the_official_chart(helm: Path) -> None:
    toleration = {"key": "team", "operator": "Exists"}
    objects = render(
        helm,
        {
            "devicePlugin": {**IMAGE, "resources": {"limits": {"memory": "99Mi"}}},
            "daemonsets": {"tolerations": [toleration], "rollingUpdate": {"maxUnavailable": "50%"}},
            "hostPaths": {"kubeletRootDir": "/data/kubelet"},
            "toolkit": {"installDir": "/opt/nvidia", "env": [{"name": "CONTAINERD_SOCKET", "value": "/x"}]},
            "migManager": {"enabled": False},
            "driver": {"enabled": False},
        },
    )
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod(objects)["volumes"]}
    assert paths["device-plugin"] == "/data/kubelet/device-plugins"
    assert paths["toolkit"] == "/opt/nvidia"
    assert pod(objects)["tolerations"] == [toleration]
    assert objects["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == "50%"
    assert pod(objects)["containers"][0]["resources"] == {"limits": {"memory": "99Mi"}}
    assert "--default-mig=" in pod(objects)["containers"][0]["args"]

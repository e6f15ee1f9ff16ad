"""The values that the gpu_operator role gives to the chart: the lab's stand-in and, where a bundle has it, NVIDIA's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

PROJECT = Path(__file__).parents[3]
STANDIN = PROJECT / "tests/lab/charts/gpu-operator"
CACHE = Path(os.environ.get("SLIPWAY_CACHE", Path.home() / ".cache/slipway"))
IMAGES = {
    "gpu_operator": "nvcr.io/nvidia/gpu-operator:v26.7.0",
    "gpu_validator": "nvcr.io/nvidia/gpu-operator:v26.7.0",
    "gpu_device_plugin": "nvcr.io/nvidia/k8s-device-plugin:v0.20.0",
}
PLAY = """
- hosts: k3s_cluster
  gather_facts: false
  connection: local
  become: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    ansible_become: false
    preflight_hardware_root: "HARDWARE/{{ inventory_hostname }}"
  tasks:
    - import_role: {name: gpu_operator, tasks_from: survey}
- hosts: localhost
  gather_facts: false
  tasks:
    # For the role's variables only.
    - import_role: {name: gpu_operator, tasks_from: precheck}
      when: false
    - copy:
        content: "{{ {'values': _gpu_operator_fixed_values | merge_values(gpu_operator_values), 'nodes': _gpu_operator_nodes} | to_json }}"
        dest: DEST
        mode: "0600"
"""


def bundles() -> list[Path]:
    """Every bundle on this machine: a named one, those of sites, those in the cache."""
    named = [Path(os.environ["BUNDLE"])] if os.environ.get("BUNDLE") else []
    found = [*named, *(PROJECT / ".slipway").glob("*/bundle"), CACHE / "upstream", *CACHE.glob("bundle/*")]
    return [path for path in found if (path / "bundle.yml").is_file()]


def helm() -> str:
    """The helm of a bundle or the lab's build of it; skips aloud where there is none."""
    programs = [*(path / "bin/helm" for path in bundles()), *sorted(CACHE.glob("program/helm-*"))]
    found = [str(path) for path in programs if path.is_file() and os.access(path, os.X_OK)]
    return found[0] if found else pytest.skip("no helm on this machine: make bundle brings one")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVIDIA's chart, unpacked from a bundle; only that one brings the kind ClusterPolicy."""
    for archive in [path for bundle in bundles() for path in bundle.glob("charts/gpu-operator-*.tgz")]:
        with tarfile.open(archive) as tar:
            if "gpu-operator/crds/nvidia.com_clusterpolicies.yaml" in tar.getnames():
                folder = tmp_path_factory.mktemp("chart")
                tar.extractall(folder, filter="data")
                return folder / "gpu-operator"
    pytest.skip("no bundle on this machine has NVIDIA's chart: SOURCE=upstream make bundle, or BUNDLE=<directory>")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The role's values for the example site, and its nodes; gpu-a has a driver of its own."""
    folder = tmp_path_factory.mktemp("values")
    program = folder / "hardware/gpu-a/usr/bin/nvidia-smi"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    play = folder / "play.yml"
    play.write_text(PLAY.replace("DEST", str(folder / "out.json")).replace("HARDWARE", str(folder / "hardware")))
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "ansible",
            "playbook",
            "-i",
            str(PROJECT / "inventories/example"),
            str(play),
            "-e",
            json.dumps({"slipway_bundle": {"images": IMAGES}, "ansible_user": "", "ansible_become": False}),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    out: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return out


def keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of the leaves of `values`; what is below devicePlugin.config.data is the user's, not the chart's."""
    found = set()
    for key, value in values.items():
        name = f"{prefix}{key}"
        deeper = isinstance(value, dict) and value and name != "devicePlugin.config.data"
        found |= keys(value, f"{name}.") if deeper else {name}
    return found


def missing(names: set[str], chart: dict[str, Any], optional: set[str]) -> list[str]:
    """Those of `names` that the values of a chart do not have."""

    def has(name: str) -> bool:
        here: Any = chart
        for part in name.split("."):
            if not isinstance(here, dict) or part not in here:
                return False
            here = here[part]
        return True

    return sorted(name for name in names - optional if not has(name))


def template(chart: Path, values: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The objects that `helm template` makes; it must say nothing on the side."""
    (folder / "values.json").write_text(json.dumps(values))
    command = [
        helm(),
        "template",
        "gpu-operator",
        str(chart),
        "--namespace",
        "gpu-operator",
        "--kube-version",
        "1.35.0",
    ]
    command += ["--values", str(folder / "values.json")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    return [item for item in yaml.safe_load_all(answer.stdout) if item]


def test_each_node_is_declared(rendered: dict[str, Any]) -> None:
    """Declarations of hosts, defaults where there are none, and the driver as it was found."""
    none = {"gpus": 0, "share": 1, "mig": "", "taint": False, "driver": "auto"}
    nodes = {item.pop("name"): item for item in json.loads(json.dumps(rendered["nodes"]))}
    assert nodes == {
        **dict.fromkeys(("server-a", "server-b", "server-c"), none),
        "gpu-a": {**none, "gpus": 2, "share": 4, "driver": "host"},
        "gpu-b": {**none, "gpus": 4, "mig": "all-1g.10gb", "taint": True, "driver": "operator"},
        "gpu-c": {**none, "gpus": 1, "driver": "operator"},
    }


def test_values(rendered: dict[str, Any]) -> None:
    """What k3s needs, the images of the bundle, a driver where a node wants one, and the user's values over ours."""
    values = rendered["values"]
    containerd = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
    assert {item["name"]: item["value"] for item in values["toolkit"]["env"]} == {
        "CONTAINERD_SOCKET": "/run/k3s/containerd/containerd.sock",
        "CONTAINERD_CONFIG": containerd,
        "RUNTIME_CONFIG_SOURCE": f"file={containerd}",
        "RUNTIME_DROP_IN_CONFIG": "/run/nvidia/containerd/99-nvidia.toml",
    }
    assert values["operator"] == {"repository": "nvcr.io/nvidia", "image": "gpu-operator", "version": "v26.7.0"}
    assert values["devicePlugin"]["image"] == "k8s-device-plugin"
    assert values["driver"] == {"enabled": True, "upgradePolicy": {"autoUpgrade": False}}
    config = values["devicePlugin"]["config"]
    assert set(config["data"]) == {f"share-{number}" for number in range(1, 9)}
    assert config["default"] == "share-1"
    assert yaml.safe_load(config["data"]["share-1"]) == {"version": "v1"}
    shared = yaml.safe_load(config["data"]["share-4"])
    assert shared["sharing"]["timeSlicing"]["resources"] == [{"name": "nvidia.com/gpu", "replicas": 4}]


def test_the_stand_in_has_every_key(rendered: dict[str, Any]) -> None:
    """A key that the stand-in's chart did not have would prove nothing in the lab."""
    chart = yaml.safe_load((STANDIN / "values.yaml").read_text())
    # The user's own, over ours.
    assert missing(keys(rendered["values"]), chart, {"driver.upgradePolicy.autoUpgrade"}) == []


def test_the_stand_in_renders(rendered: dict[str, Any], tmp_path: Path) -> None:
    """The device plugin, its configurations, and the tolerations of GPU nodes."""
    objects = {
        (item["kind"], item["metadata"]["name"]): item for item in template(STANDIN, rendered["values"], tmp_path)
    }
    assert "share-4" in objects["ConfigMap", "slipway-sharing"]["data"]
    plugin = objects["DaemonSet", "nvidia-device-plugin-daemonset"]["spec"]["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in plugin["tolerations"]


def test_the_official_chart_has_every_key(rendered: dict[str, Any], official: Path) -> None:
    """Helm takes a misspelt key without a word. The version of operator and validator is the chart's own unless given."""
    chart = yaml.safe_load((official / "values.yaml").read_text())
    assert missing(keys(rendered["values"]), chart, {"operator.version", "validator.version"}) == []


def test_the_official_chart_renders(rendered: dict[str, Any], official: Path, tmp_path: Path) -> None:
    """Our values arrive in the ClusterPolicy and the operator's Deployment."""
    objects = {
        (item["kind"], item["metadata"]["name"]): item for item in template(official, rendered["values"], tmp_path)
    }
    kind = yaml.safe_load((official / "crds/nvidia.com_clusterpolicies.yaml").read_text())
    schema = kind["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator(schema).validate(objects["ClusterPolicy", "cluster-policy"])
    policy = objects["ClusterPolicy", "cluster-policy"]["spec"]
    assert policy["toolkit"]["env"] == rendered["values"]["toolkit"]["env"]
    assert policy["driver"]["enabled"] is True
    assert policy["cdi"]["enabled"] is True
    assert policy["migManager"]["config"] == {"default": ""}
    assert policy["devicePlugin"]["config"] == {"name": "slipway-sharing", "default": "share-1"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in policy["daemonsets"][
        "tolerations"
    ]
    assert set(objects["ConfigMap", "slipway-sharing"]["data"]) == {f"share-{number}" for number in range(1, 9)}
    container = objects["Deployment", "gpu-operator"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == IMAGES["gpu_operator"]


def test_the_release_carries_the_official_charts_images(official: Path) -> None:
    """The images in the release are those that the chart of that version asks for."""
    release = yaml.safe_load((PROJECT / "playbooks/group_vars/all/release.yml").read_text())["slipway_release"]
    ours = {
        item["image"] for item in release["artifacts"] if item.get("component") == "gpu_operator" and "image" in item
    }
    values = yaml.safe_load((official / "values.yaml").read_text())
    parts = [values[name] for name in ("devicePlugin", "gfd", "toolkit", "dcgmExporter", "migManager")]
    wanted = {
        f"{part['repository']}/{part['image']}:{part['version']}" for part in [*parts, values["driver"]["manager"]]
    }
    assert ours == wanted
    discovery = yaml.safe_load((official / "charts/node-feature-discovery/Chart.yaml").read_text())["appVersion"]
    driver = values["driver"]
    assert {item["image"] for item in release["unpinned"] if item["component"] == "gpu_operator"} == {
        release["images"]["gpu_operator"],
        f"registry.k8s.io/nfd/node-feature-discovery:{discovery}",
        f"{driver['repository']}/{driver['image']}:{driver['version']}",
    }

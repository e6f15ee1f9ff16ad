"""GPUs of the inventory on a cluster that has the GPU operator and no other component."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.contract.conftest import wait_for

from .conftest import BARE, STATE, Site

pytestmark = pytest.mark.timeout(1200)

RESOURCE = "nvidia.com/gpu"
ONLY_GPUS = ("-e", json.dumps({"slipway_components": ["gpu_operator"]}))
# What each node offers by the lab's inventory.
DECLARED: dict[str, tuple[int, list[str]]] = {"server-1": (2, []), "agent-1": (2, [])}
UNINSTALL = (*ONLY_GPUS, "-e", "uninstall_component=gpu_operator")
CONFIRMED = (*UNINSTALL, "-e", "uninstall_confirm=lab")


@pytest.fixture(scope="module")
def gpu_site(cluster: Site) -> Iterator[Site]:
    """The cluster with the operator, which goes again with these tests."""
    # Images come with the nodes' part.
    for name in ("cluster", "platform"):
        run = cluster.playbook(name, *ONLY_GPUS)
        assert run.status == 0, run.output[-6000:]
    yield cluster
    for name, words in (("uninstall", CONFIRMED), ("cluster", BARE)):
        run = cluster.playbook(name, *words)
        assert run.status == 0, run.output[-4000:]


def gpu_nodes(site: Site) -> dict[str, tuple[int, list[str]]]:
    """Return what each node offers: GPUs, and the keys of its taints."""
    return {
        node["metadata"]["name"]: (
            int(node["status"]["allocatable"].get(RESOURCE, 0)),
            [taint["key"] for taint in node["spec"].get("taints", [])],
        )
        for node in site.kubectl("get", "nodes")["items"]
    }


def pause_pod(site: Site, name: str, gpus: int) -> None:
    """Start a pod that does nothing, without tolerations or runtime class."""
    images = yaml.safe_load((STATE / "bundle/bundle.yml").read_text())["images"]
    container = {"name": "main", "image": images["gpu_validator"], "command": ["sleep", "900"]}
    limits = {"resources": {"limits": {RESOURCE: gpus}}} if gpus else {}
    site.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [{**container, **limits}]},
        }
    )


def test_contract(gpu_site: Site) -> None:
    """The stand-in is what the playbooks take it for."""
    words = ("-m", "pytest", "-p", "no:cacheprovider", "--durations=15", "tests/contract/test_gpu_standin.py")
    run = gpu_site.run(sys.executable, *words)
    print(run.output[-8000:])
    assert run.status == 0, run.output[-8000:]


def test_gpu_declarations_are_followed(gpu_site: Site) -> None:
    """Sharing and taints follow the inventory and go with it; on tainted nodes pods that ask for a GPU run and others wait."""
    assert gpu_nodes(gpu_site) == DECLARED
    changed = ("-e", '{"gpu_operator_share": 3, "gpu_operator_taint": true}')
    run = gpu_site.playbook("platform", *ONLY_GPUS, *changed)
    assert run.status == 0, run.output[-4000:]
    assert gpu_nodes(gpu_site) == {"server-1": (3, [RESOURCE]), "agent-1": (6, [RESOURCE])}
    assert set(gpu_site.playbook("platform", *ONLY_GPUS, *changed).changed().values()) == {0}

    pause_pod(gpu_site, "test-with-gpu", 1)
    pause_pod(gpu_site, "test-without-gpu", 0)
    words = [*gpu_site.kubectl_words(), "wait", "--timeout=60s"]
    subprocess.run([*words, "--for=condition=Ready", "pod/test-with-gpu"], check=True, capture_output=True)
    refused = gpu_site.kubectl("get", "pod", "test-without-gpu")["status"]
    assert refused["phase"] == "Pending"
    assert "untolerated taint" in refused["conditions"][0]["message"]
    subprocess.run([*gpu_site.kubectl_words(), "delete", "pod", "test-with-gpu", "test-without-gpu"], check=True)

    assert gpu_site.playbook("platform", *ONLY_GPUS).status == 0
    assert gpu_nodes(gpu_site) == DECLARED


def test_missing_and_broken_gpus_are_named(gpu_site: Site) -> None:
    """More GPUs declared than there are, or one that fails: the run ends with node, numbers and next step."""
    run = gpu_site.playbook("preflight", *ONLY_GPUS, "-e", "gpu_operator_gpus=4")
    assert run.status != 0
    assert "gpu_operator_gpus" in run.output

    gpu_site.lab("fault", "--site", "lab", "agent-1", "break-gpu", "1", "--reason", "fell off the bus")
    try:
        # The device plugin looks from time to time.
        wait_for("the loss of a GPU", lambda: gpu_nodes(gpu_site)["agent-1"][0] == 1)
        run = gpu_site.playbook("platform", *ONLY_GPUS, "-e", "slipway_ready_timeout=15")
        assert run.status != 0
        assert "agent-1: 2 GPUs" in run.output
        assert "1 more are not healthy" in run.output
        assert "Next: " in run.output
    finally:
        gpu_site.lab("fault", "--site", "lab", "agent-1", "mend-gpu", "1")
    assert set(gpu_site.playbook("platform", *ONLY_GPUS).changed().values()) == {0}


def test_gpu_operator_comes_off_and_back(gpu_site: Site) -> None:
    """uninstall.yml asks first, takes everything off cluster and nodes, changes nothing the second time; installing again works."""
    refusal = gpu_site.playbook("uninstall", *UNINSTALL)
    assert refusal.status != 0
    assert "uninstall_confirm=lab" in refusal.output

    run = gpu_site.playbook("uninstall", *CONFIRMED)
    assert run.status == 0, run.output[-4000:]
    for node in gpu_site.kubectl("get", "nodes")["items"]:
        marks = [*node["metadata"]["labels"], *node["metadata"]["annotations"]]
        assert not [mark for mark in marks if "nvidia" in mark or "slipway" in mark]
    assert gpu_nodes(gpu_site) == dict.fromkeys(DECLARED, (0, []))
    classes = {
        item["metadata"]["name"]: item["metadata"] for item in gpu_site.kubectl("get", "runtimeclasses")["items"]
    }
    assert "nvidia-legacy" not in classes
    assert "ownerReferences" not in classes["nvidia"]
    assert not gpu_site.kubectl("get", "resourcequota", "-A")["items"]
    assert "gpu-operator" not in [item["metadata"]["name"] for item in gpu_site.kubectl("get", "namespaces")["items"]]
    for node in gpu_site.nodes:
        assert gpu_site.ssh(node, "ls -d /usr/local/nvidia /run/nvidia /run/cdi /etc/cdi 2>/dev/null || true") == "", (
            node
        )
    again = gpu_site.playbook("uninstall", *CONFIRMED)
    assert set(again.changed().values()) == {0}, again.changed_tasks()

    run = gpu_site.playbook("platform", *ONLY_GPUS)
    assert run.status == 0, run.output[-4000:]
    assert gpu_nodes(gpu_site) == DECLARED

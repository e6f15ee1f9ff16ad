"""The lab's stand-in for the GPU operator on an installed site: what the real kubelet, scheduler and containers make of it.

It is held to what the device plugin API, NVIDIA's device plugin, GPU feature discovery, MIG manager and DCGM exporter document
(tests/lab/README.md). Sites without simulated GPUs are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.conftest import DATA, Kubectl, Node, wait_for
from tests.lab import hardware

NAMESPACE = "gpu-operator"
DAEMONSET = "nvidia-device-plugin-daemonset"
RESOURCE = "nvidia.com/gpu"
SHARING, MIG, MIG_STATE = "nvidia.com/device-plugin.config", "nvidia.com/mig.config", "nvidia.com/mig.config.state"


@pytest.fixture(scope="module")
def gpus(nodes: list[Node], kubectl: Kubectl) -> dict[str, int]:
    """How many simulated GPUs each node has that has any."""
    if not kubectl(f"get daemonset {DAEMONSET} -n {NAMESPACE} --ignore-not-found -o name").strip():
        pytest.skip("the GPU operator's stand-in is not installed")
    command = f"ls {hardware.ROOT}/proc/driver/nvidia/gpus 2>/dev/null | wc -l"
    counts = {node.name: int(node.run(command)) for node in nodes}
    found = {name: count for name, count in counts.items() if count}
    if not found:
        pytest.skip("no node of this site has simulated GPUs")
    return found


@pytest.fixture
def gpu_node(nodes: list[Node], gpus: dict[str, int]) -> Node:
    """The node with the most GPUs."""
    return max((node for node in nodes if node.name in gpus), key=lambda node: gpus[node.name])


@pytest.fixture
def labels(kubectl: Kubectl, gpu_node: Node, node_names: dict[str, str]) -> Iterator[None]:
    """Put the labels that a test sets on the GPU node back as they were."""
    name = node_names[gpu_node.name]
    before = look(kubectl, name)["metadata"]["labels"]
    yield
    words = [f"{key}={before[key]}" if key in before else f"{key}-" for key in (SHARING, MIG)]
    kubectl(f"label node {name} --overwrite {' '.join(words)}")
    wait_for("the GPUs as before", lambda: amounts(kubectl, name) == (counted(before), counted(before)))


@pytest.fixture
def pods(kubectl: Kubectl) -> Iterator[list[str]]:
    """Names of pods that are removed afterwards."""
    names: list[str] = []
    yield names
    if names:
        kubectl(f"delete pod {' '.join(names)} --now --ignore-not-found")


def look(kubectl: Kubectl, name: str) -> Any:
    """A Node of the API."""
    return json.loads(kubectl(f"get node {name} -o json"))


def amounts(kubectl: Kubectl, name: str) -> tuple[int, int]:
    """Capacity and allocatable GPUs of a node."""
    status = look(kubectl, name)["status"]
    return int(status["capacity"].get(RESOURCE, 0)), int(status["allocatable"].get(RESOURCE, 0))


def counted(labels: dict[str, str]) -> int:
    """The number of devices that a node's labels speak of."""
    return int(labels["nvidia.com/gpu.count"]) * int(labels["nvidia.com/gpu.replicas"])


def start(kubectl: Kubectl, name: str, node: str, image: str, gpus: int, **spec: Any) -> None:
    """Start a pod on a node that asks for GPUs, lists them, checks them, and then waits."""
    script = "nvidia-smi -L; vectorAdd; echo end; exec sleep 600"
    container = {
        "name": "main", "image": image, "command": ["/bin/sh", "-c", script], "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": {RESOURCE: gpus}},
    }  # fmt: skip
    spec |= {"containers": [container], "nodeSelector": {"kubernetes.io/hostname": node}, "restartPolicy": "Never"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"}, "spec": spec}
    kubectl("apply -f -", json.dumps(pod))


def printed(kubectl: Kubectl, name: str) -> str:
    """What such a pod has printed once it waits."""
    wait_for(
        f"pod {name} runs",
        lambda: kubectl(f"get pod {name} -o jsonpath={{.status.phase}}") == "Running",
        timeout=120,
    )
    log: str = wait_for(f"log of {name}", lambda: (text := kubectl(f"logs {name}")).rstrip().endswith("end") and text)
    return log


def metrics(kubectl: Kubectl, node: Node, name: str) -> str:
    """The metrics of the stand-in's pod on a node."""
    selector = f"-l app={DAEMONSET} --field-selector spec.nodeName={name}"
    address = kubectl(f"get pod -n {NAMESPACE} {selector} -o jsonpath={{.items[0].status.podIP}}")
    return node.run(f"curl -sf http://{address}:9400/metrics")


def test_every_gpu_is_offered_and_described(kubectl: Kubectl, gpus: dict[str, int], node_names: dict[str, str]) -> None:
    """Capacity is GPUs times shares; GPU feature discovery's labels say the same."""
    for node, count in gpus.items():
        found = look(kubectl, node_names[node])["metadata"]["labels"]
        assert found["nvidia.com/gpu.present"] == "true"
        assert found["nvidia.com/gpu.product"].startswith("Simulated-GPU")
        if found.get(MIG, "all-disabled") == "all-disabled":
            assert int(found["nvidia.com/gpu.count"]) == count
        assert amounts(kubectl, node_names[node]) == (counted(found), counted(found)), node


def test_metrics_name_every_gpu(
    kubectl: Kubectl, nodes: list[Node], gpus: dict[str, int], node_names: dict[str, str]
) -> None:
    """The exporter on each node has a line for each of its GPUs, with the labels of DCGM exporter."""
    for node in nodes:
        if node.name in gpus:
            text = metrics(kubectl, node, node_names[node.name])
            for index in range(gpus[node.name]):
                uuid = hardware.gpu_uuid(node.name, index)
                assert f'DCGM_FI_DEV_GPU_UTIL{{gpu="{index}",UUID="{uuid}"' in text
    assert kubectl(f"get service nvidia-dcgm-exporter -n {NAMESPACE} -o jsonpath={{.spec.ports[0].port}}") == "9400"


@pytest.mark.usefixtures("gpus")
def test_runtime_classes_belong_to_the_release(kubectl: Kubectl) -> None:
    """As the operator does, the stand-in takes RuntimeClasses over that k3s has made: they go with it."""
    for name in ("nvidia", "nvidia-cdi", "nvidia-legacy"):
        found = json.loads(kubectl(f"get runtimeclass {name} -o json"))
        (owner,) = found["metadata"]["ownerReferences"]
        assert (found["handler"], owner["kind"], owner["name"]) == (name, "ClusterRole", "nvidia-device-plugin")


def test_pods_get_a_gpu_of_their_own(
    kubectl: Kubectl, gpu_node: Node, gpus: dict[str, int], node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """No runtime class, no toleration: a pod says how many GPUs it wants and sees just those; the check passes."""
    name = node_names[gpu_node.name]
    if amounts(kubectl, name)[0] != gpus[gpu_node.name]:
        pytest.skip("the GPUs of this node are shared or split")
    for number in range(gpus[gpu_node.name]):
        pods.append(f"contract-gpu-{number}")
        start(kubectl, pods[-1], name, busybox, 1)
    seen = set()
    for pod in pods:
        log = printed(kubectl, pod)
        assert log.count("GPU 0: ") == 1 and "GPU 1: " not in log
        assert "Test PASSED" in log
        seen.add(log.partition("UUID: ")[2].partition(")")[0])
    assert seen == {hardware.gpu_uuid(gpu_node.name, index) for index in range(gpus[gpu_node.name])}


def test_pod_waits_visibly_when_there_are_too_few(
    kubectl: Kubectl, gpu_node: Node, node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """The scheduler says what is missing."""
    name = node_names[gpu_node.name]
    pods.append("contract-gpu-many")
    start(kubectl, pods[0], name, busybox, amounts(kubectl, name)[0] + 1)
    path = "{.status.conditions[?(@.type=='PodScheduled')].message}"
    wait_for(
        "the scheduler's message",
        lambda: f"Insufficient {RESOURCE}" in kubectl(f'get pod {pods[0]} -o jsonpath="{path}"'),
        timeout=30,
    )


@pytest.mark.fault
@pytest.mark.usefixtures("labels")
def test_gpus_are_shared_when_the_label_says_so(
    kubectl: Kubectl, gpu_node: Node, gpus: dict[str, int], node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """The label names a configuration of the device plugin; two pods then have the same GPU."""
    name, count = node_names[gpu_node.name], gpus[gpu_node.name]
    kubectl(f"label node {name} --overwrite {SHARING}=share-2")
    wait_for("two shares of each GPU", lambda: amounts(kubectl, name) == (2 * count, 2 * count))
    wait_for("its labels", lambda: look(kubectl, name)["metadata"]["labels"]["nvidia.com/gpu.replicas"] == "2")
    assert look(kubectl, name)["metadata"]["labels"]["nvidia.com/gpu.product"] == "Simulated-GPU-SHARED"
    seen = []
    for number in range(2 * count):
        pods.append(f"contract-share-{number}")
        start(kubectl, pods[-1], name, busybox, 1)
    for pod in pods:
        seen.append(printed(kubectl, pod).partition("UUID: ")[2].partition(")")[0])
    assert sorted(seen) == sorted(2 * [hardware.gpu_uuid(gpu_node.name, index) for index in range(count)])
    kubectl(f"delete pod {' '.join(pods)} --now")


@pytest.mark.fault
@pytest.mark.usefixtures("labels")
def test_gpus_are_split_when_the_label_says_so(
    kubectl: Kubectl, gpu_node: Node, gpus: dict[str, int], node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """A MIG profile: the parts have the name of GPUs (strategy single); a profile that does not exist fails."""
    name = node_names[gpu_node.name]
    kubectl(f"label node {name} --overwrite {MIG_STATE}- {MIG}=all-3g.40gb")
    wait_for("parts", lambda: amounts(kubectl, name) == (2 * gpus[gpu_node.name], 2 * gpus[gpu_node.name]))
    wait_for("success", lambda: look(kubectl, name)["metadata"]["labels"].get(MIG_STATE) == "success")
    pods.append("contract-mig")
    start(kubectl, pods[0], name, busybox, 1)
    log = printed(kubectl, pods[0])
    assert "MIG Device 0" in log and "Test PASSED" in log
    kubectl(f"delete pod {pods[0]} --now")
    kubectl(f"label node {name} --overwrite {MIG_STATE}- {MIG}=all-nonsense")
    wait_for("failure", lambda: look(kubectl, name)["metadata"]["labels"].get(MIG_STATE) == "failed")


@pytest.mark.fault
def test_broken_gpu_is_not_given_away(
    kubectl: Kubectl, gpu_node: Node, node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """It stays in the capacity and leaves what is allocatable; metrics and whoever still has it see the fault."""
    name = node_names[gpu_node.name]
    capacity, allocatable = amounts(kubectl, name)
    pods.append("contract-broken")
    start(kubectl, pods[0], name, busybox, capacity)
    assert "Test PASSED" in printed(kubectl, pods[0])
    file = f"{hardware.ROOT}/{hardware.FAULTS}/{hardware.gpu_uuid(gpu_node.name, 0)}"
    gpu_node.write(file, "contract test\n", "644")
    try:
        wait_for("fewer GPUs", lambda: amounts(kubectl, name)[1] < allocatable, timeout=30)
        assert amounts(kubectl, name)[0] == capacity
        assert "DCGM_FI_DEV_XID_ERRORS" in metrics(kubectl, gpu_node, name)
        assert "} 79" in metrics(kubectl, gpu_node, name)
        checked = kubectl(f"exec {pods[0]} -- /bin/sh -c 'vectorAdd || true'")
        assert "Test FAILED" in checked and "contract test" in checked
    finally:
        gpu_node.run(f"rm -f {file}")
    wait_for("all GPUs again", lambda: amounts(kubectl, name) == (capacity, allocatable), timeout=30)


@pytest.mark.fault
def test_restarted_kubelet_has_the_gpus_again(
    kubectl: Kubectl, agent: Node, gpus: dict[str, int], node_names: dict[str, str], busybox: str, pods: list[str]
) -> None:
    """A kubelet forgets its plugins; pods keep their GPUs. k3s now finds the toolkit, so RuntimeClass nvidia works too."""
    if agent.name not in gpus:
        pytest.skip("the agent has no GPUs")
    name = node_names[agent.name]
    before = amounts(kubectl, name)
    pods.append("contract-restart")
    start(kubectl, pods[0], name, busybox, 1)
    printed(kubectl, pods[0])
    agent.run("systemctl restart k3s-agent", timeout=120)
    # The API shows the amounts from before for a while, and a pod that comes too early is refused for good.
    sockets = "cd /var/lib/kubelet/device-plugins && test nvidia-gpu.sock -nt kubelet.sock"
    wait_for("registration", lambda: agent.try_run(sockets).rc == 0, timeout=90)
    wait_for("the GPUs", lambda: amounts(kubectl, name) == before, timeout=90)
    assert "Test PASSED" in kubectl(f"exec {pods[0]} -- vectorAdd")
    assert "/usr/local/nvidia/toolkit" in agent.run(f"cat {DATA}/agent/etc/containerd/config.toml")
    kubectl(f"delete pod {pods[0]} --now")
    pods.append("contract-runtime")
    start(kubectl, pods[1], name, busybox, 1, runtimeClassName="nvidia")
    assert "Test PASSED" in printed(kubectl, pods[1])

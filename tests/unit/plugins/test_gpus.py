"""GPU nodes: declarations, the labels and taint that say so, the wait for GPUs, and what is taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway import gpu_probe, gpus
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.gpus import (
    DRIVER,
    MIG,
    MIG_STATE,
    OURS,
    RESOURCE,
    SHARING,
    TAINT,
    Declared,
    apply,
    await_nodes,
    declare,
    evidence,
    plan_absent,
    plan_present,
    plan_whole,
    unready,
    users,
)
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.workloads import NODES

from modules import gpu_host, gpu_nodes
from tests.lab import hardware

from .conftest import PLUGINS
from .fakes import Clock, FakeKube, run_module
from .test_probe import put


class Nodes(FakeKube):
    """A FakeKube whose list of nodes is made of its Node objects; `conflicts` writes are refused first."""

    def __init__(self, *nodes: Json) -> None:
        super().__init__({f"{NODES}/{node['metadata']['name']}": node for node in nodes})
        self.conflicts = 0

    def get(self, path: str, **query: str) -> Json | None:
        if path == NODES:
            return {"items": [self.node(key.rpartition("/")[2]) for key in self.objects if key.startswith(NODES + "/")]}
        return super().get(path, **query)

    def merge_patch(self, path: str, body: Json) -> Json:
        if self.conflicts:
            self.conflicts -= 1
            raise KubeError("changed", 409)
        return super().merge_patch(path, body)

    def node(self, name: str) -> Json:
        found = super().get(f"{NODES}/{name}")
        assert found is not None
        return found


def make(name: str = "a", offered: int = 0, capacity: int | None = None, **labels: str) -> Json:
    """A Ready node that offers GPUs; the names of labels are this module's constants."""
    keys = {"SHARING": SHARING, "MIG": MIG, "STATE": MIG_STATE, "DRIVER": DRIVER}
    return {
        "metadata": {
            "name": name,
            "resourceVersion": "1",
            "labels": {"kubernetes.io/os": "linux"} | {keys.get(key, key): value for key, value in labels.items()},
        },
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "capacity": {RESOURCE: str(offered if capacity is None else capacity)},
            "allocatable": {RESOURCE: str(offered)},
        },
    }


def labels(node: Json) -> dict[str, str]:
    return {key: value for key, value in node["metadata"]["labels"].items() if key.startswith("nvidia.com/")}


# Declarations


@pytest.mark.parametrize(
    ("declared", "fault"),
    [
        (Declared(gpus=-1), "less than 0"),
        (Declared(gpus=1, share=0), "less than 1"),
        (Declared(gpus=1, driver="mine"), "not one of auto, host, operator"),
        (Declared(gpus=1, share=2, mig="all-1g.10gb"), "take one of the two"),
        (Declared(gpus=1, mig="all 1g"), "no name of a MIG profile"),
        (Declared(share=2), "gpu_operator_share without GPUs"),
        (Declared(mig="all-disabled", taint=True), "gpu_operator_mig, gpu_operator_taint without GPUs"),
    ],
)
def test_what_cannot_be_is_said(declared: Declared, fault: str) -> None:
    (found,) = declared.faults()
    assert fault in found


def test_what_can_be() -> None:
    good = [
        Declared(),
        Declared(driver="host"),
        Declared(2, 4, "", True, "operator"),
        Declared(2, mig="all-1g.10gb"),
        Declared(2, 4, "all-disabled"),
    ]
    assert [item.faults() for item in good] == [[]] * len(good)


def test_the_defaults_are_the_roles() -> None:
    defaults = yaml.safe_load((PLUGINS.parent / "roles/gpu_operator/defaults/main.yml").read_text())
    assert {f"gpu_operator_{name}": value for name, value in asdict(Declared()).items()}.items() <= defaults.items()
    with pytest.raises(SlipwayError):
        declare({"gpus": "many"})


# Labels


def test_a_node_says_what_is_declared_and_forgets_what_is_not() -> None:
    kube = Nodes(make())

    def run(declared: Declared) -> bool:
        return bool(apply(kube, lambda node: plan_present(node, declared), ["a"]))

    full = Declared(2, 4, taint=True, driver="host")
    assert run(full) and not run(full)
    node = kube.node("a")
    assert labels(node) == {SHARING: "share-4", DRIVER: "pre-installed"}
    assert node["spec"]["taints"] == [TAINT]
    assert json.loads(node["metadata"]["annotations"][OURS]) == {"labels": labels(node), "taint": True}
    assert run(Declared(2)) and not run(Declared(2))
    node = kube.node("a")
    assert labels(node) == {} and node["spec"]["taints"] == [] and node["metadata"]["annotations"] == {}
    assert node["metadata"]["labels"] == {"kubernetes.io/os": "linux"}


def test_what_somebody_else_has_set_stays() -> None:
    node = make(SHARING="mine", DRIVER="true")
    node["spec"]["taints"] = [dict(TAINT, timeAdded="now"), {"key": "x", "effect": "NoExecute"}]
    assert not plan_present(node, Declared())
    plan = plan_present(node, Declared(1, taint=True))
    assert plan.taints is None and plan.labels == {} and plan.annotations == {}
    node["metadata"]["annotations"] = {OURS: json.dumps({"labels": {SHARING: "share-2"}, "taint": False})}
    plan = plan_present(node, Declared())
    assert plan.taints is None and plan.labels == {} and plan.annotations == {OURS: None}
    node["metadata"]["annotations"] = {OURS: "not ours"}
    assert plan_present(node, Declared()).labels == {}


def test_a_profile_of_ours_is_taken_back_by_switching_mig_off() -> None:
    kube = Nodes(make(STATE="success"))

    def run(declared: Declared) -> dict[str, str]:
        apply(kube, lambda node: plan_present(node, declared), ["a"])
        return labels(kube.node("a"))

    # The state told of the profile before.
    assert run(Declared(1, mig="all-1g.10gb")) == {MIG: "all-1g.10gb"}
    assert run(Declared(1)) == {MIG: "all-disabled"}
    assert run(Declared(1)) == {MIG: "all-disabled"}
    assert not plan_present(make(MIG="all-2g.20gb"), Declared(1))


def test_a_node_that_changes_meanwhile_is_read_again() -> None:
    kube = Nodes(make())
    kube.conflicts = 2
    apply(kube, lambda node: plan_present(node, Declared(1, 2)), ["a"])
    assert labels(kube.node("a")) == {SHARING: "share-2"}
    kube.conflicts = 99
    with pytest.raises(SlipwayError, match="kept changing"):
        apply(kube, lambda node: plan_present(node, Declared(1, 3)), ["a"])


def test_everything_goes_at_the_end() -> None:
    node = make(SHARING="share-2", STATE="success")
    node["metadata"]["annotations"] = {"nvidia.com/gpu-driver-upgrade-enabled": "true", "keep": "me"}
    node["spec"]["taints"] = [TAINT]
    # Not ours: nothing remembers it.
    assert plan_absent(node).taints is None
    node["metadata"]["annotations"][OURS] = json.dumps({"labels": {}, "taint": True})
    kube = Nodes(node, make("b"))
    changes = apply(kube, plan_absent, ["a", "b"])
    assert [change.node for change in changes] == ["a"]
    node = kube.node("a")
    assert labels(node) == {} and node["metadata"]["annotations"] == {"keep": "me"} and node["spec"]["taints"] == []
    assert changes[0].before["labels"][SHARING] == "share-2" and changes[0].after["labels"] == {}


def test_mig_is_switched_off_where_it_is_on() -> None:
    assert not plan_whole(make()) and not plan_whole(make(MIG="all-disabled"))
    assert plan_whole(make(MIG="all-1g.10gb", STATE="success")).labels == {MIG: "all-disabled", MIG_STATE: None}


# Readiness


@pytest.mark.parametrize(
    ("node", "declared", "reason"),
    [
        (make(offered=2), Declared(2), ""),
        (make(offered=8), Declared(2, 4), ""),
        (make(offered=0), Declared(2), "2 GPUs, so 2 nvidia.com/gpu are wanted; it offers 0 nvidia.com/gpu"),
        (make(offered=2), Declared(2, 4), "2 GPUs, each shared by 4 pods, so 8 nvidia.com/gpu are wanted; it offers 2"),
        (make(offered=3), Declared(2), "it offers 3"),
        (make(offered=1, capacity=2), Declared(2), "it offers 1 nvidia.com/gpu, 1 more are not healthy"),
        (make(offered=7, STATE="success"), Declared(1, mig="all-1g.10gb"), ""),
        (make(offered=0, STATE="success"), Declared(1, mig="all-1g.10gb"), "it offers 0"),
        (make(offered=7, STATE="pending"), Declared(1, mig="all-1g.10gb"), "MIG profile all-1g.10gb: pending"),
        (make(offered=7), Declared(1, mig="all-1g.10gb"), "not reported"),
        (make(offered=1), Declared(1, mig="all-disabled"), ""),
        (None, Declared(1), "it has not joined"),
        ({**make(offered=1), "status": {}}, Declared(1), "not Ready"),
    ],
)
def test_why_a_node_is_not_ready(node: Json | None, declared: Declared, reason: str) -> None:
    found, hopeless = unready(node, declared)
    assert (reason in found and bool(found) == bool(reason)) and not hopeless


def test_a_failed_profile_is_not_waited_for() -> None:
    assert unready(make(offered=1, STATE="failed"), Declared(1, mig="x")) == ("the MIG manager could not apply x", True)


def test_the_wait_ends_when_all_are_ready_or_time_is_up() -> None:
    answers: Iterator[Any] = iter([KubeError("away"), {"a": ("no", False)}, {"a": ("", False)}])
    clock = Clock()

    def look() -> dict[str, tuple[str, bool]]:
        answer = next(answers)
        if isinstance(answer, KubeError):
            raise answer
        found: dict[str, tuple[str, bool]] = answer
        return found

    assert await_nodes(look, 10, 1, clock, clock.sleep) == {}
    assert clock.now == 2
    assert await_nodes(lambda: {"a": ("no", False)}, 3, 1, clock, clock.sleep) == {"a": "no"}
    assert await_nodes(lambda: {"a": ("no", True)}, 99, 1, clock, clock.sleep) == {"a": "no"}
    assert clock.now == 5

    def away() -> dict[str, tuple[str, bool]]:
        raise KubeError("away")

    with pytest.raises(KubeError):
        await_nodes(away, 1, 1, clock, clock.sleep)


def pod(name: str, namespace: str = "gpu-operator", ready: bool = True, **limits: str) -> Json:
    state = {"running": {}} if ready else {"waiting": {"reason": "CrashLoopBackOff"}}
    status = {"name": "main", "ready": ready, "state": state, "restartCount": 0 if ready else 3, "containerID": "x"}
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": "a", "containers": [{"resources": {"limits": {RESOURCE: "1"} if limits else {}}}]},
        "status": {
            "phase": limits.get("phase", "Running"),
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [status],
        },
    }


def test_the_evidence_names_everything() -> None:
    kube = Nodes(make(offered=0, SHARING="share-2"))
    path = "/api/v1/namespaces/gpu-operator/pods"
    kube.objects[path] = {"items": [pod("nvidia-device-plugin-x"), pod("driver-y", ready=False), pod("quiet-z")]}
    kube.logs = {f"{path}/nvidia-device-plugin-x/log": "found no GPU", f"{path}/driver-y/log": "no headers"}
    text = evidence(kube, {"a": "it offers 0", "b": "it has not joined the cluster"}, "kubectl")
    for part in (
        "a: it offers 0",
        f"labels: {SHARING}=share-2",
        "nvidia-device-plugin-x: ready",
        "found no GPU",
        "driver-y: Running: main CrashLoopBackOff",
        "no headers",
        "quiet-z: ready",
        "b: it has not joined the cluster",
        "no pod of gpu-operator runs there",
        "Next: kubectl --namespace gpu-operator describe pod driver-y",
    ):
        assert part in text


def test_who_holds_gpus() -> None:
    kube = Nodes()
    held = [pod("train", "epos", gpu="1"), pod("done", "epos", gpu="1", phase="Succeeded"), pod("plugin", gpu="1")]
    kube.objects["/api/v1/pods"] = {"items": [*held, pod("other", "epos")]}
    assert users(kube) == ["epos/train on a"]


# The module


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Nodes:
    kube = Nodes(make("a"), make("b", offered=1))
    monkeypatch.setattr(gpu_nodes, "KubeClient", lambda _: kube)
    return kube


def run(state: str, *nodes: Json, check: bool = False) -> Json:
    arguments = {"kubeconfig": "k", "state": state, "nodes": list(nodes), "timeout": 0, "interval": 0}
    return run_module(gpu_nodes, arguments, check)


def test_present_is_idempotent_and_predicted(cluster: Nodes) -> None:
    wanted: list[Json] = [{"name": "A", "gpus": 2, "share": 2}, {"name": "b"}]
    predicted = run("present", *wanted, check=True)
    assert (predicted["changed"], predicted["nodes"], cluster.writes) == (True, ["a"], [])
    done = run("present", *wanted)
    assert done["diff"] == predicted["diff"] and done["diff"][0]["after"]["labels"] == {SHARING: "share-2"}
    assert run("present", *wanted)["changed"] is False


def test_present_refuses_everything_that_is_wrong_at_once(cluster: Nodes) -> None:
    answer = run("present", {"name": "a", "share": 2}, {"name": "b", "gpus": 1, "share": 2, "mig": "x"})
    assert answer["failed"] and "a: gpu_operator_share" in answer["msg"] and "b: gpu_operator_mig x" in answer["msg"]
    assert "not in the cluster: c" in run("present", {"name": "c"})["msg"]
    assert cluster.writes == []


def test_ready_fails_with_evidence_and_only_looks_in_check_mode(cluster: Nodes) -> None:
    assert run("ready", {"name": "b", "gpus": 1}, {"name": "a"})["waiting"] == {}
    answer = run("ready", {"name": "a", "gpus": 2}, {"name": "b", "gpus": 1})
    assert answer["failed"] and "a: 2 GPUs, so 2 nvidia.com/gpu are wanted; it offers 0" in answer["msg"]
    assert "b:" not in answer["msg"]
    looked = run("ready", {"name": "a", "gpus": 2, "share": 2}, check=True)
    assert "failed" not in looked and not looked["changed"] and list(looked["waiting"]) == ["a"]


def test_ready_keeps_labels_that_the_operator_takes_off(cluster: Nodes) -> None:
    run("present", {"name": "b", "gpus": 1, "driver": "host"})
    del cluster.objects[f"{NODES}/b"]["metadata"]["labels"][DRIVER]
    answer = run("ready", {"name": "b", "gpus": 1, "driver": "host"})
    assert answer["changed"] and labels(cluster.node("b")) == {DRIVER: "pre-installed"}


def test_whole_refuses_while_pods_hold_gpus_and_waits(cluster: Nodes) -> None:
    cluster.objects[f"{NODES}/a"] = make("a", MIG="all-1g.10gb", STATE="success")
    cluster.objects["/api/v1/pods"] = {"items": [pod("train", "epos", gpu="1")]}
    assert "epos/train on a" in run("whole")["msg"]
    cluster.objects["/api/v1/pods"] = {"items": []}
    assert run("whole", check=True)["nodes"] == ["a"]
    assert "switching MIG off: not reported" in run("whole")["msg"]
    assert run("whole")["changed"] is False


def test_absent_cleans_every_node(cluster: Nodes) -> None:
    run("present", {"name": "a", "gpus": 2, "taint": True})
    assert run("absent")["nodes"] == ["a"]
    assert run("absent")["changed"] is False


# Hosts


def device(root: Path, address: str, vendor: str = "0x10de", kind: str = "0x030200") -> None:
    put(root, f"sys/bus/pci/devices/{address}/vendor", vendor + "\n")
    put(root, f"sys/bus/pci/devices/{address}/class", kind + "\n")


def test_a_host_without_gpus(tmp_path: Path) -> None:
    found = gpu_probe.gpu_probe(tmp_path, "6.1")
    assert found["devices"] == [] and not any(found.values())


def test_a_host_with_a_driver(tmp_path: Path) -> None:
    device(tmp_path, "0000:66:00.0")
    device(tmp_path, "0000:65:00.0", kind="0x030000")
    device(tmp_path, "0000:65:00.1", kind="0x040300")
    device(tmp_path, "0000:01:00.0", vendor="0x8086")
    device(tmp_path, "0000:65:00.4")
    (tmp_path / "sys/bus/pci/devices/0000:65:00.4/physfn").mkdir()
    put(tmp_path, "sys/module/nouveau/version")
    put(tmp_path, gpu_probe._SECURE_BOOT)
    (tmp_path / gpu_probe._SECURE_BOOT).write_bytes(b"\6\0\0\0\1")
    put(tmp_path, "usr/bin/nvidia-smi", "#!/bin/sh\n")
    assert not gpu_probe.has_host_driver(tmp_path)
    (tmp_path / "usr/bin/nvidia-smi").chmod(0o755)
    put(tmp_path, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")
    put(tmp_path, "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.595.91.07")
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.91.07  Release Build  (root@h)  Mon Jan 5\nGCC version: 12.2.0\n"
    put(tmp_path, "proc/driver/nvidia/version", line)
    put(tmp_path, "lib/modules/6.1/updates/dkms/nvidia-current.ko.xz")
    put(tmp_path, "lib/modules/6.1/build/Makefile")
    assert gpu_probe.gpu_probe(tmp_path, "6.1") == {
        "devices": ["0000:65:00.0", "0000:66:00.0"],
        "nouveau": True,
        "secure_boot": True,
        "host_driver": True,
        "libraries": ["595.91.07"],
        "loaded": "595.91.07",
        "module": True,
        "headers": True,
    }
    assert gpu_probe.has_module(tmp_path, "6.2") is gpu_probe.has_headers(tmp_path, "6.2") is False


def test_the_labs_hardware_looks_like_a_host_with_a_driver(tmp_path: Path) -> None:
    hardware.write(tmp_path, "agent-1", 2)
    found = gpu_probe.gpu_probe(tmp_path, "6.1")
    assert (len(found["devices"]), found["host_driver"], found["loaded"]) == (2, True, hardware.DRIVER)
    assert not found["nouveau"] and not found["secure_boot"]
    hardware.write(tmp_path, "agent-1", 0)
    assert not any(gpu_probe.gpu_probe(tmp_path, "6.1").values())


@pytest.mark.parametrize("kind", ["NVIDIA UNIX x86_64 Kernel Module", "NVIDIA UNIX Open Kernel Module for aarch64"])
def test_versions_of_both_kinds_of_module(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "proc/driver/nvidia/version", f"NVRM version: {kind}  580.95  Tue Sep 2 20:00:00 UTC 2026")
    assert gpu_probe.loaded_version(tmp_path) == "580.95"


def test_the_operators_files_go_and_the_hosts_stay(tmp_path: Path) -> None:
    for name in (
        "usr/local/nvidia/toolkit/nvidia-container-runtime",
        "run/nvidia/validations/driver-ready",
        "run/cdi/management.nvidia.com-gpu.yaml",
        "run/cdi/k8s.device-plugin.nvidia.com-gpu.json",
        "run/cdi/nvidia.yaml",
        "usr/bin/nvidia-smi",
    ):
        put(tmp_path, name)
    (tmp_path / "etc/kubernetes/node-feature-discovery/features.d").mkdir(parents=True)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    predicted = gpu_host.remove(tmp_path, check=True)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert set(predicted) <= set(gpu_host.remove(tmp_path, check=False))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"run/cdi/nvidia.yaml", "usr/bin/nvidia-smi"}
    assert not (tmp_path / "usr/local/nvidia").exists() and not (tmp_path / "etc/kubernetes").exists()
    assert gpu_host.remove(tmp_path, check=False) == []


def test_mounts_come_off_from_the_deepest() -> None:
    text = "overlay /run/nvidia/driver overlay rw 0 0\nx /run/nvidia/driver/sys x rw 0 0\ny /run/nvidia-persistenced y rw 0 0\n"
    assert gpu_host.mounts_below("/run/nvidia", text) == ["/run/nvidia/driver/sys", "/run/nvidia/driver"]


def test_a_host_is_surveyed_without_a_change(tmp_path: Path) -> None:
    result = run_module(gpu_host, {"hardware_root": str(tmp_path)})
    assert (result["changed"], result["host_driver"], result["removed"]) == (False, False, [])


def test_the_namespace_is_the_roles() -> None:
    text = (PLUGINS.parent / "roles/gpu_operator/vars/main.yml").read_text()
    assert f"_gpu_operator_namespace: {gpus.NAMESPACE}\n" in text

"""What the GPU operator's stand-in makes of hardware, sharing and MIG profiles: devices, labels, metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import hardware
from tests.lab.gpu_operator.devices import (
    ConfigError,
    Gpu,
    Profile,
    Sharing,
    make_devices,
    make_labels,
    make_metrics,
    read_gpus,
    read_profile,
    read_sharing,
)

GPUS = [Gpu(0, "GPU-a", ""), Gpu(1, "GPU-b", "too hot")]


def test_gpus_are_read_in_the_order_of_their_bus(tmp_path: Path) -> None:
    assert read_gpus(tmp_path) == []
    hardware.write(tmp_path, "a1", 3)
    uuids = [hardware.gpu_uuid("a1", index) for index in range(3)]
    (tmp_path / hardware.FAULTS / uuids[1]).write_text("too hot\n")
    (tmp_path / hardware.FAULTS / uuids[2]).write_text("")
    assert read_gpus(tmp_path) == [Gpu(0, uuids[0], ""), Gpu(1, uuids[1], "too hot"), Gpu(2, uuids[2], "unknown")]


def test_gpu_without_a_uuid_is_reported(tmp_path: Path) -> None:
    hardware.write(tmp_path, "a1", 1)
    file = next(tmp_path.rglob("information"))
    file.write_text("Model: x\n")
    with pytest.raises(ConfigError, match=f"{file}: no GPU UUID"):
        read_gpus(tmp_path)


def test_sharing_is_read_from_the_device_plugins_configuration(tmp_path: Path) -> None:
    (tmp_path / "share-1").write_text("version: v1\n")
    (tmp_path / "share-4").write_text(
        "version: v1\nsharing:\n  timeSlicing:\n    failRequestsGreaterThanOne: true\n"
        "    resources:\n    - {name: nvidia.com/mig-1g.5gb, replicas: 9}\n    - {name: nvidia.com/gpu, replicas: 4}\n"
    )
    assert read_sharing(tmp_path, "") == Sharing(1, False)
    assert read_sharing(tmp_path, "share-1") == Sharing(1, False)
    assert read_sharing(tmp_path, "share-4") == Sharing(4, True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[",
        "text",
        "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu}]}}",
        "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 0}]}}",
        "sharing: {timeSlicing: {renameByDefault: true, resources: [{name: nvidia.com/gpu, replicas: 2}]}}",
        "sharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 2, rename: x}]}}",
    ],
)
def test_unusable_configuration_is_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "share-x").write_text(text)
    with pytest.raises(ConfigError, match="device plugin configuration share-x: "):
        read_sharing(tmp_path, "share-x")


def test_mig_profiles() -> None:
    assert read_profile("") == read_profile("all-disabled") == Profile()
    assert read_profile("all-1g.10gb") == Profile("1g.10gb", 7, 10)
    assert read_profile("all-3g.40gb") == Profile("3g.40gb", 2, 40)
    with pytest.raises(ConfigError, match=r"nvidia\.com/mig\.config=all-balanced"):
        read_profile("all-balanced")


def test_devices_have_the_ids_of_the_real_plugin() -> None:
    assert [(device.id, device.visible, device.healthy) for device in make_devices(GPUS, Sharing(), Profile())] == [
        ("GPU-a", "GPU-a", True),
        ("GPU-b", "GPU-b", False),
    ]
    shared = make_devices(GPUS, Sharing(2), Profile())
    assert [device.id for device in shared] == ["GPU-a::0", "GPU-a::1", "GPU-b::0", "GPU-b::1"]
    assert [device.visible for device in shared] == ["GPU-a", "GPU-a", "GPU-b", "GPU-b"]
    parts = make_devices(GPUS, Sharing(), Profile("3g.40gb", 2, 40))
    assert [(device.id, device.healthy) for device in parts] == [
        ("MIG-a-0", True), ("MIG-a-1", True), ("MIG-b-0", False), ("MIG-b-1", False),
    ]  # fmt: skip


def test_device_ids_are_as_short_as_the_kubelet_wants() -> None:
    gpu = Gpu(0, hardware.gpu_uuid("a1", 0), "")
    devices = make_devices([gpu], Sharing(100), Profile("1g.10gb", 7, 10))
    assert max(len(device.id) for device in devices) <= 63


def test_labels_of_feature_discovery() -> None:
    labels = make_labels(GPUS, Sharing(), Profile())
    assert labels["nvidia.com/gpu.present"] == "true"
    assert (labels["nvidia.com/gpu.count"], labels["nvidia.com/gpu.replicas"]) == ("2", "1")
    assert labels["nvidia.com/gpu.product"] == "Simulated-GPU"
    shared = make_labels(GPUS, Sharing(4), Profile())
    assert (shared["nvidia.com/gpu.count"], shared["nvidia.com/gpu.replicas"]) == ("2", "4")
    assert shared["nvidia.com/gpu.product"] == "Simulated-GPU-SHARED"
    assert shared["nvidia.com/gpu.sharing-strategy"] == "time-slicing"
    parts = make_labels(GPUS, Sharing(), Profile("1g.10gb", 7, 10))
    assert (parts["nvidia.com/gpu.count"], parts["nvidia.com/gpu.memory"]) == ("14", "10240")
    assert parts["nvidia.com/gpu.product"] == "Simulated-GPU-MIG-1g.10gb"
    assert set(make_labels([], Sharing(), Profile()).values()) == {None}


def test_metrics_name_every_gpu() -> None:
    lines = make_metrics(GPUS, "a1").splitlines()
    assert (
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",device="nvidia0",modelName="Simulated GPU",Hostname="a1"} 0' in lines
    )
    assert (
        'DCGM_FI_DEV_XID_ERRORS{gpu="1",UUID="GPU-b",device="nvidia1",modelName="Simulated GPU",Hostname="a1"} 79'
        in lines
    )
    assert len([line for line in lines if not line.startswith("#")]) == 4
    assert "DCGM_FI_DEV_GPU_UTIL{" not in make_metrics([], "a1")

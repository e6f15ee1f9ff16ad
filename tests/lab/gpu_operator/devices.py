"""What a node's simulated GPUs become for Kubernetes: devices, labels and metrics, by sharing and MIG profile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RESOURCE = "nvidia.com/gpu"
CONFIG_LABEL = "nvidia.com/device-plugin.config"
MIG_LABEL = "nvidia.com/mig.config"
MIG_STATE_LABEL = "nvidia.com/mig.config.state"
MIG_DISABLED = "all-disabled"
# An H100 has seven compute slices and 80 GB.
MIG_SLICES = 7
MEMORY_MIB = 81920
# NVIDIA's number of the error "GPU has fallen off the bus".
XID_FALLEN_OFF = 79


class ConfigError(Exception):
    """A configuration that cannot be used; the message names it."""


@dataclass(frozen=True)
class Gpu:
    """A simulated GPU; `fault` says what ails it, empty if nothing."""

    index: int
    uuid: str
    fault: str


@dataclass(frozen=True)
class Sharing:
    """Time-slicing: so many pods per device; `single` refuses a container more than one of them."""

    replicas: int = 1
    single: bool = False


@dataclass(frozen=True)
class Profile:
    """A MIG profile: every GPU in `parts` of `memory_gb`; one part without a name is a whole GPU."""

    name: str = ""
    parts: int = 1
    memory_gb: int = 0


@dataclass(frozen=True)
class Device:
    """A device as the kubelet knows it (`id`), and what a container that gets it sees (`visible`)."""

    id: str
    visible: str
    healthy: bool


def read_gpus(hardware: Path) -> list[Gpu]:
    """The GPUs in a hardware tree, in the order of their bus."""
    found = []
    for index, file in enumerate(sorted(hardware.glob("proc/driver/nvidia/gpus/*/information"))):
        uuid = re.search(r"^GPU UUID:\s*(\S+)", file.read_text(), re.MULTILINE)
        if uuid is None:
            raise ConfigError(f"{file}: no GPU UUID")
        fault = hardware / "faults" / uuid[1]
        found.append(Gpu(index, uuid[1], (fault.read_text().strip() or "unknown") if fault.exists() else ""))
    return found


def read_sharing(folder: Path, name: str) -> Sharing:
    """The sharing in the device plugin's configuration `name`, a file of `folder`; no name means none is shared.

    Raises:
        ConfigError: there is no such configuration, or it is not one.
    """
    if not name:
        return Sharing()
    try:
        config: Any = yaml.safe_load((folder / name).read_text())
        slicing = config.get("sharing", {}).get("timeSlicing", {})
        found = [entry for entry in slicing.get("resources", []) if entry["name"] == RESOURCE]
        if slicing.get("renameByDefault") or any("rename" in entry for entry in found):
            raise ConfigError(f"device plugin configuration {name}: this stand-in does not rename resources")
        replicas = int(found[0]["replicas"]) if found else 1
        if replicas < 1:
            raise ValueError(f"{replicas} replicas")
        return Sharing(replicas, bool(slicing.get("failRequestsGreaterThanOne")))
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"device plugin configuration {name}: {error!r}") from error


def read_profile(label: str) -> Profile:
    """The MIG profile that a node's label asks for; no label, or `all-disabled`, means whole GPUs.

    Raises:
        ConfigError: the stand-in does not know it.
    """
    if label in ("", MIG_DISABLED):
        return Profile()
    match = re.fullmatch(r"all-(([1-7])g\.(\d+)gb)", label)
    if match is None:
        raise ConfigError(f"{MIG_LABEL}={label}: this stand-in knows {MIG_DISABLED} and all-<n>g.<m>gb")
    return Profile(match[1], MIG_SLICES // int(match[2]), int(match[3]))


def make_devices(gpus: Sequence[Gpu], sharing: Sharing, profile: Profile) -> list[Device]:
    """The devices to offer, with ids as NVIDIA's device plugin makes them."""
    devices = []
    for gpu in gpus:
        parts = [f"MIG-{gpu.uuid.removeprefix('GPU-')}-{part}" for part in range(profile.parts)]
        for visible in parts if profile.name else [gpu.uuid]:
            shares = [f"{visible}::{replica}" for replica in range(sharing.replicas)]
            devices += [Device(id, visible, not gpu.fault) for id in (shares if sharing.replicas > 1 else [visible])]
    return devices


def make_labels(gpus: Sequence[Gpu], sharing: Sharing, profile: Profile) -> dict[str, str | None]:
    """The labels of GPU feature discovery; None stands for a label that must not be there."""
    product = "Simulated-GPU" + (f"-MIG-{profile.name}" if profile.name else "")
    labels = {
        "nvidia.com/gpu.present": "true",
        "nvidia.com/gpu.count": str(len(gpus) * profile.parts),
        "nvidia.com/gpu.replicas": str(sharing.replicas),
        "nvidia.com/gpu.product": product + ("-SHARED" if sharing.replicas > 1 else ""),
        "nvidia.com/gpu.memory": str(profile.memory_gb * 1024 if profile.name else MEMORY_MIB),
        "nvidia.com/gpu.sharing-strategy": "time-slicing" if sharing.replicas > 1 else "none",
        "nvidia.com/mig.capable": "true",
        "nvidia.com/mig.strategy": "single",
    }
    return {name: value if gpus else None for name, value in labels.items()}


def make_metrics(gpus: Sequence[Gpu], node: str) -> str:
    """Metrics as DCGM exporter names them, in Prometheus' text format. Nothing ever runs on a simulated GPU."""
    lines = []
    for name, text, values in (
        ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", [0 for _ in gpus]),
        (
            "DCGM_FI_DEV_XID_ERRORS",
            "Value of the last XID error encountered.",
            [XID_FALLEN_OFF if gpu.fault else 0 for gpu in gpus],
        ),
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        for gpu, value in zip(gpus, values, strict=True):
            marks = f'gpu="{gpu.index}",UUID="{gpu.uuid}",device="nvidia{gpu.index}",modelName="Simulated GPU",Hostname="{node}"'
            lines.append(f"{name}{{{marks}}} {value}")
    return "\n".join(lines) + "\n"

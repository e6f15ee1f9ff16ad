"""What a machine shows of NVIDIA GPUs and their driver. Runs on nodes: standard library only, Python 3.8 or newer.

Every path is below a given root: the machine's own, that of a test, or a tree that stands for hardware.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_NVIDIA = "0x10de"
# PCI classes of GPUs: VGA and 3D controllers.
_CLASSES = ("0x0300", "0x0302")
# Where the GPU operator looks for a driver of the host.
_NVIDIA_SMI = ("usr/bin/nvidia-smi", "usr/sbin/nvidia-smi", "bin/nvidia-smi", "sbin/nvidia-smi", "opt/bin/nvidia-smi")
_SECURE_BOOT = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_LIBRARIES = ("usr/lib64", "usr/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu")
_VERSION = r"\d+\.\d+(?:\.\d+)?"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def devices(root: Path) -> list[str]:
    """PCI addresses of the NVIDIA GPUs; virtual functions of one count as part of it."""
    return sorted(
        folder.name
        for folder in (root / "sys/bus/pci/devices").glob("*")
        if _read(folder / "vendor") == _NVIDIA
        and _read(folder / "class").startswith(_CLASSES)
        and not (folder / "physfn").exists()
    )


def secure_boot(root: Path) -> bool:
    """Whether the firmware lets only signed kernel modules in."""
    try:
        # Four bytes of attributes, then the value.
        return (root / _SECURE_BOOT).read_bytes()[4:5] == b"\1"
    except OSError:
        return False


def has_host_driver(root: Path) -> bool:
    """Whether the host has a driver of its own, judged as the GPU operator does: by a program nvidia-smi."""
    return any((root / path).is_file() and os.access(str(root / path), os.X_OK) for path in _NVIDIA_SMI)


def library_versions(root: Path) -> list[str]:
    """Versions of the driver's library NVML on the host."""
    found = set()
    for folder in _LIBRARIES:
        for file in (root / folder).glob("libnvidia-ml.so.*"):
            match = re.fullmatch(r"libnvidia-ml\.so\.(" + _VERSION + ")", file.name)
            if match:
                found.add(match.group(1))
    return sorted(found)


def loaded_version(root: Path) -> str:
    """Version of the driver's kernel module that is loaded; empty when none is."""
    match = re.search(r"Kernel Module.*?\s(" + _VERSION + r")\s", _read(root / "proc/driver/nvidia/version") + "\n")
    return match.group(1) if match else ""


def has_module(root: Path, release: str) -> bool:
    """Whether a driver module was built for the kernel `release`; Debian calls it nvidia-current."""
    return any(
        name.startswith(("nvidia.ko", "nvidia-current.ko"))
        for _, _, names in os.walk(str(root / "lib/modules" / release))
        for name in names
    )


def has_headers(root: Path, release: str) -> bool:
    """Whether the headers of the kernel `release`, which building a module needs, are installed."""
    return (root / "lib/modules" / release / "build/Makefile").exists()


def gpu_probe(root: Path, release: str) -> dict[str, Any]:
    """Everything that preflight wants to know of GPUs; `release` is that of the running kernel."""
    return {
        "devices": devices(root),
        "nouveau": (root / "sys/module/nouveau").exists(),
        "secure_boot": secure_boot(root),
        "host_driver": has_host_driver(root),
        "libraries": library_versions(root),
        "loaded": loaded_version(root),
        "module": has_module(root, release),
        "headers": has_headers(root, release),
    }

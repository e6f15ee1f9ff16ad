"""What the operator leaves on a node: CDI specifications, and the runtime that RuntimeClass nvidia names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Vendor and class under which NVIDIA's device plugin publishes its devices.
CDI_KIND = "k8s.device-plugin.nvidia.com/gpu"
CDI_FILE = "k8s.device-plugin.nvidia.com-gpu.json"
RUNTIME = """\
#!/bin/sh
# Stand-in for NVIDIA's container runtime: adds nothing, the simulated GPUs come from the device plugin.
exec runc "$@"
"""
RUNTIMES = ("nvidia-container-runtime", "nvidia-container-runtime.cdi")


def mounts(hardware: Path) -> dict[str, str]:
    """What a container with a GPU gets: path on the host -> path in the container. The driver's programs are the host's."""
    return {
        str(hardware): str(hardware),
        **{str(hardware / program): f"/{program}" for program in ("usr/bin/nvidia-smi", "usr/bin/vectorAdd")},
    }


def write_cdi(folder: Path, hardware: Path, devices: Iterable[str]) -> None:
    """Describe devices (as containers see them) to runtimes that know CDI; those that do not use Allocate's mounts."""
    edits = {
        "mounts": [
            {"hostPath": source, "containerPath": target, "options": ["ro", "nosuid", "nodev", "rbind"]}
            for source, target in mounts(hardware).items()
        ]
    }
    spec: dict[str, Any] = {
        "cdiVersion": "0.5.0",
        "kind": CDI_KIND,
        "devices": [{"name": name, "containerEdits": edits} for name in sorted(set(devices))],
    }
    _write(folder / CDI_FILE, json.dumps(spec, indent=1), 0o644)


def write_runtimes(folder: Path) -> None:
    """Install the runtimes where k3s looks for them when it starts."""
    for name in RUNTIMES:
        _write(folder / "toolkit" / name, RUNTIME, 0o755)


def _write(path: Path, content: str, mode: int) -> None:
    """Write a file that others may be reading; one that is right is not touched."""
    if path.exists() and path.read_text() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(content)
    draft.chmod(mode)
    draft.replace(path)

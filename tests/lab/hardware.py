"""The simulated GPUs of a lab node: files that stand for its PCI bus, its NVIDIA driver and its GPUs.

A stand-in: nothing here computes. The lab runs this file inside each node (`python3 - NODE GPUS`), so it needs nothing but
Python's own library.
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/var/lib/lab-hardware")
FAULTS = "faults"
MAX_GPUS = 64
# NVIDIA's H100 (SXM5, 80 GB), a GPU that can be split (MIG).
VENDOR, DEVICE, CLASS = "0x10de", "0x2330", "0x030200"
MODEL = "Simulated GPU"
DRIVER = "595.91.07"

NVIDIA_SMI = f"""\
#!/bin/sh
# Stand-in for NVIDIA's nvidia-smi: knows -L. In a container it sees the GPUs of NVIDIA_VISIBLE_DEVICES, on the host all.
hardware={ROOT}
if [ "$*" != -L ]; then
  echo "nvidia-smi: this stand-in knows only -L" >&2
  exit 2
fi
visible=${{NVIDIA_VISIBLE_DEVICES-all}}
number=0
status=0
for folder in "$hardware"/proc/driver/nvidia/gpus/*/; do
  [ -d "$folder" ] || continue
  while read -r subject field value; do
    [ "$subject $field" != "GPU UUID:" ] || uuid=$value
  done <"$folder/information"
  case ",$visible," in
    *,all,* | *",$uuid,"* | *",MIG-${{uuid#GPU-}}-"*) ;;
    *) continue ;;
  esac
  if [ -e "$hardware/{FAULTS}/$uuid" ]; then
    read -r reason <"$hardware/{FAULTS}/$uuid" || :
    echo "$uuid: $reason" >&2
    status=1
  else
    echo "GPU $number: {MODEL} (UUID: $uuid)"
    instance=0
    IFS=,
    for device in $visible; do
      case $device in
        "MIG-${{uuid#GPU-}}-"*)
          echo "  MIG Device $instance: (UUID: $device)"
          instance=$((instance + 1))
          ;;
      esac
    done
    unset IFS
  fi
  number=$((number + 1))
done
if [ "$number" = 0 ]; then
  echo "No devices were found" >&2
  exit 6
fi
exit "$status"
"""
VECTOR_ADD = f"""\
#!/bin/sh
# Stand-in for the CUDA sample vectorAdd: passes when the container sees a GPU and none that it sees has a fault.
if fault=$({ROOT}/usr/bin/nvidia-smi -L 2>&1 >/dev/null); then
  echo "Test PASSED"
else
  echo "Test FAILED: $fault"
  exit 1
fi
"""


@dataclass(frozen=True)
class File:
    """Content and permissions of a file."""

    content: str
    mode: int = 0o644


def gpu_uuid(node: str, index: int) -> str:
    """The UUID, as NVIDIA's driver writes it, that GPU number `index` of a node always has."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'lab-hardware:{node}/{index}')}"


def tree(node: str, gpus: int) -> dict[str, File]:
    """The files of a node with so many GPUs, by their paths below the root; none without GPUs."""
    if not gpus:
        return {}
    files = {
        "proc/driver/nvidia/version": File(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {DRIVER}  (simulated)\n"),
        "usr/bin/nvidia-smi": File(NVIDIA_SMI, 0o755),
        "usr/bin/vectorAdd": File(VECTOR_ADD, 0o755),
    }
    for index in range(gpus):
        address = f"0000:{0x65 + index:02x}:00.0"
        for name, value in (("vendor", VENDOR), ("device", DEVICE), ("class", CLASS)):
            files[f"sys/bus/pci/devices/{address}/{name}"] = File(f"{value}\n")
        files[f"proc/driver/nvidia/gpus/{address}/information"] = File(
            f"Model: \t\t {MODEL}\nGPU UUID: \t {gpu_uuid(node, index)}\nBus Location: \t {address}\n"
        )
    return files


def write(root: Path, node: str, gpus: int) -> None:
    """Give a node exactly these GPUs. Files that are right are not touched; faults stay with the GPUs that stay."""
    files = {root / name: file for name, file in tree(node, gpus).items()}
    folders = {root / "sys/module", root / FAULTS} if gpus else set()
    folders |= {folder for path in [*files, *folders] for folder in path.parents}
    kept = {root / FAULTS / gpu_uuid(node, index) for index in range(gpus)}
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and path not in folders:
            path.rmdir()
        elif not path.is_dir() and path not in files and path not in kept:
            path.unlink()
    root.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for path, file in files.items():
        # In place: running containers have these very files mounted.
        if not path.exists() or path.read_text() != file.content:
            path.write_text(file.content)
        path.chmod(file.mode)


if __name__ == "__main__":
    write(ROOT, sys.argv[1], int(sys.argv[2]))

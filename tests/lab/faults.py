"""Faults for tests: each is one call that disturbs a node or undoes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.lab import hardware
from tests.lab.nodes import podman
from tests.lab.process import LabError, run
from tests.lab.site import Site

FILLER = "/var/lib/rancher/.lab-fill"
FILL_LEAVES_BYTES = 4 << 20


def inject(site: Site, node: str, fault: str) -> None:
    """Apply the fault named `fault` to a node.

    Raises:
        LabError: no such node, or its state does not allow it.
    """
    FAULTS[fault](site.container(node))


def inject_gpu(site: Site, node: str, fault: str, index: int | None, reason: str) -> None:
    """Apply the fault named `fault` to one simulated GPU of a node.

    Args:
        index: number of the GPU on the node.
        reason: what shall ail it, one line.

    Raises:
        LabError: no such node or GPU, or the node's state does not allow it.
    """
    container = site.container(node)
    if index is None or not 0 <= index < site.gpus[node]:
        raise LabError(f"{fault}: node {node} has {site.gpus[node]} GPUs, numbered from 0; {index} is none of them")
    GPU_FAULTS[fault](container, f"{hardware.ROOT}/{hardware.FAULTS}/{hardware.gpu_uuid(node, index)}", reason)


def _break_gpu(container: str, file: str, reason: str) -> None:
    podman("exec", "--interactive", container, "sh", "-c", 'cat >"$0"', file, stdin=f"{reason}\n")


def _mend_gpu(container: str, file: str, reason: str) -> None:
    podman("exec", container, "rm", "-f", file)


def _cable(container: str) -> str:
    """The machine's end of the node's network cable (veth pair)."""
    index = podman("exec", container, "cat", "/sys/class/net/eth0/iflink").strip()
    for path in Path("/sys/class/net").iterdir():
        if (path / "ifindex").read_text().strip() == index:
            return path.name
    raise LabError(f"{container}: no network interface {index} on this machine")


def _isolate(container: str) -> None:
    """Pull the cable: the node keeps its address and routes, and reaches nobody."""
    run(["ip", "link", "set", _cable(container), "down"])


def _reconnect(container: str) -> None:
    run(["ip", "link", "set", _cable(container), "up"])


def _fill_disk(container: str) -> None:
    """Leave 4 MiB free on the node's disk for k3s, images and volumes."""
    script = (
        f"free=$(df --output=avail --block-size=1 {FILLER.rpartition('/')[0]} | tail -n 1); "
        f"size=$((free - {FILL_LEAVES_BYTES})); [ $size -le 0 ] || fallocate --length $size {FILLER}"
    )
    podman("exec", container, "sh", "-c", script)


FAULTS: dict[str, Callable[[str], object]] = {
    "stop": lambda container: podman("stop", "--time=30", container),
    "start": lambda container: podman("start", container),
    "kill": lambda container: podman("kill", "--signal=KILL", container),
    "pause": lambda container: podman("pause", container),
    "unpause": lambda container: podman("unpause", container),
    "isolate": _isolate,
    "reconnect": _reconnect,
    "fill-disk": _fill_disk,
    "free-disk": lambda container: podman("exec", container, "rm", "-f", FILLER),
}
GPU_FAULTS: dict[str, Callable[[str, str, str], None]] = {"break-gpu": _break_gpu, "mend-gpu": _mend_gpu}

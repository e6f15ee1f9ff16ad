"""The simulated GPUs of a node: the files, and the programs among them as a node and a container run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import hardware


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with two GPUs, whose programs look into this folder."""
    for name in ("NVIDIA_SMI", "VECTOR_ADD"):
        monkeypatch.setattr(hardware, name, getattr(hardware, name).replace(str(hardware.ROOT), str(tmp_path)))
    hardware.write(tmp_path, "a1", 2)
    return tmp_path


def call(root: Path, program: str, *words: str, visible: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program of the tree as a container does that sees these GPUs; None stands for the host."""
    environment = {"PATH": "/nowhere"} | ({} if visible is None else {"NVIDIA_VISIBLE_DEVICES": visible})
    return subprocess.run(
        [root / "usr/bin" / program, *words], env=environment, capture_output=True, text=True, check=False
    )


def content(root: Path) -> dict[str, tuple[str, int]]:
    """Every file with its content and the time of its last change."""
    return {
        str(path.relative_to(root)): (path.read_text(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_gpus_are_where_a_kernel_shows_them(root: Path) -> None:
    devices = root / "sys/bus/pci/devices"
    assert sorted(path.name for path in devices.iterdir()) == ["0000:65:00.0", "0000:66:00.0"]
    assert (devices / "0000:66:00.0/vendor").read_text() == "0x10de\n"
    assert (devices / "0000:66:00.0/class").read_text() == "0x030200\n"
    assert list((root / "sys/module").iterdir()) == []
    assert "Kernel Module  595.91.07  " in (root / "proc/driver/nvidia/version").read_text()


def test_uuids_stay_and_differ() -> None:
    assert hardware.gpu_uuid("a1", 0) == "GPU-13c4df32-117b-5999-8a30-0efede45313a"
    assert len({hardware.gpu_uuid(node, index) for node in ("a1", "a2") for index in range(3)}) == 6


def test_writing_again_touches_nothing(root: Path) -> None:
    before = content(root)
    hardware.write(root, "a1", 2)
    assert content(root) == before


def test_gpus_come_and_go_with_their_faults(root: Path) -> None:
    for index in range(2):
        (root / "faults" / hardware.gpu_uuid("a1", index)).write_text("hot\n")
    (root / "usr/bin/nvidia-smi").write_text("damaged")
    hardware.write(root, "a1", 1)
    assert [path.name for path in (root / "faults").iterdir()] == [hardware.gpu_uuid("a1", 0)]
    assert [path.name for path in (root / "sys/bus/pci/devices").iterdir()] == ["0000:65:00.0"]
    assert (root / "usr/bin/nvidia-smi").read_text() == hardware.NVIDIA_SMI
    hardware.write(root, "a1", 0)
    assert root.is_dir() and not list(root.iterdir())


def test_file_is_a_program_for_nodes(tmp_path: Path) -> None:
    text = Path(hardware.__file__).read_text().replace('Path("/var/lib/lab-hardware")', f"Path({str(tmp_path)!r})")
    subprocess.run([sys.executable, "-I", "-", "a1", "1"], input=text, text=True, check=True)
    assert hardware.gpu_uuid("a1", 0) in (tmp_path / "proc/driver/nvidia/gpus/0000:65:00.0/information").read_text()


@pytest.mark.parametrize("name", ["NVIDIA_SMI", "VECTOR_ADD"])
def test_programs_are_sound_shell(name: str) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    subprocess.run([checker, "--shell=sh", "-"], input=getattr(hardware, name), text=True, check=True)


def test_host_sees_all_gpus_and_a_container_its_own(root: Path) -> None:
    first, second = (hardware.gpu_uuid("a1", index) for index in range(2))
    assert call(root, "nvidia-smi", "-L").stdout == (
        f"GPU 0: Simulated GPU (UUID: {first})\nGPU 1: Simulated GPU (UUID: {second})\n"
    )
    assert call(root, "nvidia-smi", "-L", visible=second).stdout == f"GPU 0: Simulated GPU (UUID: {second})\n"
    assert call(root, "nvidia-smi", "-L", visible=f"{second},{first}").stdout.count("GPU-") == 2
    assert call(root, "nvidia-smi").returncode == 2


def test_container_sees_its_parts_of_a_gpu(root: Path) -> None:
    whole = hardware.gpu_uuid("a1", 1)
    parts = [f"MIG-{whole.removeprefix('GPU-')}-{part}" for part in (2, 5)]
    assert call(root, "nvidia-smi", "-L", visible=",".join(parts)).stdout == (
        f"GPU 0: Simulated GPU (UUID: {whole})\n  MIG Device 0: (UUID: {parts[0]})\n  MIG Device 1: (UUID: {parts[1]})\n"
    )
    assert call(root, "vectorAdd", visible=parts[0]).stdout == "Test PASSED\n"


def test_fault_is_seen_by_whoever_has_the_gpu(root: Path) -> None:
    first, second = (hardware.gpu_uuid("a1", index) for index in range(2))
    (root / "faults" / first).write_text("fallen off the bus\n")
    listed = call(root, "nvidia-smi", "-L")
    assert (listed.returncode, listed.stdout) == (1, f"GPU 1: Simulated GPU (UUID: {second})\n")
    failed = call(root, "vectorAdd", visible=first)
    assert (failed.returncode, failed.stdout) == (1, f"Test FAILED: {first}: fallen off the bus\n")
    passed = call(root, "vectorAdd", visible=second)
    assert (passed.returncode, passed.stdout) == (0, "Test PASSED\n")


@pytest.mark.parametrize("visible", ["", "void", "GPU-of-another-node"])
def test_container_without_a_gpu_fails_the_check(root: Path, visible: str) -> None:
    assert call(root, "nvidia-smi", "-L", visible=visible).returncode == 6
    failed = call(root, "vectorAdd", visible=visible)
    assert (failed.returncode, failed.stdout) == (1, "Test FAILED: No devices were found\n")

"""What is recorded of devices: the one that computed, and the GPUs that were given, simulated ones too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from epos import device
from epos.cli import main
from epos.errors import EposError, UsageError
from epos.group import Group


@pytest.fixture(autouse=True)
def _no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine has."""
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    monkeypatch.setattr(device, "_has_cuda", lambda: False)
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(platform="cpu", device_kind="cpu")])
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    yield
    monkeypatch.undo()
    jax.config.update("jax_platforms", before)


def _tool(folder: Path, text: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n[ $1 = -L ] || exit 9\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        ("GPU-3f6c1f0e-a,GPU-3f6c1f0e-b", ["GPU-3f6c1f0e-a", "GPU-3f6c1f0e-b"]),
        ("MIG-5a1f", ["MIG-5a1f"]),
        ("", []),
        ("none", []),
        ("void", []),
        ("all", []),
    ],
)
def test_gpus_are_those_that_the_runtime_names(
    variable: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", variable)
    assert device.given() == found


def test_gpus_that_nobody_names_are_those_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "void")
    _tool(tmp_path, "echo 'GPU 0: NVIDIA H200 (UUID: GPU-01-aa)'; echo 'GPU 1: Simulated GPU (UUID: GPU-02-bb)'")
    assert device.given() == ["GPU-01-aa", "GPU-02-bb"]
    _tool(tmp_path, "echo 'GPU 0: X (UUID: GPU-01-aa)'; echo '  MIG 1g.10gb     Device  0: (UUID: MIG-7e-cc)'")
    assert device.given() == ["MIG-7e-cc"], "a part of a GPU was given, not the whole"
    _tool(tmp_path, "echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9")
    assert device.given() == []


def test_a_gpu_that_is_not_used_is_recorded_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "GPU-01")
    found = device.describe()
    assert found == {"device": "cpu (cpu)", "gpus": ["GPU-01"]}
    assert device.remark(found) == "GPUs given: GPU-01; not used, there is no CUDA for JAX here"
    monkeypatch.setattr(device, "_has_cuda", lambda: True)
    assert device.remark(found) == "GPUs given: GPU-01; not used, see JAX's warnings"
    device.select("cpu")
    assert device.remark(found) == "GPUs given: GPU-01; not used, JAX was told to compute on the CPU"
    assert device.remark({"device": "gpu (NVIDIA H200)", "gpus": ["GPU-01"]}) == "GPUs given: GPU-01"
    assert device.remark({"device": "cpu (cpu)", "gpus": []}) == "GPUs given: none"


def test_a_gpu_that_jax_cannot_use_is_an_error(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data-dir", str(rendered), "--work-dir", str(tmp_path), "--device", "gpu"]
    assert main(arguments) == 2, "another image is needed, not another try"
    message = "epos: --device gpu: there is no CUDA for JAX here; take the training image's CUDA variant\n"
    assert capsys.readouterr().err == message

    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "GPU-01")

    def fail() -> None:
        raise RuntimeError("Unable to initialize backend 'cuda': no driver\nmore")

    monkeypatch.setattr(jax, "device_count", fail)
    with pytest.raises(EposError, match=r"cannot compute here: .*no driver \(GPUs given: GPU-01\)$") as caught:
        Group().join()
    assert caught.value.exit_code == 1, "another node may do"


def test_the_choice_is_made_for_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[tuple[str, str]] = []
    monkeypatch.setattr(jax.config, "update", lambda *values: chosen.append(values))
    device.select("auto")
    device.select("cpu")
    with pytest.raises(UsageError):
        device.select("gpu")
    monkeypatch.setattr(device, "_has_cuda", lambda: True)
    device.select("gpu")
    assert chosen == [("jax_platforms", "cpu"), ("jax_platforms", "cuda")]

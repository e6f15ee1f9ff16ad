"""What JAX computes on, and which GPUs this process was given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import entry_points
from typing import Any

import jax

from epos.errors import EposError, UsageError

CHOICES = ("auto", "cpu", "gpu")
# Options of XLA's compiler with which a GPU gives the same result each time; CPUs, which do so anyway, ignore them.
REPEATABLE = {"xla_gpu_deterministic_ops": True}
_UUID = re.compile(r"UUID: ((?:GPU|MIG)-[\w-]+)")


def _has_cuda() -> bool:
    return any("cuda" in plugin.name for plugin in entry_points(group="jax_plugins"))


def select(wanted: str) -> None:
    """Chooses what JAX computes on; nothing may have been computed before.

    Args:
        wanted: one of CHOICES; auto is a GPU where JAX can use one.

    Raises:
        UsageError: a GPU is wanted, but JAX has no CUDA.
    """
    if wanted == "gpu" and not _has_cuda():
        raise UsageError("--device gpu: there is no CUDA for JAX here; take the training image's CUDA variant")
    if wanted != "auto":
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[wanted])


def given() -> list[str]:
    """UUIDs of the GPUs, or of the MIG devices, that the container's runtime gave to this process."""
    named = [name for name in os.environ.get("NVIDIA_VISIBLE_DEVICES", "").split(",") if name[:4] in ("GPU-", "MIG-")]
    program = shutil.which("nvidia-smi")
    if named or program is None:
        return named
    # Injected by CDI, devices are not named in the environment; what nvidia-smi sees is what was given.
    try:
        answer = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = _UUID.findall(answer.stdout)
    return [name for name in found if name.startswith("MIG-")] or found


def describe() -> dict[str, Any]:
    """The device that computes, as platform and kind in words, and the GPUs that were given.

    They are not the same where JAX has no CUDA, or where a GPU is a simulated one.
    """
    device = jax.local_devices()[0]
    return {"device": f"{device.platform} ({device.device_kind})", "gpus": given()}


def unusable(error: RuntimeError) -> EposError:
    """What to raise when JAX cannot start what was chosen: another node may do."""
    reason = str(error).splitlines()[0]
    return EposError(f"JAX cannot compute here: {reason} (GPUs given: {', '.join(given()) or 'none'})")


def remark(hardware: dict[str, Any]) -> str:
    """What to tell about the GPUs of describe()."""
    text = f"GPUs given: {', '.join(hardware['gpus']) or 'none'}"
    if hardware["gpus"] and hardware["device"].startswith("cpu"):
        if jax.config.jax_platforms == "cpu":
            text += "; not used, JAX was told to compute on the CPU"
        else:
            text += "; not used, " + ("see JAX's warnings" if _has_cuda() else "there is no CUDA for JAX here")
    return text

"""Kustomize overlays, rendered by kubectl."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json

# The pure Python loader needs seconds for a megabyte.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def render(kubectl: str, base: str, kustomization: Mapping[str, Any], timeout: float = 60) -> list[Json]:
    """The objects of the file or kustomization directory `base` under an overlay.

    Args:
        kubectl: the program.
        base: a file with manifests, or a directory with a kustomization.
        kustomization: the overlay, as in a kustomization.yaml, without `resources`.
        timeout: in seconds.

    Raises:
        SlipwayError: `base` is not there, or kustomize refuses the overlay.
    """
    source = Path(base)
    if not source.exists():
        raise SlipwayError(f"{base}: no such file; is the bundle complete?")
    with tempfile.TemporaryDirectory() as folder:
        # Kustomize reads nothing outside of its folder.
        copy = Path(folder) / source.name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, copy)
        (Path(folder) / "kustomization.yaml").write_text(json.dumps({**kustomization, "resources": [source.name]}))
        text = build(kubectl, folder, f"the overlay of {source.name}", timeout)
    return [item for item in yaml.load_all(text, Loader=LOADER) if item]


def build(kubectl: str, folder: str, what: str, timeout: float = 60) -> str:
    """The manifests that the kustomization in `folder` makes. Raises SlipwayError that names `what`."""
    try:
        done = subprocess.run(
            [kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlipwayError(f"{kubectl} kustomize: {error}") from error
    if done.returncode != 0:
        raise SlipwayError(f"kustomize refuses {what}: {done.stderr.strip()}")
    return done.stdout

"""Overlays, with a kubectl of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kustomize import render


def kubectl(folder: Path, script: str) -> str:
    """Write a program that stands for kubectl and return its path."""
    program = folder / "kubectl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_base_and_overlay_lie_in_one_folder(tmp_path: Path) -> None:
    base = tmp_path / "install.yaml"
    base.write_text("kind: A\n")
    program = kubectl(tmp_path, 'test "$1" = kustomize; cat "$2/install.yaml"; echo ---; cat "$2/kustomization.yaml"')
    assert render(program, str(base), {"namespace": "x"}) == [
        {"kind": "A"},
        {"namespace": "x", "resources": ["install.yaml"]},
    ]


def test_a_directory_is_a_base_too(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base/kustomization.yaml").write_text("kind: B\n")
    program = kubectl(tmp_path, 'cat "$2/base/kustomization.yaml"')
    assert render(program, str(tmp_path / "base"), {}) == [{"kind": "B"}]


def test_refusals_say_what_kustomize_says(tmp_path: Path) -> None:
    base = tmp_path / "install.yaml"
    base.write_text("kind: A\n")
    with pytest.raises(SlipwayError, match=r"refuses the overlay of install\.yaml: no matches for Id X"):
        render(kubectl(tmp_path, "echo 'no matches for Id X' >&2; exit 1"), str(base), {})
    with pytest.raises(SlipwayError, match="is the bundle complete"):
        render("kubectl", str(tmp_path / "nothing.yaml"), {})
    with pytest.raises(SlipwayError, match="kustomize: "):
        render(str(tmp_path / "no-kubectl"), str(base), {})

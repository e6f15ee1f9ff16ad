"""A bundle with another version of k3s is the same bundle but for its programs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from tests.lab import k3s_version
from tests.lab.process import LabError

OLD, NEW = "v1.35.4+k3s1", "v1.35.4+k3s2"
PROGRAM = b"\x7fELF" + OLD.encode() + b"\0v1.35.4\0" + OLD.encode()


@pytest.mark.parametrize("text", ["", "1.35.9+k3s1", "v1.35.9", "v1.35.10+k3s1", "v1.36.4+k3s1", "v1.35.9+rke1"])
def test_what_it_cannot_be_is_named(text: str) -> None:
    with pytest.raises(LabError, match="must be a version of k3s"):
        k3s_version.relabel(PROGRAM, OLD, text)


def test_nothing_but_the_version_of_k3s_is_another() -> None:
    assert k3s_version.relabel(PROGRAM, OLD, NEW) == b"\x7fELF" + NEW.encode() + b"\0v1.35.4\0" + NEW.encode()
    with pytest.raises(LabError, match="does not hold its version"):
        k3s_version.relabel(b"other", OLD, NEW)


def test_all_else_is_the_same_file(tmp_path: Path) -> None:
    base, draft = tmp_path / "base", tmp_path / "draft"
    for name in ("bin/k3s", "bin/kubectl", "bin/helm", "images/k3s.tar"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(PROGRAM)
    entry = {
        "kind": "x",
        "name": "k3s",
        "version": OLD,
        "sha256": hashlib.sha256(PROGRAM).hexdigest(),
        "size": len(PROGRAM),
    }
    manifest = {
        "versions": {"k3s": OLD, "helm": "v3"},
        "artifacts": [{"path": name, **entry} for name in ("bin/k3s", "bin/kubectl", "images/k3s.tar")],
    }
    (base / "bundle.yml").write_text(yaml.safe_dump(manifest))
    k3s_version.assemble(base, NEW, draft)
    for name in ("bin/helm", "images/k3s.tar"):
        assert (draft / name).samefile(base / name)
    program = k3s_version.relabel(PROGRAM, OLD, NEW)
    assert (draft / "bin/k3s").read_bytes() == (draft / "bin/kubectl").read_bytes() == program
    assert (draft / "bin/k3s").stat().st_mode & 0o777 == 0o755
    assert (base / "bin/k3s").read_bytes() == PROGRAM
    made = yaml.safe_load((draft / "bundle.yml").read_text())
    assert made["versions"] == {"k3s": NEW, "helm": "v3"}
    new = hashlib.sha256(program).hexdigest()
    assert [(item["path"], item["version"], item["sha256"] == new) for item in made["artifacts"]] == [
        ("bin/k3s", NEW, True),
        ("bin/kubectl", NEW, True),
        ("images/k3s.tar", OLD, False),
    ]
    assert yaml.safe_load((base / "bundle.yml").read_text()) == manifest

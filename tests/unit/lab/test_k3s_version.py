"""A bundle with another version of k3s is the same bundle but for its programs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from tests.lab import gobuild, k3s_version
from tests.lab.process import LabError


@pytest.mark.parametrize("text", ["", "1.35.9+k3s1", "v1.35.9", "v1.35.9+rke2r1"])
def test_what_is_no_version_is_named(text: str) -> None:
    with pytest.raises(LabError, match="--k3s-version"):
        k3s_version.check_version(text)


def test_the_program_is_another_one_under_another_key() -> None:
    own, other = gobuild.Standin({"pause": "p:1"}), gobuild.Standin({"pause": "p:1"}, "v1.35.9+k3s1")
    assert own.key != other.key
    assert set(value for name, value in other.variables.items() if name.endswith("gitVersion")) == {"v1.35.9+k3s1"}
    # Everything that is compiled is the same.
    assert set(own.variables) == set(other.variables)


def test_all_else_is_the_same_file(tmp_path: Path) -> None:
    base, program, draft = tmp_path / "base", tmp_path / "k3s", tmp_path / "draft"
    program.write_bytes(b"new")
    for name in ("bin/k3s", "bin/kubectl", "bin/helm", "images/k3s.tar"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"old")
    entry = {
        "kind": "binary",
        "name": "k3s",
        "version": "v1.35.4+k3s1",
        "sha256": hashlib.sha256(b"old").hexdigest(),
        "size": 3,
    }
    manifest = {
        "versions": {"k3s": "v1.35.4+k3s1", "helm": "v3"},
        "artifacts": [{"path": name, **entry} for name in ("bin/k3s", "bin/kubectl", "images/k3s.tar")],
    }
    (base / "bundle.yml").write_text(yaml.safe_dump(manifest))
    k3s_version.assemble(base, program, "v1.35.9+k3s1", draft)
    for name in ("bin/helm", "images/k3s.tar"):
        assert (draft / name).samefile(base / name)
    assert (draft / "bin/k3s").read_bytes() == b"new" and (base / "bin/k3s").read_bytes() == b"old"
    made = yaml.safe_load((draft / "bundle.yml").read_text())
    assert made["versions"] == {"k3s": "v1.35.9+k3s1", "helm": "v3"}
    new = hashlib.sha256(b"new").hexdigest()
    assert [(item["path"], item["version"], item["sha256"] == new) for item in made["artifacts"]] == [
        ("bin/k3s", "v1.35.9+k3s1", True),
        ("bin/kubectl", "v1.35.9+k3s1", True),
        ("images/k3s.tar", "v1.35.4+k3s1", False),
    ]
    assert yaml.safe_load((base / "bundle.yml").read_text()) == manifest

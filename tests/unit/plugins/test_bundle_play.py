"""playbooks/bundle.yml fills a bundle from a server of releases, resumes after a cut, and then has nothing to do."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .plays import PROJECT, run_playbook
from .releases import Releases

PROGRAM = os.urandom(50_000)


@pytest.fixture
def releases() -> Iterator[Releases]:
    served = Releases()
    yield served
    served.close()


def serve_release(releases: Releases) -> dict[str, Any]:
    """The project's own release file with every address replaced by the local server, which has such a tree."""
    release: dict[str, Any] = yaml.safe_load((PROJECT / "playbooks/group_vars/all/release.yml").read_text())[
        "slipway_release"
    ]
    # Images come by skopeo, which needs a registry, and what is rendered needs a real kubectl; test_bundle and test_kustomize_sources
    # have them.
    release["artifacts"] = [item for item in release["artifacts"] if item["kind"] not in ("image", "kustomize")]
    for artifact in release["artifacts"]:
        data = PROGRAM
        if "member" in artifact:
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w:gz") as tar:
                info = tarfile.TarInfo(artifact["member"])
                info.size = len(PROGRAM)
                tar.addfile(info, io.BytesIO(PROGRAM))
            data = out.getvalue()
        path, checksum_path = (re.sub(r"^https://[^/]+", "", artifact.get(key, "")) for key in ("url", "checksum_url"))
        digest = hashlib.sha256(data).hexdigest()
        releases.files[path] = data
        artifact["url"] = releases.url + path
        if not checksum_path:
            artifact["sha256"] = digest
            continue
        name, version = artifact["name"], artifact.get("version")
        if checksum_path.endswith(".yaml"):
            index = yaml.safe_load(releases.files.get(checksum_path, b"entries: {}"))
            index["entries"][name] = [{"version": str(version), "digest": digest}]
            releases.files[checksum_path] = yaml.safe_dump(index).encode()
        elif "checksum_name" in artifact:
            line = f"{digest}  {artifact['checksum_name']}\n".encode()
            releases.files[checksum_path] = releases.files.get(checksum_path, b"") + line
        else:
            releases.files[checksum_path] = digest.encode()
        artifact["checksum_url"] = releases.url + checksum_path
    return release


def play(
    directory: Path, release: dict[str, Any], inventory: Path = PROJECT / "inventories/lab"
) -> subprocess.CompletedProcess[str]:
    variables = {"slipway_release": release, "slipway_bundle_dir": str(directory / "bundle")}
    (directory / "vars.json").write_text(json.dumps(variables))
    return run_playbook(directory, "-i", inventory, PROJECT / "playbooks/bundle.yml", "-e", "@vars.json")


def test_the_upstream_way(releases: Releases, tmp_path: Path) -> None:
    release = serve_release(releases)
    (k3s,) = (path for path in releases.files if path.endswith("/k3s"))
    good = releases.files[k3s]
    releases.cuts[k3s] = [20_000]
    releases.files[k3s] = good[:30_000] + bytes(20_000)
    failed = play(tmp_path, release)
    assert failed.returncode != 0 and "bin/k3s" in failed.stdout and "was published" in failed.stdout
    assert not (tmp_path / "bundle/bundle.yml").exists() and not (tmp_path / "bundle/bin/k3s").exists()

    releases.files[k3s] = good
    releases.cuts[k3s] = [20_000]
    releases.requests.clear()
    filled = play(tmp_path, release)
    assert filled.returncode == 0, filled.stdout
    assert "changed=1" in filled.stdout
    asked = [path for path, _ in releases.requests]
    assert (k3s, "bytes=20000-") in releases.requests
    # What the failed run had fetched is not fetched again.
    assert not [path for path in asked if path.endswith((".tgz", ".tar.gz"))]
    manifest = yaml.safe_load((tmp_path / "bundle/bundle.yml").read_text())
    assert [artifact["path"] for artifact in manifest["artifacts"]] == [item["path"] for item in release["artifacts"]]
    assert manifest["origin"] == "upstream" and manifest["versions"] == release["versions"]
    assert (tmp_path / "bundle/bin/helm").read_bytes() == PROGRAM

    releases.requests.clear()
    again = play(tmp_path, release)
    assert again.returncode == 0 and "changed=0" in again.stdout
    assert releases.requests == []


def test_a_site_without_gpus_gets_nothing_of_the_operator(releases: Releases, tmp_path: Path) -> None:
    release = serve_release(releases)
    hosts = tmp_path / "hosts.yml"

    def fill(gpus: object) -> tuple[list[str], str]:
        host = {"gpu_operator_gpus": gpus} if gpus is not None else {}
        hosts.write_text(yaml.safe_dump({"k3s_cluster": {"children": {"server": {"hosts": {"a": host}}}}}))
        done = play(tmp_path, release, hosts)
        assert done.returncode == 0, done.stdout
        manifest = yaml.safe_load((tmp_path / "bundle/bundle.yml").read_text())
        names = [artifact["name"] for artifact in manifest["artifacts"]]
        return names, " ".join((done.stdout + done.stderr).split())

    everything = [artifact["name"] for artifact in release["artifacts"]]
    for none in (None, 0):
        names, said = fill(none)
        assert names == [name for name in everything if name != "gpu-operator"]
        assert "nvcr.io" not in said
    names, said = fill(2)
    assert names == everything
    # The nodes get these themselves, which must not come as a surprise.
    assert "nobody publishes their digests" in said and release["unpinned"][0]["image"] in said

"""Manifests out of source archives: verified by their files, rendered without the network."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway.bundle import Stamp, default_stamp
from ansible.module_utils.slipway.bundle_fill import Artifact, Filler
from ansible.module_utils.slipway.download import Transfer
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kustomize_sources import Source, Workshop, files_of, tree_hash

from modules import bundle as bundle_module

from .fakes import run_module
from .releases import Releases

REMOTE = "https://git.example.com/argo/workflows"
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {0}}}\n"
PIPELINES = {
    "manifests/env/plain/kustomization.yaml": "namespace: pipelines\nresources: [../../base, own.yaml]\n",
    "manifests/env/plain/own.yaml": MAP.format("own"),
    "manifests/base/kustomization.yaml": f"resources:\n- {REMOTE}/manifests/controller?ref=v4&timeout=60s\n",
    "manifests/crds/kustomization.yml": "resources: [kind.yaml]\n",
    "manifests/crds/kind.yaml": MAP.format("kind"),
    # Nobody refers to it.
    "manifests/env/cloud/kustomization.yaml": "resources:\n- https://cloud.example.com/x?ref=v1\n",
    "README.md": "not needed\n",
}
ARGO = {
    "manifests/controller/kustomization.yaml": "resources: [controller.yaml]\n",
    "manifests/controller/controller.yaml": MAP.format("controller"),
}


def packed(files: dict[str, str], top: str, mode: Any = "w:gz", link: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        tar.addfile(tarfile.TarInfo(top))
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        if link:
            info = tarfile.TarInfo(f"{top}/{link}")
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info)
    return out.getvalue()


def hash_of(files: dict[str, str], folder: str) -> str:
    return tree_hash({name: text.encode() for name, text in files.items() if name.startswith(folder)})


@pytest.fixture
def releases() -> Iterator[Releases]:
    served = Releases()
    served.files["/pipelines.tar.gz"] = packed(PIPELINES, "pipelines-2")
    served.files["/argo.tar.gz"] = packed(ARGO, "workflows-4")
    yield served
    served.close()


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    directory = tmp_path / "bundle"
    return Filler(directory, Stamp(default_stamp(directory)), Transfer(tries=2, timeout=5, backoff=0))


def artifact(releases: Releases, **changes: object) -> Artifact:
    own = Source(f"{releases.url}/pipelines.tar.gz", hash_of(PIPELINES, "manifests/"), ("manifests",))
    argo = Source(f"{releases.url}/argo.tar.gz", hash_of(ARGO, "manifests/"), ("manifests",), REMOTE, "v4")
    roots = ("manifests/crds", "manifests/env/plain")
    given = {"path": "manifests/p.yaml", "kind": "kustomize", "name": "p", "roots": roots, "sources": (own, argo)}
    return Artifact(**given | changes)  # type: ignore[arg-type]


def kubectl(filler: Filler) -> None:
    """Puts a kubectl into the bundle, or skips aloud."""
    found = shutil.which("kubectl") or pytest.skip("no kubectl on this machine: make bundle brings one")
    (filler.bundle / "bin").mkdir(parents=True)
    (filler.bundle / "bin/kubectl").symlink_to(found)


def test_the_hash_is_that_of_gos_dirhash() -> None:
    """Lines of sha256sum, hashed once more; the order of the files does not count."""
    # printf '%s  a\n' $(printf a | sha256sum | cut -c-64) | sha256sum | cut -c-64 | xxd -r -p | base64
    assert tree_hash({"a": b"a"}) == "h1:oKf/ILZRBdyKD/ynm9pF5wzQkQG3v2HckX8NtgFwqRM="
    assert tree_hash({"a": b"a", "b": b"b"}) == tree_hash({"b": b"b", "a": b"a"})


def test_the_same_files_packed_otherwise_are_the_same(tmp_path: Path) -> None:
    hashes = set()
    for number, (top, mode) in enumerate((("x-1", "w:gz"), ("y", "w:xz"), ("z", "w"))):
        (tmp_path / str(number)).write_bytes(packed(ARGO, top, mode))
        hashes.add(tree_hash(files_of(tmp_path / str(number), ["manifests"])))
    assert hashes == {hash_of(ARGO, "manifests/")}


def test_rendered_once_without_the_network(releases: Releases, filler: Filler) -> None:
    kubectl(filler)
    assert filler.fill([artifact(releases)]) == ["manifests/p.yaml"]
    made = list(yaml.safe_load_all((filler.bundle / "manifests/p.yaml").read_text()))
    assert {(item["metadata"]["name"], item["metadata"].get("namespace")) for item in made} == {
        ("kind", None), ("controller", "pipelines"), ("own", "pipelines"),
    }  # fmt: skip
    assert [path.name for path in (filler.bundle / "manifests").iterdir()] == ["p.yaml"]
    releases.requests.clear()
    assert filler.fill([artifact(releases)]) == [] and not releases.requests
    entry = filler.manifest({"name": "r", "arch": "amd64"}, [artifact(releases)], "upstream")["artifacts"][0]
    assert entry["kind"] == "manifest"


def test_other_files_are_refused_and_leave_nothing(releases: Releases, filler: Filler) -> None:
    changed = {**ARGO, "manifests/controller/controller.yaml": MAP.format("evil")}
    releases.files["/argo.tar.gz"] = packed(changed, "workflows-4")
    with pytest.raises(SlipwayError, match=r"argo\.tar\.gz: the files of manifests have the hash h1:.*, not h1:"):
        filler.fill([artifact(releases)])
    assert list((filler.bundle / "manifests").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (packed(ARGO, "workflows-4", link="manifests/controller/link"), "manifests/controller/link in the archive is no"),
        (packed({"docs/x": ""}, "workflows-4"), "the archive has no manifests"),
        (b"<html>no archive</html>", "the archive cannot be read"),
        (packed(ARGO, "workflows-4")[:-30], "the archive cannot be read"),
    ],
)  # fmt: skip
def test_bad_archives(releases: Releases, filler: Filler, data: bytes, fault: str) -> None:
    releases.files["/argo.tar.gz"] = data
    with pytest.raises(SlipwayError, match=fault):
        filler.fill([artifact(releases)])


def test_a_reference_that_nobody_covers_is_named(tmp_path: Path) -> None:
    def workshop(files: dict[str, str], ref: str) -> Workshop:
        made = Workshop(tmp_path / ref / str(len(files)))
        for name, content, remote in (("own", files, ""), ("argo", ARGO, REMOTE)):
            (tmp_path / name).write_bytes(packed(content, "top"))
            whole = hash_of(content, "manifests/")
            made.unpack(Source(name, whole, ("manifests",), remote, ref if remote else ""), tmp_path / name)
        return made

    with pytest.raises(SlipwayError, match=r"refers to https://git\.example\.com/.*v4.*, which is in no source"):
        workshop(PIPELINES, "v5").render("/none", ["manifests/env/plain"])
    with pytest.raises(SlipwayError, match=r"refers to https://cloud\.example\.com/x"):
        workshop(PIPELINES, "v4").render("/none", ["manifests/env/cloud"])
    with pytest.raises(SlipwayError, match="manifests/none: no kustomization is there"):
        workshop({**PIPELINES, "manifests/x": ""}, "v4").render("/none", ["manifests/none"])


def test_bad_entries_are_named_before_anything_is_fetched(releases: Releases, filler: Filler) -> None:
    bad = Source("u", "sha256:1", (), REMOTE, "")
    with pytest.raises(SlipwayError) as error:
        filler.fill([artifact(releases, roots=(), sources=()), artifact(releases, sources=(bad,))])
    for text in (
        "roots is missing",
        "sources is missing",
        "is no h1:",
        "none is named",
        "remote and ref come together",
    ):
        assert text in str(error.value)
    assert not releases.requests


def test_the_module_takes_them(releases: Releases, tmp_path: Path) -> None:
    source = artifact(releases).sources[0]
    item = {
        "path": "manifests/p.yaml",
        "kind": "kustomize",
        "name": "p",
        "component": "p",
        "roots": ["manifests/crds"],
        "sources": [{"url": source.url, "folders": ["manifests"], "hash": source.hash}],
    }
    arguments = {"path": str(tmp_path / "b"), "state": "present", "backoff": 0, "components": ["p"]}
    release = {"name": "r", "artifacts": [item]}
    # The bundle's own kubectl is not there.
    failed = run_module(bundle_module, {**arguments, "release": release})
    assert failed["failed"] and f"{tmp_path}/b/bin/kubectl kustomize" in failed["msg"]

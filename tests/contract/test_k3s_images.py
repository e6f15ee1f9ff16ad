"""Import of image archives: k3s docs add-ons/import-images, installation/airgap; facts parts 1 and 15 no. 14."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator

import pytest

from tests.contract.conftest import DATA, Node, wait_for

IMAGES = f"{DATA}/agent/images"
REFERENCE = "localhost/contract-test:1"


def archive() -> bytes:
    """A docker archive with one image of one small layer."""

    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as out:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    layer = tar({"contract": b"test"})
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }).encode()  # fmt: skip
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [REFERENCE], "Layers": ["layer.tar"]}]).encode()
    return tar({name: config, "layer.tar": layer, "manifest.json": manifest})


@pytest.fixture
def clean(agent: Node) -> Iterator[None]:
    """Remove what these tests import."""
    yield
    agent.run(f"rm -f {IMAGES}/contract-*")
    agent.try_run(f"k3s ctr images rm {REFERENCE}")


@pytest.mark.usefixtures("clean")
def test_archives_are_imported_while_k3s_runs(agent: Node) -> None:
    """Files that appear are imported (1.32 and later) and pinned against garbage collection; bad ones are only logged."""
    cursor = agent.journal_cursor()
    agent.write(f"{IMAGES}/contract-bad.tar", "not an archive")
    agent.write(f"{IMAGES}/contract-good.tar", archive())
    listing = f"k3s ctr images ls name=={REFERENCE}"
    wait_for("the import", lambda: "io.cri-containerd.pinned=pinned" in agent.run(listing), timeout=30)
    log = wait_for(
        "both files in the log",
        lambda: (
            (text := agent.journal(cursor)).count("contract-bad.tar") > 1 and f"Imported {REFERENCE}" in text and text
        ),
        timeout=30,
    )
    assert "level=error" in log
    assert agent.run("systemctl is-active k3s-agent").strip() == "active"


def test_packaged_images_are_pinned(nodes: list[Node]) -> None:
    """Imported images are pinned (docs add-ons/import-images)."""
    for node in nodes:
        lines = node.run("k3s ctr images ls").splitlines()[1:]
        assert any("pause" in line and "io.cri-containerd.pinned=pinned" in line for line in lines), node.name

"""A bundle is filled from a server that fails in every way, and verified down to the byte."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.slipway import bundle as manifests
from ansible.module_utils.slipway.bundle import Stamp, default_stamp, manifest_faults, read_manifest, verify
from ansible.module_utils.slipway.bundle_fill import Artifact, Filler, repository_of
from ansible.module_utils.slipway.download import Transfer, published_sha256
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json

from modules import bundle as bundle_module

from .fakes import run_module
from .releases import Releases

BINARY = os.urandom(300_000)
DIGEST = "sha256:" + "a" * 64


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def releases() -> Iterator[Releases]:
    served = Releases()
    served.files["/k3s"] = BINARY
    served.files["/sums.txt"] = f"{'0' * 64}  k3s-arm64\n{sha256(BINARY)}  k3s\n".encode()
    yield served
    served.close()


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    directory = tmp_path / "bundle"
    return Filler(directory, Stamp(default_stamp(directory)), Transfer(tries=3, timeout=0.4, backoff=0))


def k3s(releases: Releases, **changes: str) -> Artifact:
    given: Json = {"path": "bin/k3s", "kind": "binary", "name": "k3s", "url": f"{releases.url}/k3s"}
    return Artifact(**given | {"checksum_url": f"{releases.url}/sums.txt", "checksum_name": "k3s"} | changes)


def left_over(filler: Filler) -> list[str]:
    return sorted(path.name for path in filler.bundle.rglob("*") if path.is_file())


def test_fetched_once_with_its_mode(releases: Releases, filler: Filler) -> None:
    assert filler.fill([k3s(releases)]) == ["bin/k3s"]
    file = filler.bundle / "bin/k3s"
    assert file.read_bytes() == BINARY
    assert file.stat().st_mode & 0o777 == 0o755
    releases.requests.clear()
    filler.stamp = Stamp(default_stamp(filler.bundle))
    assert filler.fill([k3s(releases)]) == []
    assert releases.requests == []


def test_check_fetches_nothing(releases: Releases, filler: Filler) -> None:
    assert filler.fill([k3s(releases)], check=True) == ["bin/k3s"]
    assert releases.requests == []


def test_a_cut_download_is_resumed(releases: Releases, filler: Filler) -> None:
    releases.cuts["/k3s"] = [100_000, 250_000]
    filler.fill([k3s(releases)])
    ranges = [wanted for path, wanted in releases.requests if path == "/k3s"]
    assert ranges == [None, "bytes=100000-", "bytes=250000-"]
    assert left_over(filler) == ["k3s"]


def test_a_later_run_resumes_too(releases: Releases, filler: Filler) -> None:
    releases.cuts["/k3s"] = [100_000, 100_000, 100_000]
    with pytest.raises(SlipwayError, match="not fetched in 3 tries"):
        filler.fill([k3s(releases)])
    assert not (filler.bundle / "bin/k3s").exists()
    releases.requests.clear()
    filler.fill([k3s(releases)])
    assert ("/k3s", "bytes=100000-") in releases.requests


def test_a_server_without_ranges_is_started_anew(releases: Releases, filler: Filler) -> None:
    releases.ranges = False
    releases.cuts["/k3s"] = [100_000]
    filler.fill([k3s(releases)])
    assert (filler.bundle / "bin/k3s").read_bytes() == BINARY
    assert [path for path, _ in releases.requests].count("/k3s") == 2


def test_a_complete_part_is_not_fetched_again(releases: Releases, filler: Filler) -> None:
    part = filler.bundle / "bin" / f".k3s.{sha256(BINARY)[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BINARY)
    filler.fill([k3s(releases)])
    assert left_over(filler) == ["k3s"]


def test_a_spoilt_part_is_thrown_away(releases: Releases, filler: Filler) -> None:
    part = filler.bundle / "bin" / f".k3s.{sha256(BINARY)[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    filler.fill([k3s(releases)])
    assert (filler.bundle / "bin/k3s").read_bytes() == BINARY


def test_a_wrong_hash_is_refused_and_leaves_nothing(releases: Releases, filler: Filler) -> None:
    releases.files["/k3s"] = BINARY[:-1] + b"!"
    with pytest.raises(SlipwayError, match=f"bin/k3s: .*but {sha256(BINARY)} was published"):
        filler.fill([k3s(releases)])
    assert left_over(filler) == []


def test_all_failures_are_reported_and_the_rest_is_kept(releases: Releases, filler: Filler) -> None:
    missing = k3s(
        releases, path="bin/a", url=f"{releases.url}/none", checksum_url="", checksum_name="", sha256="0" * 64
    )
    nameless = k3s(releases, path="bin/b", checksum_name="k3s-riscv")
    with pytest.raises(SlipwayError) as error:
        filler.fill([missing, nameless, k3s(releases)])
    assert "bin/a: " in str(error.value) and "404" in str(error.value)
    assert "sums.txt has no line for k3s-riscv; it has k3s-arm64, k3s" in str(error.value)
    assert left_over(filler) == ["k3s"]
    assert [path for path, _ in releases.requests].count("/none") == 1


def test_busy_and_stalling_servers_are_tried_again(releases: Releases, filler: Filler) -> None:
    releases.errors["/k3s"] = [503, 429]
    filler.fill([k3s(releases)])
    releases.files["/slow"] = BINARY
    releases.cuts["/slow"] = [1000] * 3
    releases.stall.add("/slow")
    with pytest.raises(SlipwayError, match=r"not fetched in 3 tries.*timed out"):
        filler.fill([k3s(releases, path="bin/slow", url=f"{releases.url}/slow")])


def archive(member: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        info = tarfile.TarInfo(member)
        info.size = len(BINARY)
        tar.addfile(info, io.BytesIO(BINARY))
    return out.getvalue()


def test_a_member_is_taken_out_of_an_archive(releases: Releases, filler: Filler) -> None:
    data = archive("linux-amd64/helm")
    releases.files |= {"/helm.tgz": data, "/helm.tgz.sha256": sha256(data).encode()}
    helm = Artifact(
        "bin/helm",
        "binary",
        "helm",
        url=f"{releases.url}/helm.tgz",
        checksum_url=f"{releases.url}/helm.tgz.sha256",
        member="linux-amd64/helm",
    )
    assert filler.fill([helm]) == ["bin/helm"]
    assert (filler.bundle / "bin/helm").read_bytes() == BINARY
    assert left_over(filler) == ["helm"]
    assert filler.fill([helm]) == []
    (filler.bundle / "bin/helm").write_bytes(b"spoilt")
    assert filler.fill([helm]) == ["bin/helm"]
    with pytest.raises(SlipwayError, match="the archive has no member other"):
        filler.fill([Artifact(**{**helm.__dict__, "member": "other"})])


def test_a_known_hash_adopts_a_file_that_somebody_brought(releases: Releases, filler: Filler) -> None:
    (filler.bundle / "bin").mkdir(parents=True)
    (filler.bundle / "bin/k3s").write_bytes(BINARY)
    assert filler.fill([k3s(releases, sha256=sha256(BINARY), checksum_url="", checksum_name="")]) == []
    assert releases.requests == []


def test_images_come_by_skopeo_pinned_by_digest(filler: Filler) -> None:
    commands: list[Sequence[str]] = []

    def skopeo(command: Sequence[str]) -> tuple[int, str]:
        commands.append(command)
        Path(command[-1].split(":")[1]).write_bytes(b"image")
        return 0, ""

    filler.run = skopeo
    image = Artifact("images/minio.tar", "image", "minio", image="registry.test:5000/minio/minio:R1", digest=DIGEST)
    assert filler.fill([image]) == ["images/minio.tar"]
    part = filler.bundle / "images/.minio.tar.part"
    assert commands[0][-2:] == [
        f"docker://registry.test:5000/minio/minio@{DIGEST}",
        f"docker-archive:{part}:registry.test:5000/minio/minio:R1",
    ]
    assert filler.fill([image]) == []
    entry = filler.manifest({"name": "r", "arch": "amd64"}, [image], "upstream")["artifacts"][0]
    assert entry["kind"] == "images" and entry["images"] == [image.image] and entry["sha256"] == sha256(b"image")


def test_what_was_built_here_stays_in_the_manifest(filler: Filler) -> None:
    entry = {"path": "images/epos.tar", "kind": "images", "name": "epos", "images": ["localhost/epos:1"], "built": True}
    place = filler.bundle / "bundle.yml"
    place.parent.mkdir(parents=True, exist_ok=True)
    before = filler.manifest({"name": "r", "arch": "amd64"}, [], "upstream")
    place.write_text(json.dumps({**before, "artifacts": [{**entry, "sha256": "0" * 64, "size": 1}]}))
    after = filler.manifest({"name": "r", "arch": "amd64", "images": {"minio": "m:1"}}, [], "upstream")
    assert [artifact["path"] for artifact in after["artifacts"]] == ["images/epos.tar"]
    assert after["images"] == {"minio": "m:1", "epos": "localhost/epos:1"}


def test_failures_of_skopeo_are_shown(filler: Filler) -> None:
    image = Artifact("images/minio.tar", "image", "minio", image="minio:R1", digest=DIGEST)
    filler.run = lambda command: (1, "manifest unknown")
    with pytest.raises(SlipwayError, match="minio:R1: skopeo ended with 1: manifest unknown"):
        filler.fill([image])
    filler.run, filler.skopeo = Filler.run, "/no/skopeo"
    with pytest.raises(SlipwayError, match="/no/skopeo: No such file"):
        filler.fill([image])


def test_bad_entries_are_named_before_anything_is_fetched(releases: Releases, filler: Filler) -> None:
    entries = [
        k3s(releases, path="../out"),
        k3s(releases, path="a", sha256="0" * 64),
        k3s(releases, path="b", url=""),
        Artifact("c", "image", "c", image="x:1", digest="latest"),
    ]
    with pytest.raises(SlipwayError) as error:
        filler.fill(entries)
    for text in ("'../out' leads out", "a: exactly one of sha256", "b: url is missing", "c: digest must be"):
        assert text in str(error.value)
    assert releases.requests == []


@pytest.mark.parametrize(
    ("image", "repository"),
    [("a/b:1", "a/b"), ("h:5000/a", "h:5000/a"), ("h:5000/a:1@sha256:x", "h:5000/a"), ("busybox", "busybox")],
)
def test_repository_of(image: str, repository: str) -> None:
    assert repository_of(image) == repository


def test_published_hashes_in_every_form() -> None:
    good = "A" * 64
    assert published_sha256(f"{good} *./k3s\n", "k3s", "u") == good.lower()
    assert published_sha256(good, "kubectl", "u") == good.lower()
    index = yaml.safe_dump({"entries": {"minio": [{"version": "5.4.0", "digest": good}]}})
    assert published_sha256(index, "minio-5.4.0", "https://charts.test/index.yaml") == good.lower()
    with pytest.raises(SlipwayError, match="no entry for minio-9"):
        published_sha256(index, "minio-9", "index.yaml")
    with pytest.raises(SlipwayError, match="it has none"):
        published_sha256("<html></html>", "k3s", "u")
    with pytest.raises(SlipwayError, match="no SHA-256"):
        published_sha256("abc  k3s", "k3s", "u")


# The module, and verification of what it made.


def release(releases: Releases) -> Json:
    source = k3s(releases)
    keys = ("path", "kind", "name", "url", "checksum_url", "checksum_name")
    return {
        "name": "2026.11",
        "versions": {"k3s": "v1"},
        "images": {"minio": "localhost/minio:1"},
        "artifacts": [{key: getattr(source, key) for key in keys}],
    }


@pytest.fixture
def made(releases: Releases, tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    arguments = {"path": str(path), "state": "present", "release": release(releases), "backoff": 0}
    planned = run_module(bundle_module, arguments, check=True)
    assert planned["changed"] and planned["fetched"] == ["bin/k3s"] and not path.exists()
    first = run_module(bundle_module, arguments)
    again = run_module(bundle_module, arguments)
    assert (first["changed"], first["fetched"]) == (True, ["bin/k3s"])
    assert (again["changed"], again["fetched"]) == (False, [])
    assert first["bundle"] == again["bundle"] == read_manifest(path)
    return path


def test_the_manifest_says_what_lies_there(made: Path) -> None:
    result = run_module(bundle_module, {"path": str(made)})
    assert result["changed"] is False
    assert result["bundle"] == {
        "schema": 1,
        "release": "2026.11",
        "origin": "upstream",
        "arch": "amd64",
        "versions": {"k3s": "v1"},
        "images": {"minio": "localhost/minio:1"},
        "artifacts": [
            {"path": "bin/k3s", "kind": "binary", "name": "k3s", "sha256": sha256(BINARY), "size": len(BINARY)}
        ],
    }


def test_a_failed_fill_leaves_no_manifest(releases: Releases, tmp_path: Path) -> None:
    releases.files["/k3s"] = b"other"
    arguments = {"path": str(tmp_path / "b"), "state": "present", "release": release(releases), "backoff": 0}
    failed = run_module(bundle_module, arguments)
    assert failed["failed"] and "was published" in failed["msg"]
    assert not (tmp_path / "b/bundle.yml").exists()
    assert "never completed" in run_module(bundle_module, {"path": str(tmp_path / "b")})["msg"]


def test_every_damage_is_in_one_message(made: Path) -> None:
    manifest = read_manifest(made)
    size = len(BINARY)
    for name, data in (("missing", None), ("short", BINARY[:10]), ("wrong", bytes(size))):
        manifest["artifacts"].append({"path": name, "kind": "x", "name": name, "sha256": sha256(BINARY), "size": size})
        if data is not None:
            (made / name).write_bytes(data)
    (made / "bundle.yml").write_text(yaml.safe_dump(manifest))
    message = run_module(bundle_module, {"path": str(made)})["msg"]
    assert f"{made}/missing: missing" in message
    assert f"{made}/short: 10 bytes, expected {size}" in message
    assert f"{made}/wrong: SHA-256 {sha256(bytes(size))}, expected {sha256(BINARY)}" in message
    assert "bin/k3s" not in message


def test_unchanged_files_are_not_read_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_module(bundle_module, {"path": str(made)})
    hashed: list[Path] = []

    def hashing(path: Path) -> str:
        hashed.append(path)
        return sha256(path.read_bytes())

    monkeypatch.setattr(manifests, "file_sha256", hashing)
    assert run_module(bundle_module, {"path": str(made)})["changed"] is False
    assert hashed == []
    # Same size, another byte: the time of change gives it away.
    (made / "bin/k3s").write_bytes(BINARY[:-1] + bytes([BINARY[-1] ^ 1]))
    assert "SHA-256" in run_module(bundle_module, {"path": str(made)})["msg"]
    assert hashed == [made / "bin/k3s"]


def test_a_spoilt_or_unwritable_stamp_only_costs_time(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    default_stamp(made).write_text("[1, 2")
    assert verify(made, read_manifest(made)["artifacts"], Stamp(default_stamp(made))) == []
    result = run_module(bundle_module, {"path": str(made), "stamp": "/proc/none/stamp"})
    # Ansible prints warnings or returns them, depending on what else is loaded.
    assert not result.get("failed") and "cannot be remembered" in f"{result}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"schema": 2}, "schema is 2, this version of Slipway reads schema 1"),
        ({"artifacts": {}}, "artifacts is no list"),
        ({"artifacts": [{"path": "/etc/passwd"}]}, "leads out of the bundle"),
        ({"artifacts": [{"path": "a", "size": "1"}]}, "artifacts[0].size is '1', not a int"),
        ({"artifacts": ["x"]}, "artifacts[0] is no mapping"),
    ],
)
def test_bad_manifests(made: Path, change: Json, fault: str) -> None:
    assert fault in "; ".join(manifest_faults({**read_manifest(made), **change}))
    (made / "bundle.yml").write_text(yaml.safe_dump({**read_manifest(made), **change}))
    message = run_module(bundle_module, {"path": str(made)})["msg"]
    assert message.startswith(f"{made}/bundle.yml: ") and fault in message


def test_missing_keys_and_broken_yaml_are_named(made: Path) -> None:
    assert manifest_faults({"schema": 1, "artifacts": []}) == [
        f"key {key} is missing" for key in ("release", "origin", "arch", "versions", "images")
    ]
    (made / "bundle.yml").write_text("{")
    with pytest.raises(SlipwayError, match=r"bundle\.yml: cannot be read"):
        read_manifest(made)

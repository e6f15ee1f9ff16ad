"""S3 transfers and the whole job, against an in-process store. The real MinIO is covered end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epos import cli, job, store
from epos.bop import data_hash, file_hashes
from epos.config import TrainConfig
from epos.errors import DataError, EposError, GateError, UsageError
from epos.job import DataOptions, RunOptions, run_job
from epos.peers import Peers
from epos.pose import PoseConfig
from epos.store import Location

from .fakes import FakeStore

CONFIG = TrainConfig(
    backbone="small",
    image_size=64,
    num_frags=4,
    train_steps=12,
    batch_size=2,
    learning_rate=0.01,
    warmup_steps=2,
    seed=3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "a/b").mkdir(parents=True)
    (root / "one.txt").write_bytes(b"1")
    (root / "a/b/two.bin").write_bytes(bytes(range(256)))
    return root


PLACE = Location("data", "sets/lab")


def test_push_then_pull_gives_the_same_files(fake: FakeStore, folder: Path, tmp_path: Path) -> None:
    pushed = store.push(fake, folder, PLACE)
    assert list(fake.objects)[-1] == ("data", "sets/lab/manifest.json"), "the manifest is written last"
    pulled = store.pull(fake, PLACE, tmp_path / "target")
    assert pulled == {"files": 2, "downloaded": 2, "data_hash": pushed["data_hash"]}
    assert file_hashes(tmp_path / "target") == file_hashes(folder)
    assert pushed["data_hash"] == data_hash(file_hashes(folder))


def test_pull_fetches_only_what_differs_and_removes_what_is_gone(fake: FakeStore, folder: Path, tmp_path: Path) -> None:
    store.push(fake, folder, PLACE)
    target = tmp_path / "target"
    store.pull(fake, PLACE, target)
    assert store.pull(fake, PLACE, target)["downloaded"] == 0
    (target / "one.txt").write_bytes(b"changed")
    assert store.pull(fake, PLACE, target)["downloaded"] == 1
    (folder / "one.txt").rename(folder / "three.txt")
    (folder / "a/b/two.bin").unlink()
    store.push(fake, folder, PLACE)
    store.pull(fake, PLACE, target)
    assert sorted(p.name for p in target.rglob("*")) == ["manifest.json", "three.txt"]


def test_pull_leaves_foreign_folders_alone(fake: FakeStore, folder: Path, tmp_path: Path) -> None:
    store.push(fake, folder, PLACE)
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not made by pull"):
        store.pull(fake, PLACE, target)
    assert [p.name for p in target.iterdir()] == ["thesis.txt"]
    (target / "thesis.txt").unlink()
    (target / "lost+found").mkdir()
    assert store.pull(fake, PLACE, target)["files"] == 2
    assert (target / "lost+found").is_dir()


def test_an_interrupted_pull_can_be_repeated(fake: FakeStore, folder: Path, tmp_path: Path) -> None:
    store.push(fake, folder, PLACE)
    fake.fail_on = "two.bin"
    with pytest.raises(EposError, match=r"two\.bin: cannot reach the server"):
        store.pull(fake, PLACE, tmp_path / "target")
    fake.fail_on = None
    store.pull(fake, PLACE, tmp_path / "target")
    assert file_hashes(tmp_path / "target") == file_hashes(folder)


def test_changed_objects_are_noticed(fake: FakeStore, folder: Path, tmp_path: Path) -> None:
    store.push(fake, folder, PLACE)
    fake.objects["data", "sets/lab/one.txt"] = b"2"
    with pytest.raises(DataError, match=r"^s3://data/sets/lab/one\.txt: has another SHA-256"):
        store.pull(fake, PLACE, tmp_path / "target")
    del fake.objects["data", "sets/lab/one.txt"]
    with pytest.raises(DataError, match=r"^s3://data/sets/lab/one\.txt: missing object"):
        store.pull(fake, PLACE, tmp_path / "target")


def test_a_missing_data_set_is_named(fake: FakeStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"s3://data/sets/lab/manifest\.json: missing object"):
        store.pull(fake, PLACE, tmp_path / "target")
    fake.forbidden.add("data")
    with pytest.raises(EposError, match=r"s3://data/sets/lab/manifest\.json: AccessDenied") as caught:
        store.pull(fake, PLACE, tmp_path / "target")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "a//b", "."])
def test_unsafe_paths_in_a_manifest_are_refused(fake: FakeStore, tmp_path: Path, name: str) -> None:
    files = {name: {"sha256": "0" * 64, "size": 1}}
    fake.objects["data", "sets/lab/manifest.json"] = store.manifest_text(files)
    with pytest.raises(DataError, match="unsafe path"):
        store.pull(fake, PLACE, tmp_path / "target")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"files": {"a": 1}}', b'{"files": {}, "data_hash": "x"}'])
def test_damaged_manifests_are_refused(fake: FakeStore, tmp_path: Path, text: bytes) -> None:
    fake.objects["data", "sets/lab/manifest.json"] = text
    with pytest.raises(DataError, match=r"manifest\.json: "):
        store.pull(fake, PLACE, tmp_path / "target")


def test_places_are_parsed() -> None:
    assert Location.parse("s3://bucket/p/q/") == Location("bucket", "p/q")
    assert Location.parse("s3://bucket").key("x") == "x"
    for wrong in ("b/p", "http://b/p", "s3://", "s3:///p", "s3://b/../p", "s3://b/p//q"):
        with pytest.raises(UsageError, match="s3://bucket/prefix"):
            Location.parse(wrong)


@pytest.mark.parametrize("bucket", ["a", "ab", "x" * 64, "a..b", "10.0.0.1", "-ab", "a b c"])
def test_a_bucket_that_cannot_be_is_a_readable_error(
    bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent, and without a traceback."""
    assert cli.main(["push", str(tmp_path), f"s3://{bucket}/b"]) == 2
    said = capsys.readouterr().err
    assert f"'s3://{bucket}/b': " in said and "3 to 63 characters" in said
    assert "Traceback" not in said and said.count("\n") == 1


def test_the_client_comes_from_the_environment(tmp_path: Path) -> None:
    values = {"S3_ENDPOINT": "minio.example:9000", "S3_ACCESS_KEY": "user", "S3_SECRET_KEY": "secret-word"}
    store.connect(values)
    for name in values:
        with pytest.raises(UsageError, match=name):
            store.connect({**values, name: ""})
    with pytest.raises(UsageError, match="S3_SECURE must be true or false"):
        store.connect({**values, "S3_SECURE": "maybe"})
    with pytest.raises(UsageError, match=r"S3_CA_FILE: .*: no such file"):
        store.connect({**values, "S3_CA_FILE": str(tmp_path / "none.pem")})
    with pytest.raises(UsageError, match="S3_ENDPOINT") as caught:
        store.connect({**values, "S3_ENDPOINT": "http://host/path/x?"})
    assert "secret-word" not in str(caught.value)


class Job:
    """Runs the job against the fake store."""

    def __init__(self, fake: FakeStore, root: Path) -> None:
        self.fake, self.root = fake, root
        self.models = Location("models", "epos")

    def run(self, min_recall: float, **options: Any) -> str | None:
        return run_job(
            PLACE, self.models, DataOptions(self.root / "data"), CONFIG, PoseConfig(iterations=128),
            RunOptions(self.root / "work", checkpoint_every=2, **options), min_recall, 1,
        )  # fmt: skip

    @property
    def pointer(self) -> dict[str, Any] | None:
        data = self.fake.objects.get(("models", "epos/latest.json"))
        return None if data is None else dict(json.loads(data))


@pytest.fixture
def prepared(fake: FakeStore, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(store, "connect", lambda: fake)
    store.push(fake, rendered, PLACE)
    return Job(fake, tmp_path)


def test_a_good_model_is_published_and_the_pointer_moves_last(prepared: Job, tmp_path: Path) -> None:
    version = prepared.run(min_recall=0.0)
    pointer = prepared.pointer
    assert pointer is not None and pointer["version"] == version
    assert list(prepared.fake.objects)[-1] == ("models", "epos/latest.json")
    names = {name.removeprefix(f"epos/{version}/") for bucket, name in prepared.fake.objects if bucket == "models"}
    assert names >= {
        "config.json", "weights.npz", "probe.npz", "card.json", "metrics.json", "predictions.csv", "loss.csv",
        "loss.png", "overlays/000001_000000.png", "manifest.json",
    }  # fmt: skip
    assert pointer["metrics"]["gate_passed"] is True and pointer["metrics"]["min_recall"] == 0.0
    assert not list(prepared.root.glob("work/run-*/checkpoints")), "a finished run leaves no checkpoints"
    assert store.pull_latest(prepared.fake, prepared.models, tmp_path / "model") == version

    before = dict(prepared.fake.objects)
    assert prepared.run(min_recall=0.0) == version, "the same run gives the same version"
    assert {k: v for k, v in prepared.fake.objects.items() if k[0] == "models"} == {
        k: v for k, v in before.items() if k[0] == "models"
    }

    with pytest.raises(GateError, match=r"gate not passed: recall 0\.\d+ is below 1\.0000") as caught:
        prepared.run(min_recall=1.0)
    assert caught.value.exit_code == 3
    assert prepared.pointer == pointer, "a rejected model leaves the good one in place"

    key = ("data", "sets/lab/train/000001/rgb/000002.png")
    prepared.fake.objects[key] = prepared.fake.objects[key][:100]
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match=r"rgb/000002\.png: has another SHA-256"):
        prepared.run(min_recall=0.0)
    assert prepared.pointer == pointer


def test_a_checkpoint_in_the_store_is_one_object(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    kept = store.Checkpoint(fake, Location("models", "checkpoints"), "run-1.npz")
    assert kept.load() is None
    for step in (2, 4):
        kept.save(step, {"step": np.array(step)})
    assert list(fake.objects) == [("models", "checkpoints/run-1.npz")]
    assert int(kept.load()["step"]) == 4  # type: ignore[index]
    fake.objects["models", "checkpoints/run-1.npz"] = b"PK half"
    assert kept.load() is None
    assert "checkpoint s3://models/checkpoints/run-1.npz is unreadable" in capsys.readouterr().out
    kept.remove()
    kept.remove()
    assert not fake.objects
    fake.forbidden.add("models")
    with pytest.raises(EposError, match=r"s3://models/checkpoints/run-1\.npz: AccessDenied"):
        kept.load()


def test_a_run_resumes_from_the_store_without_its_work_folder(
    prepared: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a pod does that replaces one of another node."""
    place = Location("models", "checkpoints")
    version = prepared.run(min_recall=0.0, checkpoints=place)
    assert not [name for _, name in prepared.fake.objects if "checkpoints" in name], "a finished run leaves none"
    monkeypatch.setattr(job, "evaluate_model", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    shutil.rmtree(prepared.root / "work")
    with pytest.raises(OSError, match="disk full"):
        prepared.run(min_recall=0.0, checkpoints=place)
    monkeypatch.undo()
    monkeypatch.setattr(store, "connect", lambda: prepared.fake)
    shutil.rmtree(prepared.root / "work")
    capsys.readouterr()
    assert prepared.run(min_recall=0.0, checkpoints=place) == version
    assert "resuming from step 12" in capsys.readouterr().out


def test_a_helper_leaves_the_rest_to_the_leader(prepared: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "train_model", lambda *_: None)
    assert prepared.run(min_recall=0.0, peers=Peers(2, 1, "leader:1")) is None
    assert prepared.pointer is None


def test_corrupt_data_stops_before_training(prepared: Job, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is right, but what was uploaded is damaged."""
    (copied / "train/000001/scene_camera.json").unlink()
    store.push(prepared.fake, copied, PLACE)
    monkeypatch.setattr(job, "train_model", lambda *_: pytest.fail("trained on bad data"))
    with pytest.raises(DataError, match=r"train/000001/scene_camera\.json: missing file") as caught:
        prepared.run(min_recall=0.0)
    assert caught.value.exit_code == 4 and prepared.pointer is None


def test_a_forbidden_bucket_leaves_the_pointer(prepared: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "metrics.json").write_text("{}")
    monkeypatch.setattr(job, "train_model", lambda *_: (model, "v1"))
    monkeypatch.setattr(job, "evaluate_model", lambda *_: {"recall": 0.9})
    prepared.fake.forbidden.add("models")
    with pytest.raises(EposError, match="AccessDenied"):
        prepared.run(min_recall=0.5)
    assert prepared.pointer is None

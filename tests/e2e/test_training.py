"""From a data set in the object store to a model that predicts: the training as a Kubernetes Job."""

from __future__ import annotations

import csv
import json
import math
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from .gpus import gpu_nodes
from .site import NAMESPACE, Epos, Job, Site, Store
from .training import MIN_RECALL, MODELS, SMALL, remove


@pytest.mark.train
def test_gate_is_passed(trained: dict[str, Any], store: Store) -> None:
    """The published model's recall on held-out images is above the gate, and pointer and metrics agree."""
    latest = store.latest()
    assert latest
    metrics = json.loads(store.read("epos-models", f"{latest['prefix']}metrics.json"))
    assert metrics["gate_passed"] is True
    assert metrics["recall"] == latest["metrics"]["recall"] == trained["recall"] >= MIN_RECALL
    assert metrics["model_version"] == latest["version"] == trained["version"]
    assert metrics["data_hash"] == latest["data_hash"] == trained["data_hash"]


@pytest.mark.train
def test_gpu_was_used_where_there_is_one(trained: dict[str, Any], site: Site) -> None:
    """The training asked for a GPU and records which one it was given; without CUDA in the image it still says what computed."""
    if not gpu_nodes(site):
        pytest.skip("no node of this site advertises GPUs")
    assert len(trained["gpus"]) == 1
    assert trained["gpus"][0].startswith(("GPU-", "MIG-"))
    assert trained["device"].startswith(("cpu", "cuda", "gpu"))


@pytest.mark.train
def test_pictures_are_published(trained: dict[str, Any], store: Store, report_dir: Path) -> None:
    """Loss curve and pose overlays are PNGs in the bucket; the report gets copies."""
    names = [
        item.object_name
        for item in store.client.list_objects(
            bucket_name="epos-models", prefix=f"models/{trained['version']}/", recursive=True
        )
    ]
    pictures = [name for name in names if name.endswith(".png")]
    assert any(name.endswith("/loss.png") for name in pictures)
    assert sum("/overlays/" in name for name in pictures) >= 4
    shutil.rmtree(report_dir / "pictures", ignore_errors=True)
    (report_dir / "pictures").mkdir()
    for name in pictures:
        content = store.read("epos-models", name)
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), name
        (report_dir / "pictures" / Path(name).name).write_bytes(content)


def poses(path: Path) -> dict[tuple[str, str, str], list[list[float]]]:
    """Return the poses in a BOP result file by scene, image and object: rotation (9) and translation (3, mm)."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    with path.open() as stream:
        for row in csv.DictReader(stream):
            numbers = [float(value) for value in f"{row['R']} {row['t']}".split()]
            found.setdefault((row["scene_id"], row["im_id"], row["obj_id"]), []).append(numbers)
    return found


def same_pose(one: list[float], two: list[float]) -> bool:
    """Return whether two poses differ by at most 2 degrees and 1 % of their distance."""
    trace = sum(a * b for a, b in zip(one[:9], two[:9], strict=True))
    angle = math.degrees(math.acos(max(-1.0, min(1.0, (trace - 1) / 2))))
    return angle <= 2 and math.dist(one[9:], two[9:]) <= 0.01 * math.hypot(*two[9:])


def download_images(store: Store, folder: Path, count: int) -> None:
    """Download what is needed to predict in the first `count` held-out images: all of them were judged by the Job."""
    targets = json.loads(store.read("epos-data", "lab/test_targets_bop19.json"))
    images = sorted({(target["scene_id"], target["im_id"]) for target in targets})[:count]
    for name in json.loads(store.read("epos-data", "lab/manifest.json"))["files"]:
        if name.startswith("train/") or (name.endswith(".png") and "/rgb/" not in name):
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read("epos-data", f"lab/{name}"))
    chosen = [target for target in targets if (target["scene_id"], target["im_id"]) in images]
    (folder / "test_targets_bop19.json").write_text(json.dumps(chosen))


@pytest.mark.smoke
@pytest.mark.train
def test_model_predicts_the_same_elsewhere(trained: dict[str, Any], store: Store, epos: Epos, tmp_path: Path) -> None:
    """Loaded from the bucket by another process on another machine, the model finds the poses that the Job found."""
    answer = epos.run("pull", "--latest", MODELS, str(tmp_path / "model"))
    assert json.loads(answer.stdout)["version"] == trained["version"]
    download_images(store, tmp_path / "data", count=8)
    epos.run(
        "predict",
        "--model",
        str(tmp_path / "model"),
        "--data-dir",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "here.csv"),
    )

    here, there = poses(tmp_path / "here.csv"), poses(tmp_path / "model/predictions.csv")
    assert len(here) >= 8
    pairs = [(a, b) for key, found in here.items() for a, b in zip(found, there.get(key, []), strict=True)]
    # Another CPU may round differently, and RANSAC then choose another of two equally good samples.
    assert sum(same_pose(a, b) for a, b in pairs) >= 0.9 * len(pairs)


@pytest.fixture
def pointer(trained: dict[str, Any], store: Store) -> dict[str, Any]:
    """The pointer to the last good model, as it must stay."""
    latest = store.latest()
    assert latest
    return latest


@pytest.mark.fault
def test_killed_training_resumes(trained: dict[str, Any], site: Site, store: Store) -> None:
    """A training pod that is killed is replaced; the new one goes on from the last checkpoint and publishes."""
    options = [
        "--models",
        "s3://epos-models/test-resume",
        "--train-steps",
        "60",
        "--checkpoint-every",
        "10",
        "--log-every",
        "5",
    ]
    with Job(site, "epos-test-resume", [*SMALL, *options, "--min-recall", "0"]) as job:
        first = job.await_log("step 25", timeout=300)
        site.core.delete_namespaced_pod(first, NAMESPACE, grace_period_seconds=0)
        log = job.follow(timeout=600)
        assert job.finished() == "Complete", log[-3000:]
        assert {pod.metadata.name for pod in job.pods()} != {first}
    assert "resum" in log
    latest = store.latest("test-resume")
    assert latest
    remove(store, "epos-models", "test-resume/")


def without_camera(data: Path) -> str:
    """Remove a scene's cameras."""
    path = next((data / "train").iterdir()) / "scene_camera.json"
    path.unlink()
    return str(path.relative_to(data))


def truncated(data: Path) -> str:
    """Cut a picture off."""
    path = sorted(data.glob("train/*/rgb/*.png"))[3]
    path.write_bytes(path.read_bytes()[:200])
    return str(path.relative_to(data))


def wrong_size(data: Path) -> str:
    """Put a picture of 2 x 2 pixels in a picture's place."""
    path = sorted(data.glob("test/*/rgb/*.png"))[2]
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(14))),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return str(path.relative_to(data))


@pytest.mark.fault
@pytest.mark.parametrize("damage", [without_camera, truncated, wrong_size], ids=lambda damage: damage.__name__)
def test_corrupt_data_changes_nothing(
    site: Site, store: Store, epos: Epos, dataset: Path, tmp_path: Path, pointer: dict[str, Any], damage: Any
) -> None:
    """The Job fails at once with a message that names the file; the last good model stays."""
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    name = damage(data)
    epos.run("push", str(data), "s3://epos-data/test-corrupt")
    arguments = [*SMALL, "--models", MODELS]
    arguments[1] = "s3://epos-data/test-corrupt"
    try:
        with Job(site, "epos-test-corrupt", arguments) as job:
            log = job.follow(timeout=300)
            assert job.finished() == "Failed"
            # One pod: bad data does not get better by trying again.
            assert job.exit_codes() == [4], log
    finally:
        remove(store, "epos-data", "test-corrupt/")
    assert name in log
    assert store.latest() == pointer


@pytest.mark.fault
def test_missed_gate_changes_nothing(site: Site, store: Store, pointer: dict[str, Any]) -> None:
    """A barely trained model is rejected with its figures; the last good one stays."""
    with Job(
        site, "epos-test-gate", [*SMALL, "--models", MODELS, "--train-steps", "2", "--min-recall", str(MIN_RECALL)]
    ) as job:
        log = job.follow(timeout=600)
        assert job.finished() == "Failed"
        assert job.exit_codes() == [3], log
    assert "gate not passed: recall" in log
    assert store.latest() == pointer


@pytest.mark.fault
def test_foreign_models_bucket_is_refused(site: Site, store: Store) -> None:
    """A Job that would publish where its user may not says so and fails."""
    options = ["--models", "s3://slipway-nobody/models", "--train-steps", "1", "--min-recall", "0"]
    with Job(site, "epos-test-foreign", [*SMALL, *options], retries=0) as job:
        log = job.follow(timeout=600)
        assert job.finished() == "Failed"
    assert "slipway-nobody" in log
    assert "AccessDenied" in log

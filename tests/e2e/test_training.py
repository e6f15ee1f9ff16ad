"""From a data set in the object store to a model that predicts; what only the Kubernetes Job does is tested with the Job."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from .gpus import gpu_nodes
from .site import NAMESPACE, Epos, Job, Site, Store
from .training import HELD_OUT, MIN_RECALL, MODELS, SMALL


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


@pytest.mark.smoke
@pytest.mark.train
def test_model_predicts_the_same_elsewhere(trained: dict[str, Any], held_out: Path, epos: Epos, tmp_path: Path) -> None:
    """Loaded from the bucket by another process on another machine, the model finds the poses that it was judged by."""
    answer = epos.run("pull", "--latest", MODELS, str(tmp_path / "model"))
    assert json.loads(answer.stdout)["version"] == trained["version"]
    epos.run(
        "predict",
        "--model",
        str(tmp_path / "model"),
        "--data-dir",
        str(held_out),
        "--out",
        str(tmp_path / "here.csv"),
    )

    here, there = poses(tmp_path / "here.csv"), poses(tmp_path / "model/predictions.csv")
    assert len(here) >= HELD_OUT
    pairs = [(a, b) for key, found in here.items() for a, b in zip(found, there.get(key, []), strict=True)]
    # Another CPU may round differently, and RANSAC then choose another of two equally good samples.
    assert sum(same_pose(a, b) for a, b in pairs) >= 0.9 * len(pairs)


@pytest.mark.fault
@pytest.mark.usefixtures("few_images")
def test_killed_training_resumes_and_a_missed_gate_changes_nothing(
    site: Site, store: Store, pointer: dict[str, Any]
) -> None:
    """A training pod that is killed is replaced and goes on from the last checkpoint; a barely trained model is rejected with its figures."""
    options = ["--train-steps", "30", "--checkpoint-every", "5", "--log-every", "5", "--min-recall", str(MIN_RECALL)]
    with Job(site, "epos-test-resume", [*SMALL, "--models", MODELS, *options]) as job:
        first = job.await_log("step 15", timeout=300)
        site.core.delete_namespaced_pod(first, NAMESPACE, grace_period_seconds=0)
        log = job.follow(timeout=600)
        assert job.finished() == "Failed", log[-3000:]
        assert {pod.metadata.name for pod in job.pods()} != {first}
        # One pod, and no more: a missed gate does not get better by trying again.
        assert job.exit_codes() == [3], log[-3000:]
    assert "resum" in log
    assert "gate not passed: recall" in log
    assert store.latest() == pointer


@pytest.mark.fault
def test_corrupt_data_changes_nothing(
    site: Site, store: Store, pointer: dict[str, Any], corrupt: tuple[str, list[str]]
) -> None:
    """The Job fails at once with a message that names the files; the last good model stays."""
    location, named = corrupt
    arguments = [*SMALL, "--models", MODELS]
    arguments[arguments.index("--data") + 1] = location
    with Job(site, "epos-test-corrupt", arguments) as job:
        log = job.follow(timeout=300)
        assert job.finished() == "Failed"
        # One pod: bad data does not get better by trying again.
        assert job.exit_codes() == [4], log
    for name in named:
        assert name in log
    assert store.latest() == pointer


@pytest.mark.fault
def test_foreign_models_bucket_is_refused(epos: Epos, tmp_path: Path) -> None:
    """Who would publish where the training's user may not is told so."""
    (tmp_path / "card.json").write_text("{}")
    answer = epos.run("push", str(tmp_path), "s3://slipway-nobody/models", check=False)
    assert answer.returncode == 1
    assert "s3://slipway-nobody/models" in answer.stderr
    assert "AccessDenied" in answer.stderr

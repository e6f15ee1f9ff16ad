"""Cleaning, transforming and splitting BOP folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from epos.bop import BopDataset, data_hash, file_hashes, validate
from epos.errors import DataError
from slipway_dataops import data

from . import bop

SCENE = "train/000001"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def digest(root: Path) -> str:
    return data_hash(file_hashes(root))


def paint(path: Path, value: int) -> None:
    Image.fromarray(np.full((bop.SIZE, bop.SIZE, 3), value, np.uint8)).save(path)


def images(root: Path, split: str) -> dict[str, bytes]:
    """Pixels by scene and image."""
    return {
        f"{view.scene_id}/{view.im_id}": Image.open(view.path).convert("RGB").tobytes()
        for view in BopDataset(root).views(split)
    }


def test_clean_data_stay_as_they_are(rendered: Path, tmp_path: Path) -> None:
    cleaned = data.clean(rendered, tmp_path / "out", 0)
    assert (cleaned.kept, cleaned.removed.total(), cleaned.examples) == (16, 0, [])
    assert images(tmp_path / "out", "train") == images(rendered, "train")
    validate(BopDataset(tmp_path / "out"), ["train", "test"])


def _cut(root: Path) -> None:
    path = root / SCENE / "rgb/000003.png"
    path.write_bytes(path.read_bytes()[:200])


def _missing(root: Path) -> None:
    (root / SCENE / "rgb/000003.png").unlink()


def _gt(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda root: edit(root / SCENE / "scene_gt.json", change)


def _camera(change: Callable[[Any], object]) -> Callable[[Path], None]:
    return lambda root: edit(root / SCENE / "scene_camera.json", change)


BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "cut": ("unreadable", _cut, "rgb/000003.png: damaged image"),
    "missing": ("unreadable", _missing, "rgb/000003.png: missing image"),
    "16 bit": (
        "format",
        lambda root: Image.fromarray(np.full((64, 64), 9000, np.uint16)).save(root / SCENE / "rgb/000003.png"),
        "64x64 px of mode I;16",
    ),
    "black": ("brightness", lambda root: paint(root / SCENE / "rgb/000003.png", 1), "its mean is 1.0"),
    "one colour": ("content", lambda root: paint(root / SCENE / "rgb/000003.png", 99), "its standard deviation is 0.0"),
    "twice": (
        "duplicate",
        lambda root: shutil.copy(root / SCENE / "rgb/000002.png", root / SCENE / "rgb/000003.png"),
        "is train/000001/rgb/000002.png as well",
    ),
    "no focal length": ("camera", _camera(lambda v: v["3"].update(cam_K=[0] * 9)), "cam_K: no focal lengths"),
    "no camera": ("camera", _camera(lambda v: v["3"].clear()), "'cam_K'"),
    "not annotated": ("annotations", _gt(lambda v: v.pop("3")), "there are none"),
    "no rotation": ("pose", _gt(lambda v: v["3"][0].update(cam_R_m2c=[2, 0, 0, 0, 1, 0, 0, 0, 1])), "not a rotation matrix"),
    "behind": ("pose", _gt(lambda v: v["3"][1]["cam_t_m2c"].__setitem__(2, -5.0)), "[1]: the object is behind the camera"),
    "unknown": ("pose", _gt(lambda v: v["3"][0].update(obj_id=7)), "no model of object 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_taken_out_and_nothing_else(copied: Path, tmp_path: Path, name: str) -> None:
    reason, breaks, words = BROKEN[name]
    before = images(copied, "train")
    breaks(copied)
    cleaned = data.clean(copied, tmp_path / "out", 0.2)
    assert dict(cleaned.removed) == {reason: 1} and cleaned.kept == 15
    assert words in cleaned.examples[0] and cleaned.examples[0].startswith("train/000001/")
    validate(BopDataset(tmp_path / "out"), ["train", "test"])
    del before["1/3"]
    assert images(tmp_path / "out", "train") == before


def test_too_much_that_cannot_be_used(copied: Path, tmp_path: Path) -> None:
    for key in range(4):
        paint(copied / SCENE / f"rgb/{key:06d}.png", 0)
    with pytest.raises(
        DataError, match=r"4 of 16 images cannot be used, at most 20% may be\ntrain/000001/rgb/000000\.png"
    ):
        data.clean(copied, tmp_path / "out", 0.2)


def test_an_unreadable_scene_costs_its_images(copied: Path, tmp_path: Path) -> None:
    (copied / "test/000001/scene_gt.json").write_text("{")
    with pytest.raises(DataError, match="4 of 16 images"):
        data.clean(copied, tmp_path / "out", 0.2)
    assert dict(data.clean(copied, tmp_path / "more", 0.5).removed) == {"annotations": 4}


def test_targets_follow_the_images_that_stay(copied: Path, tmp_path: Path) -> None:
    targets = [{"scene_id": 1, "im_id": key, "obj_id": 1, "inst_count": 1} for key in range(4)]
    (copied / "test_targets_bop19.json").write_text(json.dumps(targets))
    paint(copied / "test/000001/rgb/000002.png", 0)
    data.clean(copied, tmp_path / "out", 0.2)
    assert [view.im_id for view in BopDataset(tmp_path / "out").targets("test")] == [0, 1, 3]


def test_no_scene(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered / "models", tmp_path / "set/models")
    with pytest.raises(DataError, match="no folder with scenes"):
        data.clean(tmp_path / "set", tmp_path / "out", 0.2)


def test_one_form_for_all_images(copied: Path, tmp_path: Path) -> None:
    scene = copied / SCENE
    Image.open(scene / "rgb/000000.png").convert("L").save(scene / "rgb/000000.png")
    (scene / "gray").mkdir()
    Image.open(scene / "rgb/000001.png").save(scene / "gray/000001.jpg")
    (scene / "rgb/000001.png").unlink()
    (scene / "depth").mkdir()
    (scene / "depth/000000.png").write_bytes(b"x")
    (copied / "models").rename(copied / "models_cad")
    counts = data.transform(copied, tmp_path / "out", 640)
    assert counts == {"images": 16, "scaled": 0, "encoded": 2}
    out = tmp_path / "out" / SCENE
    assert sorted(path.name for path in out.iterdir()) == ["mask_visib", "rgb", "scene_camera.json", "scene_gt.json", "scene_gt_info.json"]  # fmt: skip
    assert {Image.open(path).mode for path in (out / "rgb").iterdir()} == {"RGB"}
    assert len(list((out / "rgb").glob("*.png"))) == 12 and (tmp_path / "out/models/models_info.json").exists()


def test_smaller_images_keep_their_poses(tmp_path: Path) -> None:
    """The expectations hold masks against poses and cameras: a wrong scale would break them."""
    big = bop.make(tmp_path / "big", {"train": 8, "test": 3}, seed=5)
    assert data.transform(big, tmp_path / "half", 48)["scaled"] == 11
    assert Image.open(tmp_path / "half" / SCENE / "rgb/000000.png").size == (48, 48)
    data.check(tmp_path / "half")
    # The same point lies at 3/4 of the place: pixel centres are at whole numbers.
    camera = json.loads((tmp_path / "half" / SCENE / "scene_camera.json").read_text())["0"]["cam_K"]
    assert camera == pytest.approx([67.5, 0, 0.75 * 32 - 0.5, 0, 67.5, 0.75 * 32 - 0.5, 0, 0, 1])
    assert json.loads((tmp_path / "half/camera.json").read_text())["width"] == 48


def test_held_out_images_that_were_given_stay(rendered: Path, tmp_path: Path) -> None:
    facts = data.split(rendered, tmp_path / "out", 0.5, 1)
    assert facts == {"train": 12, "test": 4, "by": "given", "seed": 1, "fraction": 0.5}
    assert images(tmp_path / "out", "test") == images(rendered, "test")
    assert len(data.check(tmp_path / "out")) == 13


def test_bops_names_of_held_out_images(copied: Path, tmp_path: Path) -> None:
    (copied / "test").rename(copied / "test_primesense")
    assert data.split(copied, tmp_path / "out", 0.5, 1)["by"] == "given"
    assert data.splits(tmp_path / "out") == ["test", "train"]
    shutil.copytree(copied / "test_primesense", copied / "test_kinect")
    with pytest.raises(
        DataError, match="several folders of held-out images, expected one at most: test_kinect, test_primesense"
    ):
        data.split(copied, tmp_path / "more", 0.5, 1)


@pytest.fixture(scope="session")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bop.make(tmp_path_factory.mktemp("bop") / "set", {"train_pbr": 20, "train_real": 20}, seed=3)


def test_a_seed_divides(undivided: Path, tmp_path: Path) -> None:
    facts = data.split(undivided, tmp_path / "one", 0.25, 1)
    assert facts["train"] + facts["test"] == 40 and 4 <= facts["test"] <= 16 and facts["by"] == "seed"
    data.check(tmp_path / "one")
    pixels = set(images(tmp_path / "one", "train").values()), set(images(tmp_path / "one", "test").values())
    assert not pixels[0] & pixels[1] and len(pixels[0] | pixels[1]) == 40
    data.split(undivided, tmp_path / "again", 0.25, 1)
    assert digest(tmp_path / "again") == digest(tmp_path / "one")
    data.split(undivided, tmp_path / "other", 0.25, 2)
    assert digest(tmp_path / "other") != digest(tmp_path / "one")


def test_what_was_held_out_once_stays_so(undivided: Path, tmp_path: Path) -> None:
    """More images, other names: none changes sides."""
    data.split(undivided, tmp_path / "before", 0.25, 1)
    shutil.copytree(undivided / "models", tmp_path / "more/models")
    shutil.copytree(bop.make(tmp_path / "new", {"a": 15}, seed=9) / "a/000001", tmp_path / "more/all/000007")
    for number, split in enumerate(data.splits(undivided)):
        shutil.copytree(undivided / split / "000001", tmp_path / f"more/all/{number:06d}")
    data.split(tmp_path / "more", tmp_path / "after", 0.25, 1)
    for side, other in (("train", "test"), ("test", "train")):
        before = set(images(tmp_path / "before", side).values())
        assert before <= set(images(tmp_path / "after", side).values())
        assert not before & set(images(tmp_path / "after", other).values())


def test_a_side_without_image(undivided: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in test: there are 40, of which 0% are held out with seed 1"):
        data.split(undivided, tmp_path / "out", 1e-9, 1)


def test_the_expectations_name_file_and_key(copied: Path) -> None:
    edit(copied / SCENE / "scene_gt.json", lambda v: v["2"][0]["cam_t_m2c"].__setitem__(0, 5000.0))
    with pytest.raises(
        DataError, match=r"^train/000001/scene_gt.json: 2\[0\]: visible, but projected to .*\(pose-in-image\)"
    ):
        data.check(copied)

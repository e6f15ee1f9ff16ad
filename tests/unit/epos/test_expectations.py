"""Every expectation, broken on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from epos.bop import BopDataset
from epos.errors import DataError
from epos.expectations import Outcome, complain, examine, report

SCENE = "train/000001"


def outcomes(root: Path) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in examine(BopDataset(root), "train", "test")}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def paint(path: Path, value: int) -> None:
    size = Image.open(path).size
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def test_good_data_meet_everything_and_everything_is_checked(rendered: Path) -> None:
    found = outcomes(rendered)
    assert {name: outcome.offenders for name, outcome in found.items() if outcome.failed} == {}
    assert [name for name, outcome in found.items() if not outcome.checked] == []
    assert found["image-format"].checked == 11 and found["split-disjoint"].checked == 3
    complain(list(found.values()))


def _rotation(root: Path) -> None:
    edit(root / SCENE / "scene_gt.json", lambda v: v["2"][0].update(cam_R_m2c=[2, 0, 0, 0, 1, 0, 0, 0, 1]))


def _behind(root: Path) -> None:
    edit(root / SCENE / "scene_gt.json", lambda v: v["2"][0]["cam_t_m2c"].__setitem__(2, 10.0))


def _outside(root: Path) -> None:
    edit(root / SCENE / "scene_gt.json", lambda v: v["2"][0]["cam_t_m2c"].__setitem__(0, 5000.0))


def _centre(root: Path) -> None:
    edit(root / SCENE / "scene_camera.json", lambda v: v["2"]["cam_K"].__setitem__(2, 900.0))


def _shuffled(root: Path) -> None:
    edit(
        root / SCENE / "scene_gt.json", lambda v: v["2"][0]["cam_t_m2c"].__setitem__(0, v["2"][0]["cam_t_m2c"][0] + 100)
    )


def _count(root: Path) -> None:
    edit(root / SCENE / "scene_gt_info.json", lambda v: v["2"][0].update(px_count_visib=4000, px_count_all=4000))


def _fraction(root: Path) -> None:
    edit(root / SCENE / "scene_gt_info.json", lambda v: v["2"][0].update(visib_fract=0.01))


def _mask(root: Path) -> None:
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(root / SCENE / "mask_visib/000002_000000.png")


def _leak(root: Path) -> None:
    with Image.open(root / SCENE / "rgb/000002.png") as image:
        image.save(root / "test/000001/rgb/000001.png", compress_level=1)


def _rare(root: Path) -> None:
    def hide(value: dict[str, Any]) -> None:
        truths = json.loads((root / SCENE / "scene_gt.json").read_text())
        for key, infos in value.items():
            for truth, info in zip(truths[key], infos, strict=True):
                if truth["obj_id"] == 2:
                    info["visib_fract"] = 0.0

    edit(root / SCENE / "scene_gt_info.json", hide)


def _truncate(root: Path) -> None:
    path = root / SCENE / "rgb/000002.png"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "name", "offender"),
    [
        (_truncate, "schema", "train/000001/rgb/000002.png: damaged image"),
        (_rotation, "pose-rotation", "train/000001/scene_gt.json: 2[0].cam_R_m2c: differs by 3 from a rotation"),
        (_behind, "pose-in-front", "train/000001/scene_gt.json: 2[0].cam_t_m2c: the nearest vertex has a depth of -"),
        (_outside, "pose-in-image", "train/000001/scene_gt.json: 2[0]: visible, but projected to"),
        (_centre, "camera", "train/000001/scene_camera.json: 2.cam_K: ["),
        (_shuffled, "mask-pose", "train/000001/scene_gt.json: 2[0]: the pose does not cover mask_visib/000002_000000.png"),
        (_count, "mask-visibility", "train/000001/scene_gt_info.json: 2[0].px_count_visib: 4000, but mask_visib/"),
        (_fraction, "mask-visibility", "train/000001/scene_gt_info.json: 2[0].visib_fract: 0.01, but "),
        (_mask, "mask-size", "train/000001/mask_visib/000002_000000.png: 32x32 px, its image has 64x64"),
        (_leak, "split-disjoint", "test/000001/rgb/000001.png: is "),
        (_rare, "class-balance", "models/models_info.json: 2: visible 0 times in train"),
        (lambda root: paint(root / SCENE / "rgb/000002.png", 0), "image-brightness", "rgb/000002.png: its mean is 0.0"),
        (lambda root: paint(root / SCENE / "rgb/000002.png", 90), "image-content", "rgb/000002.png: its standard deviation is 0.0"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named(copied: Path, damage: Callable[[Path], object], name: str, offender: str) -> None:
    damage(copied)
    found = outcomes(copied)
    assert found[name].failed >= 1
    assert any(offender in line for line in found[name].offenders), found[name].offenders
    with pytest.raises(DataError) as caught:
        complain(list(found.values()))
    assert offender in str(caught.value) and f"({name})" in str(caught.value)
    page = report("Data", list(found.values())).decode()
    assert "broken" in page and f"of {len(found)} expectations met" in page and name in page


@pytest.mark.parametrize("mode", ["I;16", "L"])
def test_images_of_other_modes(copied: Path, mode: str) -> None:
    path = copied / SCENE / "rgb/000002.png"
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257 if mode == "I;16" else grey).save(path)
    found = outcomes(copied)["image-format"]
    assert found.failed == (mode == "I;16") and all("of mode I;16" in line for line in found.offenders)


def test_a_broken_file_hides_nothing_of_the_others(copied: Path) -> None:
    (copied / "test/000001/scene_gt.json").write_text("{")
    shutil.rmtree(copied / "train/000001/mask_visib")
    _rotation(copied)
    found = outcomes(copied)
    assert any("test/000001/scene_gt.json: not valid JSON" in line for line in found["schema"].offenders)
    assert found["pose-rotation"].failed == 1 and found["pose-rotation"].checked == 8 * 3


def test_many_offenders_are_counted(copied: Path) -> None:
    for path in (copied / "train/000001/rgb").iterdir():
        paint(path, 255)
    for path in (copied / "test/000001/rgb").iterdir():
        paint(path, 255)
    found = outcomes(copied)["image-brightness"]
    assert (found.checked, found.failed, len(found.offenders)) == (11, 11, 10)
    with pytest.raises(DataError, match="image-brightness: and 1 more"):
        complain([found])


def test_a_report_escapes_what_it_shows() -> None:
    outcome = Outcome("schema")
    outcome.check(False, "<script>alert(1)</script>")
    assert b"<script>" not in report("<b>", [outcome]) and b"&lt;script&gt;" in report("<b>", [outcome])

"""What data look like, and how far they are from others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from slipway_dataops import statistics
from slipway_dataops.statistics import describe, drift, level, population_stability_index

from . import bop


@pytest.fixture(scope="session")
def described(rendered: Path) -> dict[str, Any]:
    return describe(rendered)


def test_everything_is_counted(described: dict[str, Any]) -> None:
    assert described["splits"] == {"test": {"scenes": 1, "images": 4, "instances": 8},
                                   "train": {"scenes": 1, "images": 12, "instances": 24}}  # fmt: skip
    assert {name: entry["instances"] for name, entry in described["objects"].items()} == {"1": 16, "2": 16}
    assert (described["sizes"], described["modes"], described["unreadable"]) == ({"64x64": 16}, {"RGB": 16}, 0)
    sums = {name: sum(counts) for name, counts in described["histograms"].items()}
    assert sums == {"brightness": 16, "contrast": 16, "instances": 16, "visible": 32, "distance": 32, "elevation": 32}
    assert described["histograms"]["instances"][2] == 16 and described["histograms"]["visible"][-1] == 32
    assert json.loads(json.dumps(described)) == described


def test_what_cannot_be_read_is_counted(copied: Path) -> None:
    (copied / "train/000001/rgb/000001.png").write_bytes(b"no image")
    (copied / "test/000001/scene_gt.json").write_text("no JSON")
    found = describe(copied)
    assert found["unreadable"] == 1 and found["splits"]["train"]["images"] == 11
    assert found["splits"]["test"] == {"scenes": 1, "images": 4, "instances": 0}


def test_the_same_population_does_not_drift(described: dict[str, Any], tmp_path: Path) -> None:
    assert drift(described, described) == {"features": pytest.approx(dict.fromkeys([*statistics.FEATURES, "objects"], 0.0)),
                                           "worst": pytest.approx(0.0), "schema": []}  # fmt: skip
    many = [describe(bop.make(tmp_path / str(seed), {"train": 60}, seed=seed)) for seed in (11, 12)]
    assert level(drift(many[0], many[1])["features"]["brightness"]) == "none"
    assert drift(many[0], many[1])["worst"] < statistics.STRONG


def test_darker_pictures_drift(described: dict[str, Any], tmp_path: Path) -> None:
    found = drift(described, describe(bop.make(tmp_path / "dark", {"train": 12, "test": 4}, light=0.4)))
    assert level(found["features"]["brightness"]) == "strong" and level(found["features"]["objects"]) == "none"
    assert found["worst"] == max(found["features"].values())


def test_another_schema(described: dict[str, Any], copied: Path) -> None:
    info = json.loads((copied / "models/models_info.json").read_text())
    info["1"]["diameter"] = 5.0
    info["9"] = info.pop("2")
    (copied / "models/models_info.json").write_text(json.dumps(info))
    shutil.copy(copied / "models/obj_000002.ply", copied / "models/obj_000009.ply")
    (copied / "test/000001/scene_gt_info.json").unlink()
    (copied / "train/000001/scene_gt_info.json").unlink()
    changes = drift(described, describe(copied))["schema"]
    assert {"new object: 9", "object gone: 2", "field gone: scene_gt_info.visib_fract"} <= set(changes)
    assert any(line.startswith("object 1 has another diameter: 5.0 mm") for line in changes)


def test_nothing_before(described: dict[str, Any]) -> None:
    assert drift(None, described) == {"features": {}, "worst": 0.0, "schema": []}


def test_the_index_by_hand() -> None:
    # Shares 0.5, 0.5 and 0.9, 0.1 of so many that the half things do not matter.
    assert population_stability_index([500_000, 500_000], [900_000, 100_000]) == pytest.approx(0.8789, abs=1e-3)
    assert population_stability_index([10, 0], [10, 0]) == 0
    assert [level(value) for value in (0.05, 0.1, 0.3)] == ["none", "moderate", "strong"]


def test_the_page(described: dict[str, Any], rendered: Path, tmp_path: Path) -> None:
    before = describe(bop.make(tmp_path / "dark", {"train": 12, "test": 4}, light=0.4))
    page = statistics.report("Drop <a>", rendered, described, before, drift(before, described)).decode()
    assert "Drop &lt;a&gt;" in page and '<span class="bad">strong</span>' in page and "The schema is the same." in page
    assert len(re.findall("data:image/png;base64,", page)) == 9, "plots and 8 samples"
    first = statistics.report("x", rendered, described, None, drift(None, described))
    assert b"nothing to compare with" in first
    assert first == statistics.report("x", rendered, described, None, drift(None, described))

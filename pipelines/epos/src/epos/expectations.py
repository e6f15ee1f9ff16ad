"""What a data set must fulfil before anything learns from it.

This is the idea of Great Expectations: named expectations, each with the number of things it looked at and the first
that broke it, and a report for people. The library itself judges columns of tables and would bring pandas and some
thirty more packages into the image; what has to be judged here is pictures, poses and meshes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from epos import pages
from epos.bop import (
    ROTATION_TOLERANCE,
    BopDataset,
    ObjectModel,
    decode,
    file_hashes,
    find_image,
    read_json,
    read_mask,
    validate,
)
from epos.errors import DataError

MODES = ("RGB", "RGBA", "L", "P")
MIN_SIDE = 32  # px
BRIGHTNESS = (8.0, 247.0)  # Mean of all values, 0..255.
MIN_CONTRAST = 2.0  # Standard deviation of all values.
MIN_VISIBLE = 0.1  # As in BOP's evaluation: of less nothing can be said.
_MASK_TOLERANCE = 0.05  # Fraction of the pixels, or of the image's longer side.
_MASK_SLACK_PX = 5
_MIN_SHARE = 0.1  # Of the rarest object, compared with the most frequent one.
_MOST_PROBLEMS = 1000
_SHOWN = 10  # Offenders in the report and in the error.

_TEXTS = {
    "schema": "every file is there and readable, with all fields and one size of image",
    "image-format": f"images have 8 bits for each channel and at least {MIN_SIDE} px on each side",
    "image-brightness": f"no image is black or white: its mean is in {BRIGHTNESS[0]:.0f}..{BRIGHTNESS[1]:.0f} of 255",
    "image-content": f"no image is of one colour: its standard deviation is at least {MIN_CONTRAST:.0f} of 255",
    "camera": "focal lengths are positive and the principal point lies in the image",
    "pose-rotation": "rotations are orthonormal and no reflections",
    "pose-in-front": "objects lie in front of the camera, with all their vertices",
    "pose-in-image": f"objects of which {MIN_VISIBLE:.0%} are visible lie in the image, at least in part",
    "mask-size": "masks have the size of their image",
    "mask-visibility": "masks and scene_gt_info.json agree about what is visible",
    "mask-pose": "visible pixels lie where the pose projects the object to",
    "split-disjoint": "no held-out image is among those to learn from",
    "class-balance": f"every object is visible in every split, and in training not rarer than {_MIN_SHARE:.0%} of the most frequent",
}  # fmt: skip


@dataclass
class Outcome:
    """An expectation and how it went.

    Attributes:
        name: of the expectation.
        checked: number of things looked at.
        failed: number of those that broke it.
        offenders: the first of these; each line starts with the file, and the key in it.
    """

    name: str
    checked: int = 0
    failed: int = 0
    offenders: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The expectation in words."""
        return _TEXTS[self.name]

    def check(self, good: bool, offender: str) -> None:
        """Counts one thing."""
        self.checked += 1
        if not good:
            self.failed += 1
            if len(self.offenders) < _SHOWN:
                self.offenders.append(offender)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    """The numbers, or None where the schema is broken, which another expectation says."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return array if array.shape == (count,) and np.isfinite(array).all() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except DataError:
        return {}


class _Examination:
    """Looks at everything that can be read; what cannot is the schema's matter."""

    def __init__(self, dataset: BopDataset) -> None:
        self.dataset = dataset
        self.outcomes = {name: Outcome(name) for name in _TEXTS}
        self.models: dict[int, ObjectModel] = {}
        self.visible: dict[str, Counter[int]] = {}
        self.images: dict[str, dict[str, Path]] = {}

    def check(self, name: str, good: bool, offender: str) -> None:
        self.outcomes[name].check(good, offender)

    def schema(self, splits: list[str]) -> None:
        outcome = self.outcomes["schema"]
        try:
            validate(self.dataset, splits, limit=_MOST_PROBLEMS)
            self.models = self.dataset.models()
        except DataError as error:
            for problem in str(error).splitlines():
                outcome.check(False, problem)
            # Objects that can be read are needed to judge the poses.
            with suppress(DataError):
                self.models = self.dataset.models()
        outcome.checked = max(outcome.checked, len(file_hashes(self.dataset.root)))

    def _scenes(self, split: str) -> Iterator[Path]:
        try:
            yield from self.dataset.scenes(split)
        except DataError:
            return

    def split(self, split: str) -> None:
        self.visible[split] = Counter()
        self.images[split] = {}
        for scene in self._scenes(split):
            truths, infos = _read(scene / "scene_gt.json"), _read(scene / "scene_gt_info.json")
            for key, entry in _read(scene / "scene_camera.json").items():
                try:
                    path = find_image(scene, int(key))
                    image = decode(path)
                except (DataError, ValueError):
                    continue
                pixels = np.asarray(image.convert("RGB"))
                self._image(split, path, image.mode, pixels)
                camera = _numbers(entry.get("cam_K"), 9) if isinstance(entry, dict) else None
                if camera is None:
                    continue
                camera = camera.reshape(3, 3)
                (height, width), (cx, cy) = pixels.shape[:2], camera[:2, 2]
                good = camera[0, 0] > 0 and camera[1, 1] > 0 and 0 <= cx < width and 0 <= cy < height
                self.check(
                    "camera", bool(good), f"{scene / 'scene_camera.json'}: {key}.cam_K: {camera.ravel().tolist()}"
                )
                annotated = truths.get(key)
                for i, item in enumerate(annotated if isinstance(annotated, list) else []):
                    try:
                        info = dict(infos[key][i])
                    except (KeyError, IndexError, TypeError, ValueError):
                        info = {}
                    self._instance(split, scene, key, i, item, info, camera, (height, width))

    def _image(self, split: str, path: Path, mode: str, pixels: np.ndarray) -> None:
        height, width = pixels.shape[:2]
        good = mode in MODES and min(height, width) >= MIN_SIDE
        self.check("image-format", good, f"{path}: {width}x{height} px of mode {mode}")
        mean, deviation = float(pixels.mean()), float(pixels.std())
        self.check("image-brightness", BRIGHTNESS[0] <= mean <= BRIGHTNESS[1], f"{path}: its mean is {mean:.1f}")
        self.check("image-content", deviation >= MIN_CONTRAST, f"{path}: its standard deviation is {deviation:.1f}")
        # The pixels, not the file: an image that was encoded again is the same image.
        self.images[split].setdefault(hashlib.sha256(pixels.tobytes()).hexdigest(), path)

    def _instance(self, split: str, scene: Path, key: str, i: int, item: Any, info: dict[str, Any],
                  camera: np.ndarray, shape: tuple[int, int]) -> None:  # fmt: skip
        values = item if isinstance(item, dict) else {}
        obj_id = values.get("obj_id")
        model = self.models.get(obj_id) if isinstance(obj_id, int) else None
        rotation, translation = _numbers(values.get("cam_R_m2c"), 9), _numbers(values.get("cam_t_m2c"), 3)
        if model is None or rotation is None or translation is None:
            return
        where = f"{scene / 'scene_gt.json'}: {key}[{i}]"
        rotation = rotation.reshape(3, 3)
        error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
        good = error <= ROTATION_TOLERANCE and float(np.linalg.det(rotation)) > 0
        self.check("pose-rotation", good, f"{where}.cam_R_m2c: differs by {error:.2g} from a rotation")
        points = model.mesh.vertices @ rotation.T + translation
        nearest = float(points[:, 2].min())
        self.check(
            "pose-in-front", nearest > 0, f"{where}.cam_t_m2c: the nearest vertex has a depth of {nearest:.1f} mm"
        )
        fraction = info.get("visib_fract", 1.0)
        seen = isinstance(fraction, int | float) and fraction >= MIN_VISIBLE
        if seen:
            self.visible[split][model.obj_id] += 1
        if nearest <= 0:
            return
        flat = points @ camera.T
        flat = flat[:, :2] / flat[:, 2:]
        low, high = flat.min(axis=0), flat.max(axis=0)
        if seen:
            inside = bool((high >= 0).all() and (low <= (shape[1] - 1, shape[0] - 1)).all())
            place = f"{low[0]:.0f},{low[1]:.0f} to {high[0]:.0f},{high[1]:.0f} px"
            self.check("pose-in-image", inside, f"{where}: visible, but projected to {place}")
        self._mask(scene, key, i, info, shape, (low, high))

    def _mask(self, scene: Path, key: str, i: int, info: dict[str, Any], shape: tuple[int, int],
              box: tuple[np.ndarray, np.ndarray]) -> None:  # fmt: skip
        path = scene / "mask_visib" / f"{int(key):06d}_{i:06d}.png"
        if not path.parent.is_dir():
            return
        try:
            mask = read_mask(path)
        except DataError:
            return
        self.check(
            "mask-size",
            mask.shape == shape,
            f"{path}: {mask.shape[1]}x{mask.shape[0]} px, its image has {shape[1]}x{shape[0]}",
        )
        where = f"{scene / 'scene_gt_info.json'}: {key}[{i}]"
        count = int(mask.sum())
        listed, whole, fraction = (info.get(n) for n in ("px_count_visib", "px_count_all", "visib_fract"))
        if all(isinstance(value, int | float) for value in (listed, whole, fraction)):
            slack = max(_MASK_SLACK_PX, _MASK_TOLERANCE * listed)
            self.check("mask-visibility", abs(count - listed) <= slack,
                       f"{where}.px_count_visib: {listed}, but {path.parent.name}/{path.name} shows {count} px")  # fmt: skip
            share = listed / whole if whole else 0.0
            self.check("mask-visibility", abs(share - fraction) <= _MASK_TOLERANCE,
                       f"{where}.visib_fract: {fraction}, but {listed} of {whole} px are visible")  # fmt: skip
        elif isinstance(fraction, int | float):
            self.check("mask-visibility", (count > 0) == (fraction > 0),
                       f"{where}.visib_fract: {fraction}, but {path.parent.name}/{path.name} shows {count} px")  # fmt: skip
        if count:
            rows, columns = np.nonzero(mask)
            slack = max(_MASK_SLACK_PX, _MASK_TOLERANCE * max(shape))
            low, high = box[0] - slack, box[1] + slack
            good = (
                low[0] <= columns.min() and columns.max() <= high[0] and low[1] <= rows.min() and rows.max() <= high[1]
            )
            self.check("mask-pose", bool(good),
                       f"{scene / 'scene_gt.json'}: {key}[{i}]: the pose does not cover {path.parent.name}/{path.name}")  # fmt: skip

    def splits(self, train: str, held_out: str) -> None:
        if train != held_out:
            for digest, path in self.images[held_out].items():
                twin = self.images[train].get(digest)
                self.check("split-disjoint", twin is None, f"{path}: is {twin} as well")
        most = max(self.visible[train].values(), default=0)
        info = self.dataset.models_dir / "models_info.json"
        for obj_id in self.models:
            own = self.visible[train][obj_id]
            self.check("class-balance", own >= max(1, _MIN_SHARE * most),
                       f"{info}: {obj_id}: visible {own} times in {train}, the most frequent object {most} times")  # fmt: skip
            self.check(
                "class-balance", self.visible[held_out][obj_id] > 0, f"{info}: {obj_id}: never visible in {held_out}"
            )


def examine(dataset: BopDataset, train_split: str, test_split: str) -> list[Outcome]:
    """Holds a data set against all expectations.

    Args:
        dataset: the whole data set.
        train_split, test_split: images to learn from and held out.
    """
    examination = _Examination(dataset)
    splits = list(dict.fromkeys([train_split, test_split]))
    examination.schema(splits)
    for split in splits:
        examination.split(split)
    examination.splits(train_split, test_split)
    return list(examination.outcomes.values())


def report(title: str, outcomes: list[Outcome]) -> bytes:
    """The outcomes as a page."""

    def row(outcome: Outcome) -> list[str]:
        state = (
            ("bad", "broken") if outcome.failed else ("good", "met") if outcome.checked else ("", "nothing to check")
        )
        first = "<br>".join(f"<code>{pages.text(line)}</code>" for line in outcome.offenders)
        return [
            pages.text(outcome.name),
            pages.text(outcome.text),
            pages.text(state[1], state[0]),
            str(outcome.checked),
            str(outcome.failed),
            first,
        ]

    failed = sum(outcome.failed > 0 for outcome in outcomes)
    total = f"{len(outcomes) - failed} of {len(outcomes)} expectations met"
    return pages.page(title, pages.paragraph(total),
                      pages.table(("expectation", "means", "", "checked", "broken by", "the first"), map(row, outcomes)))  # fmt: skip


def complain(outcomes: list[Outcome]) -> None:
    """Refuses a data set that broke an expectation.

    Raises:
        DataError: one line for each of the first offenders.
    """
    lines = []
    for outcome in outcomes:
        lines += [f"{line} ({outcome.name})" for line in outcome.offenders]
        if outcome.failed > len(outcome.offenders):
            lines.append(f"{outcome.name}: and {outcome.failed - len(outcome.offenders)} more")
    if lines:
        raise DataError("\n".join(lines))

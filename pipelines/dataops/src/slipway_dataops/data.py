"""Operations on a BOP folder, each from one folder to another: the same input gives the same bytes.

Cleaning takes out whole images, never a single annotation: an object that is visible but not annotated teaches the wrong thing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from epos import expectations
from epos.bop import IMAGE_DIRS, BopDataset, check_rotation, decode, find_image, read_json
from epos.errors import DataError

Json = dict[str, Any]

TRAIN, TEST = "train", "test"
TARGETS = "test_targets_bop19.json"
MODELS = "models"
_FILES = ("scene_camera.json", "scene_gt.json", "scene_gt_info.json")
_SHOWN = 20
# Lengths and areas in pixels, of scene_gt_info.json.
_LENGTHS, _AREAS = ("bbox_obj", "bbox_visib"), ("px_count_all", "px_count_valid", "px_count_visib")


@dataclass
class Cleaned:
    """What cleaning did.

    Attributes:
        kept: number of images that stay.
        removed: number of images that went, by reason.
        examples: the first of these; each line starts with the file.
    """

    kept: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def remove(self, reason: str, line: str) -> None:
        """Counts an image that goes."""
        self.removed[reason] += 1
        if len(self.examples) < _SHOWN:
            self.examples.append(f"{line} ({reason})")


def splits(root: Path) -> list[str]:
    """Names of the folders that hold annotated scenes.

    Raises:
        DataError: there is none.
    """
    found = sorted(
        path.name for path in root.iterdir() if path.is_dir() and any(scene.is_dir() for scene in path.glob("[0-9]*/"))
    )
    found = [name for name in found if any((root / name).glob("[0-9]*/scene_camera.json"))]
    if not found:
        raise DataError(f"{root}: no folder with scenes (<split>/<scene>/scene_camera.json)")
    return found


def held_out(root: Path) -> str | None:
    """Name of the folder of images that somebody has held out: `test`, or BOP's `test_<sensor>`.

    Raises:
        DataError: there are several.
    """
    found = [name for name in splits(root) if name == TEST or name.startswith(f"{TEST}_")]
    if len(found) > 1:
        raise DataError(f"{root}: several folders of held-out images, expected one at most: {', '.join(found)}")
    return found[0] if found else None


def scenes(root: Path, split: str) -> list[Path]:
    """Folders of a split's scenes, ordered by name."""
    return BopDataset(root).scenes(split)


def clean(source: Path, target: Path, max_removed: float) -> Cleaned:
    """Takes out what nothing can be learned from: images that cannot be read, are of one colour, black or white, twice there, or
    without usable camera and poses.

    Args:
        source: BOP folder.
        target: folder to make.
        max_removed: share of the images that may go, 0..1.

    Raises:
        DataError: no objects, no scenes, or too many images would go.
    """
    dataset = BopDataset(source)
    known = set(dataset.models())
    result, seen = Cleaned(), dict[str, str]()
    _copy_models(dataset, target)
    for split in splits(source):
        for scene in scenes(source, split):
            cameras, truths, infos = (_read(scene / name) for name in _FILES)
            keep = []
            for key in sorted(cameras, key=lambda each: str(each).zfill(8)):
                problem = _problem(scene, key, cameras[key], truths.get(key), known, seen)
                if problem:
                    result.remove(*problem)
                else:
                    keep.append(key)
            result.kept += len(keep)
            _copy_scene(scene, target / split / scene.name, keep, (cameras, truths, infos))
    total = result.kept + result.removed.total()
    if not result.kept or result.removed.total() > max_removed * total:
        lines = [
            f"{source}: {result.removed.total()} of {total} images cannot be used, at most {max_removed:.0%} may be"
        ]
        raise DataError("\n".join(lines + result.examples))
    _copy_rest(source, target)
    return result


def transform(source: Path, target: Path, max_side: int) -> Json:
    """Brings all images into one form: 8-bit RGB as PNG in `rgb`, no side longer than max_side; cameras, masks and what is counted
    in pixels follow. Only what the pipeline reads goes on: no depth, no masks of what is hidden.

    Args:
        source: BOP folder.
        target: folder to make.
        max_side: of an image, px.

    Returns:
        number of images, and of those that were made smaller or encoded anew.
    """
    counts: Counter[str] = Counter()
    _copy_models(BopDataset(source), target)
    sizes = set[tuple[int, int]]()
    for split in splits(source):
        for scene in scenes(source, split):
            cameras, truths, infos = (_read(scene / name) for name in _FILES)
            made = target / split / scene.name
            for key in cameras:
                image = decode(path := find_image(scene, int(key)))
                scale = min(1.0, max_side / max(image.size))
                size = (round(image.width * scale), round(image.height * scale))
                counts["images"] += 1
                counts["scaled"] += scale < 1
                out = made / "rgb" / f"{int(key):06d}.png"
                out.parent.mkdir(parents=True, exist_ok=True)
                if scale == 1 and image.mode == "RGB" and path.suffix == ".png":
                    shutil.copyfile(path, out)
                else:
                    counts["encoded"] += 1
                    picture = image.convert("RGB")
                    picture = picture.resize(size, Image.Resampling.BOX) if scale < 1 else picture
                    picture.save(out, "PNG")
                for mask in sorted((scene / "mask_visib").glob(f"{int(key):06d}_*.png")):
                    _scale_mask(mask, made / "mask_visib" / mask.name, size)
                if scale < 1:
                    cameras[key]["cam_K"] = _scaled_camera(cameras[key]["cam_K"], image.size, size)
                    infos[key] = [_scaled_info(info, scale) for info in infos.get(key, [])]
                if split.startswith(TEST):
                    sizes.add(size)
            _write_scene(made, (cameras, truths, infos))
    _copy_rest(source, target)
    camera = target / "camera.json"
    if camera.exists():
        value = read_json(camera)
        old, new = (int(value["width"]), int(value["height"])), next(iter(sizes), None)
        if new and len(sizes) == 1 and new != old:
            fx, fy = new[0] / old[0], new[1] / old[1]
            value |= {"width": new[0], "height": new[1]}
            value |= {name: value[name] * f for name, f in (("fx", fx), ("fy", fy)) if name in value}
            value |= {name: (value[name] + 0.5) * f - 0.5 for name, f in (("cx", fx), ("cy", fy)) if name in value}
            _write(camera, value)
    return dict(counts)


def split(source: Path, target: Path, fraction: float, seed: int) -> Json:
    """Divides the images into those to learn from and those held out.

    A folder of held-out images that somebody made stays as it is. Without one each image goes by a hash of seed and pixels: what was held out
    once is held out whatever is dropped later, and the same picture never lies on both sides.

    Args:
        source: BOP folder that `transform` made.
        target: folder to make, with `train` and `test`.
        fraction: share of the images to hold out, 0..1.
        seed: another one divides otherwise.

    Returns:
        number of images on each side, and how they were divided.

    Raises:
        DataError: a side has no image.
    """
    given = held_out(source)
    counts = {TRAIN: 0, TEST: 0}
    _copy_models(BopDataset(source), target)
    number = 0
    for name in splits(source):
        if name == given:
            continue
        for scene in scenes(source, name):
            contents = tuple(_read(scene / file) for file in _FILES)
            sides: dict[str, list[str]] = {TRAIN: [], TEST: []}
            for key in contents[0]:
                apart = not given and _place(find_image(scene, int(key)), seed) < fraction
                sides[TEST if apart else TRAIN].append(key)
            for side, keys in sides.items():
                counts[side] += len(keys)
                # Several folders of training images may have scenes of one name.
                _copy_scene(scene, target / side / f"{number:06d}", keys, contents)
            number += 1
    if given:
        for scene in scenes(source, given):
            contents = tuple(_read(scene / file) for file in _FILES)
            counts[TEST] += len(contents[0])
            _copy_scene(scene, target / TEST / scene.name, list(contents[0]), contents)
    for side, count in counts.items():
        if not count:
            raise DataError(f"{source}: no image in {side}: there are {sum(counts.values())}, of which {fraction:.0%} "
                            f"are held out with seed {seed}")  # fmt: skip
    if (source / "camera.json").exists():
        shutil.copyfile(source / "camera.json", target / "camera.json")
    if given and (source / TARGETS).exists():
        shutil.copyfile(source / TARGETS, target / TARGETS)
    return {**counts, "by": "given" if given else "seed", "seed": seed, "fraction": fraction}


def check(root: Path) -> list[expectations.Outcome]:
    """Holds what will be trained on against the expectations of the training itself.

    Raises:
        DataError: it broke one.
    """
    outcomes = expectations.examine(BopDataset(root), TRAIN, TEST)
    for outcome in outcomes:
        outcome.offenders = [line.replace(f"{root}/", "") for line in outcome.offenders]
    expectations.complain(outcomes)
    return outcomes


def _problem(
    scene: Path, key: str, camera: Any, annotated: Any, known: set[int], seen: dict[str, str]
) -> tuple[str, str] | None:
    """Why an image cannot be used, and a line about it."""
    where = f"{scene.parent.name}/{scene.name}/{key}"
    try:
        path = find_image(scene, int(key))
        image = decode(path)
    except (DataError, ValueError) as error:
        return "unreadable", f"{where}: {str(error).replace(f'{scene}/', '')}"
    where = f"{scene.parent.name}/{scene.name}/{path.parent.name}/{path.name}"
    if image.mode not in expectations.MODES or min(image.size) < expectations.MIN_SIDE:
        return "format", f"{where}: {image.width}x{image.height} px of mode {image.mode}"
    pixels = np.asarray(image.convert("RGB"))
    mean, deviation = float(pixels.mean()), float(pixels.std())
    if not expectations.BRIGHTNESS[0] <= mean <= expectations.BRIGHTNESS[1]:
        return "brightness", f"{where}: its mean is {mean:.1f}"
    if deviation < expectations.MIN_CONTRAST:
        return "content", f"{where}: its standard deviation is {deviation:.1f}"
    try:
        matrix = np.array(camera["cam_K"], np.float64).reshape(3, 3)
        if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise ValueError("no focal lengths")
        if not (0 <= matrix[0, 2] < image.width and 0 <= matrix[1, 2] < image.height):
            raise ValueError("the principal point lies outside of the image")
    except (KeyError, TypeError, ValueError) as error:
        return "camera", f"{where}: cam_K: {error}"
    if not isinstance(annotated, list):
        return "annotations", f"{where}: there are none"
    for index, item in enumerate(annotated):
        try:
            if item["obj_id"] not in known:
                raise ValueError(f"no model of object {item['obj_id']!r}")
            check_rotation(scene / "scene_gt.json", "cam_R_m2c", item["cam_R_m2c"])
            if not (len(item["cam_t_m2c"]) == 3 and float(item["cam_t_m2c"][2]) > 0):
                raise ValueError("the object is behind the camera")
        except (DataError, KeyError, TypeError, ValueError) as error:
            return "pose", f"{where}: [{index}]: {str(error).replace(f'{scene}/', '')}"
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    if digest in seen:
        return "duplicate", f"{where}: is {seen[digest]} as well"
    seen[digest] = where
    return None


def _place(path: Path, seed: int) -> float:
    """Where in 0..1 an image lies."""
    pixels = hashlib.sha256(decode(path).convert("RGB").tobytes()).digest()
    return int.from_bytes(hashlib.sha256(f"{seed}:".encode() + pixels).digest()[:8]) / 2**64


def _read(path: Path) -> Json:
    """A scene's file; one of which nothing is left makes its images unusable, not the folder."""
    try:
        return dict(read_json(path))
    except DataError:
        return {}


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _write_scene(target: Path, contents: tuple[Json, ...]) -> None:
    for name, value in zip(_FILES, contents, strict=True):
        if value:
            _write(target / name, value)


def _copy_scene(scene: Path, target: Path, keys: list[str], contents: tuple[Json, ...]) -> None:
    """Copies some images of a scene with what belongs to them."""
    if not keys:
        return
    for key in keys:
        for path in (find_image(scene, int(key)), *sorted((scene / "mask_visib").glob(f"{int(key):06d}_*.png"))):
            made = target / path.parent.name / path.name
            made.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, made)
    _write_scene(target, tuple({key: value[key] for key in keys if key in value} for value in contents))


def _copy_models(dataset: BopDataset, target: Path) -> None:
    made = target / MODELS
    made.mkdir(parents=True)
    for path in sorted(dataset.models_dir.iterdir()):
        if path.name == "models_info.json" or path.suffix == ".ply":
            shutil.copyfile(path, made / path.name)


def _copy_rest(source: Path, target: Path) -> None:
    """The camera, and of the images to evaluate those that are still there."""
    if (source / "camera.json").exists():
        shutil.copyfile(source / "camera.json", target / "camera.json")
    test = held_out(target)
    if test and (source / TARGETS).exists():
        there = {(int(s.name), int(key)) for s in scenes(target, test) for key in _read(s / "scene_camera.json")}
        listed = read_json(source / TARGETS, list)
        _write(target / TARGETS, [each for each in listed if (each.get("scene_id"), each.get("im_id")) in there])


def _scale_mask(path: Path, target: Path, size: tuple[int, int]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    mask = decode(path)
    if mask.size == size:
        shutil.copyfile(path, target)
    else:
        mask.convert("L").resize(size, Image.Resampling.NEAREST).save(target, "PNG")


def _scaled_camera(camera: list[float], old: tuple[int, int], new: tuple[int, int]) -> list[float]:
    """Intrinsics after scaling; the centre of the first pixel is 0, so its corner is -0.5."""
    fx, fy = new[0] / old[0], new[1] / old[1]
    matrix = np.array(camera, np.float64).reshape(3, 3)
    matrix[0] *= fx
    matrix[1] *= fy
    matrix[0, 2] += 0.5 * fx - 0.5
    matrix[1, 2] += 0.5 * fy - 0.5
    return [float(value) for value in matrix.ravel()]


def _scaled_info(info: Json, scale: float) -> Json:
    scaled = dict(info)
    for name in _LENGTHS:
        if name in info:
            scaled[name] = [round(value * scale) for value in info[name]]
    for name in _AREAS:
        if name in info:
            scaled[name] = round(info[name] * scale * scale)
    return scaled


def image_paths(root: Path) -> Iterator[tuple[str, Path]]:
    """Every image with the name of its split."""
    for name in splits(root):
        for scene in scenes(root, name):
            for folder in IMAGE_DIRS:
                for path in sorted((scene / folder).glob("*.*")):
                    yield name, path

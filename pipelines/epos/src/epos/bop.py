"""Reader and validator of data sets in the BOP format (https://bop.felk.cvut.cz, "BOP datasets format").

Works with any BOP folder: `rgb` or `gray` images as PNG, JPEG or TIFF, several scenes, `models`, `models_cad` or
`models_eval`. Everything that is wrong is reported as a DataError whose text starts with the file (and the key in it).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from epos.errors import DataError
from epos.ply import Mesh, read_ply

IMAGE_DIRS = ("rgb", "gray")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
MODEL_DIRS = ("models", "models_cad", "models_eval")
MANIFEST = "manifest.json"
ROTATION_TOLERANCE = 1e-2  # BOP's files round rotations to a few decimals.
_MAX_SYM_DISC_STEP = 0.01  # BOP challenge: step of discretised continuous symmetries, as a fraction of the diameter.


@dataclass(frozen=True)
class ObjectModel:
    """One object: its mesh, diameter in mm, and symmetries as rotations (S, 3, 3) and translations (S, 3) in mm."""

    obj_id: int
    mesh: Mesh
    diameter: float
    symmetries: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Instance:
    """An annotated object in an image: x_camera = rotation @ x_model + translation (mm)."""

    obj_id: int
    rotation: np.ndarray
    translation: np.ndarray
    visib_fract: float
    mask_visib: Path | None


@dataclass(frozen=True)
class View:
    """One image with its intrinsic matrix (3, 3) in pixels and its annotations."""

    scene_id: int
    im_id: int
    path: Path
    camera: np.ndarray
    instances: tuple[Instance, ...] = field(default=())


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a JSON file whose top level is of the given kind.

    Raises:
        DataError: missing, unreadable or of another kind.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise DataError(f"{path}: expected a JSON {'object' if kind is dict else 'list'}")
    return value


def read_image(path: Path) -> np.ndarray:
    """Decodes a whole colour or grey image to (h, w, 3) uint8.

    Raises:
        DataError: missing, truncated or no image.
    """
    return np.asarray(decode(path).convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Decodes a mask to (h, w) bool."""
    return np.asarray(decode(path).convert("L")) > 0


def decode(path: Path) -> Image.Image:
    """Decodes a whole image, of whatever mode.

    Raises:
        DataError: missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing file") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged image: {error}") from error


def _numbers(path: Path, key: str, value: Any, count: int) -> np.ndarray:
    if isinstance(value, list) and len(value) == count:
        try:
            array = np.array(value, dtype=np.float64)
            if array.shape == (count,) and np.isfinite(array).all():
                return array
        except (TypeError, ValueError):
            pass
    raise DataError(f"{path}: {key}: expected {count} finite numbers")


def _camera(path: Path, key: str, value: Any) -> np.ndarray:
    camera = _numbers(path, key, value, 9).reshape(3, 3)
    if camera[0, 0] <= 0 or camera[1, 1] <= 0 or not np.allclose(camera[2], (0, 0, 1)):
        raise DataError(f"{path}: {key}: not an intrinsic matrix (positive focal lengths, last row 0 0 1)")
    return camera


def check_rotation(path: Path, key: str, value: Any) -> np.ndarray:
    """Returns a (3, 3) rotation from 9 numbers.

    Raises:
        DataError: not orthonormal or a reflection.
    """
    rotation = _numbers(path, key, value, 9).reshape(3, 3)
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise DataError(f"{path}: {key}: not a rotation matrix")
    return rotation


def symmetry_transforms(path: Path, key: str, info: dict[str, Any], diameter: float) -> tuple[np.ndarray, np.ndarray]:
    """Lists an object's symmetries, the identity first.

    Continuous symmetries are sampled so finely that no vertex moves farther than 1 % of the diameter, and combined
    with the discrete ones (BOP toolkit, `get_symmetry_transformations`).

    Returns:
        rotations (S, 3, 3) and translations (S, 3) in mm.
    """
    discrete = [(np.eye(3), np.zeros(3))]
    for i, value in enumerate(info.get("symmetries_discrete", [])):
        name = f"{key}.symmetries_discrete[{i}]"
        matrix = _numbers(path, name, value, 16).reshape(4, 4)
        discrete.append((check_rotation(path, name, matrix[:3, :3].ravel().tolist()), matrix[:3, 3]))
    continuous: list[tuple[np.ndarray, np.ndarray]] = []
    for i, value in enumerate(info.get("symmetries_continuous", [])):
        name = f"{key}.symmetries_continuous[{i}]"
        if not isinstance(value, dict):
            raise DataError(f"{path}: {name}: expected an object with axis and offset")
        axis = _numbers(path, f"{name}.axis", value.get("axis"), 3)
        offset = _numbers(path, f"{name}.offset", value.get("offset", [0, 0, 0]), 3)
        norm = np.linalg.norm(axis)
        if norm == 0 or diameter <= 0:
            raise DataError(f"{path}: {name}.axis: has no direction")
        steps = int(np.ceil(np.pi / _MAX_SYM_DISC_STEP))
        for angle in 2 * np.pi / steps * np.arange(steps):
            rotation = rotation_about(axis / norm, angle)
            continuous.append((rotation, offset - rotation @ offset))
    both = [(rc @ rd, rc @ td + tc) for rd, td in discrete for rc, tc in continuous or [(np.eye(3), np.zeros(3))]]
    return np.array([r for r, _ in both]), np.array([t for _, t in both])


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation matrix about a unit axis by an angle in radians (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


class BopDataset:
    """A BOP data set on disk.

    Args:
        root: the folder that holds models and splits.
        models_dir: name of the folder with meshes; by default the first of MODEL_DIRS that exists.
    """

    def __init__(self, root: Path, models_dir: str | None = None) -> None:
        self.root = root
        if not root.is_dir():
            raise DataError(f"{root}: missing data set folder")
        found = models_dir or next((d for d in MODEL_DIRS if (root / d).is_dir()), None)
        if found is None:
            raise DataError(f"{root}/models: missing folder")
        self.models_dir = root / found

    def models(self) -> dict[int, ObjectModel]:
        """Reads all objects, ordered by id.

        Raises:
            DataError: models_info.json or a mesh is missing or wrong.
        """
        path = self.models_dir / "models_info.json"
        models = {}
        for key, info in sorted(read_json(path).items(), key=lambda item: str(item[0]).zfill(8)):
            if not str(key).isdigit() or not isinstance(info, dict):
                raise DataError(f"{path}: {key}: expected an object id with an object")
            diameter = info.get("diameter")
            if not isinstance(diameter, int | float) or not diameter > 0:
                raise DataError(f"{path}: {key}.diameter: expected a positive number (mm)")
            symmetries = symmetry_transforms(path, key, info, float(diameter))
            mesh = read_ply(self.models_dir / f"obj_{int(key):06d}.ply")
            models[int(key)] = ObjectModel(int(key), mesh, float(diameter), symmetries)
        if not models:
            raise DataError(f"{path}: lists no object")
        return models

    def scenes(self, split: str) -> list[Path]:
        """Folders of a split's scenes, ordered by id."""
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(f"{folder}: missing split folder")
        scenes = sorted(p for p in folder.iterdir() if p.is_dir() and p.name.isdigit())
        if not scenes:
            raise DataError(f"{folder}: has no scene")
        return scenes

    def views(self, split: str, annotated: bool = True) -> list[View]:
        """Reads the cameras and annotations of a split; images are not decoded.

        Raises:
            DataError: a file is missing or a value is wrong.
        """
        known = {int(k) for k in read_json(self.models_dir / "models_info.json")}
        return [view for scene in self.scenes(split) for view in _scene_views(scene, known, annotated)]

    def targets(self, split: str) -> list[View]:
        """The views to evaluate: those in test_targets_bop19.json if it lists this split's images, else all.

        Instances that are not asked for are kept, because BOP evaluates at least 10 % visible ones among them.
        """
        views = self.views(split)
        path = self.root / "test_targets_bop19.json"
        if not split.startswith("test") or not path.exists():
            return views
        wanted: set[tuple[int, int]] = set()
        for i, target in enumerate(read_json(path, list)):
            try:
                wanted.add((int(target["scene_id"]), int(target["im_id"])))
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}: [{i}]: expected scene_id, im_id, obj_id, inst_count") from error
        missing = wanted - {(v.scene_id, v.im_id) for v in views}
        if missing:
            raise DataError(f"{path}: scene_id {min(missing)[0]}, im_id {min(missing)[1]}: no such image in {split}")
        return [v for v in views if (v.scene_id, v.im_id) in wanted]


def find_image(scene: Path, im_id: int) -> Path:
    """The file of an image.

    Raises:
        DataError: there is none.
    """
    for folder in IMAGE_DIRS:
        for suffix in IMAGE_SUFFIXES:
            path = scene / folder / f"{im_id:06d}{suffix}"
            if path.exists():
                return path
    folder = next((d for d in IMAGE_DIRS if (scene / d).is_dir()), IMAGE_DIRS[0])
    raise DataError(f"{scene / folder / f'{im_id:06d}.png'}: missing image")


def _scene_views(scene: Path, known: set[int], annotated: bool) -> Iterator[View]:
    camera_path, gt_path, info_path = (scene / f"scene_{n}.json" for n in ("camera", "gt", "gt_info"))
    cameras = read_json(camera_path)
    truths = read_json(gt_path) if annotated else {}
    infos = read_json(info_path) if annotated and info_path.exists() else {}
    for key in truths:
        if key not in cameras:
            raise DataError(f"{camera_path}: {key}: missing camera of an annotated image")
    for key, value in sorted(cameras.items(), key=lambda item: str(item[0]).zfill(8)):
        if not str(key).isdigit() or not isinstance(value, dict):
            raise DataError(f"{camera_path}: {key}: expected an image id with an object")
        camera = _camera(camera_path, f"{key}.cam_K", value.get("cam_K"))
        if annotated and key not in truths:
            raise DataError(f"{gt_path}: {key}: missing annotations of an image")
        instances = tuple(
            _instance(scene, gt_path, key, i, item, infos.get(key), info_path, known)
            for i, item in enumerate(truths.get(key, []))
        )
        yield View(int(scene.name), int(key), find_image(scene, int(key)), camera, instances)


def _instance(
    scene: Path, path: Path, key: str, i: int, item: Any, info: Any, info_path: Path, known: set[int]
) -> Instance:
    name = f"{key}[{i}]"
    if not isinstance(item, dict):
        raise DataError(f"{path}: {name}: expected an object")
    obj_id = item.get("obj_id")
    if obj_id not in known:
        raise DataError(f"{path}: {name}.obj_id: no model of object {obj_id!r}")
    rotation = check_rotation(path, f"{name}.cam_R_m2c", item.get("cam_R_m2c"))
    translation = _numbers(path, f"{name}.cam_t_m2c", item.get("cam_t_m2c"), 3)
    if translation[2] <= 0:
        raise DataError(f"{path}: {name}.cam_t_m2c: the object is behind the camera")
    visible = 1.0
    if info is not None:
        try:
            visible = float(info[i]["visib_fract"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(f"{info_path}: {name}.visib_fract: missing or not a number") from error
    mask = scene / "mask_visib" / f"{int(key):06d}_{i:06d}.png"
    return Instance(obj_id, rotation, translation, visible, mask if mask.parent.is_dir() else None)


def validate(dataset: BopDataset, splits: list[str], limit: int = 20) -> dict[str, Any]:
    """Reads everything once and decodes every image.

    Args:
        dataset: the data set.
        splits: names of the splits, e.g. train and test.
        limit: number of problems after which to stop.

    Returns:
        Counts by split, for the log.

    Raises:
        DataError: one line for each problem found.
    """
    problems: list[str] = []
    report: dict[str, Any] = {}
    try:
        report["objects"] = sorted(dataset.models())
    except DataError as error:
        problems.append(str(error))
    camera_size = None
    camera_file = dataset.root / "camera.json"
    if camera_file.exists():
        try:
            value = read_json(camera_file)
            camera_size = (int(value["width"]), int(value["height"]))
        except (KeyError, TypeError, ValueError):
            problems.append(f"{camera_file}: expected width and height (px)")
        except DataError as error:
            problems.append(str(error))
    known = set(report.get("objects", []))
    for split in splits:
        try:
            scenes = dataset.scenes(split)
        except DataError as error:
            problems.append(str(error))
            continue
        images = instances = 0
        for scene in scenes:
            try:
                views = list(_scene_views(scene, known, annotated=True)) if known else []
            except DataError as error:
                problems.append(str(error))
                continue
            # T-LESS and others train on images of another size than camera.json's, which speaks of the test images.
            expected = camera_size if split.startswith("test") else None
            problems += _check_images(views, expected, limit - len(problems))
            images += len(views)
            instances += sum(len(v.instances) for v in views)
            if len(problems) >= limit:
                break
        report[split] = {"scenes": len(scenes), "images": images, "instances": instances}
    if not problems:
        try:
            for split in splits:
                dataset.targets(split)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems[:limit]))
    return report


def _check_images(views: list[View], expected: tuple[int, int] | None, limit: int) -> list[str]:
    problems, sizes = [], {}
    for view in views:
        try:
            sizes[view.path] = decode(view.path).size
            for instance in view.instances:
                if instance.mask_visib:
                    sizes[instance.mask_visib] = decode(instance.mask_visib).size
        except DataError as error:
            problems.append(str(error))
            if len(problems) >= limit:
                return problems
    if sizes:
        usual = expected or Counter(sizes.values()).most_common(1)[0][0]
        for path, size in sizes.items():
            if size != usual:
                text = f"{path}: image is {size[0]}x{size[1]} px, expected {usual[0]}x{usual[1]} px"
                problems.append(text + (" (camera.json)" if expected else " as the others of its scene"))
    return problems[: max(limit, 0)]


def file_hashes(root: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file of a data set, by path relative to its root."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and name != MANIFEST and not name.startswith("."):
            files[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    return files


def data_hash(files: dict[str, dict[str, Any]]) -> str:
    """SHA-256 of a data set's content: of its files' names and hashes."""
    text = "".join(f"{files[name]['sha256']}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()

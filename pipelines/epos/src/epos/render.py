"""Renders a small data set of our own in the BOP format: three objects, of which two are symmetric.

The same seed gives the same bytes: every image has its own random stream, derived from (seed, split, number).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from epos.errors import UsageError
from epos.ply import Mesh, write_ply
from epos.raster import rasterize

BACKGROUND_MM = 1500.0
DEPTH_SCALE = 0.1  # One step of a depth image in mm.
FOCAL_FACTOR = 1.3  # Focal length as a multiple of the image's width.
_IMAGES_PER_SCENE = 40
_SATURATION = 0.4  # Of the background; the objects are more colourful, as on a workbench.


@dataclass(frozen=True)
class RenderConfig:
    """What to render.

    Attributes:
        train_images, test_images: number of images of each split.
        image_size: width and height, px.
        seed: of everything random.
    """

    train_images: int = 320
    test_images: int = 48
    image_size: int = 128
    seed: int = 1


def _icosphere(subdivisions: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit sphere of triangles; (x, y, z) -> (-x, -y, z) maps its vertices onto each other."""
    g = (1 + 5**0.5) / 2
    vertices = [(0, s, t * g) for s in (1, -1) for t in (1, -1)]
    vertices += [(s, t * g, 0) for s in (1, -1) for t in (1, -1)]
    vertices += [(t * g, 0, s) for s in (1, -1) for t in (1, -1)]
    points = [np.array(v) / np.linalg.norm(v) for v in vertices]
    edge = min(np.linalg.norm(points[0] - p) for p in points[1:]) * 1.01
    near = [[np.linalg.norm(p - q) < edge for q in points] for p in points]
    faces = []
    for a in range(12):
        for b in range(a + 1, 12):
            for c in range(b + 1, 12):
                if near[a][b] and near[b][c] and near[a][c]:
                    outward = np.linalg.det(np.array([points[a], points[b], points[c]])) > 0
                    faces.append((a, b, c) if outward else (a, c, b))
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}

        def half(a: int, b: int, middle: dict[tuple[int, int], int] = middle) -> int:
            key = (min(a, b), max(a, b))
            if key not in middle:
                point = points[a] + points[b]
                middle[key] = len(points)
                points.append(point / np.linalg.norm(point))
            return middle[key]

        split = []
        for a, b, c in faces:
            ab, bc, ca = half(a, b), half(b, c), half(c, a)
            split += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
        faces = split
    return np.array(points), np.array(faces, np.int64)


def _paint(features: np.ndarray, waves: np.ndarray, phases: np.ndarray) -> np.ndarray:
    """Smooth colours (N, 3) uint8 that depend on the place only through its features (N, F)."""
    return (127.5 + 115 * np.sin(features @ waves.T + phases)).astype(np.uint8)


def _stone() -> Mesh:
    """An object without symmetry: a sphere with bumps of different heights."""
    unit, faces = _icosphere(3)
    bumps = np.array([(1, 0.2, 0.1), (-0.3, 1, 0.3), (-0.4, -0.6, 0.8), (0.2, 0.1, -1), (-0.9, -0.3, -0.5)])
    heights = np.array([0.55, 0.4, 0.5, 0.3, 0.25])
    bumps /= np.linalg.norm(bumps, axis=1, keepdims=True)
    radius = 34 * (1 + np.exp(-5 * (1 - unit @ bumps.T)) @ heights)
    points = unit * radius[:, None]
    waves = np.array([(0.075, 0.02, 0.01), (-0.02, 0.08, 0.02), (0.01, -0.03, 0.07)])
    return Mesh(points, faces, _paint(points, waves, np.array([0.3, 1.1, 2.0])))


def _block() -> Mesh:
    """An object that a half turn about z maps onto itself: a rounded block with a pattern of the same symmetry."""
    unit, faces = _icosphere(3)
    half = np.array([52.0, 30.0, 24.0])
    points = unit / ((np.abs(unit) / half) ** 4).sum(axis=1, keepdims=True) ** 0.25
    x, y, z = (points / 40).T
    features = np.stack([x * x - y * y, 2 * x * y, z], axis=1)
    waves = np.array([(2.0, 0.7, 0.6), (-0.6, 2.4, -0.8), (0.9, -1.0, 2.6)])
    return Mesh(points, faces, _paint(features, waves, np.array([2.4, 0.2, 1.0])))


def _bottle() -> Mesh:
    """A solid of revolution about z, coloured by height only: a continuous symmetry."""
    around = 48
    profile = np.array([
        (0, -55), (16, -55), (29, -54), (31, -48), (31, -32), (31, -16), (31, 0), (29, 10), (22, 19), (14, 26),
        (11, 33), (11, 42), (14, 47), (14, 53), (8, 55), (0, 55),
    ], float)  # fmt: skip
    angle = 2 * np.pi / around * np.arange(around)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = [np.array([0, 0, profile[0, 1]])]
    for radius, height in profile[1:-1]:
        points += list(np.column_stack([radius * ring, np.full(around, height)]))
    points.append(np.array([0, 0, profile[-1, 1]]))
    faces = []
    rows = len(profile) - 2
    for i in range(around):
        j = (i + 1) % around
        faces.append((0, 1 + j, 1 + i))
        for row in range(rows - 1):
            a, b = 1 + row * around, 1 + (row + 1) * around
            faces += [(a + i, a + j, b + j), (a + i, b + j, b + i)]
        last = 1 + (rows - 1) * around
        faces.append((last + i, last + j, len(points) - 1))
    vertices = np.array(points)
    height = vertices[:, 2:] / 55
    colors = _paint(height, np.array([[3.1], [4.3], [-2.2]]), np.array([1.9, 0.4, 0.6]))
    return Mesh(vertices, np.array(faces, np.int64), colors)


def diameter(points: np.ndarray) -> float:
    """Largest distance of two points (mm), as BOP defines an object's diameter."""
    gram = (points**2).sum(axis=1)
    return float(np.sqrt(max(0.0, (gram[:, None] + gram[None] - 2 * points @ points.T).max())))


def _info(mesh: Mesh) -> dict[str, Any]:
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    info = {"diameter": round(diameter(mesh.vertices), 6)}
    for axis, start, size in zip("xyz", low, high - low, strict=True):
        info |= {f"min_{axis}": round(float(start), 6), f"size_{axis}": round(float(size), 6)}
    return info


def objects() -> dict[int, tuple[Mesh, dict[str, Any]]]:
    """The objects with their entries in models_info.json, by id."""
    stone, block, bottle = _stone(), _block(), _bottle()
    half_turn = np.diag([-1.0, -1.0, 1.0, 1.0]).ravel().tolist()
    return {
        1: (stone, _info(stone)),
        2: (block, _info(block) | {"symmetries_discrete": [half_turn]}),
        3: (bottle, _info(bottle) | {"symmetries_continuous": [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]}),
    }


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation from the uniform distribution (Shoemake: "Uniform Random Rotations", 1992)."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Smooth noise of several scales with a few coloured shapes, (size, size, 3) float in 0..255."""
    image = np.full((size, size, 3), 0.0)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.2)):
        noise = rng.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        image += weight * cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(2, 6)):
        centre = tuple(int(v) for v in rng.integers(0, size, 2))
        axes = tuple(int(v) for v in rng.integers(size // 16, size // 4, 2))
        color = tuple(float(v) for v in rng.uniform(0, 255, 3))
        cv2.ellipse(image, centre, axes, float(rng.uniform(0, 180)), 0, 360, color, -1)
    grey = image.mean(axis=2, keepdims=True)
    return grey + _SATURATION * (image - grey)


def _place(rng: np.random.Generator, count: int, camera: np.ndarray, size: int) -> list[np.ndarray]:
    """Translations (mm) that keep objects in the image and, where there is room, apart."""
    centres: list[np.ndarray] = []
    result = []
    for _ in range(count):
        for _ in range(30):
            centre = rng.uniform(0.18 * size, 0.82 * size, 2)
            if all(np.linalg.norm(centre - other) > 0.3 * size for other in centres):
                break
        centres.append(centre)
        depth = rng.uniform(270, 370)
        result.append(np.linalg.inv(camera) @ np.append(centre, 1) * depth)
    return result


def _box(mask: np.ndarray) -> list[int]:
    """x, y, width, height of a mask's bounding box; -1s if it is empty, as in BOP."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [-1, -1, -1, -1]
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def _save(path: Path, image: np.ndarray) -> None:
    ok, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 6])
    if not ok:
        raise RuntimeError(f"{path}: cannot encode")
    path.write_bytes(data.tobytes())


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _render_image(
    rng: np.random.Generator, meshes: dict[int, Mesh], camera: np.ndarray, size: int, scene: Path, im_id: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Writes one image with depth and masks; returns its entries in scene_gt.json and scene_gt_info.json."""
    color = _background(rng, size)
    depth = np.full((size, size), BACKGROUND_MM)
    owner = np.full((size, size), -1)
    light = rng.normal(size=3) + np.array([0, 0, -2.0])
    light /= np.linalg.norm(light)
    ambient, tint = rng.uniform(0.45, 0.7), rng.uniform(0.85, 1.1, 3)
    ids = [int(i) for i in rng.permutation(sorted(meshes))]
    truths: list[dict[str, Any]] = []
    full_masks = []
    for n, (obj_id, translation) in enumerate(zip(ids, _place(rng, len(ids), camera, size), strict=True)):
        mesh = meshes[obj_id]
        rotation = random_rotation(rng)
        points = mesh.vertices @ rotation.T + translation
        seen = rasterize(points, mesh.faces, camera, (size, size))
        a, b, c = (points[mesh.faces[:, k]] for k in range(3))
        normals = np.cross(b - a, c - a)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        shade = ambient + (1 - ambient) * np.maximum(normals @ light, 0)
        mask = seen.face >= 0
        visible = mask & (seen.depth < depth)
        paint = seen.interpolate(mesh.faces, mesh.colors.astype(np.float64)) * shade[seen.face][..., None] * tint
        color[visible], depth[visible], owner[visible] = paint[visible], seen.depth[visible], n
        full_masks.append(mask)
        truths.append({
            "cam_R_m2c": [float(v) for v in rotation.ravel()],
            "cam_t_m2c": [float(v) for v in translation],
            "obj_id": obj_id,
        })  # fmt: skip
    color = np.clip(color + rng.normal(0, 4, color.shape), 0, 255).astype(np.uint8)
    _save(scene / "rgb" / f"{im_id:06d}.png", color[..., ::-1])
    _save(scene / "depth" / f"{im_id:06d}.png", np.round(depth / DEPTH_SCALE).astype(np.uint16))
    infos = []
    for n, mask in enumerate(full_masks):
        visible = owner == n
        _save(scene / "mask" / f"{im_id:06d}_{n:06d}.png", mask.astype(np.uint8) * 255)
        _save(scene / "mask_visib" / f"{im_id:06d}_{n:06d}.png", visible.astype(np.uint8) * 255)
        everything, seen_pixels = int(mask.sum()), int(visible.sum())
        infos.append({
            "bbox_obj": _box(mask),
            "bbox_visib": _box(visible),
            "px_count_all": everything,
            "px_count_valid": everything,
            "px_count_visib": seen_pixels,
            "visib_fract": round(seen_pixels / max(everything, 1), 6),
        })  # fmt: skip
    return truths, infos


def render(root: Path, config: RenderConfig) -> dict[str, Any]:
    """Writes a data set with the splits train and test.

    The folder appears under its name only when it is complete.

    Returns:
        Number of images by split and the seconds taken.

    Raises:
        UsageError: the folder exists already, or a value is out of range.
    """
    if root.exists() and any(root.iterdir()):
        raise UsageError(f"{root}: is not empty")
    if config.image_size < 32 or min(config.train_images, config.test_images) < 1:
        raise UsageError("image size must be at least 32 px and each split needs an image")
    start = time.monotonic()
    partial = root.with_name(root.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "models").mkdir(parents=True)
    meshes = {}
    infos = {}
    for obj_id, (mesh, info) in objects().items():
        write_ply(partial / "models" / f"obj_{obj_id:06d}.ply", mesh)
        meshes[obj_id], infos[str(obj_id)] = mesh, info
    _json(partial / "models" / "models_info.json", infos)
    size = config.image_size
    focal, centre = FOCAL_FACTOR * size, (size - 1) / 2
    camera = np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]])
    _json(
        partial / "camera.json",
        {
            "cx": centre,
            "cy": centre,
            "depth_scale": DEPTH_SCALE,
            "fx": focal,
            "fy": focal,
            "height": size,
            "width": size,
        },
    )
    targets = []
    for stream, (split, count) in enumerate((("train", config.train_images), ("test", config.test_images))):
        for first in range(0, count, _IMAGES_PER_SCENE):
            scene_id = first // _IMAGES_PER_SCENE + 1
            scene = partial / split / f"{scene_id:06d}"
            for folder in ("rgb", "depth", "mask", "mask_visib"):
                (scene / folder).mkdir(parents=True)
            cameras, truths, gt_infos = {}, {}, {}
            for im_id in range(min(_IMAGES_PER_SCENE, count - first)):
                rng = np.random.default_rng([config.seed, stream, first + im_id])
                truth, info = _render_image(rng, meshes, camera, size, scene, im_id)
                cameras[str(im_id)] = {"cam_K": camera.ravel().tolist(), "depth_scale": DEPTH_SCALE}
                truths[str(im_id)], gt_infos[str(im_id)] = truth, info
                if split == "test":
                    targets += [
                        {"im_id": im_id, "inst_count": 1, "obj_id": t["obj_id"], "scene_id": scene_id}
                        for t, i in sorted(zip(truth, info, strict=True), key=lambda pair: pair[0]["obj_id"])
                        if i["visib_fract"] >= 0.1
                    ]
            _json(scene / "scene_camera.json", cameras)
            _json(scene / "scene_gt.json", truths)
            _json(scene / "scene_gt_info.json", gt_infos)
    _json(partial / "test_targets_bop19.json", targets)
    if root.exists():
        root.rmdir()
    partial.rename(root)
    return {"train": config.train_images, "test": config.test_images, "seconds": round(time.monotonic() - start, 1)}

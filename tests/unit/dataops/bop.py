"""Small BOP folders: boxes of several colours, drawn with the training's own rasterizer, that meet its expectations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from epos.bop import rotation_about
from epos.ply import Mesh, write_ply
from epos.raster import rasterize

SIZE = 64
CAMERA = np.array([[90.0, 0, 31.5], [0, 90.0, 31.5], [0, 0, 1]])
OBJECTS = {1: (60.0, 40.0, 50.0), 2: (30.0, 70.0, 40.0)}
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_FACES = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                   [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


def make(root: Path, images: dict[str, int], seed: int = 1, light: float = 1.0) -> Path:
    """A folder with so many images in a scene of each split; light makes all of them brighter or darker."""
    random = np.random.default_rng(seed)
    models = root / "models"
    models.mkdir(parents=True)
    meshes = {obj_id: _CORNERS * np.array(size) / 2 for obj_id, size in OBJECTS.items()}
    for obj_id, vertices in meshes.items():
        colors = np.full((8, 3), 60 * obj_id, np.uint8)
        write_ply(models / f"obj_{obj_id:06d}.ply", Mesh(vertices, _FACES, colors))
    _write(models / "models_info.json", {str(i): {"diameter": float(np.linalg.norm(s))} for i, s in OBJECTS.items()})
    _write(root / "camera.json", {"width": SIZE, "height": SIZE, "fx": 90.0, "fy": 90.0, "cx": 31.5, "cy": 31.5})
    for split, count in images.items():
        scene = root / split / "000001"
        contents: dict[str, dict[str, object]] = {"camera": {}, "gt": {}, "gt_info": {}}
        for key in range(count):
            _image(scene, key, meshes, contents, random, light)
        for name, value in contents.items():
            _write(scene / f"scene_{name}.json", value)
    return root


def _image(scene: Path, key: int, meshes: dict[int, np.ndarray], contents: dict[str, dict[str, object]],
           random: np.random.Generator, light: float) -> None:  # fmt: skip
    picture = random.integers(90, 140, (SIZE, SIZE, 3)).astype(np.float64)
    poses, infos = [], []
    for index, (obj_id, vertices) in enumerate(meshes.items()):
        axis = random.normal(size=3)
        rotation = rotation_about(axis / np.linalg.norm(axis), float(random.uniform(0, np.pi)))
        # Side by side: nothing hides anything.
        place = np.array([-80.0 + 160.0 * index, random.uniform(-40, 40), random.uniform(480, 640)])
        drawn = rasterize(vertices @ rotation.T + place, _FACES, CAMERA, (SIZE, SIZE)).face
        mask = drawn >= 0
        picture[mask] = 30 + 15 * (drawn[mask][:, None] % 12) + np.array([40, 0, 20]) * index
        count = int(mask.sum())
        folder = scene / "mask_visib"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{key:06d}_{index:06d}.png")
        poses.append({"obj_id": obj_id, "cam_R_m2c": rotation.ravel().tolist(), "cam_t_m2c": place.tolist()})
        infos.append({"visib_fract": 1.0, "px_count_visib": count, "px_count_all": count})
    (scene / "rgb").mkdir(exist_ok=True)
    Image.fromarray((picture * light).clip(0, 255).astype(np.uint8)).save(scene / f"rgb/{key:06d}.png")
    contents["camera"][str(key)] = {"cam_K": CAMERA.ravel().tolist()}
    contents["gt"][str(key)] = poses
    contents["gt_info"][str(key)] = infos


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1))

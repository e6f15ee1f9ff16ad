"""Images of a data set in the network's format, with targets rendered from the annotated poses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from epos.bop import ObjectModel, View, read_image, read_mask
from epos.config import ALIGN, STRIDE
from epos.errors import DataError
from epos.fragments import Fragments
from epos.raster import rasterize


@dataclass(frozen=True)
class Sample:
    """One image with its targets.

    Attributes:
        image: (H, W, 3) uint8.
        objects: (H / 4, W / 4) uint8, class of each cell.
        fragments: (H / 4, W / 4) int16.
        locations: (H / 4, W / 4, 3) float32.
    """

    image: np.ndarray
    objects: np.ndarray
    fragments: np.ndarray
    locations: np.ndarray


def canvas_shape(height: int, width: int, image_size: int) -> tuple[int, int]:
    """Height and width of the network's input for images of a size: longer side image_size, the other rounded up."""
    scale = image_size / max(height, width)
    return tuple(math.ceil(round(side * scale, 6) / ALIGN) * ALIGN for side in (height, width))  # type: ignore[return-value]


def fit(image: np.ndarray, camera: np.ndarray, canvas: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Scales an image into the canvas's upper left corner and its intrinsic matrix with it."""
    height, width = image.shape[:2]
    scale = min(canvas[0] / height, canvas[1] / width)
    size = (min(canvas[1], round(width * scale)), min(canvas[0], round(height * scale)))
    result = np.zeros((*canvas, 3), np.uint8)
    if size == (width, height):
        result[:height, :width] = image
        return result, camera
    shrinking = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    result[: size[1], : size[0]] = cv2.resize(image, size, interpolation=shrinking)
    return result, scale_camera(camera, size[0] / width, size[1] / height)


def scale_camera(camera: np.ndarray, fx: float, fy: float) -> np.ndarray:
    """Intrinsic matrix after scaling an image; pixel centres lie on integers, its border at -0.5."""
    shift = np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
    return shift @ camera


def make_sample(view: View, models: dict[int, ObjectModel], fragments: Fragments, canvas: tuple[int, int]) -> Sample:
    """Reads an image and renders what the network shall predict.

    Occlusion comes from the z-buffer over all annotated objects and, where the data set has them, from its masks of
    visible surfaces.
    """
    original = read_image(view.path)
    image, camera = fit(original, view.camera, canvas)
    grid = (canvas[0] // STRIDE, canvas[1] // STRIDE)
    camera = scale_camera(camera, 1 / STRIDE, 1 / STRIDE)
    depth = np.full(grid, np.inf)
    objects = np.zeros(grid, np.uint8)
    numbers = np.zeros(grid, np.int16)
    locations = np.zeros((*grid, 3), np.float32)
    # Where each cell's centre lies in the original image.
    scale = min(canvas[0] / original.shape[0], canvas[1] / original.shape[1])
    rows, columns = (np.floor((np.arange(n) + 0.5) * STRIDE / scale).astype(int) for n in grid)
    inside = (rows < original.shape[0])[:, None] & (columns < original.shape[1])[None]
    rows, columns = np.minimum(rows, original.shape[0] - 1), np.minimum(columns, original.shape[1] - 1)
    for instance in view.instances:
        mesh = models[instance.obj_id].mesh
        points = mesh.vertices @ instance.rotation.T + instance.translation
        seen = rasterize(points, mesh.faces, camera, grid)
        visible = (seen.depth < depth) & inside
        depth[visible] = seen.depth[visible]
        objects[visible] = 0  # What lies in front hides the others, also where its own mask says invisible.
        if instance.mask_visib:
            mask = read_mask(instance.mask_visib)
            if mask.shape != original.shape[:2]:
                raise DataError(f"{instance.mask_visib}: image has another size than {view.path}")
            visible &= mask[rows[:, None], columns[None]]
        if visible.any():
            index = int(np.searchsorted(fragments.obj_ids, instance.obj_id))
            surface = seen.interpolate(mesh.faces, mesh.vertices)[visible]
            numbers[visible], locations[visible] = fragments.assign(index, surface)
            objects[visible] = index + 1
    return Sample(image, objects, numbers, locations)


class Samples:
    """Random access to the samples of many views, made in threads and kept in memory up to a budget.

    Args:
        views: at least one; they decide the canvas.
        models, fragments: of the data set.
        image_size: longer side of the canvas, px.
        cache_mib: memory for finished samples.
        workers: threads that make samples.
    """

    def __init__(
        self,
        views: list[View],
        models: dict[int, ObjectModel],
        fragments: Fragments,
        image_size: int,
        cache_mib: int = 512,
        workers: int = 2,
    ) -> None:
        self.views, self.models, self.fragments = views, models, fragments
        self.canvas = canvas_shape(*read_image(views[0].path).shape[:2], image_size)
        self._cache: dict[int, Sample] = {}
        cell_bytes = 3 + (1 + 2 + 12) / STRIDE**2
        self._capacity = int(cache_mib * 2**20 / (self.canvas[0] * self.canvas[1] * cell_bytes))
        self._pool = ThreadPoolExecutor(workers)

    def __len__(self) -> int:
        return len(self.views)

    def _get(self, i: int) -> Sample:
        sample = self._cache.get(i)
        if sample is None:
            sample = make_sample(self.views[i], self.models, self.fragments, self.canvas)
            if len(self._cache) < self._capacity:
                self._cache[i] = sample
        return sample

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Images, objects, fragments and locations of several views, stacked."""
        found = list(self._pool.map(self._get, [int(i) for i in indices]))
        return (
            np.stack([s.image for s in found]),
            np.stack([s.objects for s in found]).astype(np.int32),
            np.stack([s.fragments for s in found]).astype(np.int32),
            np.stack([s.locations for s in found]),
        )

    def close(self) -> None:
        """Stops the threads."""
        self._pool.shutdown()

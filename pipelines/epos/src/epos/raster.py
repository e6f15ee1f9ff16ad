"""Ray casting of triangle meshes with a z-buffer, vectorised over all (triangle, pixel) pairs.

The barycentric coordinates come from the ray itself (Olano, Greer: "Triangle Scan Conversion using 2D Homogeneous
Coordinates", 1997), so they are correct in perspective and need no clipping at the image border.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NEAR_MM = 1e-3


@dataclass(frozen=True)
class Raster:
    """What each pixel of an (h, w) image sees of one mesh.

    Attributes:
        face: (h, w) int64, index of the triangle, -1 where there is none.
        depth: (h, w) float64, z in mm, infinite where there is none.
        bary: (h, w, 3) float64, weights of the triangle's corners.
    """

    face: np.ndarray
    depth: np.ndarray
    bary: np.ndarray

    def interpolate(self, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Interpolates values (N, C) of the vertices to (h, w, C); 0 where there is no triangle."""
        corners = values[faces[np.maximum(self.face, 0)]]
        return np.einsum("hwkc,hwk->hwc", corners, self.bary) * (self.face >= 0)[..., None]


def rasterize(points: np.ndarray, faces: np.ndarray, camera: np.ndarray, shape: tuple[int, int]) -> Raster:
    """Casts a ray through each pixel centre.

    Args:
        points: (N, 3) vertices in the camera's frame, mm.
        faces: (M, 3) indices of vertices.
        camera: (3, 3) intrinsic matrix, pixels.
        shape: height and width of the image, pixels.
    """
    height, width = shape
    face_map = np.full(height * width, -1, np.int64)
    depth = np.full(height * width, np.inf)
    bary = np.zeros((height * width, 3))
    result = Raster(face_map.reshape(shape), depth.reshape(shape), bary.reshape(height, width, 3))

    front = (points[faces][:, :, 2] > _NEAR_MM).all(axis=1)
    if not front.any():
        return result
    index = np.flatnonzero(front)
    corners = points[faces[index]]
    pixel = corners @ camera.T
    pixel = pixel[..., :2] / pixel[..., 2:]
    low = np.maximum(np.ceil(pixel.min(axis=1) - 1e-9), 0).astype(np.int64)
    high = np.minimum(np.floor(pixel.max(axis=1) + 1e-9), (width - 1, height - 1)).astype(np.int64)
    extent = np.maximum(high - low + 1, 0)
    count = extent[:, 0] * extent[:, 1]

    # All pixels of all bounding boxes, one after the other.
    tri = np.repeat(np.arange(len(index)), count)
    local = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    x = low[tri, 0] + local % np.maximum(extent[tri, 0], 1)
    y = low[tri, 1] + local // np.maximum(extent[tri, 0], 1)

    inverse = np.linalg.inv(camera)
    rays = x[:, None] * inverse[:, 0] + y[:, None] * inverse[:, 1] + inverse[:, 2]
    normals = np.stack([np.cross(corners[:, (k + 1) % 3], corners[:, (k + 2) % 3]) for k in range(3)], axis=1)
    weights = np.einsum("pkc,pc->pk", normals[tri], rays)
    total = weights.sum(axis=1)
    inside = (weights * np.sign(total)[:, None] >= 0).all(axis=1) & (total != 0)
    tri, weights, total = tri[inside], weights[inside], total[inside]
    flat = (y * width + x)[inside]
    z = np.einsum("tc,tc->t", corners[:, 0], normals[:, 0])[tri] / total

    # Of several assignments to one pixel the last one stays: the nearest.
    order = np.argsort(-z, kind="stable")
    flat, tri, z = flat[order], tri[order], z[order]
    face_map[flat] = index[tri]
    depth[flat] = z
    bary[flat] = weights[order] / total[order][:, None]
    return result

"""Surface fragments of object models (EPOS, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from epos.bop import ObjectModel
from epos.errors import UsageError
from epos.ply import Mesh

_POINTS_PER_FRAGMENT = 32


@dataclass(frozen=True)
class Fragments:
    """Fragments of all objects, in the order of the sorted object ids.

    Attributes:
        obj_ids: (O,) object ids; class 0 of the network is the background, class i + 1 the object obj_ids[i].
        centers: (O, F, 3) float64 centres in mm.
        sizes: (O, F) float64, longest side of each fragment's bounding box, mm.
        normals: (O, F, 3) float64, mean of the outward unit normals: the more a fragment is bent, the shorter.
    """

    obj_ids: np.ndarray
    centers: np.ndarray
    sizes: np.ndarray
    normals: np.ndarray

    def assign(self, index: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the fragment of each point and the point's location relative to it.

        A point x belongs to the fragment with the nearest centre g; its location is (x - g) / size (EPOS, eq. 3).

        Args:
            index: position of the object in obj_ids.
            points: (N, 3) in the model's frame, mm.

        Returns:
            fragment numbers (N,) and locations (N, 3).
        """
        fragment = cKDTree(self.centers[index]).query(points)[1]
        location = (points - self.centers[index][fragment]) / self.sizes[index][fragment][:, None]
        return fragment, location


def farthest_points(points: np.ndarray, count: int) -> np.ndarray:
    """Chooses points such that each is the farthest from those chosen before it.

    Farthest point sampling (Eldar, Lindenbaum, Porat, Zeevi, 1997). It starts from the centroid, which is then
    dropped, as EPOS does.

    Args:
        points: (N, 3).
        count: how many to choose, at most N.

    Returns:
        (count,) indices.
    """
    distance = ((points - points.mean(axis=0)) ** 2).sum(axis=1)
    chosen = np.empty(count, np.int64)
    for k in range(count):
        chosen[k] = distance.argmax()
        distance = np.minimum(distance, ((points - points[chosen[k]]) ** 2).sum(axis=1))
    return chosen


def surface_points(mesh: Mesh, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The vertices with their normals, filled up to `count` points drawn evenly from the faces (always the same ones).

    Returns:
        points (N, 3) in mm and outward unit normals (N, 3), zero where faces have no area.
    """
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    cross = np.cross(b - a, c - a)
    # Some models are turned inside out; a closed surface with outward normals has a positive volume.
    centre = mesh.vertices.mean(axis=0)
    if np.einsum("ij,ij->", a - centre, cross) < 0:
        cross = -cross
    normals = np.zeros_like(mesh.vertices)
    for k in range(3):
        np.add.at(normals, mesh.faces[:, k], cross)
    points, area = mesh.vertices, np.linalg.norm(cross, axis=1)
    if len(points) < count and area.sum() > 0:
        rng = np.random.default_rng(0)
        face = rng.choice(len(area), count - len(points), p=area / area.sum())
        root, v = np.sqrt(rng.random((len(face), 1))), rng.random((len(face), 1))
        drawn = (1 - root) * a[face] + root * (1 - v) * b[face] + root * v * c[face]
        points, normals = np.vstack([points, drawn]), np.vstack([normals, cross[face]])
    return points, normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def make_fragments(models: dict[int, ObjectModel], num_frags: int) -> Fragments:
    """Divides every object's surface into fragments.

    Raises:
        UsageError: an object's mesh is too small for so many fragments.
    """
    obj_ids = np.array(sorted(models))
    centers = np.empty((len(obj_ids), num_frags, 3))
    sizes = np.empty((len(obj_ids), num_frags))
    normals = np.zeros((len(obj_ids), num_frags, 3))
    for i, obj_id in enumerate(obj_ids):
        points, directions = surface_points(models[obj_id].mesh, _POINTS_PER_FRAGMENT * num_frags)
        chosen = farthest_points(points, min(num_frags, len(points)))
        if len(np.unique(points[chosen], axis=0)) < num_frags:
            raise UsageError(f"--num-frags: object {obj_id} has fewer than {num_frags} distinct surface points")
        centers[i] = points[chosen]
        owner = cKDTree(centers[i]).query(points)[1]
        for k in range(num_frags):
            own = points[owner == k]
            normals[i, k] = directions[owner == k].mean(axis=0) if len(own) else 0.0
            # A fragment of one point has no extent; the distance to its neighbour keeps the locations finite.
            nearest = np.partition(np.linalg.norm(centers[i] - centers[i][k], axis=1), 1)[1] if num_frags > 1 else 1.0
            extent = float((own.max(axis=0) - own.min(axis=0)).max()) if len(own) else 0.0
            sizes[i, k] = extent if extent > 0 else nearest
    return Fragments(obj_ids, centers, sizes, normals)

"""From the network's output to poses: many-to-many 2D-3D correspondences and PnP-RANSAC (EPOS, sections 3.3, 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import cv2
import numpy as np

from epos.config import STRIDE
from epos.errors import UsageError
from epos.fragments import Fragments
from epos.samples import scale_camera

_MIN_INLIERS = 6  # Cells; fewer support a pose of any shape.
_MAX_LINKS = 16  # Of a cell: bounds the time that the output of an untrained network takes.
_BATCH = 128  # Samples between two decisions to stop.
_SCORED_CELLS = 128  # Hypotheses are compared on this many cells at most.
_REFINED = 8  # Number of hypotheses that are optimised locally.
_CONFIDENCE = 0.9999  # Of having drawn a sample without outlier.
_FACING = 0.2  # Largest cosine between a fragment's normal and the line of sight at which it can be visible.


@dataclass(frozen=True)
class PoseConfig:
    """How poses are fitted.

    Attributes:
        min_object: least probability of the object at a cell (tau_a of EPOS).
        min_fragment: least probability of a fragment, relative to the cell's most probable one (tau_b;
            EPOS takes 0.5).
        inlier_px: largest reprojection error of an inlier, px of the network's input.
        iterations: most samples that RANSAC draws.
        seed: of RANSAC.
    """

    min_object: float = 0.1
    min_fragment: float = 0.3
    inlier_px: float = 3.0
    iterations: int = 1000
    seed: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.min_object < 1 and 0 < self.min_fragment < 1):
            raise UsageError("--min-object and --min-fragment must lie between 0 and 1")
        if not self.inlier_px > 0 or self.iterations < 1:
            raise UsageError("--inlier-px and --iterations must be positive")


@dataclass(frozen=True)
class Estimate:
    """An estimated pose: x_camera = rotation @ x_model + translation (mm), and its score (more is better)."""

    obj_id: int
    rotation: np.ndarray
    translation: np.ndarray
    score: float


@dataclass(frozen=True)
class Correspondences:
    """Links of cells with fragments, ordered by cell.

    Attributes:
        image: (N, 2) image points, cells of the output grid.
        model: (N, 3) points on the object, mm.
        normal: (N, 3) the fragments' normals.
        confidence: (N,) probability of object and fragment.
        cell: (N,) number of the cell.
    """

    image: np.ndarray
    model: np.ndarray
    normal: np.ndarray
    confidence: np.ndarray
    cell: np.ndarray

    def select(self, which: np.ndarray) -> Correspondences:
        """Those at the given ascending positions, or where a mask is true."""
        return Correspondences(*(getattr(self, f.name)[which] for f in fields(self)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def correspondences(
    objects: np.ndarray, fragments: np.ndarray, locations: np.ndarray, parts: Fragments, index: int, config: PoseConfig
) -> Correspondences:
    """Links cells with all fragments that they may show.

    A cell of a symmetric object links to several fragments; RANSAC then finds one of the equivalent poses.

    Args:
        objects: (h, w, O + 1) logits.
        fragments: (h, w, O, F) logits.
        locations: (h, w, O, F, 3), in fragment sizes.
        parts: fragments of all objects.
        index: which object.
        config: thresholds.
    """
    probability = softmax(objects)[..., index + 1]
    rows, columns = np.nonzero(probability > config.min_object)
    share = softmax(fragments[rows, columns, index])
    if not len(rows):
        return Correspondences(np.empty((0, 2)), np.empty((0, 3)), np.empty((0, 3)), np.empty(0), np.empty(0, np.int64))
    likely = share > config.min_fragment * share.max(axis=1, keepdims=True)
    if share.shape[1] > _MAX_LINKS:
        likely &= share >= np.partition(share, -_MAX_LINKS, axis=1)[:, -_MAX_LINKS, None]
    cell, fragment = np.nonzero(likely)
    centers, sizes = parts.centers[index][fragment], parts.sizes[index][fragment]
    model = centers + sizes[:, None] * locations[rows[cell], columns[cell], index, fragment]
    confidence = probability[rows, columns][cell] * share[cell, fragment]
    image = np.stack([columns[cell], rows[cell]], axis=1).astype(np.float64)
    return Correspondences(image, model, parts.normals[index][fragment], confidence, cell)


def _support(
    pairs: Correspondences, rotations: np.ndarray, translations: np.ndarray, camera: np.ndarray, threshold: float
) -> np.ndarray:
    """How well each link agrees with each pose: confidence times 1 - (error / threshold)², at least 0 (MSAC).

    Links with surface that faces away from the camera give nothing: without this, the poses of a symmetric object
    that show its far side fit as well as the right one.

    Returns:
        (H, N) for H poses and N links.
    """
    flat = pairs.model @ (camera @ rotations).transpose(0, 2, 1) + (translations @ camera.T)[:, None]
    depth = flat[..., 2]
    front = depth > 0
    safe = np.where(front, depth, 1.0)
    error = (flat[..., 0] / safe - pairs.image[:, 0]) ** 2 + (flat[..., 1] / safe - pairs.image[:, 1]) ** 2
    # With p = R x + t: (R n) p = n x + n (R't), and p p = x x + 2 x (R't) + t t.
    turned = np.einsum("hji,hj->hi", rotations, translations)
    along = (pairs.normal * pairs.model).sum(axis=1) + turned @ pairs.normal.T
    square = (pairs.model**2).sum(axis=1) + 2 * turned @ pairs.model.T + (translations**2).sum(axis=1)[:, None]
    visible = front & (along <= _FACING * np.sqrt(np.maximum(square, 0)))
    return np.where(visible, np.maximum(0, 1 - error / threshold**2), 0) * pairs.confidence


def _best_by_cell(support: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Sum over cells of their best link, (H,): a cell shows one point only."""
    starts = np.flatnonzero(np.append(True, cell[1:] != cell[:-1]))
    return np.maximum.reduceat(support, starts, axis=1).sum(axis=1)


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """Rotation matrices (H, 3, 3) of rotation vectors (H, 3) (Rodrigues' formula)."""
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    x, y, z = (vectors / np.maximum(angle[:, 0], 1e-12)).T
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=1).reshape(-1, 3, 3)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _hypotheses(pairs: Correspondences, samples: np.ndarray, camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses (rotations, translations) through three links each, for which these links are visible."""
    vectors, translations, origin = [], [], []
    for k, sample in enumerate(samples):
        count, found, moved = cv2.solveP3P(
            pairs.model[sample], pairs.image[sample], camera, None, flags=cv2.SOLVEPNP_AP3P
        )
        for n in range(count):
            vectors.append(found[n].ravel())
            translations.append(moved[n].ravel())
            origin.append(k)
    if not vectors:
        return np.empty((0, 3, 3)), np.empty((0, 3))
    rotation, translation = _rotations(np.array(vectors)), np.array(translations)
    three = samples[origin]
    points = np.einsum("hij,hkj->hki", rotation, pairs.model[three]) + translation[:, None]
    cosine = (np.einsum("hij,hkj->hki", rotation, pairs.normal[three]) * points).sum(axis=2)
    good = (points[..., 2] > 0) & (cosine <= _FACING * np.linalg.norm(points, axis=2))
    keep = good.all(axis=1) & np.isfinite(points).all(axis=(1, 2))
    return rotation[keep], translation[keep]


def _refine(
    pairs: Correspondences, rotation: np.ndarray, translation: np.ndarray, camera: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Levenberg-Marquardt on the best links of all cells that agree, chosen anew with a narrowing threshold."""
    for factor in (2.0, 1.5, 1.0, 1.0):
        support = _support(pairs, rotation[None], translation[None], camera, factor * threshold)[0]
        order = np.lexsort((-support, pairs.cell))
        first = order[np.append(True, pairs.cell[order][1:] != pairs.cell[order][:-1])]
        inliers = first[support[first] > 0]
        if len(inliers) < _MIN_INLIERS:
            return None
        vector, moved = cv2.solvePnPRefineLM(
            pairs.model[inliers], pairs.image[inliers], camera, None, cv2.Rodrigues(rotation)[0], translation[:, None]
        )
        rotation, translation = cv2.Rodrigues(vector)[0], moved.ravel()
        if not np.isfinite(translation).all() or not np.isfinite(rotation).all():
            return None
    return rotation, translation, inliers


def fit_pose(
    pairs: Correspondences, camera: np.ndarray, threshold: float, config: PoseConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Fits one pose to many-to-many links.

    RANSAC (Fischler, Bolles, 1981) with P3P (Ke, Roumeliotis, 2017) and local optimisation of the best hypotheses
    (Chum, Matas, Kittler, 2003). As in EPOS, samples follow the links' confidence and a cell counts once.

    Args:
        pairs: links of one object.
        camera: (3, 3) intrinsic matrix of the grid.
        threshold: largest error of an inlier, cells.
        config: number of samples, seed.

    Returns:
        rotation, translation in mm and positions of the inliers, or None.
    """
    if len(np.unique(pairs.cell)) < _MIN_INLIERS:
        return None
    rng = np.random.default_rng(config.seed)
    cells = np.unique(pairs.cell)
    judges = pairs
    if len(cells) > _SCORED_CELLS:
        judges = pairs.select(np.isin(pairs.cell, rng.choice(cells, _SCORED_CELLS, replace=False)))
    weights = pairs.confidence / pairs.confidence.sum()
    best: list[tuple[float, np.ndarray, np.ndarray]] = []
    drawn, needed = 0, float(config.iterations)
    while drawn < min(needed, config.iterations):
        samples = rng.choice(len(weights), (_BATCH, 3), p=weights)
        drawn += _BATCH
        cell = pairs.cell[samples]
        distinct = (cell[:, 0] != cell[:, 1]) & (cell[:, 1] != cell[:, 2]) & (cell[:, 0] != cell[:, 2])
        rotations, translations = _hypotheses(pairs, samples[distinct], camera)
        if not len(rotations):
            continue
        support = _support(judges, rotations, translations, camera, threshold)
        scores = _best_by_cell(support, judges.cell)
        top = np.argsort(-scores, kind="stable")[:_REFINED]
        best += [(float(scores[i]), rotations[i], translations[i]) for i in top]
        best = sorted(best, key=lambda item: -item[0])[:_REFINED]
        if scores[top[0]] >= best[0][0]:
            share = float((judges.confidence * (support[top[0]] > 0)).sum() / judges.confidence.sum())
            needed = np.log(1 - _CONFIDENCE) / np.log(max(1e-12, 1 - min(share, 0.999) ** 3))
    fitted = [_refine(pairs, rotation, translation, camera, threshold) for _, rotation, translation in best]
    found = [f for f in fitted if f is not None and f[1][2] > 0]
    if not found:
        return None
    scores = [
        float(_best_by_cell(_support(pairs, r[None], t[None], camera, threshold), pairs.cell)[0]) for r, t, _ in found
    ]
    return found[int(np.argmax(scores))]


def estimate_poses(
    objects: np.ndarray,
    fragments: np.ndarray,
    locations: np.ndarray,
    parts: Fragments,
    camera: np.ndarray,
    wanted: dict[int, int],
    config: PoseConfig,
) -> list[Estimate]:
    """Estimates the poses of the wanted objects in one image.

    Several instances of an object are found one after the other, each on the cells that those before it left.

    Args:
        objects, fragments, locations: the network's output for the image.
        parts: fragments of all objects.
        camera: (3, 3) intrinsic matrix of the network's input.
        wanted: number of instances by object id.
        config: thresholds.
    """
    grid_camera = scale_camera(camera, 1 / STRIDE, 1 / STRIDE)
    threshold = config.inlier_px / STRIDE
    result = []
    for obj_id, count in sorted(wanted.items()):
        index = int(np.searchsorted(parts.obj_ids, obj_id))
        if index >= len(parts.obj_ids) or parts.obj_ids[index] != obj_id:
            continue
        pairs = correspondences(objects, fragments, locations, parts, index, config)
        for _ in range(count):
            found = fit_pose(pairs, grid_camera, threshold, config)
            if found is None:
                break
            rotation, translation, inliers = found
            result.append(Estimate(obj_id, rotation, translation, float(pairs.confidence[inliers].sum())))
            pairs = pairs.select(~np.isin(pairs.cell, pairs.cell[inliers]))
    return result

"""BOP's pose errors and recall (Hodan et al., "BOP Challenge 2020 on 6D Object Localization", section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from epos.bop import Instance, ObjectModel
from epos.pose import Estimate

MSSD_THRESHOLDS = np.arange(1, 11) * 0.05  # Fractions of the object's diameter.
MSPD_THRESHOLDS = np.arange(1, 11) * 5.0  # px in an image 640 px wide.
_MIN_VISIBLE = 0.1  # BOP evaluates objects of which at least this fraction is visible.


def _poses(truth: Instance, model: ObjectModel) -> tuple[np.ndarray, np.ndarray]:
    """All poses that are equivalent to the annotated one: rotations (S, 3, 3), translations (S, 3)."""
    rotations, translations = model.symmetries
    return truth.rotation @ rotations, translations @ truth.rotation.T + truth.translation


def mssd(estimate: Estimate, truth: Instance, model: ObjectModel) -> float:
    """Maximum symmetry-aware surface distance, mm: min over symmetries of max over vertices."""
    vertices = model.mesh.vertices
    moved = vertices @ estimate.rotation.T + estimate.translation
    best = np.inf
    for rotation, translation in zip(*_poses(truth, model), strict=True):
        best = min(best, float(((moved - vertices @ rotation.T - translation) ** 2).sum(axis=1).max()))
    return best**0.5


def mspd(estimate: Estimate, truth: Instance, model: ObjectModel, camera: np.ndarray) -> float:
    """Maximum symmetry-aware projection distance, px."""

    def project(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        flat = (model.mesh.vertices @ rotation.T + translation) @ camera.T
        return flat[:, :2] / flat[:, 2:]

    seen = project(estimate.rotation, estimate.translation)
    best = np.inf
    for rotation, translation in zip(*_poses(truth, model), strict=True):
        best = min(best, float(((seen - project(rotation, translation)) ** 2).sum(axis=1).max()))
    return best**0.5


def match(errors: np.ndarray, scores: Sequence[float], threshold: float) -> int:
    """Counts annotated instances that are found: estimates by descending score take the nearest free one.

    Args:
        errors: (estimates, instances).
        scores: of the estimates.
        threshold: errors below it are correct.
    """
    free = set(range(errors.shape[1]))
    found = 0
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        best = min(free, key=lambda j: errors[i, j], default=None)
        if best is not None and errors[i, best] < threshold:
            free.remove(best)
            found += 1
    return found


class Recall:
    """Adds up the recall of one or more images, by object."""

    def __init__(self) -> None:
        self._found: dict[int, np.ndarray] = {}
        self._count: dict[int, int] = {}

    def add(
        self,
        estimates: list[Estimate],
        truths: Sequence[Instance],
        models: dict[int, ObjectModel],
        camera: np.ndarray,
        width: int,
    ) -> None:
        """Adds an image.

        Args:
            estimates: of this image.
            truths: all its annotations.
            models: of the data set.
            camera: (3, 3) intrinsic matrix of the image.
            width: of the image, px.
        """
        for obj_id in sorted({t.obj_id for t in truths}):
            wanted = [t for t in truths if t.obj_id == obj_id and t.visib_fract >= _MIN_VISIBLE]
            if not wanted:
                continue
            model, own = models[obj_id], [e for e in estimates if e.obj_id == obj_id]
            scores = [e.score for e in own]
            surface = np.array([[mssd(e, t, model) for t in wanted] for e in own]).reshape(len(own), len(wanted))
            pixel = np.array([[mspd(e, t, model, camera) for t in wanted] for e in own]).reshape(surface.shape)
            found = self._found.setdefault(obj_id, np.zeros((2, len(MSSD_THRESHOLDS)), int))
            found[0] += [match(surface / model.diameter, scores, t) for t in MSSD_THRESHOLDS]
            found[1] += [match(pixel * 640 / width, scores, t) for t in MSPD_THRESHOLDS]
            self._count[obj_id] = self._count.get(obj_id, 0) + len(wanted)

    def summary(self) -> dict[str, object]:
        """Average recalls over BOP's thresholds: AR_MSSD, AR_MSPD, their mean, and each by object."""
        total = sum(self._count.values())
        if not total:
            return {"recall": 0.0, "recall_mssd": 0.0, "recall_mspd": 0.0, "instances": 0, "objects": {}}
        mean = sum(self._found.values()).mean(axis=1) / total
        objects = {}
        for obj_id, found in sorted(self._found.items()):
            own = found.mean(axis=1) / self._count[obj_id]
            objects[str(obj_id)] = {
                "recall_mssd": round(float(own[0]), 4),
                "recall_mspd": round(float(own[1]), 4),
                "instances": self._count[obj_id],
            }
        return {
            "recall": round(float(mean.mean()), 4),
            "recall_mssd": round(float(mean[0]), 4),
            "recall_mspd": round(float(mean[1]), 4),
            "instances": total,
            "objects": objects,
        }

"""Pictures for people: the loss curve and poses drawn over images."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import matplotlib
import numpy as np

from epos.bop import ObjectModel, View, read_image
from epos.checkpoint import write_atomic
from epos.pose import Estimate
from epos.raster import rasterize
from epos.samples import scale_camera
from epos.train import LOG_COLUMNS

matplotlib.use("Agg")

import matplotlib.pyplot as plt

_COLORS = ((255, 80, 80), (80, 220, 80), (90, 140, 255), (255, 200, 60), (220, 90, 255), (80, 230, 230))
_WIDTH = 512  # px of an overlay.


def loss_curve(path: Path, log: list[tuple[float, ...]]) -> None:
    """Draws all parts of the loss over the steps (logarithmic)."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    table = np.array(log).reshape(-1, len(LOG_COLUMNS))
    for i, name in enumerate(LOG_COLUMNS[1:], start=1):
        axes.plot(table[:, 0], table[:, i], label=name)
    if len(table):
        axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (parts unweighted)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def _outline(image: np.ndarray, model: ObjectModel, rotation: np.ndarray, translation: np.ndarray,
             camera: np.ndarray, color: tuple[int, int, int], thickness: int) -> None:  # fmt: skip
    mesh = model.mesh
    points = mesh.vertices @ rotation.T + translation
    mask = (rasterize(points, mesh.faces, camera, image.shape[:2]).face >= 0).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, color, thickness, cv2.LINE_AA)
    ends = np.vstack([np.zeros(3), np.diag(3 * [0.4 * model.diameter])]) @ rotation.T + translation
    if (ends[:, 2] > 0).all():
        flat = ends @ camera.T
        flat = flat[:, :2] / flat[:, 2:]
        for k, axis_color in enumerate(((255, 60, 60), (60, 255, 60), (60, 60, 255)), start=1):
            start, end = (tuple(int(v) for v in np.clip(flat[n], -1e4, 1e4)) for n in (0, k))
            cv2.line(image, start, end, axis_color, 1, cv2.LINE_AA)


def overlay(path: Path, view: View, estimates: list[Estimate], models: dict[int, ObjectModel]) -> None:
    """Draws outlines over an image: annotated poses thin and white, estimates in colour with their axes."""
    image = read_image(view.path)
    scale = _WIDTH / image.shape[1]
    canvas = cv2.resize(image, (_WIDTH, round(image.shape[0] * scale)), interpolation=cv2.INTER_LINEAR)
    camera = scale_camera(view.camera, scale, canvas.shape[0] / image.shape[0])
    for truth in view.instances:
        _outline(canvas, models[truth.obj_id], truth.rotation, truth.translation, camera, (255, 255, 255), 1)
    order = sorted(models)
    for e in estimates:
        color = _COLORS[order.index(e.obj_id) % len(_COLORS)]
        _outline(canvas, models[e.obj_id], e.rotation, e.translation, camera, color, 2)
    ok, data = cv2.imencode(".png", np.ascontiguousarray(canvas[..., ::-1]))
    if not ok:
        raise RuntimeError(f"{path}: cannot encode")
    write_atomic(path, data.tobytes())

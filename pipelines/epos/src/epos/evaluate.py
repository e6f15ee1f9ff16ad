"""Evaluation on held-out images, and predictions in BOP's result format."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epos import checkpoint
from epos.bop import ObjectModel, View, read_image
from epos.measure import Recall
from epos.model import Model
from epos.pose import Estimate, PoseConfig
from epos.progress import say

RESULT_COLUMNS = "scene_id,im_id,obj_id,score,R,t,time"


def predict_views(
    model: Model, views: list[View], config: PoseConfig, progress: Callable[[str], None] = say
) -> list[list[Estimate]]:
    """Estimates the poses in every view; annotated views say how many instances of which object to look for."""
    result = []
    start = time.monotonic()
    for i, view in enumerate(views, start=1):
        wanted = dict(Counter(t.obj_id for t in view.instances)) or None
        result.append(model.predict(read_image(view.path), view.camera, wanted, config))
        if i % 20 == 0 or i == len(views):
            progress(f"predicted {i}/{len(views)} images, {i / (time.monotonic() - start):.1f} images/s")
    return result


def evaluate(views: list[View], estimates: list[list[Estimate]], models: dict[int, ObjectModel]) -> dict[str, Any]:
    """BOP's recall over all views, for metrics.json."""
    recall = Recall()
    for view, found in zip(views, estimates, strict=True):
        width = read_image(view.path).shape[1]
        recall.add(found, view.instances, models, view.camera, width)
    return {"images": len(views), **recall.summary()}


def write_results(path: Path, views: list[View], estimates: list[list[Estimate]]) -> None:
    """Writes poses as BOP's CSV (BOP challenge, "Format of results"); time is -1, as it is not measured."""
    lines = [RESULT_COLUMNS]
    for view, found in zip(views, estimates, strict=True):
        for e in found:
            rotation = " ".join(f"{v:.9g}" for v in e.rotation.ravel())
            translation = " ".join(f"{v:.9g}" for v in e.translation)
            lines.append(f"{view.scene_id},{view.im_id},{e.obj_id},{e.score:.9g},{rotation},{translation},-1")
    checkpoint.write_atomic(path, ("\n".join(lines) + "\n").encode())

"""What a data set looks like in numbers, how far that is from another one, and a page that shows both.

Histograms have fixed bins, so that those of two data sets can be compared when only one of them is there. Drift is the population
stability index: below 0.1 nothing, from 0.25 on another population.
"""

from __future__ import annotations

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from epos import pages
from epos.bop import BopDataset, decode, find_image, read_json
from epos.errors import DataError
from slipway_dataops import data

Json = dict[str, Any]

SCHEMA = 1
MODERATE, STRONG = 0.1, 0.25
_SAMPLES = 8  # pictures in the report
_THUMBNAIL = 160  # px

# By name: in words, and the borders of the bins; what lies outside goes into the first or the last one.
FEATURES: dict[str, tuple[str, list[float]]] = {
    "brightness": ("mean of an image's values, 0..255", [float(v) for v in range(0, 257, 16)]),
    "contrast": ("standard deviation of an image's values", [float(v) for v in range(0, 129, 8)]),
    "instances": ("annotated objects in an image", [float(v) for v in range(17)]),
    "visible": ("visible fraction of an object", [v / 10 for v in range(11)]),
    "distance": ("distance of an object from the camera, mm", [round(10 ** (1.5 + v / 8), 1) for v in range(21)]),
    "elevation": ("angle between an object's z axis and the direction it is seen from, degrees", [float(v) for v in range(0, 181, 15)]),
}  # fmt: skip


def describe(root: Path) -> Json:
    """Schema and statistics of a BOP folder; what cannot be read is counted, not an error.

    Raises:
        DataError: it has no objects or no scenes.
    """
    dataset = BopDataset(root)
    info = read_json(dataset.models_dir / "models_info.json")
    counts = {name: [0] * (len(borders) - 1) for name, (_, borders) in FEATURES.items()}
    sizes, modes, objects, fields, unreadable = Counter[str](), Counter[str](), Counter[str](), set[str](), 0
    found: Json = {}
    for split in data.splits(root):
        images = instances = 0
        for scene in data.scenes(root, split):
            cameras, truths, infos = (_read(scene / f"scene_{name}.json") for name in ("camera", "gt", "gt_info"))
            for key, camera in cameras.items():
                try:
                    image = decode(find_image(scene, int(key)))
                except (DataError, ValueError):
                    unreadable += 1
                    continue
                images += 1
                sizes[f"{image.width}x{image.height}"] += 1
                modes[image.mode] += 1
                pixels = np.asarray(image.convert("RGB"))
                _count(counts, "brightness", float(pixels.mean()))
                _count(counts, "contrast", float(pixels.std()))
                fields |= {f"scene_camera.{name}" for name in camera} if isinstance(camera, dict) else set()
                annotated = [item for item in truths.get(key) or [] if isinstance(item, dict)]
                _count(counts, "instances", float(len(annotated)))
                instances += len(annotated)
                for index, item in enumerate(annotated):
                    fields |= {f"scene_gt.{name}" for name in item}
                    objects[str(item.get("obj_id"))] += 1
                    more = (infos.get(key) or [])[index : index + 1]
                    fields |= {f"scene_gt_info.{name}" for name in (more[0] if more else ())}
                    _instance(counts, item, more[0] if more else {})
        found[split] = {"scenes": len(data.scenes(root, split)), "images": images, "instances": instances}
    return {
        "schema": SCHEMA,
        "splits": found,
        "objects": {key: {"diameter": info[key].get("diameter"), "instances": objects[key]} for key in sorted(info)},
        "sizes": dict(sorted(sizes.items())),
        "modes": dict(sorted(modes.items())),
        "fields": sorted(fields),
        "unreadable": unreadable,
        "histograms": counts,
    }


def _instance(counts: dict[str, list[int]], item: Json, info: Json) -> None:
    try:
        if "visib_fract" in info:
            _count(counts, "visible", float(info["visib_fract"]))
        translation = np.array(item["cam_t_m2c"], np.float64)
        rotation = np.array(item["cam_R_m2c"], np.float64).reshape(3, 3)
        distance = float(np.linalg.norm(translation))
        _count(counts, "distance", distance)
        seen_from = -rotation.T @ translation / distance
        _count(counts, "elevation", math.degrees(math.acos(float(np.clip(seen_from[2], -1, 1)))))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return


def _read(path: Path) -> Json:
    try:
        return dict(read_json(path))
    except DataError:
        return {}


def _count(counts: dict[str, list[int]], name: str, value: float) -> None:
    if math.isfinite(value):
        borders = FEATURES[name][1]
        place = int(np.searchsorted(borders, value, side="right")) - 1
        counts[name][min(max(place, 0), len(borders) - 2)] += 1


def population_stability_index(before: Sequence[int], now: Sequence[int]) -> float:
    """How far two histograms with the same bins are apart. Empty bins count as half a thing, so that few data are no drift."""
    old, new = np.array(before, np.float64) + 0.5, np.array(now, np.float64) + 0.5
    old, new = old / old.sum(), new / new.sum()
    return float(((new - old) * np.log(new / old)).sum())


def drift(before: Json | None, now: Json) -> Json:
    """How far a data set is from the one before.

    Args:
        before: of describe(); None where nothing was accepted yet.
        now: of describe().

    Returns:
        `features`, the population stability index of each; `worst`, the largest of them; `schema`, what is new or gone in words.
    """
    if before is None or before.get("schema") != now["schema"]:
        return {"features": {}, "worst": 0.0, "schema": []}
    features = {
        name: population_stability_index(before["histograms"][name], now["histograms"][name])
        for name in FEATURES
        if sum(before["histograms"].get(name, ())) and sum(now["histograms"][name])
    }
    names = sorted(before["objects"].keys() | now["objects"].keys())
    features["objects"] = population_stability_index(*(
        [side["objects"].get(name, {}).get("instances", 0) for name in names] for side in (before, now)
    ))  # fmt: skip
    changes = []
    for key, what in (("objects", "object"), ("sizes", "image size"), ("modes", "image mode"), ("fields", "field")):
        old, new = set(before[key]), set(now[key])
        changes += [f"new {what}: {name}" for name in sorted(new - old)]
        changes += [f"{what} gone: {name}" for name in sorted(old - new)]
    changes += [
        f"object {name} has another diameter: {now['objects'][name]['diameter']} mm, was {before['objects'][name]['diameter']} mm"
        for name in sorted(before["objects"].keys() & now["objects"].keys())
        if now["objects"][name]["diameter"] != before["objects"][name]["diameter"]
    ]
    return {"features": features, "worst": max(features.values()), "schema": changes}


def level(value: float) -> str:
    """An index in a word."""
    return "none" if value < MODERATE else "moderate" if value < STRONG else "strong"


def report(title: str, root: Path, now: Json, before: Json | None, found: Json) -> bytes:
    """A page with schema, statistics and drift, for people.

    Args:
        title: of the page.
        root: the data set, for sample pictures.
        now, before: of describe().
        found: of drift().
    """
    rows = [[pages.text(n), str(s["scenes"]), str(s["images"]), str(s["instances"])] for n, s in now["splits"].items()]
    objects = [[pages.text(n), str(o["diameter"]), str(o["instances"])] for n, o in now["objects"].items()]
    many = [
        [pages.text(key), pages.text(", ".join(f"{n}: {c}" for n, c in now[key].items()))] for key in ("sizes", "modes")
    ]
    many += [["fields", pages.text(", ".join(now["fields"]))], ["unreadable images", str(now["unreadable"])]]
    parts = [
        "<h2>Schema</h2>",
        pages.table(("split", "scenes", "images", "annotated objects"), rows),
        pages.table(("object", "diameter, mm", "annotated"), objects),
        pages.table(("", ""), many),
        "<h2>Drift</h2>",
    ]
    if before is None:
        parts.append(pages.paragraph("No data were accepted before these: there is nothing to compare with."))
    else:
        kinds = {"none": "good", "moderate": "", "strong": "bad"}
        parts.append(pages.table(
            ("feature", "population stability index", ""),
            [[pages.text(name), f"{value:.3f}", pages.text(level(value), kinds[level(value)])]
             for name, value in found["features"].items()],
        ))  # fmt: skip
        parts += [pages.paragraph(line) for line in found["schema"]] or [pages.paragraph("The schema is the same.")]
    parts += ["<h2>Statistics</h2>", _figure(_plots(now, before), "blue: these data; grey: the last accepted")]
    parts += ["<h2>Samples</h2>", *_samples(root)]
    return pages.page(title, *parts)


def _plots(now: Json, before: Json | None) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 3, figsize=(12, 6), dpi=100)
    for axes, (name, (words, borders)) in zip(grid.flat, FEATURES.items(), strict=True):
        for side, color, alpha in ((before, "0.6", 0.6), (now, "tab:blue", 0.6)):
            values = np.array(side["histograms"][name] if side else [], np.float64)
            if values.sum():
                axes.stairs(values / values.sum(), borders, fill=True, color=color, alpha=alpha)
        if name == "distance":
            axes.set_xscale("log")
        axes.set_xlabel(words, fontsize=8)
        axes.set_ylabel("share", fontsize=8)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    # The same data give the same page.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _samples(root: Path) -> list[str]:
    paths = [path for _, path in data.image_paths(root)]
    figures = []
    for path in paths[:: max(1, len(paths) // _SAMPLES)][:_SAMPLES]:
        try:
            image = decode(path).convert("RGB")
        except DataError:
            continue
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        figures.append(_figure(buffer.getvalue(), path.relative_to(root).as_posix()))
    return figures


def _figure(png: bytes, caption: str) -> str:
    words = pages.text(caption)
    code = base64.b64encode(png).decode()
    return f'<figure><img alt="{words}" src="data:image/png;base64,{code}"><figcaption>{words}</figcaption></figure>'

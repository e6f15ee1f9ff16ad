"""The steps: load, validate, train, gate. epos.executor says how their parameters stand for what KFP gives them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from epos.errors import DataError
from epos.executor import Input, Output
from epos.progress import say

# 150 flowers in cm (Fisher: "The use of multiple measurements in taxonomic problems", 1936), as scikit-learn has them.
_DATA = Path(__file__).with_name("iris.csv")
_FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
_SPECIES = ("setosa", "versicolor", "virginica")
_LARGEST = 10.0  # cm
_HELD_OUT = 0.3
_RATE = 0.3


class Verdict(NamedTuple):
    """What `gate` decides."""

    verdict: str


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def load(dataset: Output) -> None:
    """Hands the data on as an artifact."""
    dataset.path.write_bytes(_DATA.read_bytes())
    dataset.metadata["rows"] = len(_read(dataset.path))


def validate(dataset: Input) -> None:
    """Refuses data that nothing can be learnt from.

    Raises:
        DataError: names row and column.
    """
    rows = _read(dataset.path)
    for number, row in enumerate(rows, start=2):
        for name in _FEATURES:
            try:
                good = 0 < float(row[name]) < _LARGEST
            except (KeyError, TypeError, ValueError):
                good = False
            if not good:
                raise DataError(f"row {number}: {name}: expected 0..{_LARGEST:.0f} cm, found {row.get(name)!r}")
        if row.get("species") not in _SPECIES:
            raise DataError(f"row {number}: species: {row.get('species')!r} is none of {', '.join(_SPECIES)}")
    missing = set(_SPECIES) - {row["species"] for row in rows}
    if missing:
        raise DataError(f"species: none is {', '.join(sorted(missing))}")
    say(f"{len(rows)} rows are good")


def train(dataset: Input, steps: int, seed: int, model: Output, metrics: Output) -> None:
    """Fits the weights by gradient descent on part of the rows and counts how many of the others they tell right."""
    rows = _read(dataset.path)
    x = np.array([[float(row[name]) for name in _FEATURES] for row in rows])
    y = np.array([_SPECIES.index(row["species"]) for row in rows])
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, own = np.split(order, [round(_HELD_OUT * len(rows))])
    mean, scale = x[own].mean(axis=0), x[own].std(axis=0)
    inputs = np.column_stack([(x - mean) / scale, np.ones(len(rows))])
    weights, targets = np.zeros((inputs.shape[1], len(_SPECIES))), np.eye(len(_SPECIES))[y]
    for _ in range(steps):
        logits = inputs[own] @ weights
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights -= _RATE * inputs[own].T @ (powers / powers.sum(axis=1, keepdims=True) - targets[own]) / len(own)
    accuracy = float((np.argmax(inputs[held_out] @ weights, axis=1) == y[held_out]).mean())
    model.path.write_text(
        json.dumps({"mean": mean.tolist(), "scale": scale.tolist(), "weights": weights.tolist(), "species": _SPECIES})
    )
    metrics.path.write_text(json.dumps({"accuracy": accuracy}))
    metrics.metadata["accuracy"] = accuracy
    say(f"accuracy {accuracy:.3f} on {len(held_out)} rows held out")


def gate(metrics: Input, min_accuracy: float) -> Verdict:
    """Decides whether the model is good enough."""
    accuracy = json.loads(metrics.path.read_text())["accuracy"]
    verdict = "released" if accuracy >= min_accuracy else "rejected"
    say(f"{verdict}: accuracy {accuracy:.3f}, at least {min_accuracy:.3f} is wanted")
    return Verdict(verdict)


STEPS = {"load": load, "validate": validate, "train": train, "gate": gate}

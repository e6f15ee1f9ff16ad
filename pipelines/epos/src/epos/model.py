"""Exported models: a folder that another process, without data set or checkpoints, predicts with."""

from __future__ import annotations

import hashlib
import json
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epos import checkpoint, device, network
from epos.bop import read_json
from epos.config import TrainConfig
from epos.errors import DataError, EposError
from epos.fragments import Fragments
from epos.pose import Estimate, PoseConfig, estimate_poses
from epos.samples import fit

WEIGHTS, CONFIG, PROBE, CARD = "weights.npz", "config.json", "probe.npz", "card.json"
_SCHEMA = 1
_PROBE_TOLERANCE = 1e-3  # Of logits and locations, between machines; measured: up to 1e-4 between a GPU and a CPU.


# Compiled once for all models of the same shape.
@partial(jax.jit, static_argnums=2, compiler_options=device.REPEATABLE)
def _run(params: network.Params, images: jax.Array, count: int) -> network.Outputs:
    # GPUs multiply with fewer digits unless told not to; a model shall predict the same on every machine.
    with jax.default_matmul_precision("float32"):
        return network.apply(params, images.astype(jnp.float32) / 255, count)


class Model:
    """A trained network with all that predictions need.

    Args:
        params: weights.
        config: parameters of the training.
        fragments: of the objects.
        canvas: height and width of the network's input, px.
    """

    def __init__(
        self, params: network.Params, config: TrainConfig, fragments: Fragments, canvas: tuple[int, int]
    ) -> None:
        self.params, self.config, self.fragments, self.canvas = params, config, fragments, canvas

    def outputs(self, image: np.ndarray) -> network.Outputs:
        """The network's output for one (H, W, 3) uint8 canvas, without the batch axis, as numpy arrays."""
        return network.Outputs(*(np.asarray(o)[0] for o in _run(self.params, image[None], len(self.fragments.obj_ids))))

    def predict(
        self, image: np.ndarray, camera: np.ndarray, wanted: dict[int, int] | None, config: PoseConfig
    ) -> list[Estimate]:
        """Estimates poses in an image.

        Args:
            image: (h, w, 3) uint8 of any size.
            camera: (3, 3) intrinsic matrix, px.
            wanted: number of instances by object id; None means at most one of each.
            config: of the pose fitting.
        """
        scaled, scaled_camera = fit(image, camera, self.canvas)
        out = self.outputs(scaled)
        wanted = wanted if wanted is not None else {int(i): 1 for i in self.fragments.obj_ids}
        return estimate_poses(out.objects, out.fragments, out.locations, self.fragments, scaled_camera, wanted, config)

    def arrays(self) -> dict[str, np.ndarray]:
        """Weights and fragments by name."""
        arrays = {f"{layer}/{n}": np.asarray(v) for layer, values in self.params.items() for n, v in values.items()}
        return arrays | {
            "#obj_ids": self.fragments.obj_ids,
            "#centers": self.fragments.centers,
            "#sizes": self.fragments.sizes,
            "#normals": self.fragments.normals,
        }

    def digest(self) -> str:
        """SHA-256 of weights and fragments."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def model_version(run: str, digest: str) -> str:
    """Names a model by what it was made from and what came out: the same run gives the same version."""
    return hashlib.sha256(f"{run} {digest}".encode()).hexdigest()[:16]


def export(model: Model, folder: Path, run: str, card: dict[str, Any], probe: np.ndarray) -> str:
    """Writes a model folder; config.json comes last and holds the hashes of the others.

    Args:
        model: to export.
        folder: is created.
        run: fingerprint of the training run.
        card: what people want to know: data hash, versions, metrics.
        probe: (H, W, 3) uint8 canvas, whose output is stored so that a loader can compare its own.

    Returns:
        the model's version.
    """
    version = model_version(run, model.digest())
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_arrays(folder / WEIGHTS, model.arrays())
    out = model.outputs(probe)
    checkpoint.save_arrays(folder / PROBE, {"image": probe, **out._asdict()})
    card_text = json.dumps({"version": version, "run": run, **card}, indent=1, sort_keys=True) + "\n"
    checkpoint.write_atomic(folder / CARD, card_text.encode())
    files = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in (WEIGHTS, PROBE, CARD)}
    config = {
        "schema": _SCHEMA,
        "version": version,
        "canvas": list(model.canvas),
        "training": model.config.as_dict(),
        "sha256": files,
    }
    checkpoint.write_atomic(folder / CONFIG, (json.dumps(config, indent=1, sort_keys=True) + "\n").encode())
    return version


def load(folder: Path, probe: bool = True) -> tuple[Model, str]:
    """Reads a model folder and verifies it.

    Args:
        folder: written by export().
        probe: whether to run the network on the stored image and compare.

    Returns:
        the model and its version.

    Raises:
        DataError: a file is missing or damaged.
        EposError: this machine computes something else than the one that exported the model.
    """
    path = folder / CONFIG
    config = read_json(path)
    if config.get("schema") != _SCHEMA:
        raise DataError(f"{path}: schema: expected {_SCHEMA}, found {config.get('schema')!r}")
    try:
        for name, expected in config["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise DataError(f"{folder / name}: has another SHA-256 than {CONFIG} says")
        training = TrainConfig.from_dict(config["training"])
        canvas = (int(config["canvas"][0]), int(config["canvas"][1]))
        arrays = checkpoint.load_arrays(folder / WEIGHTS)
        stored = checkpoint.load_arrays(folder / PROBE)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing file") from error
    except (KeyError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: damaged model: {error!r}") from error
    fragments = Fragments(**{n: arrays.pop(f"#{n}") for n in ("obj_ids", "centers", "sizes", "normals")})
    params: network.Params = {}
    for name, value in arrays.items():
        layer, key = name.split("/")
        params.setdefault(layer, {})[key] = jnp.asarray(value)
    model = Model(params, training, fragments, canvas)
    if probe:
        for name, value in model.outputs(stored["image"])._asdict().items():
            difference = float(np.abs(value - stored[name]).max())
            if not difference <= _PROBE_TOLERANCE:
                raise EposError(f"{folder}: {name} differ by {difference:.2g} from those stored with the model")
    return model, str(config["version"])

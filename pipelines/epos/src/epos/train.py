"""Training with checkpoints: the state after a step depends on data, parameters and seed only, not on interruptions."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import epos
from epos import checkpoint, network
from epos.config import TrainConfig
from epos.errors import EposError, Terminated
from epos.losses import Losses, Targets, epos_loss
from epos.progress import say
from epos.samples import Samples

LOG_COLUMNS = ("step", "total", "object", "fragment", "location")
_BETAS = (0.9, 0.99)
_EPSILON = 1e-8


class State(NamedTuple):
    """Weights and Adam's moments."""

    params: network.Params
    mean: network.Params
    square: network.Params


def code_version() -> str:
    """The package's version with a hash of its source files."""
    digest = hashlib.sha256()
    folder = Path(epos.__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{epos.__version__}+{digest.hexdigest()[:12]}"


def fingerprint(data: str, config: TrainConfig) -> str:
    """Names a run by all its inputs: data hash, parameters, code."""
    text = json.dumps({"data": data, "config": config.as_dict(), "code": code_version()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def device_name() -> str:
    """The device that JAX computes on, in words."""
    device = jax.devices()[0]
    return f"{device.platform} ({device.device_kind})"


def learning_rate(config: TrainConfig, step: jax.Array) -> jax.Array:
    """Linear warm-up, then half a cosine to zero (Loshchilov, Hutter: "SGDR", 2017)."""
    warm = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    return config.learning_rate * warm * 0.5 * (1 + jnp.cos(math.pi * step / max(config.train_steps, 1)))


def adam(config: TrainConfig, state: State, gradient: network.Params, step: jax.Array) -> State:
    """One step of Adam (Kingma, Ba, 2015) with decoupled weight decay (Loshchilov, Hutter, 2019)."""
    rate, n = learning_rate(config, step), step + 1.0
    b1, b2 = _BETAS
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, gradient)
    square = jax.tree.map(lambda s, g: b2 * s + (1 - b2) * g * g, state.square, gradient)

    def update(p: jax.Array, m: jax.Array, s: jax.Array) -> jax.Array:
        decay = config.weight_decay * p if p.ndim > 1 else 0.0
        return p - rate * (m / (1 - b1**n) / (jnp.sqrt(s / (1 - b2**n)) + _EPSILON) + decay)

    return State(jax.tree.map(update, state.params, mean, square), mean, square)


def augment(key: jax.Array, images: jax.Array, targets: Targets) -> tuple[jax.Array, Targets]:
    """Random light, contrast, colour balance, noise and, for square images, quarter turns.

    Turning an image changes the objects' poses, but not which point of an object a pixel shows.
    """
    keys = jax.random.split(key, 5)
    shape = (images.shape[0], 1, 1)
    images = images * jax.random.uniform(keys[0], (*shape, 3), minval=0.85, maxval=1.15)
    middle = images.mean(axis=(1, 2, 3), keepdims=True)
    images = middle + (images - middle) * jax.random.uniform(keys[1], (*shape, 1), minval=0.8, maxval=1.2)
    images = images * jax.random.uniform(keys[2], (*shape, 1), minval=0.8, maxval=1.2)
    images = images + 0.02 * jax.random.normal(keys[3], images.shape)
    if images.shape[1] == images.shape[2]:
        turns = jax.random.randint(keys[4], (images.shape[0],), 0, 4)

        def turn(k: jax.Array, x: jax.Array) -> jax.Array:
            x = jnp.where(k % 2 == 1, jnp.rot90(x), x)
            return jnp.where(k >= 2, x[::-1, ::-1], x)

        images = jax.vmap(turn)(turns, images)
        targets = Targets(*(jax.vmap(turn)(turns, t) for t in targets))
    return jnp.clip(images, 0.0, 1.0), targets


@cache
def make_step(config: TrainConfig, num_objects: int) -> Callable[..., tuple[State, Losses]]:
    """Compiles one update: (state, step, images, objects, fragments, locations) -> (state, losses)."""
    weights = (config.weight_object, config.weight_fragment, config.weight_location)

    # Level 1 halves the time of compilation on CPUs and leaves the speed of a step as it is.
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None

    @partial(jax.jit, donate_argnums=0, compiler_options=options)
    def update(state: State, step: jax.Array, images: jax.Array, *maps: jax.Array) -> tuple[State, Losses]:
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        inputs, targets = augment(key, images.astype(jnp.float32) / 255, Targets(*maps))

        def loss(params: network.Params) -> tuple[jax.Array, Losses]:
            losses = epos_loss(network.apply(params, inputs, num_objects), targets, weights, config.huber_delta)
            return losses.total, losses

        gradient, losses = jax.grad(loss, has_aux=True)(state.params)
        return adam(config, state, gradient, step), losses

    return update


def batch_indices(seed: int, step: int, count: int, size: int) -> np.ndarray:
    """Which samples a step takes: epochs of random order, a function of the step alone."""
    positions = np.arange(step * size, (step + 1) * size)
    orders = {e: np.random.default_rng([seed, int(e)]).permutation(count) for e in np.unique(positions // count)}
    return np.array([orders[p // count][p % count] for p in positions])


def _pack(state: State, step: int, log: list[tuple[float, ...]], run: str) -> dict[str, np.ndarray]:
    arrays = {"step": np.array(step), "log": np.array(log).reshape(-1, len(LOG_COLUMNS)), "run": np.array(run)}
    for field, tree in state._asdict().items():
        for layer, values in tree.items():
            arrays |= {f"{field}/{layer}/{name}": np.asarray(value) for name, value in values.items()}
    return arrays


def _unpack(arrays: dict[str, np.ndarray]) -> State:
    trees: dict[str, network.Params] = {field: {} for field in State._fields}
    for key, value in arrays.items():
        if key.count("/") == 2:
            field, layer, name = key.split("/")
            trees[field].setdefault(layer, {})[name] = jnp.asarray(value)
    return State(**trees)


@contextmanager
def _on_sigterm(stop: threading.Event) -> Iterator[None]:
    """Lets SIGTERM end the loop after the current step (only the main thread can catch signals)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_log(path: Path, log: list[tuple[float, ...]]) -> None:
    """Writes the losses as CSV."""
    lines = [",".join(LOG_COLUMNS)] + [f"{int(row[0])}," + ",".join(f"{v:.6g}" for v in row[1:]) for row in log]
    checkpoint.write_atomic(path, ("\n".join(lines) + "\n").encode())


def train(
    samples: Samples,
    config: TrainConfig,
    work_dir: Path,
    run: str,
    checkpoint_every: int = 100,
    keep: int = 2,
    log_every: int = 20,
    progress: Callable[[str], None] = say,
) -> tuple[network.Params, list[tuple[float, ...]]]:
    """Trains from the newest checkpoint of the same run, or from the start.

    Args:
        samples: training images.
        config: parameters.
        work_dir: gets checkpoints/ and loss.csv.
        run: fingerprint of the run.
        checkpoint_every: steps between checkpoints.
        keep: number of checkpoints to keep.
        log_every: steps between lines of the log.
        progress: receives lines of text.

    Returns:
        weights, and rows of LOG_COLUMNS.

    Raises:
        EposError: the checkpoints belong to another run, or the loss is not finite.
        Terminated: SIGTERM; a checkpoint was written.
    """
    folder = work_dir / "checkpoints"
    num_objects = len(samples.fragments.obj_ids)
    found = checkpoint.load_latest(folder)
    log: list[tuple[float, ...]] = []
    first = 0
    if found is None:
        params = network.init(config.seed, config.backbone, num_objects, config.num_frags)
        state = State(params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
    elif str(found["run"]) != run:
        raise EposError(
            f"{folder}: checkpoints of another run (other data, parameters or code); use another --work-dir"
        )
    else:
        state, first, log = _unpack(found), int(found["step"]), [tuple(row) for row in found["log"].tolist()]
        progress(f"resuming from step {first}")
    count = sum(p.size for p in jax.tree.leaves(state.params))
    progress(f"training on {device_name()}: {len(samples)} images of {samples.canvas[1]}x{samples.canvas[0]} px, "
             f"{num_objects} objects, {config.num_frags} fragments each, {count} weights")  # fmt: skip

    update = make_step(config, num_objects)
    stop = threading.Event()

    def load(step: int) -> tuple[np.ndarray, ...]:
        return samples.batch(batch_indices(config.seed, step, len(samples), config.batch_size))

    with ThreadPoolExecutor(1) as loader, _on_sigterm(stop):
        batch: Future[tuple[np.ndarray, ...]] = loader.submit(load, first)
        saved, since, since_step = first, time.monotonic(), first
        for step in range(first, config.train_steps):
            arrays = batch.result()
            if step + 1 < config.train_steps:
                batch = loader.submit(load, step + 1)
            state, losses = update(state, step, *arrays)
            done = step + 1
            if done % log_every == 0 or done == config.train_steps:
                row = (float(done), *(float(v) for v in losses))
                if not all(math.isfinite(v) for v in row):
                    raise EposError(f"step {done}: the loss is not finite; lower --learning-rate")
                log.append(row)
                now = time.monotonic()
                speed = (done - since_step) * config.batch_size / max(now - since, 1e-9)
                since, since_step = now, done
                progress(f"step {done}/{config.train_steps} loss {row[1]:.3f} object {row[2]:.4f} "
                         f"fragment {row[3]:.3f} location {row[4]:.5f} {speed:.1f} images/s")  # fmt: skip
            if done % checkpoint_every == 0 or done == config.train_steps or stop.is_set():
                checkpoint.save(folder, done, _pack(state, done, log, run), keep)
                write_log(work_dir / "loss.csv", log)
                saved = done
            if stop.is_set() and done < config.train_steps:
                raise Terminated(f"stopped by SIGTERM; checkpoint of step {saved} written")
    write_log(work_dir / "loss.csv", log)
    return state.params, log


def run_info() -> dict[str, Any]:
    """Versions of what computed a model."""
    import cv2

    return {
        "code": code_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "device": device_name(),
    }

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
from jax.sharding import NamedSharding

import epos
from epos import checkpoint, device, network
from epos.config import TrainConfig
from epos.errors import EposError, Terminated
from epos.group import Group
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


class Trained(NamedTuple):
    """What a training gives.

    Attributes:
        params: weights.
        log: rows of LOG_COLUMNS.
        hardware: what each process of the last uninterrupted part computed on, as device.describe() says it.
    """

    params: network.Params
    log: list[tuple[float, ...]]
    hardware: list[dict[str, Any]]


@cache
def make_step(
    config: TrainConfig, num_objects: int, whole: NamedSharding | None = None
) -> Callable[..., tuple[State, Losses]]:
    """Compiles one update: (state, step, images, objects, fragments, locations) -> (state, losses).

    Args:
        config: parameters.
        num_objects: number of objects.
        whole: how results lie on several devices; XLA divides the work as the batch is divided.
    """
    weights = (config.weight_object, config.weight_fragment, config.weight_location)

    # Level 1 halves the time of compilation on CPUs and leaves the speed of a step as it is. On GPUs XLA would time several
    # ways to compute an operation and take the fastest, another one each time: no run would end like the one before.
    options = {"cpu": {"xla_backend_optimization_level": 1}, "gpu": device.REPEATABLE}.get(jax.default_backend())

    placement = {} if whole is None else {"out_shardings": whole}

    @partial(jax.jit, donate_argnums=0, compiler_options=options, **placement)
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


def _pack(
    state: State, step: int, log: list[tuple[float, ...]], run: str, hardware: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    arrays = {"step": np.array(step), "log": np.array(log).reshape(-1, len(LOG_COLUMNS)), "run": np.array(run)}
    arrays["hardware"] = np.array(json.dumps(hardware))
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


def _meet(group: Group, run: str) -> list[dict[str, Any]]:
    """Waits for the other processes; returns what each computes on.

    Raises:
        EposError: they do not train the same.
    """
    group.join()
    notes = [json.loads(note) for note in group.collect(json.dumps({"run": run, **device.describe()}))]
    if any(note.pop("run") != run for note in notes):
        raise EposError("the processes that train together have different data, parameters or code")
    return notes


def train(
    samples: Samples,
    config: TrainConfig,
    work_dir: Path,
    run: str,
    checkpoints: checkpoint.Checkpoints | None = None,
    group: Group | None = None,
    checkpoint_every: int = 100,
    log_every: int = 20,
    progress: Callable[[str], None] = say,
) -> Trained:
    """Trains from the newest checkpoint of the same run, or from the start.

    Of several processes the leader alone reads and writes checkpoints and the log; it tells the others where to go on.

    Args:
        samples: training images.
        config: parameters.
        work_dir: gets checkpoints/ and loss.csv.
        run: fingerprint of the run.
        checkpoints: where they are kept, if not in work_dir.
        group: processes that train together, if not this one alone.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of the log.
        progress: receives lines of text.

    Raises:
        EposError: the checkpoints belong to another run, or the loss is not finite.
        PeerError: another process of the group was lost.
        Terminated: SIGTERM; a checkpoint was written.
    """
    checkpoints = checkpoints or checkpoint.Folder(work_dir / "checkpoints")
    group = group or Group()
    leads = group.peers.leads
    num_objects = len(samples.fragments.obj_ids)
    found = checkpoints.load()
    log: list[tuple[float, ...]] = []
    first = 0
    if found is not None:
        if str(found["run"]) != run:
            raise EposError(
                f"{checkpoints}: checkpoints of another run (other data, parameters or code); use another --work-dir"
            )
        first, log = int(found["step"]), [tuple(row) for row in found["log"].tolist()]
    if found is not None and first == config.train_steps:
        # The others may be done and gone.
        hardware = json.loads(str(found["hardware"]))
    else:
        hardware = _meet(group, run)
    if found is None:
        params = network.init(config.seed, config.backbone, num_objects, config.num_frags)
        state = State(params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))
    else:
        state = _unpack(found)
    start, state = group.share((np.array(first, np.int32), state))
    first = int(start)
    if first:
        progress(f"resuming from step {first}")
    count = sum(p.size for p in jax.tree.leaves(state.params))
    here = hardware[min(group.peers.index, len(hardware) - 1)]
    progress(f"training on {here['device']}: {len(samples)} images of {samples.canvas[1]}x{samples.canvas[0]} px, "
             f"{num_objects} objects, {config.num_frags} fragments each, {count} weights")  # fmt: skip
    progress(device.remark(here))

    update = make_step(config, num_objects, group.whole)
    part = group.part(config.batch_size)
    stop = threading.Event()

    def load(step: int) -> tuple[np.ndarray, ...]:
        return samples.batch(batch_indices(config.seed, step, len(samples), config.batch_size)[part])

    with ThreadPoolExecutor(1) as loader, _on_sigterm(stop), group.errors():
        batch: Future[tuple[np.ndarray, ...]] = loader.submit(load, first)
        saved, since, since_step = first, time.monotonic(), first
        for step in range(first, config.train_steps):
            arrays = batch.result()
            if step + 1 < config.train_steps:
                batch = loader.submit(load, step + 1)
            state, losses = update(state, step, *group.divide(arrays, config.batch_size))
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
            if leads and (done % checkpoint_every == 0 or done == config.train_steps or stop.is_set()):
                checkpoints.save(done, _pack(state, done, log, run, hardware))
                write_log(work_dir / "loss.csv", log)
                saved = done
            if stop.is_set() and done < config.train_steps:
                raise Terminated("stopped by SIGTERM" + (f"; checkpoint of step {saved} written" if leads else ""))
        params = group.own(state.params)
        # The leader comes here with the last checkpoint written: nobody is needed any more.
        group.leave()
    if leads:
        write_log(work_dir / "loss.csv", log)
    return Trained(params, log, hardware)


def run_info(hardware: list[dict[str, Any]]) -> dict[str, Any]:
    """What computed a model: versions, and the devices and GPUs of the processes that trained it."""
    import cv2

    return {
        "code": code_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "processes": len(hardware),
        "device": ", ".join(dict.fromkeys(h["device"] for h in hardware)),
        "gpus": [gpu for h in hardware for gpu in h["gpus"]],
    }

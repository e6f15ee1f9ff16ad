"""What sub-commands, the Kubernetes Job and the pipeline's steps share."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from epos import checkpoint, device, plots, store
from epos import train as training
from epos.bop import BopDataset, View, data_hash, file_hashes, read_image, validate
from epos.config import TrainConfig
from epos.errors import GateError
from epos.evaluate import evaluate, predict_views, write_results
from epos.fragments import Fragments, make_fragments
from epos.group import Group
from epos.model import Model, export, load
from epos.peers import ALONE, Peers
from epos.pose import PoseConfig
from epos.progress import say
from epos.samples import Samples, fit


@dataclass(frozen=True)
class DataOptions:
    """Where a data set lies.

    Attributes:
        data_dir: its folder.
        train_split, test_split: folders of images to learn from and to hold out.
        models_dir: folder of meshes; None for the first of those BOP names.
        data_hash: of the whole data set, where the folder holds a part of it; None for what the folder holds.
    """

    data_dir: Path
    train_split: str = "train"
    test_split: str = "test"
    models_dir: str | None = None
    data_hash: str | None = None

    def digest(self) -> str:
        """Hash of the data set."""
        return self.data_hash or data_hash(file_hashes(self.data_dir))

    def open(self) -> BopDataset:
        """Opens the data set."""
        return BopDataset(self.data_dir, self.models_dir)


@dataclass(frozen=True)
class RunOptions:
    """How a training runs, without influence on its result.

    Attributes:
        work_dir: gets checkpoints, loss.csv, model/ and everything else that the run writes.
        checkpoint_every, keep_checkpoints, log_every: steps, number, steps.
        cache_mib: memory for decoded samples, MiB.
        checkpoints: where in S3 checkpoints are kept; None for work_dir.
        device: what JAX shall compute on, one of device.CHOICES.
        peers: which of the processes that train together this one is.
        join_timeout, peer_timeout: how long to wait for the other processes, and silence of one that is lost, s.
    """

    work_dir: Path
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    log_every: int = 20
    cache_mib: int = 512
    checkpoints: store.Location | None = None
    device: str = "auto"
    peers: Peers = ALONE
    join_timeout: int = 300
    peer_timeout: int = 30

    def keeper(self, run: str) -> checkpoint.Checkpoints:
        """What keeps the checkpoints of a run."""
        if self.checkpoints is None:
            return checkpoint.Folder(self.work_dir / "checkpoints", self.keep_checkpoints)
        return store.Checkpoint.of(store.connect(), self.checkpoints, run)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON text, atomically."""
    checkpoint.write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def train_model(
    data: DataOptions,
    config: TrainConfig,
    options: RunOptions,
    fragments: Fragments | None = None,
    origin: dict[str, Any] | None = None,
) -> tuple[Path, str] | None:
    """Trains (or goes on training) and exports the model to work_dir/model.

    Args:
        data, config, options: what, with which parameters and how.
        fragments: of the objects; by default they are made here.
        origin: what else its card shall say about where the model comes from.

    Returns:
        the model's folder and version; None in a process that only helped the leader to train it.
    """
    device.select(options.device)
    dataset = data.open()
    digest = data.digest()
    run = training.fingerprint(digest, config)
    models = dataset.models()
    fragments = fragments or make_fragments(models, config.num_frags)
    views = dataset.views(data.train_split)
    samples = Samples(views, models, fragments, config.image_size, options.cache_mib)
    start = time.monotonic()
    try:
        trained = training.train(
            samples,
            config,
            options.work_dir,
            run,
            options.keeper(run),
            Group(options.peers, options.join_timeout, options.peer_timeout),
            checkpoint_every=options.checkpoint_every,
            log_every=options.log_every,
        )
    finally:
        samples.close()
    say(f"trained in {time.monotonic() - start:.1f} s")
    if not options.peers.leads:
        say(f"{options.peers}: done; the leader does the rest")
        return None
    model = Model(trained.params, config, fragments, samples.canvas)
    folder = options.work_dir / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    plots.loss_curve(folder / "loss.png", trained.log)
    shutil.copyfile(options.work_dir / "loss.csv", folder / "loss.csv")
    probe = fit(read_image(views[0].path), views[0].camera, samples.canvas)[0]
    card = {
        "name": "epos",
        "about": "6D object poses by surface fragments, after EPOS (Hodan et al., CVPR 2020)",
        "data_hash": digest,
        "train_images": len(views),
        "objects": [int(i) for i in fragments.obj_ids],
        "parameters": config.as_dict(),
        "built_with": training.run_info(trained.hardware),
        **(origin or {}),
    }
    version = export(model, folder, run, card, probe)
    say(f"exported model {version} to {folder}")
    return folder, version


def evaluate_model(
    model_dir: Path, data: DataOptions, config: PoseConfig, out_dir: Path, overlays: int
) -> dict[str, Any]:
    """Evaluates an exported model on held-out images.

    Writes metrics.json, predictions.csv (BOP's result format) and overlays/*.png to out_dir.

    Returns:
        the metrics.
    """
    model, version = load(model_dir)
    dataset = data.open()
    models = dataset.models()
    views: list[View] = dataset.targets(data.test_split)
    start = time.monotonic()
    estimates = predict_views(model, views, config)
    seconds = time.monotonic() - start
    metrics = {
        "model_version": version,
        "data_hash": data.digest(),
        "split": data.test_split,
        **evaluate(views, estimates, models),
    }
    say(f"recall {metrics['recall']:.4f} (MSSD {metrics['recall_mssd']:.4f}, MSPD {metrics['recall_mspd']:.4f}) "
        f"on {metrics['images']} held-out images, {metrics['instances']} objects, in {seconds:.1f} s")  # fmt: skip
    write_results(out_dir / "predictions.csv", views, estimates)
    shutil.rmtree(out_dir / "overlays", ignore_errors=True)
    for view, found in list(zip(views, estimates, strict=True))[:overlays]:
        plots.overlay(out_dir / "overlays" / f"{view.scene_id:06d}_{view.im_id:06d}.png", view, found, models)
    write_json(out_dir / "metrics.json", metrics)
    return metrics


class Judgement(NamedTuple):
    """Whether a model passed the gate, and why."""

    passed: bool
    reason: str


def judge(recall: float, min_recall: float, rival: tuple[str, float] | None = None, min_gain: float = 0.0) -> Judgement:
    """Compares a recall with the gate and, where there is one, with the model in production.

    Args:
        recall: of the new model.
        min_recall: the gate.
        rival: version and recall of the model in production, on the same images.
        min_gain: how much better than the rival the new model must be.
    """
    found = f"recall {recall:.4f}"
    if recall < min_recall:
        return Judgement(False, f"gate not passed: {found} is below {min_recall:.4f}")
    reason = f"{found} is at least {min_recall:.4f}"
    if rival is not None:
        version, other = rival
        wanted = f"{other:.4f} of model {version} in production" + (f" and {min_gain:+.4f}" if min_gain else "")
        # Recalls are rounded to four digits; a sum of two of them shall not fail by less.
        if recall < other + min_gain - 1e-9:
            return Judgement(False, f"gate not passed: {found} is below {wanted}")
        reason += f" and at least {wanted}"
    return Judgement(True, f"gate passed: {reason}")


def check_gate(metrics: dict[str, Any], min_recall: float) -> None:
    """Compares the recall with the gate.

    Raises:
        GateError: it is lower.
    """
    passed, reason = judge(metrics["recall"], min_recall)
    if not passed:
        raise GateError(reason)
    say(reason)


def run_job(
    source: store.Location,
    target: store.Location,
    data: DataOptions,
    config: TrainConfig,
    pose: PoseConfig,
    options: RunOptions,
    min_recall: float,
    overlays: int,
) -> str | None:
    """What the Kubernetes Job does: pull, validate, train, evaluate, gate, publish.

    Only a model that passes the gate is published; latest.json moves last. Runs on other data or parameters keep their
    own folder below work_dir, named by the run; its checkpoints go when the run has ended with a verdict.

    Returns:
        the model's version; None in a process that only helped the leader to train it.

    Raises:
        DataError, GateError, EposError: latest.json stays as it was.
    """
    client = store.connect()
    pulled = store.pull(client, source, data.data_dir)
    say(
        f"pulled {source}: {pulled['files']} files, {pulled['downloaded']} of them new, data {pulled['data_hash'][:12]}"
    )
    say(f"valid: {json.dumps(validate(data.open(), [data.train_split, data.test_split]))}")
    run = training.fingerprint(pulled["data_hash"], config)
    options = replace(options, work_dir=options.work_dir / f"run-{run[:12]}")
    trained = train_model(data, config, options)
    if trained is None:
        return None
    folder, version = trained
    metrics = evaluate_model(folder, data, pose, folder, overlays)
    metrics = {**metrics, "min_recall": min_recall, "gate_passed": judge(metrics["recall"], min_recall).passed}
    write_json(folder / "metrics.json", metrics)
    try:
        check_gate(metrics, min_recall)
        store.publish(client, folder, target, version, {"metrics": metrics, "data_hash": pulled["data_hash"]})
    except GateError:
        options.keeper(run).remove()
        raise
    options.keeper(run).remove()
    say(f"published model {version} to {target}/{version}/ and moved {target}/{store.POINTER}")
    return version

"""The steps of the pipeline on Kubeflow Pipelines, in the order in which it runs them.

Steps share no volume. A data set stays where it is in S3: `ingest` describes it once, with the hash of every file, and the
steps after it fetch what they need and refuse anything else. Models, checkpoints, what was rejected and reports of broken data
lie in S3 too, beside each other: <prefix>/models, <prefix>/checkpoints, <prefix>/rejected, <prefix>/reports. Whatever else
is handed on is a KFP artifact.

Every step may be run again after it was killed at any point, or was done: the same input leads to the same result.
`executor` says how a step's parameters stand for what KFP gives it.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from epos import pages, store
from epos.bop import IMAGE_DIRS, MANIFEST, MODEL_DIRS
from epos.config import TrainConfig
from epos.errors import DataError, EposError, UsageError
from epos.executor import Input, Output
from epos.progress import say
from epos.store import Location

RELEASED, REJECTED = "released", "rejected"
_METRICS = "metrics.json"
_CARD = "card.json"
_SAME_DEGREES, _SAME_DISTANCE = 2.0, 0.01  # Two poses that are called the same: angle, and fraction of the distance.
_SAME_SHARE = 0.9  # Another CPU may round differently, and RANSAC then choose another of two equally good samples.


class Verdict(NamedTuple):
    """What `gate` decides."""

    verdict: str
    reason: str


class Registered(NamedTuple):
    """What `register` gives."""

    version: str


class Deployed(NamedTuple):
    """What `deploy` gives."""

    commit: str


@contextmanager
def _work() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="epos-") as folder:
        yield Path(folder)


class _Dataset:
    """The data set that `ingest` described."""

    def __init__(self, artifact: Input) -> None:
        try:
            value = json.loads(artifact.path.read_text())
            self.place = Location.parse(value["location"])
            self.train_split, self.test_split = str(value["train_split"]), str(value["test_split"])
            self.manifest = json.dumps(value["manifest"]).encode()
            self.data_hash = str(value["manifest"]["data_hash"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{artifact.path}: is no description of a data set: {error!r}") from error

    def pull(self, root: Path, *folders: str) -> Any:
        """Fetches the files at the top and those of some folders, or all of them; returns job.DataOptions."""
        from epos.job import DataOptions

        def wanted(name: str) -> bool:
            return not folders or "/" not in name or name.split("/")[0] in folders

        pulled = store.pull(store.connect(), self.place, root, self.manifest, wanted)
        say(f"pulled {pulled['downloaded']} files of {self.place}, data {self.data_hash[:12]}")
        return DataOptions(root, self.train_split, self.test_split, data_hash=self.data_hash)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def ingest(data: str, train_split: str, test_split: str, dataset: Output) -> None:
    """Describes the data set at a place in S3; nothing is copied, `validate` reads all of it."""
    place = Location.parse(data)
    where = f"s3://{place.bucket}/{place.key(MANIFEST)}"
    text = store.read_object(store.connect(), place, MANIFEST)
    files = store.read_manifest(where, text)
    images = Counter(p[0] for p in (name.split("/") for name in files) if len(p) == 4 and p[2] in IMAGE_DIRS)
    for split in (train_split, test_split):
        if not images[split]:
            raise DataError(
                f"{where}: files: no image in {split}/; splits with images: {', '.join(sorted(images)) or 'none'}"
            )
    manifest = json.loads(text)
    value = {"location": str(place), "train_split": train_split, "test_split": test_split, "manifest": manifest}
    dataset.path.write_text(json.dumps(value, indent=1, sort_keys=True))
    dataset.metadata |= {
        "location": str(place),
        "data_hash": manifest["data_hash"],
        "files": len(files),
        "bytes": sum(entry["size"] for entry in files.values()),
        "train_images": images[train_split],
        "test_images": images[test_split],
    }
    say(f"{place}: {len(files)} files, {images[train_split]} images to learn from, {images[test_split]} held out, "
        f"data {manifest['data_hash'][:12]}")  # fmt: skip


def validate(dataset: Input, models: str, run_id: str, report: Output) -> None:
    """Holds the whole data set against all expectations.

    Raises:
        DataError: it broke one. KFP keeps no artifact of a step that fails, so the report goes to S3 then.
    """
    from epos import expectations

    source = _Dataset(dataset)
    with _work() as work:
        data = source.pull(work / "set")
        outcomes = expectations.examine(data.open(), data.train_split, data.test_split)
        # People know the data set by its place, not by the folder it was fetched to.
        for outcome in outcomes:
            outcome.offenders = [line.replace(str(data.data_dir), str(source.place)) for line in outcome.offenders]
    page = expectations.report(f"Data set {source.place}, {source.data_hash[:12]}", outcomes)
    report.path.write_bytes(page)
    report.metadata |= {
        "data_hash": source.data_hash,
        "expectations": len(outcomes),
        "broken": sum(o.failed > 0 for o in outcomes),
    }
    for outcome in outcomes:
        say(f"{outcome.name}: {outcome.checked} checked, {outcome.failed} broken")
    try:
        expectations.complain(outcomes)
    except DataError as error:
        place = Location.parse(models).beside("reports")
        name = f"{run_id}/validation.html"
        store.write_object(store.connect(), place, name, page)
        raise DataError(f"{error}\nthe whole report: s3://{place.bucket}/{place.key(name)}") from error


def fragments(dataset: Input, num_frags: int, fragments: Output) -> None:
    """Divides the surfaces of all objects."""
    from epos.checkpoint import save_arrays
    from epos.fragments import make_fragments

    with _work() as work:
        found = make_fragments(_Dataset(dataset).pull(work / "set", *MODEL_DIRS).open().models(), num_frags)
    save_arrays(fragments.path, vars(found))
    fragments.metadata |= {"objects": len(found.obj_ids), "num_frags": num_frags}
    say(f"{num_frags} fragments for each of {len(found.obj_ids)} objects")


def train(dataset: Input, fragments: Input, models: str, run_id: str, config: TrainConfig, checkpoint_every: int,
          model: Output, losses: Output, curve: Output) -> None:  # fmt: skip
    """Trains, or goes on from the checkpoint that an earlier try left in S3."""
    from epos.checkpoint import load_arrays
    from epos.fragments import Fragments
    from epos.job import RunOptions, train_model

    source = _Dataset(dataset)
    with _work() as work:
        data = source.pull(work / "set", *MODEL_DIRS, source.train_split)
        options = RunOptions(work / "run", checkpoint_every, checkpoints=Location.parse(models).beside("checkpoints"))
        origin = {"run_id": run_id, "data": str(source.place)}
        trained = train_model(data, config, options, Fragments(**load_arrays(fragments.path)), origin)
        if trained is None:
            raise EposError("this step trains alone: JAX_NUM_PROCESSES must not be set")
        folder, version = trained
        shutil.rmtree(model.path, ignore_errors=True)
        shutil.copytree(folder, model.path)
        with (folder / "loss.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        last = {name: float(value) for name, value in rows[-1].items()} if rows else {}
        page = pages.page(f"Losses of model {version}", pages.picture(folder / "loss.png", f"{len(rows)} values"))
    curve.path.write_bytes(page)
    losses.path.write_text(json.dumps(last))
    losses.metadata |= last
    card = _read_json(model.path / _CARD)
    model.metadata |= {
        "version": version, "data_hash": source.data_hash, "run_id": run_id, "device": card["built_with"]["device"],
    }  # fmt: skip


def _serving(service: str) -> list[dict[str, Any]] | None:
    """The versions that answer, with their weights; None when nobody does, as before the first deployment."""
    from epos.service_client import Service

    try:
        return [{n: item[n] for n in ("version", "weight")} for item in Service(service).model()["versions"]]
    except EposError as error:
        say(f"nothing is known of what is served: {error}")
        return None


def _production(
    client: store.Client, models: Location, own: dict[str, Any], data: Any, work: Path
) -> dict[str, Any] | None:
    """Version and recall of the model in production, on the images that the new one was judged on."""
    from epos.job import evaluate_model
    from epos.pose import PoseConfig

    pointer = store.find_pointer(client, models)
    if pointer is None:
        return None
    version, recorded = pointer["version"], pointer.get("metrics", {})
    if version == own["model_version"]:
        return {"version": version, "recall": own["recall"], "measured": "the model is the same"}
    if (recorded.get("data_hash"), recorded.get("split")) == (own["data_hash"], own["split"]):
        return {"version": version, "recall": recorded["recall"], "measured": "when it was released, on the same data"}
    say(f"model {version} in production was judged on other data: judging it on these")
    store.pull(client, models.below(version), work / "model")
    measured = evaluate_model(work / "model", data, PoseConfig(), work / "judged", 0)
    return {"version": version, "recall": measured["recall"], "measured": "now"}


def evaluate(dataset: Input, model: Input, models: str, service: str, run_id: str, overlays: int,
             evaluation: Output, metrics: Output, poses: Output) -> None:  # fmt: skip
    """Judges the model on the images held out, and the model in production on the same ones."""
    from epos.job import evaluate_model, write_json
    from epos.pose import PoseConfig

    source, client = _Dataset(dataset), store.connect()
    with _work() as work:
        data = source.pull(work / "set", *MODEL_DIRS, source.test_split)
        shutil.rmtree(evaluation.path, ignore_errors=True)
        found = evaluate_model(model.path, data, PoseConfig(), evaluation.path, overlays)
        production = _production(client, Location.parse(models), found, data, work)
    found |= {"run_id": run_id, "production": production, "serving": _serving(service)}
    write_json(evaluation.path / _METRICS, found)
    numbers = {name: found[name] for name in ("recall", "recall_mssd", "recall_mspd", "images", "instances")}
    if production:
        numbers["recall_in_production"] = production["recall"]
    metrics.path.write_text(json.dumps(numbers))
    metrics.metadata |= numbers
    evaluation.metadata |= {"version": found["model_version"], "data_hash": source.data_hash, "run_id": run_id}
    by_object = [
        [pages.text(name), f"{own['recall_mssd']:.4f}", f"{own['recall_mspd']:.4f}", str(own["instances"])]
        for name, own in found["objects"].items()
    ]
    rival = (
        f"model {production['version']} in production: {production['recall']:.4f}"
        if production
        else "no model in production"
    )
    poses.path.write_bytes(pages.page(
        f"Poses of model {found['model_version']}",
        pages.paragraph(f"Recall {found['recall']:.4f} on {found['images']} held-out images; {rival}."),
        pages.table(("object", "MSSD recall", "MSPD recall", "instances"), by_object),
        pages.paragraph("White: annotated. Coloured, with axes: estimated."),
        *(pages.picture(path, path.stem) for path in sorted((evaluation.path / "overlays").glob("*.png"))),
    ))  # fmt: skip


def gate(evaluation: Input, min_recall: float, min_gain: float, summary: Output) -> Verdict:
    """Decides whether the model is released; that it is not is a result, no failure."""
    from epos.job import judge

    metrics = _read_json(evaluation.path / _METRICS)
    rival = metrics["production"]
    passed, reason = judge(
        metrics["recall"], min_recall, (rival["version"], rival["recall"]) if rival else None, min_gain
    )
    verdict = RELEASED if passed else REJECTED
    rows = [("recall", metrics["recall"]), ("MSSD", metrics["recall_mssd"]), ("MSPD", metrics["recall_mspd"])]
    rows += [("gate", min_recall)] + ([("in production", rival["recall"]), ("least gain", min_gain)] if rival else [])
    lines = [f"# Model {metrics['model_version']}: {verdict}", "", reason, "", "| | |", "|---|---|"]
    summary.path.write_text("\n".join(lines + [f"| {name} | {value:.4f} |" for name, value in rows]) + "\n")
    say(f"{verdict}: {reason}")
    return Verdict(verdict, reason)


def _forget_checkpoint(client: store.Client, models: Location, card: dict[str, Any]) -> None:
    store.Checkpoint.of(client, models.beside("checkpoints"), card["run"]).remove()


def register(model: Input, evaluation: Input, models: str, run_id: str, min_recall: float, reason: str,
             registered: Output) -> Registered:  # fmt: skip
    """Publishes the model as <models>/<version>/ and points latest.json at it.

    A version that is there already was made of the same data, parameters and code, has the same weights, and stays as it
    is, with the run that made it first: a service may be reading it. latest.json then names both runs.
    """
    client, place = store.connect(), Location.parse(models)
    card = _read_json(model.path / _CARD)
    version = str(card["version"])
    target = place.below(version)
    complete = store.find_object(client, target, MANIFEST) is not None
    there = json.loads(store.read_object(client, target, _CARD)) if complete else {}
    # What the Kubernetes Job published names no run, so its place is free.
    if "run_id" in there:
        card = there
        metrics = json.loads(store.read_object(client, target, _METRICS))
        say(f"{target} is there already, made by run {card['run_id']}")
    else:
        metrics = _read_json(evaluation.path / _METRICS)
        metrics |= {"min_recall": min_recall, "gate_passed": True, "reason": reason}
        with _work() as work:
            folder = work / "model"
            shutil.copytree(model.path, folder)
            shutil.copytree(evaluation.path, folder, dirs_exist_ok=True)
            (folder / _METRICS).write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
            store.push(client, folder, target)
        say(f"published model {version} to {target}/")
    facts = {
        "data_hash": card["data_hash"], "run_id": card["run_id"], "registered_by": run_id, "recall": metrics["recall"],
        "metrics": metrics,
    }  # fmt: skip
    before = store.find_pointer(client, place) or {}
    if before.get("version") == version and before.get("commit"):
        facts["commit"] = before["commit"]
    store.point(client, place, version, facts)
    say(f"moved {place}/{store.POINTER}")
    _forget_checkpoint(client, place, card)
    description = {"version": version, "location": f"{target}/", **facts}
    registered.path.write_text(json.dumps(description, indent=1, sort_keys=True))
    registered.metadata |= {n: description[n] for n in ("version", "location", "data_hash", "run_id", "recall")}
    return Registered(version)


def reject(model: Input, evaluation: Input, models: str, run_id: str, reason: str) -> None:
    """Keeps a record of a model that is not released; the model itself stays an artifact of its run."""
    client, place = store.connect(), Location.parse(models)
    card, metrics = _read_json(model.path / _CARD), _read_json(evaluation.path / _METRICS)
    version, target = str(card["version"]), place.beside(REJECTED)
    record = {
        "version": version, "run_id": run_id, "data_hash": card["data_hash"], "recall": metrics["recall"], "reason": reason,
        "metrics": {**metrics, "gate_passed": False},
    }  # fmt: skip
    store.write_json(client, target, f"{version}.json", record)
    _forget_checkpoint(client, place, card)
    say(f"model {version} is not released: {reason}; recorded in {target}/{version}.json")


def deploy(
    registered: Input, evaluation: Input, models: str, repository: str, image: str, domain: str, canary: int
) -> Deployed:
    """Commits what shall run to the GitOps repository: dev takes it at once, prod when somebody has approved."""
    from epos import gitops

    model = _read_json(registered.path)
    version = model["version"]
    missing = [name for name in ("GIT_USERNAME", "GIT_PASSWORD") if not os.environ.get(name)]
    if missing:
        raise UsageError(f"environment: {', '.join(missing)} not set")
    if not 0 <= canary <= 100:
        raise UsageError(f"canary: {canary} is not in 0..100")
    rival = (_read_json(evaluation.path / _METRICS)["production"] or {}).get("version", version)
    both = [gitops.Share(rival, 100 - canary), gitops.Share(version, canary)]
    serve = {"dev": [gitops.Share(version)], "prod": both if canary and rival != version else [gitops.Share(version)]}
    application = gitops.Application(image, domain, models, serve)
    message = gitops.release_message(version, model["run_id"], model["data_hash"], model["recall"])
    commit = gitops.deploy(repository, os.environ["GIT_USERNAME"], os.environ["GIT_PASSWORD"], application, message)
    client, place = store.connect(), Location.parse(models)
    pointer = store.find_pointer(client, place) or {}
    # A later run may have moved the pointer by now; the commit is no fact about its model.
    if pointer.get("version") == version:
        facts = {name: value for name, value in pointer.items() if name not in ("schema", "version", "prefix")}
        store.point(client, place, version, {**facts, "commit": commit})
    say(f"commit {commit} of {repository} brings model {version}")
    return Deployed(commit)


def await_rollout(version: str, commit: str, service: str, timeout: int) -> None:
    """Waits until the service in dev answers with the version."""
    from epos import service_client

    say(f"waiting for model {version} of commit {commit} at {service}, {timeout} s at most")
    service_client.await_version(service, version, timeout)


_Poses = dict[tuple[int, int], list[float]]


def _numbered(poses: Iterable[tuple[int, list[float]]]) -> _Poses:
    """Poses by object and, where there are several of one, their number in the order in which they were found."""
    found: _Poses = {}
    for obj_id, pose in poses:
        found[obj_id, sum(key[0] == obj_id for key in found)] = pose
    return found


def _results(path: Path) -> dict[tuple[int, int], _Poses]:
    """The poses, rotation (9) and translation (3), in each image of a BOP result file."""
    listed: dict[tuple[int, int], list[tuple[int, list[float]]]] = {}
    with path.open() as stream:
        for row in csv.DictReader(stream):
            numbers = [float(value) for value in f"{row['R']} {row['t']}".split()]
            listed.setdefault((int(row["scene_id"]), int(row["im_id"])), []).append((int(row["obj_id"]), numbers))
    return {image: _numbered(poses) for image, poses in listed.items()}


def _same_pose(one: list[float], two: list[float]) -> bool:
    trace = sum(a * b for a, b in zip(one[:9], two[:9], strict=True))
    angle = math.degrees(math.acos(max(-1.0, min(1.0, (trace - 1) / 2))))
    return angle <= _SAME_DEGREES and math.dist(one[9:], two[9:]) <= _SAME_DISTANCE * math.hypot(*two[9:])


def smoke(dataset: Input, evaluation: Input, version: str, service: str, images: int, agreement: Output) -> None:
    """Asks the service for poses in held-out images and compares them with those that the model was judged by.

    Raises:
        EposError: another version answers, or the poses differ.
    """
    from epos import service_client

    expected = _results(evaluation.path / "predictions.csv")
    asked = same = total = 0
    with _work() as work:
        source = _Dataset(dataset)
        data = source.pull(work / "set", *MODEL_DIRS, source.test_split)
        for view in data.open().targets(data.test_split):
            poses = expected.get((view.scene_id, view.im_id))
            if poses is None or asked == images:
                continue
            asked += 1
            camera = [float(value) for value in view.camera[(0, 1, 0, 1), (0, 1, 2, 2)]]
            wanted = [truth.obj_id for truth in view.instances]
            answer = service_client.predict(service, view.path.read_bytes(), camera, wanted)
            if answer["model_version"] != version:
                raise EposError(f"{service}: model {answer['model_version']} answers, expected {version}")
            found = _numbered((pose["obj_id"], [*pose["cam_R_m2c"], *pose["cam_t_m2c"]]) for pose in answer["poses"])
            total += len(poses.keys() | found.keys())
            same += sum(_same_pose(found[key], poses[key]) for key in poses.keys() & found.keys())
    facts = {"images": asked, "poses": total, "same": same}
    agreement.path.write_text(json.dumps(facts))
    agreement.metadata |= facts
    text = f"{service}: {same} of {total} poses in {asked} images are those of the evaluation"
    if same < _SAME_SHARE * total or not total:
        raise EposError(f"{text}; at least {_SAME_SHARE:.0%} of some are expected")
    say(text)


# By the names that the pipeline gives them.
STEPS: dict[str, Callable[..., Any]] = {
    "ingest": ingest,
    "validate": validate,
    "fragments": fragments,
    "train": train,
    "evaluate": evaluate,
    "gate": gate,
    "register": register,
    "deploy": deploy,
    "await-rollout": await_rollout,
    "smoke": smoke,
    "reject": reject,
}

"""The pipeline's steps, one after the other as KFP runs them, against an in-process store."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from epos import executor, gitops, service_client, store, train
from epos.bop import read_image
from epos.cli import main
from epos.config import TrainConfig
from epos.errors import DataError, EposError, UsageError
from epos.model import load
from epos.pose import PoseConfig
from epos.steps import STEPS
from epos.store import Location

from .fakes import FakeStore

CONFIG = TrainConfig(
    backbone="small", image_size=64, num_frags=4, train_steps=12, batch_size=2, learning_rate=0.01, warmup_steps=2, seed=3
)  # fmt: skip
PLACE = Location("epos-data", "lab")
MODELS = Location("epos-models", "models")
OUTPUTS = {
    "ingest": ["dataset"], "validate": ["report"], "fragments": ["fragments"], "train": ["model", "losses", "curve"],
    "evaluate": ["evaluation", "metrics", "poses"], "gate": ["summary"], "register": ["registered"], "smoke": ["agreement"],
}  # fmt: skip


class Run:
    """A run of the pipeline: keeps its artifacts as KFP does, and starts the steps as its launcher does."""

    def __init__(self, root: Path, run_id: str = "run-1", **parameters: Any) -> None:
        self.root, self.id = root / run_id, run_id
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.values: dict[str, Any] = {
            "run_id": run_id, "data": str(PLACE), "train_split": "train", "test_split": "test", "models": str(MODELS),
            "service": "http://epos.test", "repository": "http://git.test/platform.git", "image": "registry.test/epos:1",
            "domain": "site.test", "canary": 0, "overlays": 1, "min_recall": 0.0, "min_gain": 0.0, "checkpoint_every": 2,
            "timeout": 5, "images": 2, **asdict(CONFIG), **parameters,
        }  # fmt: skip

    def step(self, name: str) -> dict[str, Any]:
        """Runs a step; returns the metadata of its artifacts by name."""
        wanted = executor.interface(STEPS[name])
        assert wanted.outputs == set(OUTPUTS.get(name, ()))
        answer = self.root / name / "executor_output.json"
        outputs = {n: {"artifacts": [{"name": n, "uri": str(self.root / name / n)}]} for n in wanted.outputs}
        given = {
            "inputs": {
                "parameterValues": {n: self.values[n] for n in wanted.parameters},
                "artifacts": {n: {"artifacts": [self.artifacts[n]]} for n in wanted.inputs},
            },
            "outputs": {"artifacts": outputs, "outputFile": str(answer)},
        }
        executor.run(STEPS[name], json.dumps(given))
        value = json.loads(answer.read_text())
        made = {n: listed["artifacts"][0] for n, listed in value.get("artifacts", {}).items()}
        assert all(Path(artifact["uri"]).exists() for artifact in made.values())
        self.artifacts |= made
        self.values |= value.get("parameterValues", {})
        return {n: artifact["metadata"] for n, artifact in made.items()}

    def steps(self, *names: str) -> Run:
        for name in names:
            self.step(name)
        return self

    def copy(self, root: Path) -> Run:
        """The same state of the same run, in another folder."""
        other = Run(root, self.id)
        shutil.copytree(self.root, other.root)
        text = json.dumps([self.artifacts, self.values]).replace(str(self.root), str(other.root))
        other.artifacts, other.values = json.loads(text)
        return other

    def read(self, artifact: str, name: str = "") -> str:
        return (
            Path(self.artifacts[artifact]["uri"]) / name if name else Path(self.artifacts[artifact]["uri"])
        ).read_text()


TO_GATE = ("ingest", "validate", "fragments", "train", "evaluate", "gate")


@pytest.fixture
def filled(fake: FakeStore, rendered: Path, monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    """A store with the data set; nobody serves a model."""
    monkeypatch.setattr(store, "connect", lambda: fake)
    store.push(fake, rendered, PLACE)
    monkeypatch.setattr(service_client, "Service", Nobody)
    monkeypatch.setenv("GIT_USERNAME", "pipeline")
    monkeypatch.setenv("GIT_PASSWORD", "a word")
    return fake


@pytest.fixture(scope="module")
def first(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[tuple[str, str], bytes]]:
    """A run until its gate, made once, and what it left in the store."""
    fake = FakeStore()
    store.push(fake, rendered, PLACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "connect", lambda: fake)
        patch.setattr(service_client, "Service", Nobody)
        return Run(tmp_path_factory.mktemp("first")).steps(*TO_GATE), fake.objects


@pytest.fixture
def judged(filled: FakeStore, first: tuple[Run, dict[tuple[str, str], bytes]], tmp_path: Path) -> Run:
    """A run until its gate."""
    filled.objects = dict(first[1])
    return first[0].copy(tmp_path)


class Nobody:
    """A service that is away."""

    def __init__(self, url: str) -> None:
        self.url = url

    def model(self) -> dict[str, Any]:
        raise EposError(f"{self.url}: cannot reach the service")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Deployments, as they would be committed."""
    made: list[tuple[Any, ...]] = []

    def deploy(*arguments: Any) -> str:
        if arguments not in made:
            made.append(arguments)
        return f"{made.index(arguments) + 1:040x}"

    monkeypatch.setattr(gitops, "deploy", deploy)
    return made


def pointer(fake: FakeStore) -> dict[str, Any]:
    return dict(json.loads(fake.objects["epos-models", "models/latest.json"]))


def snapshot(fake: FakeStore) -> dict[tuple[str, str], bytes]:
    return dict(fake.objects)


def test_from_data_to_a_model_that_answers(
    filled: FakeStore, commits: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    data_hash = json.loads(filled.objects["epos-data", "lab/manifest.json"])["data_hash"]

    facts = run.step("ingest")["dataset"]
    assert (facts["data_hash"], facts["train_images"], facts["test_images"]) == (data_hash, 8, 3)
    facts = run.step("validate")["report"]
    assert facts["broken"] == 0 and facts["data_hash"] == data_hash
    assert "split-disjoint" in run.read("report") and "<script" not in run.read("report")
    assert run.step("fragments")["fragments"] == {"objects": 3, "num_frags": 4}
    made = run.step("train")
    version = made["model"]["version"]
    assert made["model"]["run_id"] == "run-1" and made["losses"]["step"] == 12 and made["losses"]["total"] > 0
    assert "data:image/png;base64," in run.read("curve")
    assert (
        "epos-models",
        f"checkpoints/run-{json.loads(run.read('model', 'card.json'))['run'][:12]}.npz",
    ) in filled.objects
    facts = run.step("evaluate")["metrics"]
    assert set(facts) == {"recall", "recall_mssd", "recall_mspd", "images", "instances"} and facts["images"] == 3
    metrics = json.loads(run.read("evaluation", "metrics.json"))
    assert metrics["production"] is None and metrics["serving"] is None and metrics["run_id"] == "run-1"
    assert run.read("poses").count("data:image/png;base64,") == 1
    run.step("gate")
    assert run.values["verdict"] == "released" and re.match(
        r"gate passed: recall 0\.\d+ is at least 0\.0000", run.values["reason"]
    )
    assert f"# Model {version}: released" in run.read("summary")

    facts = run.step("register")["registered"]
    assert run.values["version"] == version
    card, published = (
        json.loads(filled.objects["epos-models", f"models/{version}/{n}.json"]) for n in ("card", "metrics")
    )
    latest = pointer(filled)
    assert latest["version"] == card["version"] == published["model_version"] == facts["version"] == version
    assert {latest["run_id"], card["run_id"], published["run_id"], facts["run_id"], latest["registered_by"]} == {
        "run-1"
    }
    assert {latest["data_hash"], card["data_hash"], published["data_hash"], facts["data_hash"]} == {data_hash}
    assert latest["recall"] == published["recall"] == latest["metrics"]["recall"] == facts["recall"]
    assert published["gate_passed"] is True and "commit" not in latest
    assert not [name for _, name in filled.objects if name.startswith("checkpoints/")], "a verdict ends the training"
    assert store.pull_latest(filled, MODELS, tmp_path / "pulled") == version
    model, loaded = load(tmp_path / "pulled")
    assert loaded == version

    run.step("deploy")
    ((repository, user, _, application, message),) = commits
    assert (repository, user) == ("http://git.test/platform.git", "pipeline")
    assert application == gitops.Application(
        "registry.test/epos:1", "site.test", str(MODELS), {"dev": [gitops.Share(version)], "prod": [gitops.Share(version)]}
    )  # fmt: skip
    assert all(word in message for word in (version, "run-1", data_hash, f"{latest['recall']:.4f}"))
    assert pointer(filled) == {**latest, "commit": f"{1:040x}"} and run.values["commit"] == f"{1:040x}"

    waited = []
    monkeypatch.setattr(service_client, "await_version", lambda *arguments: waited.append(arguments))
    run.step("await-rollout")
    assert waited == [("http://epos.test", version, 5)]

    shift = [0.0]

    def predict(url: str, image: bytes, camera: list[float], objects: list[int]) -> dict[str, Any]:
        (tmp_path / "asked.png").write_bytes(image)
        fx, fy, cx, cy = camera
        matrix = [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]
        import numpy as np

        found = model.predict(
            read_image(tmp_path / "asked.png"), np.array(matrix), {i: objects.count(i) for i in objects}, PoseConfig()
        )
        poses = [
            {
                "obj_id": e.obj_id,
                "cam_R_m2c": e.rotation.ravel().tolist(),
                "cam_t_m2c": (e.translation + shift[0]).tolist(),
            }
            for e in found
        ]
        return {"model_version": answering[0], "poses": poses}

    answering = [version]
    monkeypatch.setattr(service_client, "predict", predict)
    facts = run.step("smoke")["agreement"]
    assert facts["images"] == 2 and facts["same"] == facts["poses"] > 0
    shift[0] = 1000.0
    with pytest.raises(EposError, match=rf"0 of {facts['poses']} poses in 2 images are those of the evaluation"):
        run.step("smoke")
    answering[0] = "another"
    with pytest.raises(EposError, match=f"model another answers, expected {version}"):
        run.step("smoke")


def test_every_step_may_be_repeated(filled: FakeStore, commits: list[tuple[Any, ...]], tmp_path: Path) -> None:
    run = Run(tmp_path)
    for name in (*TO_GATE, "register", "deploy"):
        run.step(name)
        values, objects, artifacts = dict(run.values), snapshot(filled), dict(run.artifacts)
        answer = (run.root / name / "executor_output.json").read_bytes()
        run.step(name)
        assert (run.values, run.artifacts) == (values, artifacts), name
        assert (run.root / name / "executor_output.json").read_bytes() == answer
        assert snapshot(filled) == objects, name
    assert len(commits) == 1


def test_the_same_run_again_keeps_the_version_and_its_origin(
    filled: FakeStore, judged: Run, commits: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged.steps("register", "deploy")
    before = snapshot(filled)
    again = Run(tmp_path, "run-2").steps(*TO_GATE, "register", "deploy")
    assert "is there already, made by run run-1" in capsys.readouterr().out
    after = snapshot(filled)
    assert {k for k in before if before[k] != after[k]} == {("epos-models", "models/latest.json")} and set(
        before
    ) == set(after)
    latest = pointer(filled)
    assert (latest["run_id"], latest["registered_by"]) == ("run-1", "run-2")
    assert latest["commit"] == again.values["commit"] and len(commits) == 1, "nothing new is deployed"
    assert again.artifacts["registered"]["metadata"]["run_id"] == "run-1"


def test_what_the_job_published_gets_a_run(filled: FakeStore, judged: Run, tmp_path: Path) -> None:
    run = judged
    version = json.loads(run.read("model", "card.json"))["version"]
    folder = Path(shutil.copytree(run.artifacts["model"]["uri"], tmp_path / "job"))
    card = json.loads((folder / "card.json").read_text())
    del card["run_id"]
    (folder / "card.json").write_text(json.dumps(card))
    store.publish(filled, folder, MODELS, version, {})
    run.step("register")
    assert json.loads(filled.objects["epos-models", f"models/{version}/card.json"])["run_id"] == "run-1"
    assert pointer(filled)["run_id"] == "run-1"


def test_a_rejected_model_is_recorded_and_production_stays(filled: FakeStore, judged: Run, tmp_path: Path) -> None:
    judged.steps("register")
    before = {k: v for k, v in filled.objects.items() if k[1].startswith("models/")}
    run = Run(tmp_path, "run-2", seed=4, min_recall=1.0).steps(*TO_GATE)
    assert run.values["verdict"] == "rejected"
    assert re.fullmatch(r"gate not passed: recall 0\.\d+ is below 1\.0000", run.values["reason"])
    production = json.loads(run.read("evaluation", "metrics.json"))["production"]
    assert production["version"] == pointer(filled)["version"] and "on the same data" in production["measured"]
    assert run.artifacts["metrics"]["metadata"]["recall_in_production"] == production["recall"]
    run.step("reject")
    version = json.loads(run.read("model", "card.json"))["version"]
    record = json.loads(filled.objects["epos-models", f"rejected/{version}.json"])
    assert (record["version"], record["run_id"], record["reason"]) == (version, "run-2", run.values["reason"])
    assert record["metrics"]["gate_passed"] is False and record["data_hash"] == record["metrics"]["data_hash"]
    assert {k: v for k, v in filled.objects.items() if k[1].startswith("models/")} == before
    assert not [name for _, name in filled.objects if name.startswith("checkpoints/")]
    objects = snapshot(filled)
    run.step("reject")
    assert snapshot(filled) == objects


def test_the_gate_compares_with_production(judged: Run) -> None:
    run = judged
    path = Path(run.artifacts["evaluation"]["uri"]) / "metrics.json"
    metrics = json.loads(path.read_text())
    for recall, gain, verdict in ((0.4, 0.0, "released"), (0.5, 0.0, "released"), (0.5, 0.01, "rejected"),
                                  (0.51, 0.0, "rejected"), (0.51, -0.02, "released"), (0.4, 0.1, "released")):  # fmt: skip
        path.write_text(json.dumps({**metrics, "recall": 0.5, "production": {"version": "old", "recall": recall}}))
        run.values["min_gain"] = gain
        run.step("gate")
        assert run.values["verdict"] == verdict, (recall, gain)
    assert "of model old in production" in run.values["reason"]


def test_production_is_judged_on_the_new_data(
    filled: FakeStore, judged: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendered: Path
) -> None:
    judged.steps("register")
    copied = Path(shutil.copytree(rendered, tmp_path / "other"))
    (copied / "note.txt").write_text("other data")
    store.push(filled, copied, PLACE)

    class Serving:
        def __init__(self, url: str) -> None:
            pass

        def model(self) -> dict[str, Any]:
            return {"versions": [{"version": "v", "weight": 1, "card": {}}]}

    monkeypatch.setattr(service_client, "Service", Serving)
    run = Run(tmp_path, "run-2").steps(*TO_GATE)
    metrics = json.loads(run.read("evaluation", "metrics.json"))
    recall = json.loads(judged.read("evaluation", "metrics.json"))["recall"]
    assert metrics["production"] == {"version": judged.values["version"], "recall": recall, "measured": "now"}
    assert metrics["serving"] == [{"version": "v", "weight": 1}]


def test_a_canary_leaves_the_rest_to_the_model_in_production(
    judged: Run, commits: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    judged.steps("register", "deploy")
    run = Run(tmp_path, "run-2", seed=4, canary=10, min_gain=-1.0).steps(*TO_GATE, "register", "deploy")
    old, new = judged.values["version"], run.values["version"]
    assert commits[-1][3].serve == {"dev": [gitops.Share(new)], "prod": [gitops.Share(old, 90), gitops.Share(new, 10)]}
    run.values["canary"] = 101
    with pytest.raises(UsageError, match=r"canary: 101 is not in 0\.\.100"):
        run.step("deploy")


def test_a_later_run_keeps_the_pointer(filled: FakeStore, judged: Run, commits: list[tuple[Any, ...]]) -> None:
    judged.step("register")
    store.point(filled, MODELS, "later", {})
    judged.step("deploy")
    assert pointer(filled)["version"] == "later" and "commit" not in pointer(filled)


def test_training_goes_on_after_it_was_killed(
    filled: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path).steps("ingest", "fragments")
    save = store.Checkpoint.save

    def kill(self: store.Checkpoint, step: int, arrays: Any) -> None:
        save(self, step, arrays)
        if step == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(store.Checkpoint, "save", kill)
    with pytest.raises(KeyboardInterrupt):
        run.step("train")
    monkeypatch.setattr(store.Checkpoint, "save", save)
    resumed = run.step("train")["model"]["version"]
    assert "resuming from step 6" in capsys.readouterr().out
    filled.objects = {k: v for k, v in filled.objects.items() if not k[1].startswith("checkpoints/")}
    assert Run(tmp_path, "run-1b").steps("ingest", "fragments").step("train")["model"]["version"] == resumed


def test_steps_fetch_what_they_need(filled: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path).steps("ingest")
    read: list[str] = []
    get = filled.get_object
    monkeypatch.setattr(
        filled, "get_object", lambda bucket_name, object_name: read.append(object_name) or get(bucket_name, object_name)
    )
    run.step("fragments")
    assert {name.split("/")[1] for name in read if name.count("/") > 1} == {"models"}
    read.clear()
    run.step("train")
    assert {name.split("/")[1] for name in read if name.startswith("lab/") and name.count("/") > 1} == {
        "models",
        "train",
    }


def test_data_that_changed_under_a_run_are_refused(filled: FakeStore, tmp_path: Path) -> None:
    run = Run(tmp_path).steps("ingest", "fragments")
    filled.objects["epos-data", "lab/train/000001/scene_gt.json"] += b" "
    with pytest.raises(DataError, match=r"^s3://epos-data/lab/train/000001/scene_gt\.json: has another SHA-256"):
        run.step("train")


def test_broken_data_fail_with_file_key_and_report(filled: FakeStore, copied: Path, tmp_path: Path) -> None:
    path = copied / "train/000001/scene_gt.json"
    truths = json.loads(path.read_text())
    truths["3"][1]["cam_R_m2c"][0] += 0.5
    path.write_text(json.dumps(truths))
    store.push(filled, copied, PLACE)
    run = Run(tmp_path).steps("ingest")
    with pytest.raises(DataError) as caught:
        run.step("validate")
    assert "s3://epos-data/lab/train/000001/scene_gt.json: 3[1].cam_R_m2c: " in str(caught.value)
    assert str(caught.value).endswith("s3://epos-models/reports/run-1/validation.html")
    assert b"3[1].cam_R_m2c" in filled.objects["epos-models", "reports/run-1/validation.html"]


def test_a_split_without_images_is_named(filled: FakeStore, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^s3://epos-data/lab/manifest\.json: files: no image in val/; .*: test, train$"
    ):
        Run(tmp_path, test_split="val").step("ingest")


def test_the_card_of_a_step_changes_no_version(filled: FakeStore, tmp_path: Path, rendered: Path) -> None:
    """The Kubernetes Job and the pipeline give one model one name."""
    run = Run(tmp_path).steps("ingest", "fragments", "train")
    from epos.job import DataOptions, RunOptions, train_model

    found = train_model(DataOptions(rendered), CONFIG, RunOptions(tmp_path / "work"))
    assert found is not None and found[1] == run.artifacts["model"]["metadata"]["version"]
    assert train.fingerprint(run.artifacts["dataset"]["metadata"]["data_hash"], CONFIG)[:12] in next(
        name for _, name in filled.objects if name.startswith("checkpoints/")
    )


def test_the_command_line_starts_a_step(filled: FakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = {
        "inputs": {"parameterValues": {"data": str(PLACE), "train_split": "train", "test_split": "test"}},
        "outputs": {
            "artifacts": {"dataset": {"artifacts": [{"name": "dataset", "uri": str(tmp_path / "dataset")}]}},
            "outputFile": str(tmp_path / "answer.json"),
        },
    }
    assert main(["step", "ingest", "--executor-input", json.dumps(given)]) == 0
    assert json.loads((tmp_path / "answer.json").read_text())["artifacts"]["dataset"]["artifacts"][0]["uri"]
    assert main(["step", "paint", "--executor-input", "{}"]) == 2
    assert "'paint' is none of ingest, validate" in capsys.readouterr().err
    filled.objects.clear()
    assert main(["step", "ingest", "--executor-input", json.dumps(given)]) == 4
    assert capsys.readouterr().err == "epos: s3://epos-data/lab/manifest.json: missing object\n"

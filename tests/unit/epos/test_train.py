"""Training: repeatable, resumable, exported models predict the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from epos import checkpoint, device
from epos.bop import BopDataset, read_image
from epos.checkpoint import Folder
from epos.config import TrainConfig
from epos.errors import DataError, EposError, Terminated, UsageError
from epos.fragments import make_fragments
from epos.job import DataOptions, RunOptions, evaluate_model, train_model
from epos.losses import Losses
from epos.model import load
from epos.pose import PoseConfig
from epos.samples import Samples
from epos.train import LOG_COLUMNS, fingerprint, train

CONFIG = TrainConfig(
    backbone="small",
    image_size=64,
    num_frags=4,
    train_steps=12,
    batch_size=2,
    learning_rate=0.01,
    warmup_steps=2,
    seed=3,
)
OPTIONS = ["--backbone", "small", "--image-size", "64", "--num-frags", "4", "--batch-size", "2", "--seed", "3",
           "--train-steps", "12", "--learning-rate", "0.01", "--warmup-steps", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def samples(rendered: Path) -> Samples:
    dataset = BopDataset(rendered)
    models = dataset.models()
    return Samples(dataset.views("train"), models, make_fragments(models, CONFIG.num_frags), CONFIG.image_size)


@pytest.fixture(scope="module")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    found = train_model(DataOptions(rendered), CONFIG, RunOptions(tmp_path_factory.mktemp("work")))
    assert found is not None
    return found


def _same(a: object, b: object) -> bool:
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_two_runs_give_the_same_weights_and_losses(samples: Samples, tmp_path: Path) -> None:
    first = train(samples, CONFIG, tmp_path / "a", "run", log_every=1)
    second = train(samples, CONFIG, tmp_path / "b", "run", log_every=1)
    assert _same(first[0], second[0]) and first[1] == second[1]
    assert (tmp_path / "a/loss.csv").read_bytes() == (tmp_path / "b/loss.csv").read_bytes()
    total = [row[LOG_COLUMNS.index("total")] for row in first[1]]
    assert np.mean(total[-3:]) < 0.9 * total[0], "training lowers the loss"


def test_a_resumed_run_equals_an_uninterrupted_one(samples: Samples, tmp_path: Path) -> None:
    whole = train(samples, CONFIG, tmp_path / "whole", "run", checkpoint_every=2, log_every=1)
    lines: list[str] = []

    def stop_after_four(line: str) -> None:
        lines.append(line)
        if line.startswith("step 5/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(samples, CONFIG, tmp_path / "cut", "run", checkpoint_every=2, log_every=1, progress=stop_after_four)
    resumed = train(samples, CONFIG, tmp_path / "cut", "run", checkpoint_every=2, log_every=1, progress=lines.append)
    assert "resuming from step 4" in lines
    assert _same(whole[0], resumed[0]) and whole[1] == resumed[1]
    assert (tmp_path / "whole/loss.csv").read_bytes() == (tmp_path / "cut/loss.csv").read_bytes()


def test_sigterm_writes_a_checkpoint(samples: Samples, tmp_path: Path) -> None:
    def terminate(line: str) -> None:
        if line.startswith("step 3/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated, match=r"checkpoint of step [34] written"):
        train(samples, CONFIG, tmp_path, "run", checkpoint_every=100, log_every=1, progress=terminate)
    assert int(Folder(tmp_path / "checkpoints").load()["step"]) in (3, 4)  # type: ignore[index]


def test_a_killed_process_resumes_to_the_same_model(rendered: Path, tmp_path: Path, trained: tuple[Path, str]) -> None:
    """SIGKILL in the middle, then the same command again."""
    source = Path(__file__).parents[3] / "pipelines" / "epos" / "src"
    command = [
        sys.executable,
        "-m",
        "epos",
        "train",
        "--data-dir",
        str(rendered),
        "--work-dir",
        str(tmp_path),
        *OPTIONS,
    ]
    command += ["--checkpoint-every", "1", "--log-every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    if jax.default_backend() == "gpu":
        # What is compiled again, as on another node, must compute the same.
        del environment["JAX_COMPILATION_CACHE_DIR"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    watchdog = threading.Timer(100, process.kill)
    watchdog.start()
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    watchdog.cancel()
    assert process.returncode == -signal.SIGKILL
    again = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=True)
    assert re.search(r"resuming from step [23]\b", again.stdout)
    assert re.search(rf"exported model {trained[1]} ", again.stdout), "the version covers data, parameters and weights"
    assert not list((tmp_path / "checkpoints").glob(".*")), "no half written file stays"


def test_old_checkpoints_go_and_damaged_ones_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        folder.save(step, {"step": np.array(step)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003.npz", "step-00000004.npz"]
    newest = tmp_path / "step-00000004.npz"
    newest.write_bytes(newest.read_bytes()[:50])
    assert int(folder.load()["step"]) == 3  # type: ignore[index]
    assert "step-00000004.npz is unreadable" in capsys.readouterr().out
    assert Folder(tmp_path / "none").load() is None
    folder.remove()
    assert not tmp_path.exists()


def test_checkpoints_of_another_run_are_refused(samples: Samples, tmp_path: Path) -> None:
    train(samples, CONFIG, tmp_path, "run")
    with pytest.raises(EposError, match="checkpoints of another run"):
        train(samples, CONFIG, tmp_path, "other")


def test_every_input_changes_the_fingerprint() -> None:
    names = {fingerprint("a", CONFIG), fingerprint("b", CONFIG), fingerprint("a", TrainConfig())}
    assert len(names) == 3
    assert fingerprint("a", CONFIG) == fingerprint("a", CONFIG)


def test_samples_do_not_depend_on_the_cache(rendered: Path, samples: Samples) -> None:
    bare = Samples(samples.views, samples.models, samples.fragments, CONFIG.image_size, cache_mib=0, workers=1)
    for _ in range(2):
        for a, b in zip(bare.batch(np.array([5, 1])), samples.batch(np.array([5, 1])), strict=True):
            assert (a == b).all()


def test_a_loaded_model_predicts_the_same(rendered: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    """Here and in a process that has neither the data's annotations nor the work folder."""
    folder, version = trained
    metrics = evaluate_model(folder, DataOptions(rendered), PoseConfig(iterations=128), tmp_path, overlays=2)
    assert metrics["model_version"] == version and 0 <= metrics["recall"] <= 1
    assert len(list((tmp_path / "overlays").glob("*.png"))) == 2
    assert read_image(tmp_path / "overlays" / "000001_000000.png").shape == (512, 512, 3)
    assert read_image(folder / "loss.png").shape[2] == 3
    model, loaded = load(folder)
    assert loaded == version
    view = BopDataset(rendered).views("test")[0]
    code = (
        "import sys, pathlib, numpy as np; from epos.model import load; from epos.bop import read_image;"
        "m, v = load(pathlib.Path(sys.argv[1])); o = m.outputs(read_image(pathlib.Path(sys.argv[2])));"
        "np.savez(sys.argv[3], *o); print(v)"
    )
    source = Path(__file__).parents[3] / "pipelines" / "epos" / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(view.path), str(tmp_path / "out.npz")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(source)}, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == version
    here = model.outputs(read_image(view.path))
    with np.load(tmp_path / "out.npz") as there:
        for a, b in zip(here, there.values(), strict=True):
            assert np.allclose(a, b, atol=1e-5)


def test_exporting_again_gives_the_same_bytes(rendered: Path, trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, version = train_model(DataOptions(rendered), CONFIG, RunOptions(tmp_path))  # type: ignore[misc]
    assert version == trained[1]
    for name in ("config.json", "weights.npz", "probe.npz", "card.json", "loss.csv", "loss.png"):
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes(), name


def test_the_card_says_where_a_model_comes_from(rendered: Path, trained: tuple[Path, str]) -> None:
    card = json.loads((trained[0] / "card.json").read_text())
    assert card["version"] == trained[1]
    assert len(card["data_hash"]) == 64
    assert card["parameters"]["num_frags"] == 4 and card["parameters"]["weight_location"] == 100.0
    assert card["built_with"]["processes"] == 1
    assert {name: card["built_with"][name] for name in ("device", "gpus")} == device.describe()


@pytest.mark.parametrize("name", ["weights.npz", "probe.npz", "card.json"])
def test_a_damaged_model_is_refused(trained: tuple[Path, str], tmp_path: Path, name: str) -> None:
    for path in trained[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: has another SHA-256"):
        load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: missing file"):
        load(tmp_path)


def test_a_machine_that_computes_differently_is_noticed(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from epos import model, network

    run = model._run

    def shifted(*args: object) -> network.Outputs:
        out = run(*args)
        return out._replace(fragments=out.fragments + 0.01)

    monkeypatch.setattr(model, "_run", shifted)
    with pytest.raises(EposError, match=r"fragments differ by 0\.01"):
        load(trained[0])


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    checkpoint.write_atomic(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"backbone": "huge"}, "--backbone: 'huge' is none of small, base, large"),
        ({"num_frags": 0}, "--num-frags: 0 is not in 1..1024"),
        ({"image_size": 100}, "--image-size: 100 is not a multiple of 32"),
        ({"weight_location": -1.0}, "--weight-location: -1.0 is not a number from 0"),
        ({"weight_object": float("nan")}, "--weight-object: nan"),
        ({"learning_rate": 0.0}, "--learning-rate: 0.0 is not a positive number"),
        ({"batch_size": 0}, "--batch-size: 0 is not in"),
        ({"train_steps": -1}, "--train-steps: -1 is not in"),
    ],
)
def test_bad_parameters_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        TrainConfig(**values)  # type: ignore[arg-type]


def test_a_diverging_run_says_so(samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Losses(*np.array([np.nan, 1.0, 1.0, np.nan]))
    monkeypatch.setattr("epos.train.make_step", lambda *_: lambda state, *_: (state, losses))
    with pytest.raises(EposError, match="the loss is not finite; lower --learning-rate"):
        train(samples, CONFIG, tmp_path, "run", log_every=1)

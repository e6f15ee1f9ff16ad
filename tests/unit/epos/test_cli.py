"""The command line from outside: help, exit status, one-line errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from epos.cli import main

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("render", "validate", "fragments", "train", "evaluate", "predict", "export", "push", "pull", "run",
                 "listen", "deploy"):  # fmt: skip
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert f"epos {verb}" in text and "exit status: 0 done" in text
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for option in ("--num-frags", "--weight-object", "--weight-fragment", "--weight-location", "--train-steps",
                   "--backbone", "--learning-rate", "--batch-size", "--seed", "--image-size"):  # fmt: skip
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["render"], "the following arguments are required: --out"),
        (["render", "--out", "x", "--train-images", "0"], "argument --train-images: 0 is not positive"),
        (
            ["train", "--data-dir", "d", "--work-dir", "w", "--num-frags", "many"],
            "--num-frags: invalid int value: 'many'",
        ),
        (["train", "--data-dir", "d", "--work-dir", "w", "--num-frags", "0"], "--num-frags: 0 is not in 1..1024"),
        (["train", "--data-dir", "d", "--work-dir", "w", "--image-size", "100"], "--image-size: 100 is not a multiple"),
        (["evaluate", "--model", "m", "--data-dir", "d", "--min-recall", "2"], "--min-recall: 2 is not in 0..1"),
        (["evaluate", "--model", "m", "--data-dir", "d", "--min-object", "1"], "must lie between 0 and 1"),
        (["predict", "--model", "m"], "give either --image or --data-dir"),
        (["predict", "--model", "m", "--image", "i"], "--image needs --camera"),
        (["predict", "--model", "m", "--image", "i", "--camera", "1,2"], "expected fx,fy,cx,cy"),
        (["push", "folder", "bucket/prefix"], "is not of the form s3://bucket/prefix"),
        (["listen", "--models", "m"], "the following arguments are required: --serve"),
        (["listen", "--models", "m", "--serve", "aa=x"], "--serve: 'aa=x': the weight is no whole number from 0"),
        (["listen", "--models", "m", "--serve", "aa=0"], "--serve: no version has a weight above 0"),
        (
            ["deploy", "--repository", "http://git.git/platform.git", "--environment", "dev", "--serve", "aa"],
            "environment: GIT_USERNAME, GIT_PASSWORD not set",
        ),
        (["pull", "s3://bucket/prefix", "folder"], "S3_ENDPOINT, S3_ACCESS_KEY, S3_SECRET_KEY not set"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY", "GIT_USERNAME", "GIT_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and error.startswith("epos: ")


def test_bad_data_exits_4_and_names_the_file(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--data-dir", str(copied)]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["images"] == 8
    camera = copied / "train/000001/scene_camera.json"
    camera.unlink()
    assert main(["validate", "--data-dir", str(copied)]) == 4
    assert capsys.readouterr().err == f"epos: {camera}: missing file\n"
    assert main(["validate", "--data-dir", str(copied / "none")]) == 4


def test_fragments_are_written_as_json(rendered: Path, tmp_path: Path) -> None:
    out = tmp_path / "fragments.json"
    assert main(["fragments", "--data-dir", str(rendered), "--num-frags", "5", "--out", str(out)]) == 0
    value = json.loads(out.read_text())
    assert sorted(value) == ["1", "2", "3"]
    assert len(value["1"]["centers_mm"]) == len(value["1"]["sizes_mm"]) == 5


def test_render_train_export_predict(command: Run, tmp_path: Path) -> None:
    """All commands in processes of their own, as a user runs them."""
    data, work, model = tmp_path / "data", tmp_path / "work", tmp_path / "model"
    done = command("render", "--out", data, "--train-images", 8, "--test-images", 3, "--image-size", 64, "--seed", 7)
    assert done.returncode == 0 and json.loads(done.stdout)["train"] == 8
    options = ("--backbone", "small", "--image-size", 64, "--num-frags", 4, "--batch-size", 2, "--seed", 3)
    options += ("--train-steps", 12, "--learning-rate", 0.01, "--warmup-steps", 2)
    done = command("train", "--data-dir", data, "--work-dir", work, *options, "--log-every", 4)
    assert done.returncode == 0, done.stderr
    assert f"training on {jax.default_backend()} (" in done.stdout
    assert "step 12/12 loss" in done.stdout and "images/s" in done.stdout
    done = command("export", "--work-dir", work, "--out", model)
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)["version"]
    done = command("evaluate", "--model", model, "--data-dir", data, "--min-recall", 1, "--iterations", 128)
    assert done.returncode == 3 and "gate not passed: recall 0." in done.stderr
    metrics = json.loads((model / "metrics.json").read_text())
    assert metrics["model_version"] == version and metrics["instances"] > 0
    done = command("predict", "--model", model, "--data-dir", data, "--out", tmp_path / "p.csv", "--iterations", 128)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.csv").read_bytes() == (model / "predictions.csv").read_bytes()
    image = data / "test/000001/rgb/000000.png"
    done = command("predict", "--model", model, "--image", image, "--camera", "83.2,83.2,31.5,31.5")
    assert done.returncode == 0 and json.loads(done.stdout)["model_version"] == version

"""What KFP tells a step and what it reads back, byte for byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from epos import executor
from epos.errors import UsageError
from epos.executor import Input, Output
from epos.steps import STEPS


@dataclass
class Options:
    rate: float
    steps: int


class Result(NamedTuple):
    verdict: str


def step(data: Input, name: str, options: Options, model: Output) -> Result:
    assert (data.path, data.metadata) == (Path("/minio/mlpipeline/v2/artifacts/p/r/load/u/data"), {"rows": 3})
    assert (name, options) == ("x", Options(1.0, 500))
    model.path.write_text("weights")
    model.metadata["accuracy"] = 0.5
    return Result("released")


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    """As KFP 2.17's launcher writes it, but for places."""
    return {
        "inputs": {
            "parameterValues": {"name": "x", "rate": 1, "steps": 500},
            "artifacts": {
                "data": {
                    "artifacts": [
                        {
                            "name": "data",
                            "type": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"},
                            "uri": "minio://mlpipeline/v2/artifacts/p/r/load/u/data",
                            "metadata": {"rows": 3},
                        }
                    ]
                }
            },
        },
        "outputs": {
            "parameters": {"verdict": {"outputFile": "/tmp/kfp/outputs/verdict"}},
            "artifacts": {
                "model": {
                    "artifacts": [
                        {
                            "name": "model",
                            "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"},
                            "uri": str(tmp_path / "bucket/model"),
                            "metadata": {"display_name": "model"},
                        }
                    ]
                }
            },
            "outputFile": str(tmp_path / "outputs/executor_output.json"),
        },
    }


def test_a_step_gets_what_it_asks_for_and_kfp_what_it_gives(given: dict[str, Any], tmp_path: Path) -> None:
    executor.run(step, json.dumps(given))
    assert (tmp_path / "bucket/model").read_text() == "weights"
    assert json.loads((tmp_path / "outputs/executor_output.json").read_text()) == {
        "parameterValues": {"verdict": "released"},
        "artifacts": {
            "model": {
                "artifacts": [
                    {
                        "name": "model",
                        "uri": str(tmp_path / "bucket/model"),
                        "metadata": {"display_name": "model", "accuracy": 0.5},
                    }
                ]
            }
        },
    }


def test_a_step_without_outputs_leaves_an_empty_answer(tmp_path: Path) -> None:
    def nothing() -> None:
        pass

    executor.run(nothing, json.dumps({"outputs": {"outputFile": str(tmp_path / "out.json")}}))
    assert (tmp_path / "out.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("uri", "path"),
    [("minio://b/k", "/minio/b/k"), ("s3://b/k", "/s3/b/k"), ("gs://b/k", "/gcs/b/k"), ("/b/k", "/b/k")],
)
def test_artifacts_lie_where_the_launcher_puts_them(given: dict[str, Any], uri: str, path: str) -> None:
    seen = []
    given["inputs"]["artifacts"]["data"]["artifacts"][0]["uri"] = uri

    def look(data: Input) -> None:
        seen.append(data.path)

    executor.run(look, json.dumps(given))
    assert seen == [Path(path)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["inputs"]["parameterValues"].pop("steps"), r"inputs\.parameterValues\.steps: missing"),
        (lambda v: v["inputs"]["parameterValues"].update(steps=1.5), r"steps: expected int, found 1\.5"),
        (lambda v: v["inputs"]["parameterValues"].update(steps=True), r"steps: expected int, found True"),
        (lambda v: v["inputs"]["parameterValues"].update(rate="fast"), r"rate: expected float, found 'fast'"),
        (lambda v: v["inputs"]["parameterValues"].update(name=1), r"name: expected str, found 1"),
        (lambda v: v["inputs"].pop("artifacts"), r"inputs\.artifacts\.data: missing"),
        (lambda v: v["inputs"]["artifacts"]["data"].update(artifacts=[]), r"inputs\.artifacts\.data: missing"),
        (
            lambda v: v["inputs"]["artifacts"]["data"]["artifacts"][0].update(uri="ftp://x"),
            "the scheme is none of minio",
        ),
        (lambda v: v["outputs"].pop("artifacts"), r"outputs\.artifacts\.model: missing"),
        (lambda v: v["outputs"].pop("outputFile"), "is not KFP's executor input"),
    ],
)
def test_input_that_does_not_fit_is_named(given: dict[str, Any], change: Any, message: str) -> None:
    change(given)
    with pytest.raises(UsageError, match=message):
        executor.run(step, json.dumps(given))
    with pytest.raises(UsageError, match="is not KFP's executor input"):
        executor.run(step, "{{$}}")


def test_the_interface_is_read_from_annotations() -> None:
    found = executor.interface(step)
    assert found == ({"data"}, {"model"}, {"name": str, "rate": float, "steps": int}, {"verdict": str})
    train = executor.interface(STEPS["train"])
    assert train.parameters["num_frags"] is int and train.parameters["weight_location"] is float
    assert train.outputs == {"model", "losses", "curve"}

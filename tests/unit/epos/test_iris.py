"""The smallest pipeline's steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from epos import executor
from epos.errors import DataError

from .conftest import SOURCE

IRIS = Path(__file__).parents[3] / "pipelines" / "iris" / "src"
sys.path.insert(0, str(IRIS))

from iris.steps import STEPS  # noqa: E402


def given(root: Path, name: str, **values: Any) -> str:
    wanted = executor.interface(STEPS[name])
    artifacts = {n: {"artifacts": [{"name": n, "uri": str(root / n)}]} for n in wanted.inputs | wanted.outputs}
    return json.dumps(
        {
            "inputs": {"parameterValues": values, "artifacts": {n: artifacts[n] for n in wanted.inputs}},
            "outputs": {
                "artifacts": {n: artifacts[n] for n in wanted.outputs},
                "outputFile": str(root / f"{name}.json"),
            },
        }
    )


def step(root: Path, name: str, **values: Any) -> dict[str, Any]:
    executor.run(STEPS[name], given(root, name, **values))
    return dict(json.loads((root / f"{name}.json").read_text()))


def test_the_whole_pipeline(tmp_path: Path) -> None:
    assert step(tmp_path, "load")["artifacts"]["dataset"]["artifacts"][0]["metadata"] == {"rows": 150}
    step(tmp_path, "validate")
    made = step(tmp_path, "train", steps=500, seed=1)["artifacts"]
    accuracy = made["metrics"]["artifacts"][0]["metadata"]["accuracy"]
    assert accuracy >= 0.9
    assert json.loads((tmp_path / "model").read_text())["species"] == ["setosa", "versicolor", "virginica"]
    assert step(tmp_path, "gate", min_accuracy=0.9)["parameterValues"] == {"verdict": "released"}
    assert step(tmp_path, "gate", min_accuracy=1.1)["parameterValues"] == {"verdict": "rejected"}
    untrained = step(tmp_path, "train", steps=0, seed=1)["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert untrained["accuracy"] < 0.6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("5.1,3.5,1.4,0.2,setosa", "5.1,wide,1.4,0.2,setosa", r"row 2: sepal_width: expected 0\.\.10 cm, found 'wide'"),
        ("5.1,3.5,1.4,0.2,setosa", "5.1,3.5,-1,0.2,setosa", r"row 2: petal_length: expected 0\.\.10 cm, found '-1'"),
        ("5.1,3.5,1.4,0.2,setosa", "5.1,3.5,1.4,0.2,rose", r"row 2: species: 'rose' is none of setosa"),
        (",virginica", ",setosa", r"species: none is virginica"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    step(tmp_path, "load")
    data = tmp_path / "dataset"
    data.write_text(data.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        step(tmp_path, "validate")


def test_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "iris", *arguments], capture_output=True, text=True, check=False,
            env={"PYTHONPATH": f"{IRIS}:{SOURCE}"},
        )  # fmt: skip

    assert run("load", "--executor-input", given(tmp_path, "load")).returncode == 0
    done = run("gate", "--executor-input", "{}")
    assert done.returncode == 1 and done.stderr.startswith("iris: --executor-input: is not KFP's executor input")

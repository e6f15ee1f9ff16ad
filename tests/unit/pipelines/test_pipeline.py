"""The compiled pipelines: the same bytes again, and what the steps in the image expect."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml
from kfp import compiler

from .conftest import PIPELINES

# KFP's types of parameters, by Python's.
TYPES = {"str": "STRING", "int": "NUMBER_INTEGER", "float": "NUMBER_DOUBLE"}
sys.path.insert(0, str(PIPELINES / "epos/src"))

from epos.config import TrainConfig  # noqa: E402


class Step(NamedTuple):
    """What a step takes and gives: artifacts by direction, types of parameters and results."""

    inputs: set[str]
    outputs: set[str]
    parameters: dict[str, str]
    results: dict[str, str]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_pipeline", PIPELINES / name / "pipeline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline and, where it has one, what is said for Kubernetes."""
    documents = list(yaml.safe_load_all((PIPELINES / name / "pipeline.yaml").read_text()))
    return documents[0], documents[1]["platforms"]["kubernetes"] if len(documents) > 1 else {}


def steps(path: Path) -> dict[str, Step]:
    """The steps of a module, read from its text: this environment has nothing of what they import."""
    tree = ast.parse(path.read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    results = {
        node.name: {a.target.id: ast.unparse(a.annotation) for a in node.body if isinstance(a, ast.AnnAssign)}  # type: ignore[union-attr]
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    listed = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]) == "STEPS"
    )
    assert isinstance(listed, ast.Dict)
    found = {}
    for key, value in zip(listed.keys, listed.values, strict=True):
        step = Step(set(), set(), {}, {})
        function = functions[ast.unparse(value)]
        for argument in function.args.args:
            kind = ast.unparse(argument.annotation)  # type: ignore[arg-type]
            if kind == "Input":
                step.inputs.add(argument.arg)
            elif kind == "Output":
                step.outputs.add(argument.arg)
            elif kind == "TrainConfig":
                step.parameters.update({f.name: str(f.type) for f in dataclasses.fields(TrainConfig)})
            else:
                step.parameters[argument.arg] = kind
        step.results.update(results.get(ast.unparse(function.returns), {}))  # type: ignore[arg-type]
        assert isinstance(key, ast.Constant)
        found[str(key.value)] = step
    return found


@pytest.mark.parametrize("name", ["epos", "iris"])
def test_compiling_again_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    compiler.Compiler().compile(getattr(load(name), name), str(tmp_path / "pipeline.yaml"))
    assert (tmp_path / "pipeline.yaml").read_bytes() == (PIPELINES / name / "pipeline.yaml").read_bytes(), (
        f"run: .venv/kfp/bin/python pipelines/{name}/pipeline.py"
    )


@pytest.mark.parametrize(("name", "words"), [("epos", ["epos", "step"]), ("iris", ["iris"])])
def test_every_component_is_a_step_with_its_interface(name: str, words: list[str]) -> None:
    spec, _ = compiled(name)
    expected = steps(PIPELINES / name / f"src/{name}/steps.py")
    seen = set()
    for component in spec["components"].values():
        if "executorLabel" not in component:
            continue
        container = spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        assert container["image"] == "slipway-epos"
        assert container["command"][:-1] == ["python3", "-m", *words] and container["args"] == [
            "--executor-input",
            "{{$}}",
        ]
        step = container["command"][-1]
        seen.add(step)
        assert component["executorLabel"] == f"exec-{step}"
        inputs, outputs = component.get("inputDefinitions", {}), component.get("outputDefinitions", {})
        assert Step(
            set(inputs.get("artifacts", {})),
            set(outputs.get("artifacts", {})),
            {n: p["parameterType"] for n, p in inputs.get("parameters", {}).items()},
            {n: p["parameterType"] for n, p in outputs.get("parameters", {}).items()},
        ) == expected[step]._replace(
            parameters={n: TYPES[kind] for n, kind in expected[step].parameters.items()},
            results={n: TYPES[kind] for n, kind in expected[step].results.items()},
        ), step
    assert seen == set(expected)


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        key: task
        for component in (spec["root"], *spec["components"].values())
        for key, task in component.get("dag", {}).get("tasks", {}).items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


@pytest.mark.parametrize("name", ["epos", "iris"])
def test_nothing_is_taken_from_a_cache(name: str) -> None:
    spec, _ = compiled(name)
    assert {key for key, task in tasks(spec).items() if task["cachingOptions"]} == set()


def test_parameters_are_those_of_the_training() -> None:
    spec, _ = compiled("epos")
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    defaults = TrainConfig(train_steps=9000).as_dict()
    assert {n: parameters[n]["defaultValue"] for n in defaults} == defaults
    assert [n for n, p in parameters.items() if "defaultValue" not in p] == ["domain"]
    assert parameters["min_recall"]["defaultValue"] == 0.5 and parameters["image"]["defaultValue"] == "slipway-epos"


def test_tasks_may_fail_but_for_the_judgement_of_data() -> None:
    """A missed gate is no failure; broken data stay broken, and KFP cannot tell by the exit status."""
    spec, _ = compiled("epos")
    found = {key: task.get("retryPolicy", {}).get("maxRetryCount", 0) for key, task in tasks(spec).items()}
    assert found.pop("validate") == 0
    assert set(found.values()) == {3}


def test_only_the_training_asks_for_a_gpu_and_only_the_deployment_for_git() -> None:
    spec, platform = compiled("epos")
    executors = spec["deploymentSpec"]["executors"]
    gpus = {n: e["container"]["resources"].get("accelerator", {}).get("resourceType") for n, e in executors.items()}
    assert {n for n, kind in gpus.items() if kind} == {"exec-train"} and gpus["exec-train"] == "nvidia.com/gpu"
    secrets = {
        n: {s["secretName"] for s in e.get("secretAsEnv", ())}
        for n, e in platform["deploymentSpec"]["executors"].items()
    }
    assert {n for n, names in secrets.items() if "git-pipeline" in names} == {"exec-deploy"}
    # The gate decides and the rollout is awaited without any credential.
    assert {n for n in executors if "minio-epos" not in secrets.get(n, set())} == {"exec-gate", "exec-await-rollout"}


def test_the_verdict_decides_what_follows() -> None:
    spec, _ = compiled("epos")
    branches = spec["components"]["comp-condition-branches-1"]["dag"]["tasks"]
    found = {
        task["taskInfo"]["name"]: (
            task["triggerPolicy"]["condition"],
            set(spec["components"][task["componentRef"]["name"]]["dag"]["tasks"]),
        )
        for task in branches.values()
    }
    released = "inputs.parameter_values['pipelinechannel--gate-verdict'] == 'released'"
    assert found == {
        "released": (released, {"register", "deploy", "await-rollout", "smoke"}),
        "rejected": (f"!({released})", {"reject"}),
    }

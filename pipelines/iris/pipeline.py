"""The smallest pipeline: load, validate, train, gate.

Compile it to pipeline.yaml after every change:

    .venv/kfp/bin/python pipelines/iris/pipeline.py
"""

from pathlib import Path

from kfp import compiler, dsl

IMAGE = "slipway-epos"


def _step(name: str) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image=IMAGE, command=["python3", "-m", "iris", name], args=["--executor-input", "{{$}}"])


@dsl.container_component
def load(dataset: dsl.Output[dsl.Dataset]):
    """Hands the data on."""
    return _step("load")


@dsl.container_component
def validate(dataset: dsl.Input[dsl.Dataset]):
    """Refuses data that nothing can be learnt from."""
    return _step("validate")


@dsl.container_component
def train(
    dataset: dsl.Input[dsl.Dataset],
    steps: int,
    seed: int,
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Fits the weights."""
    return _step("train")


@dsl.container_component
def gate(metrics: dsl.Input[dsl.Metrics], min_accuracy: float, verdict: dsl.OutputPath(str)):
    """Decides: released or rejected."""
    return _step("gate")


def _prepare(task: dsl.PipelineTask) -> dsl.PipelineTask:
    task.set_caching_options(False).set_cpu_request("100m").set_cpu_limit("1")
    return task.set_memory_request("128Mi").set_memory_limit("512Mi")


@dsl.pipeline(name="iris", description="Fisher's irises, the smallest example.")
def iris(steps: int = 500, seed: int = 1, min_accuracy: float = 0.9):
    """Builds the graph.

    Args:
        steps: number of updates.
        seed: of the rows held out.
        min_accuracy: least part of the rows held out that must be told right, 0..1.
    """
    dataset = _prepare(load()).outputs["dataset"]
    validated = _prepare(validate(dataset=dataset))
    trained = _prepare(train(dataset=dataset, steps=steps, seed=seed)).after(validated)
    _prepare(gate(metrics=trained.outputs["metrics"], min_accuracy=min_accuracy))


if __name__ == "__main__":
    compiler.Compiler().compile(iris, str(Path(__file__).with_name("pipeline.yaml")))

"""What has become of each task of a run, and how the inputs of the next follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import pipeline as compiled
from .conditions import select
from .pipeline import Pipeline
from .store import Run
from .values import typed

Json = dict[str, Any]

RUNNING, SUCCEEDED, FAILED, SKIPPED = "RUNNING", "SUCCEEDED", "FAILED", "SKIPPED"
# A task that was not started since one before it did not succeed. Argo's word; the API has none for it.
OMITTED = "OMITTED"


class InputError(Exception):
    """Inputs that cannot be resolved; the task fails with this."""


def no_values() -> Json:
    """Inputs or outputs without anything in them."""
    return {"parameters": {}, "artifacts": {}}


@dataclass
class Node:
    """A task, an iteration of a loop, or the pipeline itself, from when it is started."""

    path: str
    parent: str
    name: str
    kind: str
    component: str
    state: str = RUNNING
    message: str = ""
    # Values by name: of parameters anything, of artifacts a list of RuntimeArtifacts.
    inputs: Json = field(default_factory=no_values)
    outputs: Json = field(default_factory=no_values)
    # Of a loop: what it iterates over.
    items: list[Any] = field(default_factory=list)
    # Of a container: where its outputs go, the fingerprint under which they are kept, and its pods.
    wanted: Json = field(default_factory=dict)
    fingerprint: str = ""
    attempt: int = 0
    generation: int = 0
    created: bool = False
    not_before: float = 0.0
    first_start: float = 0.0
    stuck: str = ""
    stuck_since: float = 0.0

    @property
    def final(self) -> bool:
        """Whether nothing more will come of it by itself."""
        return self.state != RUNNING


class Tree:
    """The nodes of a run by their paths, with the pipeline that they follow."""

    def __init__(self, run: Run, pipeline: Pipeline) -> None:
        self.run = run
        self.pipeline = pipeline
        self.nodes: dict[str, Node] = {}

    def child(self, parent: Node, name: str) -> Node | None:
        """The node of a task in a DAG, if it is started."""
        return self.nodes.get(f"{parent.path}.{name}")

    def iterations(self, loop: Node) -> Iterator[tuple[str, Node | None]]:
        """Paths and nodes of a loop's iterations."""
        for index in range(len(loop.items)):
            yield f"{loop.path}({index})", self.nodes.get(f"{loop.path}({index})")

    def task(self, node: Node) -> Json:
        """What the pipeline says of a node: the task it comes from; {} for the pipeline itself."""
        while node.kind != "loop" and self.nodes.get(node.parent, node).kind == "loop":
            node = self.nodes[node.parent]
        if not node.parent:
            return {}
        task: Json = self.pipeline.component(self.nodes[node.parent].component)["dag"]["tasks"][node.name]
        return task

    def scope(self, node: Node) -> Node:
        """The DAG whose inputs and tasks a node's own inputs refer to."""
        parent = self.nodes[node.parent]
        return self.nodes[parent.parent] if parent.kind == "loop" else parent

    def root_inputs(self, given: Json) -> Json:
        """Inputs of the pipeline: what the run gives, else its defaults, else null for what is optional."""
        inputs = no_values()
        for name, definition in compiled.parameters(self.pipeline.component(""), "input").items():
            if name in given:
                inputs["parameters"][name] = given[name]
            elif "defaultValue" in definition or definition.get("isOptional"):
                inputs["parameters"][name] = definition.get("defaultValue")
            else:
                raise InputError(f'the run has no value for parameter "{name}" of the pipeline')
        return inputs

    def resolve(self, scope: Node, name: str, task: Json) -> Json:
        """Inputs of a task in a DAG."""
        component = self.pipeline.component(compiled.component_name(task))
        definitions = compiled.parameters(component, "input")
        inputs = no_values()
        values: Json = inputs["parameters"]
        sources = task.get("inputs", {}).get("parameters", {})
        if "dag" in component:
            for parameter, definition in definitions.items():
                if parameter not in sources and definition.get("isOptional"):
                    values[parameter] = definition.get("defaultValue")
        for parameter, source in sources.items():
            definition = definitions.get(parameter, {})
            value = self.value(scope, name, task, source)
            if value is None:
                if not definition.get("isOptional"):
                    raise InputError(f'the resolved input parameter is null: "{parameter}"')
                continue
            if definition.get("literals") and value not in definition["literals"]:
                raise InputError(f'parameter "{parameter}" is {value!r}, allowed are {definition["literals"]}')
            if selector := source.get("parameterExpressionSelector"):
                value = select(selector, value)
            values[parameter] = value
        for artifact, source in task.get("inputs", {}).get("artifacts", {}).items():
            inputs["artifacts"][artifact] = self._artifacts(scope, artifact, source)
        iterator = task.get("parameterIterator", {})
        self._check(values, definitions, {iterator.get("itemInput", "")} if iterator else set())
        return inputs

    def items(self, task: Json, inputs: Json) -> list[Any]:
        """What a loop iterates over."""
        items = task["parameterIterator"].get("items", {})
        found = parse(items["raw"]) if "raw" in items else inputs["parameters"].get(items.get("inputParameter"))
        if isinstance(found, str):
            found = parse(found)
        if not isinstance(found, list):
            raise InputError(f"{found!r} is no list to iterate over")
        return found

    def iteration_inputs(self, loop: Node, index: int) -> Json:
        """Inputs of one iteration: those of the loop, with the item in place of the items."""
        iterator = self.task(loop)["parameterIterator"]
        source = iterator.get("items", {}).get("inputParameter", "")
        values = {name: value for name, value in loop.inputs["parameters"].items() if name != source}
        values[iterator["itemInput"]] = loop.items[index]
        self._check(values, compiled.parameters(self.pipeline.component(loop.component), "input"), {source})
        return {"parameters": values, "artifacts": dict(loop.inputs["artifacts"])}

    def value(self, scope: Node, name: str, task: Json, source: Json) -> Any:
        """What a parameter's source stands for; None where an optional input of the DAG has no value."""
        if "componentInputParameter" in source:
            parameter = source["componentInputParameter"]
            if parameter not in scope.inputs["parameters"]:
                raise InputError(f"parent DAG does not have input parameter {parameter}")
            return scope.inputs["parameters"][parameter]
        if "taskOutputParameter" in source:
            wanted = source["taskOutputParameter"]
            return self._output(scope, wanted["producerTask"], "parameters", wanted["outputParameterKey"])
        if "runtimeValue" in source:
            constant = source["runtimeValue"].get("constant")
            return self._names(scope, name).get(constant, constant) if isinstance(constant, str) else constant
        if "taskFinalStatus" in source:
            return self._final_status(scope, task)
        raise InputError(f"the source {source} of a parameter is not known")

    def _names(self, scope: Node, task_name: str) -> Json:
        """What constants may stand for; as in the real server only where they are the whole value."""
        return {
            "{{$.pipeline_job_name}}": self.run.display_name,
            "{{$.pipeline_job_resource_name}}": self.run.workflow,
            "{{$.pipeline_job_uuid}}": self.run.run_id,
            "{{$.pipeline_job_create_time_utc}}": self.run.created_at,
            "{{$.pipeline_job_schedule_time_utc}}": self.run.scheduled_at,
            "{{$.pipeline_task_name}}": task_name,
            # The real one is the number of the DAG's execution.
            "{{$.pipeline_task_uuid}}": digits(f"{self.run.run_id}/{scope.path}"),
        }

    def _final_status(self, scope: Node, task: Json) -> Json:
        producer = compiled.dependencies(task)[:1]
        node = self.child(scope, producer[0]) if producer else None
        if node is None:
            raise InputError("the task whose final status is wanted was not started")
        return {
            # The words of ML Metadata.
            "state": "COMPLETE" if node.state == SUCCEEDED else "FAILED",
            "pipelineTaskName": node.name,
            "pipelineJobResourceName": self.run.workflow,
            "error": {},
        }

    def _artifacts(self, scope: Node, name: str, source: Json) -> list[Json]:
        if "componentInputArtifact" in source:
            artifact = source["componentInputArtifact"]
            if artifact not in scope.inputs["artifacts"]:
                raise InputError(f"parent DAG does not have input artifact {artifact}")
            found: list[Json] = scope.inputs["artifacts"][artifact]
            return found
        if "taskOutputArtifact" in source:
            wanted = source["taskOutputArtifact"]
            listed: list[Json] = self._output(scope, wanted["producerTask"], "artifacts", wanted["outputArtifactKey"])
            return listed
        raise InputError(f"the source {source} of artifact {name!r} is not known")

    def _output(self, scope: Node, producer: str, side: str, key: str) -> Any:
        node = self.child(scope, producer)
        if node is None:
            raise InputError(f"producer task {producer} has not run")
        leaves, collected = self._leaves(node, side, key)
        if side == "artifacts":
            return [artifact for leaf in leaves for artifact in leaf]
        return leaves if collected else leaves[0]

    def _leaves(self, node: Node, side: str, key: str) -> tuple[list[Any], bool]:
        """The outputs behind an output of a node, and whether a loop collected them.

        What nested loops collect is one flat list, as in the real server.
        """
        if node.kind == "loop":
            found: list[Any] = []
            for path, iteration in self.iterations(node):
                if iteration is None:
                    raise InputError(f"iteration {path} has not run")
                found += self._leaves(iteration, side, key)[0]
            return found, True
        if node.kind == "dag":
            child, key = self._producer(node, side, key)
            return self._leaves(child, side, key)
        if key not in node.outputs[side]:
            raise InputError(f"task {node.name} is {node.state} and has no output {key}")
        return [node.outputs[side][key]], False

    def _producer(self, dag: Node, side: str, key: str) -> tuple[Node, str]:
        """The task inside a DAG that an output of the DAG comes from: of several, the one that succeeded."""
        outputs = self.pipeline.component(dag.component)["dag"].get("outputs", {}).get(side, {}).get(key, {})
        one = [outputs["valueFromParameter"]] if "valueFromParameter" in outputs else []
        selectors = (
            one
            or outputs.get("valueFromOneof", outputs)[
                "parameterSelectors" if side == "parameters" else "artifactSelectors"
            ]
        )
        for selector in selectors:
            child = self.child(dag, selector["producerSubtask"])
            if child is not None and (child.state == SUCCEEDED or len(selectors) == 1):
                return child, selector["outputParameterKey" if side == "parameters" else "outputArtifactKey"]
        raise InputError(f"no task of {dag.name} succeeded that gives its output {key}")

    @staticmethod
    def _check(values: Json, definitions: Json, without: set[str]) -> None:
        for name, definition in definitions.items():
            if name in without or (name not in values and definition.get("isOptional")):
                continue
            if name not in values and "defaultValue" not in definition:
                raise InputError(f'neither value nor default value provided for non-optional parameter "{name}"')
            value = values.get(name, definition.get("defaultValue"))
            if value is None and definition.get("isOptional"):
                continue
            try:
                values[name] = typed(name, value, definition.get("parameterType", ""))
            except ValueError as error:
                raise InputError(str(error)) from error


def digits(text: str) -> str:
    """A number that stands for a text, as Kubernetes names and ids of ML Metadata have."""
    return str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))


def parse(content: str) -> Any:
    """JSON; raises InputError."""
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{content[:200]!r} is no JSON: {error}") from error

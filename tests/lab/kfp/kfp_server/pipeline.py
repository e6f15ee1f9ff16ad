"""What a compiled pipeline says: its components, the tasks of each DAG and what they wait for, what Kubernetes shall do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

# Images by which the compiler asks the server itself for something.
CREATE_PVC, DELETE_PVC = "argostub/createpvc", "argostub/deletepvc"


class SpecError(Exception):
    """A pipeline that cannot be run as it is written."""


class Pipeline:
    """A compiled pipeline with its part for Kubernetes."""

    def __init__(self, pipeline_spec: Json, platform_spec: Json) -> None:
        self._spec = pipeline_spec
        kubernetes = platform_spec.get("platforms", {}).get("kubernetes", {})
        self._platform = kubernetes.get("deploymentSpec", {}).get("executors", {})
        self.config: Json = kubernetes.get("pipelineConfig", {})
        self.name: str = pipeline_spec.get("pipelineInfo", {}).get("name", "")
        self.default_root: str = pipeline_spec.get("defaultPipelineRoot", "")
        if not self.name or "dag" not in pipeline_spec.get("root", {}):
            raise SpecError("the pipeline has no pipelineInfo.name or no root.dag: is it compiled by kfp 2?")
        if "workspace" in self.config:
            raise SpecError("pipelineConfig.workspace is not part of the stand-in")

    def component(self, name: str) -> Json:
        """A component by its name; "" is the pipeline itself."""
        component = self._spec["root"] if not name else self._spec.get("components", {}).get(name)
        if component is None:
            raise SpecError(f"component {name!r} is not in the pipeline")
        found: Json = component
        return found

    def executor(self, component: Json) -> Json:
        """What a component that is no DAG runs: {"container": ...} or {"importer": ...}."""
        label = component.get("executorLabel", "")
        executor: Json = self._spec.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        if not {"container", "importer"} & set(executor):
            raise SpecError(f"executor {label!r} is neither a container nor an importer")
        return executor

    def kubernetes(self, component: Json) -> Json:
        """The component's settings by kfp-kubernetes."""
        settings: Json = self._platform.get(component.get("executorLabel", ""), {})
        return settings


def kind(pipeline: Pipeline, task: Json, iteration: bool = False) -> str:
    """How a task is run: as dag, loop, container, importer, createpvc or deletepvc."""
    if "artifactIterator" in task:
        raise SpecError("artifactIterator is not implemented")
    if "parameterIterator" in task and not iteration:
        return "loop"
    component = pipeline.component(component_name(task))
    if "dag" in component:
        return "dag"
    executor = pipeline.executor(component)
    if "importer" in executor:
        return "importer"
    return {CREATE_PVC: "createpvc", DELETE_PVC: "deletepvc"}.get(executor["container"].get("image", ""), "container")


def component_name(task: Json) -> str:
    """The component of a task."""
    name: str = task.get("componentRef", {}).get("name", "")
    if not name:
        raise SpecError(f"task {task.get('taskInfo', {}).get('name')!r} names no component")
    return name


def is_exit(task: Json) -> bool:
    """Whether a task runs however those before it ended: an exit handler, or one that ignores upstream failures."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED")


def dependencies(task: Json) -> list[str]:
    """The tasks of the same DAG that a task waits for: those it names and those whose outputs it takes."""
    names = set(task.get("dependentTasks", []))
    inputs = task.get("inputs", {})
    for source in inputs.get("parameters", {}).values():
        if "taskOutputParameter" in source:
            names.add(source["taskOutputParameter"].get("producerTask", ""))
    for source in inputs.get("artifacts", {}).values():
        if "taskOutputArtifact" in source:
            names.add(source["taskOutputArtifact"].get("producerTask", ""))
    return sorted(names)


def ordered(component: Json) -> Iterator[tuple[str, Json, list[str]]]:
    """The tasks of a DAG with their dependencies, each after those it waits for."""
    tasks: Json = component["dag"].get("tasks", {})
    needs = {name: dependencies(task) for name, task in tasks.items()}
    for name, wanted in needs.items():
        for unknown in set(wanted) - set(tasks):
            raise SpecError(f"task {name!r} waits for {unknown!r}, which is not in its DAG")
    done: set[str] = set()
    while len(done) < len(tasks):
        ready = sorted(name for name in tasks if name not in done and done.issuperset(needs[name]))
        if not ready:
            raise SpecError(f"tasks wait for each other in a circle: {', '.join(sorted(set(tasks) - done))}")
        for name in ready:
            yield name, tasks[name], needs[name]
        done.update(ready)


def parameters(component: Json, side: str) -> Json:
    """Definitions of the parameters of a component; side is input or output."""
    found: Json = component.get(f"{side}Definitions", {}).get("parameters", {})
    return found


def artifacts(component: Json, side: str) -> Json:
    """Definitions of the artifacts of a component."""
    found: Json = component.get(f"{side}Definitions", {}).get("artifacts", {})
    return found

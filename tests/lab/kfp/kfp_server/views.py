"""What the server shows of each thing. Empty fields are left out, as protobuf's JSON does, and the order is that of its messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import spec
from .store import RUN_NOT_FINISHED, TASK_NOT_FINISHED, Experiment, Json, Pipeline, RecurringRun, Run, Task, Version


def filled(**fields: Any) -> Json:
    """The fields that are not empty."""
    return {name: value for name, value in fields.items() if value not in ("", None, {}, [], False, 0)}


def experiment(item: Experiment) -> Json:
    """An experiment."""
    return filled(
        experiment_id=item.id,
        display_name=item.name,
        description=item.description,
        created_at=item.created_at,
        storage_state=item.storage_state,
        last_run_created_at=item.last_run_created_at or RUN_NOT_FINISHED,
    )


def pipeline(item: Pipeline) -> Json:
    """A pipeline."""
    return filled(
        pipeline_id=item.id,
        display_name=item.display_name,
        name=item.name,
        description=item.description,
        created_at=item.created_at,
        tags=item.tags,
    )


def version(item: Version) -> Json:
    """A version of a pipeline."""
    return filled(
        pipeline_id=item.parent,
        pipeline_version_id=item.id,
        display_name=item.display_name,
        name=item.name,
        description=item.description,
        created_at=item.created_at,
        pipeline_spec=spec.to_struct(item.pipeline_spec, item.platform_spec),
        tags=item.tags,
    )


def source(item: Run | RecurringRun) -> Json:
    """The pipeline of a run: the version that it was made from, or else the spec."""
    if item.pipeline_version_reference:
        return {"pipeline_version_reference": item.pipeline_version_reference}
    return {"pipeline_spec": spec.to_struct(item.pipeline_spec, item.platform_spec)}


def runtime_config(config: Json) -> Json:
    """The parameters, in order, and the root of the artifacts."""
    return filled(parameters=spec.ordered(config.get("parameters")), pipeline_root=config.get("pipeline_root"))


def run(item: Run, tasks: list[Task]) -> Json:
    """A run with its tasks."""
    return filled(
        experiment_id=item.experiment_id,
        run_id=item.run_id,
        display_name=item.display_name,
        storage_state=item.storage_state,
        description=item.description,
        **source(item),
        runtime_config=runtime_config(item.runtime_config),
        service_account=item.service_account,
        created_at=item.created_at,
        scheduled_at=item.scheduled_at,
        finished_at=item.finished_at or RUN_NOT_FINISHED,
        state=state_of(item),
        error=item.error,
        run_details=filled(task_details=[task(each) for each in tasks if each.shown]),
        recurring_run_id=item.recurring_run_id,
        state_history=item.state_history,
    )


def state_of(item: Run) -> str:
    """The state; a run that shall end is CANCELING before the engine has seen it."""
    return "CANCELING" if item.cancel and not item.final else item.state


def task(item: Task) -> Json:
    """A task of a run."""
    return filled(
        run_id=item.run_id,
        task_id=item.task_id,
        display_name=item.display_name,
        create_time=item.create_time,
        start_time=item.start_time,
        end_time=item.end_time or TASK_NOT_FINISHED,
        state=item.state,
        error=item.error,
        state_history=item.state_history,
        child_tasks=[{"pod_name": pod} for pod in item.pods],
    )


def recurring_run(item: RecurringRun, namespace: str) -> Json:
    """A recurring run."""
    return filled(
        recurring_run_id=item.id,
        display_name=item.display_name,
        description=item.description,
        **source(item),
        runtime_config=runtime_config(item.runtime_config),
        service_account=item.service_account,
        # JSON of protobuf has 64-bit numbers as strings.
        max_concurrency=str(item.max_concurrency),
        trigger={
            name: {key: str(value) if key == "interval_second" else value for key, value in schedule.items()}
            for name, schedule in item.trigger.items()
        },
        mode="ENABLE" if item.enabled else "DISABLE",
        created_at=item.created_at,
        updated_at=item.updated_at,
        status="ENABLED" if item.enabled else "DISABLED",
        no_catchup=item.no_catchup,
        namespace=namespace,
        experiment_id=item.experiment_id,
    )


# The fields of each thing that lists filter and sort by, first the key.
COMMON: dict[str, Callable[[Any], Any]] = {
    "id": lambda item: item.id,
    "name": lambda item: item.name,
    "display_name": lambda item: item.display_name,
    "created_at": lambda item: item.created_at,
    "description": lambda item: item.description,
}
PIPELINE_FIELDS = {**COMMON, "pipeline_id": COMMON["id"], "namespace": lambda _: ""}
VERSION_FIELDS = {**COMMON, "pipeline_version_id": COMMON["id"], "status": lambda _: "READY"}
EXPERIMENT_FIELDS: dict[str, Callable[[Experiment], Any]] = {
    **COMMON,
    "experiment_id": COMMON["id"],
    "display_name": COMMON["name"],
    "namespace": lambda _: "",
    "storage_state": lambda item: item.storage_state,
    "last_run_created_at": lambda item: item.last_run_created_at or RUN_NOT_FINISHED,
}
RECURRING_FIELDS: dict[str, Callable[[RecurringRun], Any]] = {
    **COMMON,
    "recurring_run_id": COMMON["id"],
    "name": COMMON["display_name"],
    "updated_at": lambda item: item.updated_at,
}
RUN_FIELDS: dict[str, Callable[[Run], Any]] = {
    "run_id": lambda item: item.run_id,
    "id": lambda item: item.run_id,
    "name": lambda item: item.display_name,
    "display_name": lambda item: item.display_name,
    "description": lambda item: item.description,
    "created_at": lambda item: item.created_at,
    "scheduled_at": lambda item: item.scheduled_at,
    "finished_at": lambda item: item.finished_at or RUN_NOT_FINISHED,
    "storage_state": lambda item: item.storage_state,
    "state": state_of,
    "status": state_of,
    "experiment_id": lambda item: item.experiment_id,
    "recurring_run_id": lambda item: item.recurring_run_id,
    "namespace": lambda _: "",
}

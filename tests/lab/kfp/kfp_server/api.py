"""REST API v2beta1 of Kubeflow Pipelines 2.17 in single-user mode: what its requests do, as the KFP SDK and plain HTTP clients use it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from . import messages, schedules, spec, views
from .errors import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    NOT_FOUND,
    ApiError,
    bad_request,
    exists,
    failing,
    internal,
    invalid,
    not_found,
    trying,
)
from .listing import page
from .store import (
    Conflict,
    Definition,
    Experiment,
    Json,
    Pipeline,
    RecurringRun,
    Run,
    Store,
    Version,
    new_id,
    now,
    workflow_name,
)

LOG = logging.getLogger(__name__)
DEFAULT_EXPERIMENT = "Default"
CANCELABLE = frozenset({"PENDING", "RUNNING", "PAUSED"})
MAX_NAME = 128

D = TypeVar("D", bound=Definition)


@dataclass
class Call:
    """One request: the variables of its path, its query and its body."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file_name: str | None = None
    file: bytes = b""


Handler = Callable[["Api", Call], Json]
ROUTES: list[tuple[str, str, Handler]] = []


def route(method: str, path: str) -> Callable[[Handler], Handler]:
    """Serve a path below /apis/v2beta1 with a method of `Api`."""

    def keep(handler: Handler) -> Handler:
        ROUTES.append((method, "/apis/v2beta1" + path, handler))
        return handler

    return keep


class Api:
    """What the requests do. Errors say what the real server says, its detours included."""

    def __init__(
        self,
        store: Store,
        namespace: str,
        service_account: str = "pipeline-runner",
        read_artifact: Callable[[str], bytes] | None = None,
    ) -> None:
        """Serve what is in `store`; `read_artifact` reads what an artifact's URI leads to."""
        self.store = store
        self.namespace = namespace
        self.service_account = service_account
        self.read_artifact = read_artifact

    # Pipelines

    def upload(self, call: Call) -> Json:
        """Create a pipeline with its first version from a file."""
        name, display_name, content, tags = _upload(call)
        description = call.query.get("description", "")
        pipeline = Pipeline(name=name, display_name=display_name, description=description, tags=tags)
        pipeline_spec, platform_spec = spec.parse(content)
        version = Version(
            parent=pipeline.id,
            name=name,
            display_name=display_name,
            description=description,
            pipeline_spec=pipeline_spec,
            platform_spec=platform_spec,
        )
        self._add(
            f"Failed to create a new pipeline. The name {name} already exists. Please specify a new name",
            pipeline,
            version,
        )
        return views.pipeline(pipeline)

    def upload_version(self, call: Call) -> Json:
        """Add a version to a pipeline from a file."""
        name, display_name, content, tags = _upload(call)
        pipeline_id = call.query.get("pipelineid", "")
        if not pipeline_id or self.store.get(Pipeline, pipeline_id) is None:
            raise ApiError(INVALID_ARGUMENT, "", "Failed to create a pipeline version")
        pipeline_spec, platform_spec = spec.parse(content)
        version = Version(
            parent=pipeline_id,
            name=name,
            display_name=display_name,
            description=call.query.get("description", ""),
            tags=tags,
            pipeline_spec=pipeline_spec,
            platform_spec=platform_spec,
        )
        self._add(
            f"Failed to create a new pipeline version. The name {name} already exist. Specify a new name", version
        )
        return views.version(version)

    @route("POST", "/pipelines")
    def create_pipeline(self, call: Call) -> Json:
        """Create a pipeline without version."""
        body = messages.read(call.body, messages.PIPELINE)
        with trying("Failed to create a pipeline due to server error"):
            name = body.get("name") or body.get("display_name", "")
            if not name:
                raise invalid("name is required")
            _check_length("Pipeline", name)
            pipeline = Pipeline(
                name=name,
                display_name=body.get("display_name") or name,
                description=body.get("description", ""),
                tags=body.get("tags", {}),
            )
            with trying("Failed to create a pipeline in PipelineStore"):
                self._add(
                    f"Failed to create a new pipeline. The name {name} already exist. Please specify a new name",
                    pipeline,
                )
        return views.pipeline(pipeline)

    @route("GET", "/pipelines")
    def list_pipelines(self, call: Call) -> Json:
        """A page of the pipelines."""
        with trying("Failed to list pipelines due invalid list options"):
            items, rest = page(self.store.all(Pipeline), call.query, views.PIPELINE_FIELDS, "Pipeline")
        return views.filled(pipelines=[views.pipeline(item) for item in items], **rest)

    @route("GET", "/pipelines/names/{name}")
    def get_pipeline_by_name(self, call: Call) -> Json:
        """A pipeline by its name."""
        name = call.path["name"]
        found = [item for item in self.store.all(Pipeline) if item.name == name]
        if not found:
            with trying(
                f"Failed to get a pipeline with name {name} and namespace . Check error stack.",
                f"Failed to get a pipeline named {name} in namespace ",
            ):
                raise not_found("Namespace/Pipeline", f"/{name}")
        return views.pipeline(found[0])

    @route("GET", "/pipelines/{pipeline_id}")
    def get_pipeline(self, call: Call) -> Json:
        """A pipeline."""
        pipeline_id = call.path["pipeline_id"]
        with trying(
            f"Failed to get a pipeline {pipeline_id}. Check error stack",
            f"Failed to get a pipeline with id {pipeline_id}",
        ):
            return views.pipeline(self._get(Pipeline, "Pipeline", pipeline_id))

    @route("PATCH", "/pipelines/{pipeline_id}")
    def update_pipeline(self, call: Call) -> Json:
        """Change display name and tags of a pipeline."""
        with trying(f"Failed to update pipeline {call.path['pipeline_id']}. Check error stack"):
            return views.pipeline(self._rename(Pipeline, "Pipeline", call.path["pipeline_id"], call, messages.PIPELINE))

    @route("DELETE", "/pipelines/{pipeline_id}")
    def delete_pipeline(self, call: Call) -> Json:
        """Delete a pipeline, with its versions only if asked to."""
        pipeline_id = call.path["pipeline_id"]
        with trying(f"Failed to delete pipeline {pipeline_id}. Check error stack"):
            with trying(f"Failed to delete pipeline with id {pipeline_id} as it was not found"):
                pipeline = self._get(Pipeline, "Pipeline", pipeline_id)
            versions = self.store.all(Version, pipeline_id)
            if versions and call.query.get("cascade") != "true":
                raise invalid(
                    f"Failed to delete pipeline with id {pipeline_id} as it has existing pipeline versions "
                    f"(e.g. {_latest(versions).id}). Set cascade=true to delete all versions"
                )
            self.store.remove(pipeline)
        return {}

    # Versions

    @route("GET", "/pipelines/{pipeline_id}/versions")
    def list_versions(self, call: Call) -> Json:
        """A page of the versions of a pipeline."""
        pipeline_id = call.path["pipeline_id"]
        with trying(f"Failed to list pipeline versions for pipeline {pipeline_id}"):
            items, rest = page(
                self.store.all(Version, pipeline_id), call.query, views.VERSION_FIELDS, "PipelineVersion"
            )
        return views.filled(pipeline_versions=[views.version(item) for item in items], **rest)

    @route("GET", "/pipelines/{pipeline_id}/versions/{version_id}")
    def get_version(self, call: Call) -> Json:
        """A version; as in the real server its id alone counts."""
        version_id = call.path["version_id"]
        with trying(
            f"Failed to get a pipeline version {version_id}", f"Failed to get a pipeline version with id {version_id}"
        ):
            return views.version(self._get(Version, "PipelineVersion", version_id))

    @route("PATCH", "/pipelines/{pipeline_id}/versions/{version_id}")
    def update_version(self, call: Call) -> Json:
        """Change display name and tags of a version."""
        with trying(f"Failed to update pipeline version {call.path['version_id']}. Check error stack"):
            return views.version(
                self._rename(Version, "PipelineVersion", call.path["version_id"], call, messages.VERSION)
            )

    @route("DELETE", "/pipelines/{pipeline_id}/versions/{version_id}")
    def delete_version(self, call: Call) -> Json:
        """Delete a version."""
        pipeline_id, version_id = call.path["pipeline_id"], call.path["version_id"]
        with trying(
            f"Failed to delete a pipeline version id {version_id} under pipeline id {pipeline_id}. Check error stack",
            f"Failed to delete pipeline version with id {version_id} as it was not found",
        ):
            self.store.remove(self._get(Version, "PipelineVersion", version_id))
        return {}

    # Experiments

    def default_experiment(self) -> Experiment:
        """The experiment of runs that name none; made when it is missing."""
        with self.store.lock:
            found = [item for item in self.store.all(Experiment) if item.name == DEFAULT_EXPERIMENT]
            if found:
                return found[0]
            experiment = Experiment(
                name=DEFAULT_EXPERIMENT,
                description="All runs created without specifying an experiment will be grouped here.",
            )
            self.store.add(experiment)
            return experiment

    @route("POST", "/experiments")
    def create_experiment(self, call: Call) -> Json:
        """Create an experiment."""
        body = messages.read(call.body, messages.EXPERIMENT)
        name = body.get("display_name", "")
        with (
            trying("[ExperimentServer]: Failed to create a experiment due to conversion error"),
            failing("Failed to convert API experiment to model experiment"),
        ):
            if not name:
                raise invalid("Experiment must have a non-empty name")
            _check_length("Experiment", name)
        experiment = Experiment(name=name, description=body.get("description", ""))
        with trying("Failed to create a experiment"):
            self._add(
                f"Failed to create a new experiment. The name {name} already exists. Please specify a new name",
                experiment,
            )
        return views.experiment(experiment)

    @route("GET", "/experiments")
    def list_experiments(self, call: Call) -> Json:
        """A page of the experiments."""
        items, rest = page(self.store.all(Experiment), call.query, views.EXPERIMENT_FIELDS, "Experiment")
        return views.filled(experiments=[views.experiment(item) for item in items], **rest)

    @route("GET", "/experiments/{experiment_id}")
    def get_experiment(self, call: Call) -> Json:
        """An experiment."""
        with trying("Failed to fetch experiment"):
            return views.experiment(self._get(Experiment, "Experiment", call.path["experiment_id"]))

    @route("DELETE", "/experiments/{experiment_id}")
    def delete_experiment(self, call: Call) -> Json:
        """Delete an experiment; its runs stay."""
        experiment_id = call.path["experiment_id"]
        with trying("Failed to delete experiment"):
            if experiment_id == self.default_experiment().id:
                raise bad_request(
                    f"Failed to delete experiment {experiment_id}. The default experiment cannot be deleted",
                    f"Invalid input error: Experiment id cannot be equal to the default id {experiment_id}",
                )
            with trying(f"Failed to delete experiment {experiment_id} due to error fetching it"):
                self.store.remove(self._get(Experiment, "Experiment", experiment_id))
        return {}

    @route("POST", "/experiments/{experiment_id}:archive")
    def archive_experiment(self, call: Call) -> Json:
        """Archive an experiment and its runs, and stop its schedules. One that does not exist is no error, as in the real server."""
        experiment_id = call.path["experiment_id"]
        with self.store.lock:
            self._set_experiment(experiment_id, "ARCHIVED")
            for run in self.store.list_runs():
                if run.experiment_id == experiment_id:
                    self.store.set_storage_state(run.run_id, "ARCHIVED")
            for recurring in self.store.all(RecurringRun):
                if recurring.experiment_id == experiment_id:
                    self._enable(recurring, False)
        return {}

    @route("POST", "/experiments/{experiment_id}:unarchive")
    def unarchive_experiment(self, call: Call) -> Json:
        """Bring an experiment back; its runs stay archived."""
        self._set_experiment(call.path["experiment_id"], "AVAILABLE")
        return {}

    def _set_experiment(self, experiment_id: str, storage_state: str) -> None:
        with self.store.lock:
            experiment = self.store.get(Experiment, experiment_id)
            if experiment:
                experiment.storage_state = storage_state
                self.store.update(experiment)

    # Runs

    @route("POST", "/runs")
    def create_run(self, call: Call) -> Json:
        """Start a run of a spec or of a version."""
        body = messages.read(call.body, messages.RUN)
        if not body.get("display_name"):
            with trying("CreateJob(job.ToV2())Failed to create a run due to conversion error"):
                raise internal(
                    "Failed to convert a API run detail to its internal representation",
                    "Invalid input error: Run name cannot be empty",
                )
        with trying("Failed to create a new run"):
            run = Run(
                display_name=body["display_name"],
                description=body.get("description", ""),
                runtime_config=body.get("runtime_config", {}),
                service_account=body.get("service_account") or self.service_account,
                recurring_run_id=body.get("recurring_run_id", ""),
            )
            with trying("Failed to create a run due to invalid experimentId and namespace combination"):
                run.experiment_id = self._experiment_id(body)
            self._start(run, body)
        return views.run(run, [])

    def _start(self, run: Run, source: Json) -> None:
        """Complete a run from its source, check its parameters and keep it."""
        with failing("Failed to create a run due to error fetching manifest"):
            run.pipeline_spec, run.platform_spec, run.pipeline_version_reference = self._source(source)
        spec.check_references(run.pipeline_spec)
        with trying("Failed to generate the ExecutionSpec"):
            spec.check_parameters(run.pipeline_spec, run.runtime_config.get("parameters", {}))
        run.workflow = run.workflow or workflow_name(run.pipeline_spec["pipelineInfo"]["name"])
        run.enter("PENDING")
        with self.store.lock:
            self.store.add_run(run)
            experiment = self.store.get(Experiment, run.experiment_id)
            if experiment:
                experiment.last_run_created_at = run.created_at
                self.store.update(experiment)
        LOG.info("run %s (%s) of pipeline %s", run.run_id, run.display_name, run.pipeline_spec["pipelineInfo"]["name"])

    def _experiment_id(self, body: Json) -> str:
        experiment_id: str = body.get("experiment_id", "")
        if not experiment_id:
            return self.default_experiment().id
        with trying(
            f"Failed to fetch namespace for experiment {experiment_id}",
            f"Failed to fetch namespace from experiment {experiment_id}",
        ):
            return self._get(Experiment, "Experiment", experiment_id).id

    def _source(self, body: Json) -> tuple[Json, Json, Json]:
        """Pipeline spec, platform spec and reference of what a run or a recurring run is made from."""
        reference = body.get("pipeline_version_reference", {})
        version_id, pipeline_id = reference.get("pipeline_version_id", ""), reference.get("pipeline_id", "")
        if not version_id and not pipeline_id:
            if not body.get("pipeline_spec"):
                raise invalid("Failed to fetch a template with an empty pipeline spec manifest")
            with trying("Failed to fetch a template with an invalid pipeline spec manifest"):
                return *spec.from_struct(body["pipeline_spec"]), {}
        with trying("Failed to fetch a template due to error retrieving pipeline version"):
            version = self._version(pipeline_id, version_id)
        return (
            version.pipeline_spec,
            version.platform_spec,
            {"pipeline_id": version.parent, "pipeline_version_id": version.id},
        )

    def _version(self, pipeline_id: str, version_id: str) -> Version:
        if not version_id:
            with trying(f"Failed to fetch a pipeline version and its manifest from pipeline {pipeline_id}"):
                with trying("Failed to get the latest pipeline version as pipeline was not found"):
                    self._get(Pipeline, "Pipeline", pipeline_id)
                versions = self.store.all(Version, pipeline_id)
                if not versions:
                    raise not_found("PipelineVersion", pipeline_id)
                return _latest(versions)
        with trying(
            f"Failed to fetch a pipeline version and its manifest from pipeline version {version_id}",
            f"Failed to get a pipeline version with id {version_id}",
        ):
            version = self._get(Version, "PipelineVersion", version_id)
        if pipeline_id and version.parent != pipeline_id:
            raise invalid(f"Pipeline version {version_id} belongs to pipeline {version.parent} (not {pipeline_id})")
        return version

    @route("GET", "/runs")
    def list_runs(self, call: Call) -> Json:
        """A page of the runs, of an experiment or all."""
        experiment_id = call.query.get("experiment_id", "")
        if experiment_id:
            with trying("Failed to list runs"):
                self._get(Experiment, "Experiment", experiment_id)
        runs = [run for run in self.store.list_runs() if experiment_id in ("", run.experiment_id)]
        items, rest = page(runs, call.query, views.RUN_FIELDS, "Run")
        return views.filled(runs=[views.run(item, self.store.tasks(item.run_id)) for item in items], **rest)

    @route("GET", "/runs/{run_id}")
    def get_run(self, call: Call) -> Json:
        """A run with its tasks."""
        with trying("Failed to get a run"):
            run = self._run(call)
        return views.run(run, self.store.tasks(run.run_id))

    @route("DELETE", "/runs/{run_id}")
    def delete_run(self, call: Call) -> Json:
        """Delete a run and, by the engine, its pods."""
        with trying("Failed to delete a run", f"Failed to delete run {call.path['run_id']} as it does not exist"):
            self.store.remove_run(self._run(call).run_id)
        return {}

    @route("POST", "/runs/{run_id}:archive")
    def archive_run(self, call: Call) -> Json:
        """Archive a run."""
        with trying(
            "Failed to archive a run", f"Failed to archive run {call.path['run_id']} as it failed to be retrieved"
        ):
            self.store.set_storage_state(self._run(call).run_id, "ARCHIVED")
        return {}

    @route("POST", "/runs/{run_id}:unarchive")
    def unarchive_run(self, call: Call) -> Json:
        """Bring a run back, unless its experiment is archived."""
        run_id = call.path["run_id"]
        with trying("Failed to unarchive a run"):
            with trying(f"Failed to unarchive run {run_id} as it does not exist"):
                run = self._run(call)
            with trying(f"Failed to unarchive run {run_id} due to experiment fetching error"):
                experiment = self._get(Experiment, "Experiment", run.experiment_id)
            if experiment.storage_state == "ARCHIVED":
                message = f"Failed to unarchive run {run_id} as experiment {experiment.id} must be un-archived first"
                reason = "Unarchive the experiment first to allow the run to be restored"
                raise ApiError(FAILED_PRECONDITION, f"FailedPreconditionError: {message}: {reason}", message)
            self.store.set_storage_state(run_id, "AVAILABLE")
        return {}

    @route("POST", "/runs/{run_id}:terminate")
    def terminate_run(self, call: Call) -> Json:
        """Ask for the end of a run."""
        run_id = call.path["run_id"]
        with trying("Failed to terminate a run"):
            with trying(f"Failed to terminate run {run_id} due to error fetching the run"):
                run = self._run(call)
            if views.state_of(run) not in CANCELABLE:
                with trying(f"Failed to terminate run {run_id}"):
                    raise invalid(f"Failed to terminate a run {run_id}. Row not found")
            self.store.cancel_run(run_id)
        return {}

    @route("POST", "/runs/{run_id}:retry")
    def retry_run(self, call: Call) -> Json:
        """Let a failed run go on from where it failed."""
        run_id = call.path["run_id"]
        with trying("Failed to retry a run"), self.store.lock:
            with trying(f"Failed to retry run {run_id} due to error fetching the run"):
                run = self._run(call)
            if run.state not in ("FAILED", "CANCELED"):
                with trying(f"Failed to retry run {run_id}"):
                    raise bad_request("Workflow must be Failed/Error to retry", "workflow cannot be retried")
            self.store.retry_run(run)
        return {}

    @route("GET", "/runs/{run_id}/nodes/{node_id}/artifacts/{artifact_name}:read")
    def read_run_artifact(self, call: Call) -> Json:
        """What a task kept, in base64; a node is the name of the task's pod."""
        run_id, node, name = call.path["run_id"], call.path["node_id"], call.path["artifact_name"]
        uris = [
            task.state_json.get("artifacts", {}).get("executor-logs" if name == "main-logs" else name)
            for task in self.store.tasks(run_id)
            if node in task.pods
        ]
        if self.read_artifact is None or not any(uris):
            raise ApiError(NOT_FOUND, "", "artifact not found: <nil>")
        return {"data": base64.b64encode(self.read_artifact(next(uri for uri in uris if uri))).decode()}

    # Recurring runs

    @route("POST", "/recurringruns")
    def create_recurring_run(self, call: Call) -> Json:
        """Create a schedule."""
        body = messages.read(call.body, messages.RECURRING_RUN)
        with trying("Failed to create a recurring run due to conversion error"):
            recurring = _recurring_run(body, self.service_account)
        with trying("Failed to create a recurring run"):
            with trying("Failed to create a recurring run due to invalid experimentId and namespace combination"):
                recurring.experiment_id = self._experiment_id(body)
            with failing("Failed to create a recurring run with an invalid pipeline spec manifest"):
                pipeline_spec, platform_spec, reference = self._source(body)
            if reference:
                # Without a version it is the latest one at the time of each run.
                recurring.pipeline_version_reference = dict(body["pipeline_version_reference"])
            else:
                recurring.pipeline_spec, recurring.platform_spec = pipeline_spec, platform_spec
            with trying("Failed to create a recurring run during scheduled workflow creation"):
                spec.check_parameters(pipeline_spec, recurring.runtime_config.get("parameters", {}))
        self.store.add(recurring)
        return views.recurring_run(recurring, self.namespace)

    @route("GET", "/recurringruns")
    def list_recurring_runs(self, call: Call) -> Json:
        """A page of the schedules, of an experiment or all."""
        experiment_id = call.query.get("experiment_id", "")
        found = [item for item in self.store.all(RecurringRun) if experiment_id in ("", item.experiment_id)]
        items, rest = page(found, call.query, views.RECURRING_FIELDS, "Job")
        return views.filled(recurringRuns=[views.recurring_run(item, self.namespace) for item in items], **rest)

    @route("GET", "/recurringruns/{recurring_run_id}")
    def get_recurring_run(self, call: Call) -> Json:
        """A schedule."""
        with trying("Failed to fetch a recurring run"):
            return views.recurring_run(self._recurring(call), self.namespace)

    @route("DELETE", "/recurringruns/{recurring_run_id}")
    def delete_recurring_run(self, call: Call) -> Json:
        """Delete a schedule; its runs stay."""
        recurring_run_id = call.path["recurring_run_id"]
        with trying(
            "Failed to delete a recurring run", f"Failed to delete recurring run {recurring_run_id}. Check if exists"
        ):
            self.store.remove(self._recurring(call))
        return {}

    @route("POST", "/recurringruns/{recurring_run_id}:enable")
    def enable_recurring_run(self, call: Call) -> Json:
        """Let a schedule run."""
        with trying("Failed to enable a recurring run"):
            self._switch(call, True)
        return {}

    @route("POST", "/recurringruns/{recurring_run_id}:disable")
    def disable_recurring_run(self, call: Call) -> Json:
        """Stop a schedule."""
        with trying("Failed to disable a recurring run"):
            self._switch(call, False)
        return {}

    def _switch(self, call: Call, enabled: bool) -> None:
        recurring_run_id = call.path["recurring_run_id"]
        with (
            trying(
                f"Failed to change recurring run's mode to enable:{str(enabled).lower()}. "
                f"Check if recurring run {recurring_run_id} exists"
            ),
            self.store.lock,
        ):
            self._enable(self._recurring(call), enabled)

    def _enable(self, recurring: RecurringRun, enabled: bool) -> None:
        recurring.enabled, recurring.updated_at = enabled, now()
        self.store.update(recurring)

    def trigger(self, recurring: RecurringRun, name: str, scheduled_at: str) -> None:
        """Start the run of a schedule."""
        run_id = new_id()
        config = {**recurring.runtime_config}
        if "parameters" in config:
            config["parameters"] = spec.expand(config["parameters"], run_id, scheduled_at, recurring.triggered)
        run = Run(
            run_id=run_id,
            experiment_id=recurring.experiment_id,
            display_name=name,
            workflow=name,
            runtime_config=config,
            service_account=recurring.service_account,
            recurring_run_id=recurring.id,
            scheduled_at=scheduled_at,
        )
        source: Json = {"pipeline_version_reference": recurring.pipeline_version_reference}
        if recurring.pipeline_spec:
            source = {"pipeline_spec": spec.to_struct(recurring.pipeline_spec, recurring.platform_spec)}
        self._start(run, source)

    # What the requests have in common

    def _get(self, kind: type[D], name: str, id: str) -> D:
        found = self.store.get(kind, id)
        if found is None:
            raise not_found(name, id)
        return found

    def _run(self, call: Call) -> Run:
        run_id = call.path["run_id"]
        run = self.store.run(run_id)
        if run is None:
            with trying(f"Failed to fetch run {run_id}"):
                raise not_found("Run", run_id)
        return run

    def _recurring(self, call: Call) -> RecurringRun:
        return self._get(RecurringRun, "Job", call.path["recurring_run_id"])

    def _add(self, taken: str, *items: Definition) -> None:
        try:
            self.store.add(*items)
        except Conflict as error:
            raise exists(taken) from error

    def _rename(self, kind: type[D], name: str, id: str, call: Call, schema: messages.Schema) -> D:
        body = messages.read(call.body, schema)
        with self.store.lock:
            item = self._get(kind, name, id)
            item.display_name = body.get("display_name") or item.display_name
            if isinstance(item, (Pipeline, Version)) and "tags" in body:
                item.tags = body["tags"]
            self.store.update(item)
        return item


def _latest(versions: list[Version]) -> Version:
    return max(versions, key=lambda version: version.created_at)


def _check_length(kind: str, name: str) -> None:
    if len(name) > MAX_NAME:
        raise invalid(f"{kind}.Name length cannot exceed {MAX_NAME}")


def _recurring_run(body: Json, service_account: str) -> RecurringRun:
    """A schedule from a request, without its pipeline."""
    name = body.get("display_name", "")
    if not name:
        raise internal(
            "Failed to convert a API recurring run to its internal representation",
            "Invalid input error: Recurring run's name cannot be empty",
        )
    if body.get("mode", "MODE_UNSPECIFIED") == "MODE_UNSPECIFIED":
        raise invalid("Recurring run's mode cannot be unspecified: it is ENABLE or DISABLE")
    concurrency = body.get("max_concurrency", 0)
    if not 1 <= concurrency <= 10:
        raise invalid(f"Max concurrency of a recurring run must be at least 1 and at most 10. Received {concurrency}")
    trigger = body.get("trigger", {})
    if "cron_schedule" in trigger:
        schedules.after(trigger["cron_schedule"].get("cron", ""))
    interval = trigger.get("periodic_schedule", {"interval_second": 1}).get("interval_second", 0)
    if interval < 1:
        raise invalid(f"Found invalid period schedule interval {interval}. Set at interval to least 1 second")
    recurring = RecurringRun(
        display_name=name,
        description=body.get("description", ""),
        workflow=schedules.workflow_name(name),
        runtime_config=body.get("runtime_config", {}),
        service_account=body.get("service_account") or service_account,
        max_concurrency=concurrency,
        no_catchup=body.get("no_catchup", False),
        trigger=trigger,
        enabled=body["mode"] == "ENABLE",
    )
    recurring.name = recurring.id
    return recurring


def _upload(call: Call) -> tuple[str, str, bytes, dict[str, str]]:
    """Name, display name, content and tags of an upload."""
    if call.file_name is None:
        raise ApiError(INVALID_ARGUMENT, "", "Failed to read pipeline from file")
    content = spec.read_file(call.file_name, call.file)
    name = call.query.get("name") or call.query.get("display_name") or call.file_name
    _check_length("Pipeline", name)
    try:
        tags = json.loads(call.query.get("tags") or "{}")
        if not all(isinstance(each, str) for each in (*tags, *tags.values())):
            raise ValueError
    except (ValueError, AttributeError) as error:
        message = "Failed to parse tags query parameter. Expected JSON object with string keys and values"
        raise ApiError(INVALID_ARGUMENT, "", message) from error
    return name, call.query.get("display_name") or name, content, tags

"""Runs on Kubeflow Pipelines as tasks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from slipway_dataops.hooks import KubeflowPipelinesHook
from slipway_dataops.kfp import Away, KubeflowPipelinesError, run_name
from slipway_dataops.triggers import KubeflowPipelinesRunTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

Json = dict[str, Any]


class KubeflowPipelinesRunOperator(BaseOperator):
    """Runs a pipeline that was uploaded before, and waits for the end of the run.

    A run has a name made of `pipeline` and `run_key`, which by default says DAG, task and data interval (or the DAG run, where it
    has no interval). The task looks for a run of that name that is under way or has succeeded before it makes one: a task that is
    tried again, or triggered twice, leads to one run. A run that failed or was terminated is not tried again by `retries`, which
    are for a server that is away; who clears the task starts a new one.

    A person who ends the task ends the run, as does the time limit.

    Args:
        pipeline: name of the pipeline.
        version: name of its version; the newest by default.
        parameters: of the run, each of the type that the pipeline wants.
        experiment: which the run belongs to.
        run_key: names this work among all of the pipeline's.
        wait: whether to wait for the end.
        timeout: for the whole run, s.
        poll: between two looks, s.
        away: how long the server may be away, s.
        deferrable: whether to wait in the triggerer; by default what `[operators] default_deferrable` says.
        kubeflow_pipelines_conn_id: name of the connection.
    """

    template_fields: Sequence[str] = ("pipeline", "version", "parameters", "experiment", "run_key")
    template_fields_renderers: ClassVar[dict[str, str]] = {"parameters": "json"}
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        pipeline: str,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        experiment: str = "airflow",
        run_key: str | None = None,
        wait: bool = True,
        timeout: float = 6 * 3600,
        poll: float = 15.0,
        away: float = 600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        kubeflow_pipelines_conn_id: str = KubeflowPipelinesHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline, self.version, self.parameters = pipeline, version, parameters
        self.experiment, self.run_key = experiment, run_key
        self.wait, self.timeout, self.poll, self.away, self.deferrable = wait, timeout, poll, away, deferrable
        self.kubeflow_pipelines_conn_id = kubeflow_pipelines_conn_id
        self._run_id: str | None = None

    def execute(self, context: Context) -> Json:
        """Finds or makes the run, and waits."""
        name = run_name(self.pipeline, self.run_key or default_key(context))
        hook = self._hook()
        origin = f"Airflow: DAG {context['dag'].dag_id}, run {context['run_id']}, task {self.task_id}"
        try:
            run, started = hook.submit(
                self.pipeline, self.version, self.experiment, name, self.parameters or {}, origin
            )
        except Away as error:
            raise AirflowException(str(error)) from error
        except KubeflowPipelinesError as error:
            # What the server refuses now it will refuse again.
            raise AirflowFailException(str(error)) from error
        self.log.info("%s run %s (%s)", "started" if started else "found", run.run_id, name)
        if not self.wait or run.final:
            return run.facts()
        self._run_id = run.run_id
        deadline = time.time() + self.timeout
        if self.deferrable:
            self.defer(
                trigger=KubeflowPipelinesRunTrigger(
                    self.kubeflow_pipelines_conn_id, run.run_id, deadline, self.poll, self.away, owns_run=True
                ),
                method_name="execute_complete",
            )
        event = hook.outcome(run.run_id, deadline, self.poll)
        return self.execute_complete(context, event)

    def execute_complete(self, context: Context, event: Json) -> Json:
        """Judges how the waiting ended."""
        if event["status"] == "overdue":
            self._hook().terminate(event["run_id"])
            event = {**event, "message": f"{event['message']} after {self.timeout:g} s and was terminated"}
        self._run_id = None
        return judge(event)

    def on_kill(self) -> None:
        """Ends the run with the task."""
        if self._run_id:
            self.log.info("terminating run %s", self._run_id)
            self._hook(away=20).terminate(self._run_id)

    def _hook(self, away: float | None = None) -> KubeflowPipelinesHook:
        return KubeflowPipelinesHook(self.kubeflow_pipelines_conn_id, self.away if away is None else away)


def default_key(context: Context) -> str:
    """DAG, task and data interval; the DAG run stands for an interval that there is not."""
    ti = context["ti"]
    start, end = context.get("data_interval_start"), context.get("data_interval_end")
    when = f"{start.isoformat()}/{end.isoformat()}" if start and end else context["run_id"]
    index = f"[{ti.map_index}]" if (ti.map_index or 0) >= 0 and ti.map_index is not None else ""
    return f"{ti.dag_id}.{ti.task_id}{index} {when}"


def judge(event: Json) -> Json:
    """The run of a trigger's event.

    Raises:
        AirflowException: the server was away for too long; trying again may help.
        AirflowFailException: the run has not succeeded.
    """
    if event["status"] == "succeeded":
        return dict(event["run"])
    if event["status"] == "away":
        raise AirflowException(event["message"])
    raise AirflowFailException(event["message"])

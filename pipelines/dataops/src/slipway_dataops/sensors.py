"""Waiting for a run that somebody else started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from slipway_dataops.hooks import KubeflowPipelinesHook
from slipway_dataops.kfp import Away, KubeflowPipelinesError
from slipway_dataops.operators import judge
from slipway_dataops.triggers import KubeflowPipelinesRunTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context

Json = dict[str, Any]


class KubeflowPipelinesRunSensor(BaseSensorOperator):
    """Waits until a run has succeeded; the run goes on whatever becomes of the task.

    `timeout`, `poke_interval`, `mode` and `soft_fail` are those of every sensor.

    Args:
        run_id: of the run.
        away: how long the server may be away, s.
        deferrable: whether to wait in the triggerer; by default what `[operators] default_deferrable` says.
        kubeflow_pipelines_conn_id: name of the connection.
    """

    template_fields: Sequence[str] = ("run_id",)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        run_id: str,
        away: float = 600.0,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        kubeflow_pipelines_conn_id: str = KubeflowPipelinesHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run_id, self.away, self.deferrable = run_id, away, deferrable
        self.kubeflow_pipelines_conn_id = kubeflow_pipelines_conn_id

    def execute(self, context: Context) -> Any:
        """Waits in the triggerer, or here."""
        if not self.deferrable:
            return super().execute(context)
        self.defer(
            trigger=KubeflowPipelinesRunTrigger(
                self.kubeflow_pipelines_conn_id,
                self.run_id,
                time.time() + float(self.timeout),
                float(self.poke_interval),
                self.away,
                owns_run=False,
            ),
            method_name="execute_complete",
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """Looks once."""
        hook = KubeflowPipelinesHook(self.kubeflow_pipelines_conn_id, self.away)
        try:
            run = hook.run(self.run_id)
            if run.final and run.state != "SUCCEEDED":
                raise AirflowFailException(hook.explain(run))
        except Away as error:
            raise AirflowException(str(error)) from error
        except KubeflowPipelinesError as error:
            raise AirflowFailException(str(error)) from error
        return PokeReturnValue(is_done=run.final, xcom_value=run.facts())

    def execute_complete(self, context: Context, event: Json) -> Json:
        """Judges how the waiting ended."""
        return judge(event)

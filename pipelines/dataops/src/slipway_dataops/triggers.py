"""What waits in Airflow's triggerer: for the end of a run, and for data that somebody has finished dropping."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from slipway_dataops.hooks import KubeflowPipelinesHook
from slipway_dataops.kfp import outcome


class KubeflowPipelinesRunTrigger(BaseTrigger):
    """Fires when a run has ended, or when that cannot be waited for any longer.

    The event is what `kfp.outcome` gives.

    Args:
        kubeflow_pipelines_conn_id: name of the connection.
        run_id: of the run.
        deadline: when it must have ended, as time.time(): whoever goes on after a restart waits no longer.
        poll: between two looks, s.
        away: how long the server may be away, s.
        owns_run: whether the run ends when somebody ends the task.
    """

    def __init__(
        self, kubeflow_pipelines_conn_id: str, run_id: str, deadline: float, poll: float, away: float, owns_run: bool
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kubeflow_pipelines_conn_id = kubeflow_pipelines_conn_id
        self.run_id, self.deadline, self.poll, self.away, self.owns_run = run_id, deadline, poll, away, owns_run

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class and arguments, to be made anew elsewhere."""
        names = ("kubeflow_pipelines_conn_id", "run_id", "deadline", "poll", "away", "owns_run")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Waits."""
        made = await KubeflowPipelinesHook(self.kubeflow_pipelines_conn_id, self.away).aget_conn()
        yield TriggerEvent(await outcome(made, self.run_id, self.deadline, self.poll))

    async def on_kill(self) -> None:
        """Ends the run when a person ends the task; a triggerer that restarts does not come here."""
        if self.owns_run:
            self.log.info("terminating run %s", self.run_id)
            made = await KubeflowPipelinesHook(self.kubeflow_pipelines_conn_id, away=20).aget_conn()
            async with made.open() as client:
                await client.terminate(self.run_id)


class FinishedDropTrigger(BaseEventTrigger):
    """Fires for each drop that is complete, once for each time that it was completed.

    What was announced is kept as state of the asset, so that a triggerer which restarts announces nothing twice; where that state
    is lost, the DAG finds that it has handled the data.

    Args:
        s3_conn_id: connection of the object store.
        location: where people drop data, s3://bucket/prefix.
        poll: between two looks, s.
    """

    _STATE = "announced"

    def __init__(self, s3_conn_id: str, location: str, poll: float = 10.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.s3_conn_id, self.location, self.poll = s3_conn_id, location, poll

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class and arguments, to be made anew elsewhere."""
        names = ("s3_conn_id", "location", "poll")
        return f"{__name__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Looks, for ever."""
        # A DAG that names this class is parsed without what reads data.
        from slipway_dataops import drops
        from slipway_dataops.connections import object_store

        announced = await self._recall()
        while True:
            try:
                client, place = await object_store(self.s3_conn_id, self.location)
                # Those that were removed are forgotten.
                found = {drop.name: drop for drop in await asyncio.to_thread(drops.finished, client, place)}
            except Exception as error:
                # Who watches goes on whatever happens, a connection that is not there yet included.
                self.log.warning("%s: %s; looking again in %.0f s", self.location, error, self.poll)
            else:
                fresh = [drop for name, drop in found.items() if announced.get(name) != drop.completed]
                for drop in fresh:
                    self.log.info("drop %s is complete since %s", drop.name, drop.completed)
                    yield TriggerEvent({"drop": drop.name, "completed": drop.completed})
                now = {name: drop.completed for name, drop in found.items()}
                if now != announced:
                    announced = now
                    await self._remember(announced)
            await asyncio.sleep(self.poll)

    async def _recall(self) -> dict[str, str]:
        if self.asset_state_store is None:
            return {}
        found = await self.asset_state_store.aget(self._STATE, {})
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    async def _remember(self, announced: dict[str, str]) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(self._STATE, dict(announced))

"""Kubeflow Pipelines for tasks, by an Airflow connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from airflow.sdk import BaseHook, Connection

from slipway_dataops.kfp import Address, Client, Json, Run, outcome

T = TypeVar("T")


class KubeflowPipelinesHook(BaseHook):
    """Requests to Kubeflow Pipelines.

    The connection has host, port and schema (http or https) of the API, login and password where its front door asks for them,
    and in its extra `ca_file`, a PEM file, where its certificate is signed by an authority that the system does not know.

    Args:
        kubeflow_pipelines_conn_id: name of the connection.
        away: how long the server may be away, s.
    """

    conn_name_attr = "kubeflow_pipelines_conn_id"
    default_conn_name = "kubeflow_pipelines_default"
    hook_name = "Kubeflow Pipelines"

    def __init__(self, kubeflow_pipelines_conn_id: str = default_conn_name, away: float = 300.0) -> None:
        super().__init__()
        self.kubeflow_pipelines_conn_id = kubeflow_pipelines_conn_id
        self.away = away

    def get_conn(self) -> Client:
        """A client, not open yet."""
        return Client(address(self.get_connection(self.kubeflow_pipelines_conn_id)), self.away)

    async def aget_conn(self) -> Client:
        """The same in a trigger."""
        return Client(address(await self.aget_connection(self.kubeflow_pipelines_conn_id)), self.away)

    def submit(
        self,
        pipeline: str,
        version: str | None,
        experiment: str,
        name: str,
        parameters: Mapping[str, Any],
        description: str = "",
    ) -> tuple[Run, bool]:
        """Makes sure that there is a run of that name; returns it, and whether this call has started it."""

        async def work(client: Client) -> tuple[Run, bool]:
            ids = await client.pipeline(pipeline, version)
            return await client.submit(experiment, name, ids, parameters, description)

        return self._do(work)

    def run(self, run_id: str) -> Run:
        """A run."""
        return self._do(lambda client: client.run(run_id))

    def outcome(self, run_id: str, deadline: float, poll: float) -> Json:
        """How waiting for a run ended; deadline is a time.time()."""
        return asyncio.run(outcome(self.get_conn(), run_id, deadline, poll))

    def terminate(self, run_id: str) -> None:
        """Asks for the end of a run."""
        self._do(lambda client: client.terminate(run_id))

    def explain(self, run: Run) -> str:
        """Why a run has not succeeded."""
        return self._do(lambda client: client.explain(run))

    def _do(self, work: Callable[[Client], Awaitable[T]]) -> T:
        # Airflow answers questions about connections to whoever runs no event loop.
        made = self.get_conn()

        async def open_and_work() -> T:
            async with made.open() as client:
                return await work(client)

        return asyncio.run(open_and_work())


def address(connection: Connection) -> Address:
    """Where a connection leads.

    Raises:
        ValueError: it has no host.
    """
    if not connection.host:
        raise ValueError(f"connection {connection.conn_id}: host is missing")
    if "://" in connection.host:
        url = connection.host
    else:
        schema = connection.schema or ("https" if connection.conn_type == "https" else "http")
        url = f"{schema}://{connection.host}"
    if connection.port:
        url += f":{connection.port}"
    login = (connection.login, connection.password or "") if connection.login else None
    return Address(url, login, connection.extra_dejson.get("ca_file"))

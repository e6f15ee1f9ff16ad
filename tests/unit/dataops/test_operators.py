"""Operator, sensor and trigger on the stand-in."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSensorTimeout, TaskDeferred
from airflow.triggers.base import TriggerEvent

from slipway_dataops import kfp
from slipway_dataops.hooks import KubeflowPipelinesHook
from slipway_dataops.operators import KubeflowPipelinesRunOperator, default_key
from slipway_dataops.sensors import KubeflowPipelinesRunSensor
from slipway_dataops.triggers import KubeflowPipelinesRunTrigger

from .conftest import connect
from .standin import Pipelines, eventually

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def context(day: datetime | None = DAY, run_id: str = "r", map_index: int = -1) -> Any:
    """Of a task in a DAG run with that data interval, or with none."""
    ti = SimpleNamespace(dag_id="d", task_id="t", map_index=map_index)
    interval = {"data_interval_start": day, "data_interval_end": day + timedelta(days=1)} if day else {}
    return {"ti": ti, "dag": SimpleNamespace(dag_id="d"), "run_id": run_id, **interval}


def operator(**options: Any) -> KubeflowPipelinesRunOperator:
    return KubeflowPipelinesRunOperator(
        **{"task_id": "t", "pipeline": "happy", "poll": 0.02, "timeout": 20.0, "away": 2.0, **options}
    )


def trigger(deferred: TaskDeferred) -> KubeflowPipelinesRunTrigger:
    """As the triggerer makes it anew."""
    path, arguments = deferred.trigger.serialize()
    assert path == "slipway_dataops.triggers.KubeflowPipelinesRunTrigger"
    return KubeflowPipelinesRunTrigger(**arguments)


def fire(waiting: KubeflowPipelinesRunTrigger) -> Any:
    async def first() -> TriggerEvent:
        return await anext(waiting.run())

    return asyncio.run(first()).payload


def defer(task: Any, **where: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        task.execute(context(**where))
    return caught.value


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_run_is_submitted_and_waited_for(pipelines: Pipelines, deferrable: bool) -> None:
    pipelines.compiled("happy")
    task = operator(parameters={"count": 2}, deferrable=deferrable)
    if deferrable:
        deferred = defer(task)
        result = task.execute_complete(context(), fire(trigger(deferred)))
    else:
        result = task.execute(context())
    (run,) = pipelines.runs()
    assert result["state"] == "SUCCEEDED" and result["run_id"] == run.run_id
    assert run.display_name == "happy d.t 2026-03-01T00:00:00+00:00/2026-03-02T00:00:00+00:00"
    assert run.description == "Airflow: DAG d, run r, task t"


def test_a_second_trigger_of_the_same_interval_finds_the_run(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.running.clear()
    first, second = defer(operator(deferrable=True)), defer(operator(deferrable=True), run_id="another")
    assert first.trigger.run_id == second.trigger.run_id and len(pipelines.runs()) == 1
    assert defer(operator(deferrable=True), day=DAY + timedelta(days=1)).trigger.run_id != first.trigger.run_id
    pipelines.running.set()
    assert fire(trigger(first))["status"] == "succeeded"
    # It has ended: nothing is waited for.
    assert operator(deferrable=True).execute(context())["run_id"] == first.trigger.run_id
    assert len(pipelines.runs()) == 2


def test_keys() -> None:
    assert default_key(context()) == "d.t 2026-03-01T00:00:00+00:00/2026-03-02T00:00:00+00:00"
    assert default_key(context(map_index=2)).startswith("d.t[2] 2026")
    assert default_key(context(day=None, run_id="asset_triggered__x")) == "d.t asset_triggered__x"


def test_a_key_of_ones_own(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    found = {operator(run_key="data 1").execute(context(day=day))["run_id"] for day in (DAY, None)}
    assert len(found) == 1 and pipelines.runs()[0].display_name == "happy data 1"


def test_a_failed_run_is_not_tried_again_by_itself(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "fail")
    with pytest.raises(AirflowFailException, match="ended FAILED; failed: train;"):
        operator().execute(context())
    task = operator(deferrable=True)
    deferred = defer(task)
    with pytest.raises(AirflowFailException, match="ended FAILED; failed: train;"):
        task.execute_complete(context(), fire(trigger(deferred)))
    assert len(pipelines.runs()) == 2, "who clears the task gets another run"


def test_a_run_that_somebody_terminates(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    task = operator(deferrable=True)
    deferred = defer(task)
    KubeflowPipelinesHook().terminate(deferred.trigger.run_id)
    with pytest.raises(AirflowFailException, match="was terminated"):
        task.execute_complete(context(), fire(trigger(deferred)))


@pytest.mark.parametrize("deferrable", [False, True])
def test_a_run_that_takes_too_long_is_terminated(pipelines: Pipelines, deferrable: bool) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    task = operator(timeout=0.5, deferrable=deferrable)
    with pytest.raises(AirflowFailException, match=r"after 0\.5 s and was terminated"):
        if deferrable:
            deferred = defer(task)
            task.execute_complete(context(), fire(trigger(deferred)))
        else:
            task.execute(context())
    eventually(lambda: pipelines.runs()[0].state == "FAILED" and pipelines.runs()[0].cancel)


def test_the_task_that_is_killed_takes_its_run_along(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    task = operator()
    caught: list[BaseException] = []

    def work() -> None:
        try:
            task.execute(context())
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    eventually(lambda: pipelines.world.cluster.started["root.train"])
    task.on_kill()
    thread.join(20)
    assert pipelines.runs()[0].cancel and "was terminated" in str(caught[0])


def test_the_deferred_task_that_is_killed_takes_its_run_along(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    asyncio.run(trigger(defer(operator(deferrable=True))).on_kill())
    assert pipelines.runs()[0].cancel


def test_killing_a_sensor_leaves_the_run_alone(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.running.clear()
    run = operator(wait=False).execute(context())
    asyncio.run(
        trigger(defer(KubeflowPipelinesRunSensor(task_id="s", run_id=run["run_id"], deferrable=True))).on_kill()
    )
    assert not pipelines.runs()[0].cancel


def test_a_server_that_stays_away_is_worth_a_retry(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    pipelines.compiled("happy")
    pipelines.running.clear()
    task = operator(deferrable=True, away=0.3)
    deferred = defer(task)
    connect(monkeypatch, "kubeflow_pipelines_default", "http://127.0.0.1:9")
    event = fire(trigger(deferred))
    with pytest.raises(AirflowException, match="no good answer") as caught:
        task.execute_complete(context(), event)
    assert not isinstance(caught.value, AirflowFailException)
    with pytest.raises(AirflowException, match="no good answer") as caught:
        operator(away=0.3).execute(context())
    assert not isinstance(caught.value, AirflowFailException)
    # The retry goes on with the run that was there.
    connect(monkeypatch, "kubeflow_pipelines_default", pipelines.url)
    pipelines.running.set()
    assert operator().execute(context())["run_id"] == deferred.trigger.run_id


def test_what_the_server_refuses_is_not_worth_a_retry(pipelines: Pipelines) -> None:
    with pytest.raises(AirflowFailException, match="no pipeline 'happy' was uploaded"):
        operator().execute(context())


@pytest.mark.parametrize("deferrable", [False, True])
def test_the_sensor(pipelines: Pipelines, deferrable: bool) -> None:
    pipelines.compiled("happy")
    run = operator(wait=False).execute(context())
    sensor = KubeflowPipelinesRunSensor(
        task_id="s", run_id=run["run_id"], poke_interval=0.02, timeout=20, deferrable=deferrable
    )
    if deferrable:
        found = sensor.execute_complete(context(), fire(trigger(defer(sensor))))
    else:
        found = sensor.execute(context())
    assert found["state"] == "SUCCEEDED"


def test_a_sensor_of_a_failed_run(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "fail")
    run = operator(wait=False).execute(context())
    for deferrable in (False, True):
        sensor = KubeflowPipelinesRunSensor(
            task_id="s", run_id=run["run_id"], poke_interval=0.02, timeout=20, deferrable=deferrable
        )
        with pytest.raises(AirflowFailException, match="failed: train;"):
            sensor.execute_complete(context(), fire(trigger(defer(sensor)))) if deferrable else sensor.execute(
                context()
            )


def test_a_sensor_in_time(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    run = operator(wait=False).execute(context())
    sensor = KubeflowPipelinesRunSensor(
        task_id="s", run_id=run["run_id"], poke_interval=0.02, timeout=0.3, deferrable=False
    )
    with pytest.raises(AirflowSensorTimeout):
        sensor.execute(context())
    assert not pipelines.runs()[0].cancel


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "ml-pipeline.kubeflow-pipelines", "port": 8888}, "http://ml-pipeline.kubeflow-pipelines:8888"),
        ({"host": "kfp.example.org", "schema": "https"}, "https://kfp.example.org"),
        ({"host": "https://kfp.example.org"}, "https://kfp.example.org"),
    ],
)
def test_connections(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], url: str) -> None:
    host = settings.pop("host")
    connect(monkeypatch, "kfp", host, **settings, login="a", password="b", extra={"ca_file": "/ca"})
    made = KubeflowPipelinesHook("kfp").get_conn().address
    assert made == kfp.Address(url, ("a", "b"), "/ca")


def test_a_connection_without_host(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "kfp", "")
    with pytest.raises(ValueError, match="connection kfp: host is missing"):
        KubeflowPipelinesHook("kfp").get_conn()


def test_an_authority_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, "kfp", "https://127.0.0.1:9", extra={"ca_file": "/nowhere.pem"})
    event = KubeflowPipelinesHook("kfp").outcome("x", time.time() + 5, 0.1)
    assert (event["status"], event["message"]) == ("refused", "/nowhere.pem: No such file or directory")

"""From data that somebody dropped into a bucket to a model that was trained, judged and, if it is better, deployed.

A drop is a BOP folder `s3://epos-drops/<name>/`, complete when the object `<name>/_COMPLETE` is there. Each complete drop starts a run
at once; besides, a run a day takes what was completed in its data interval, so that a backfill goes over old drops again. What was
handled before, byte by byte, is skipped.

The Variable `dataops_parameters` has parameters of the pipeline `epos` that the site sets, at least `domain`; `parameters` in a run's
configuration win over them. `retrain` there trains on data again that were trained on before.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    AssetWatcher,
    CronDataIntervalTimetable,
    ExceptionRetryPolicy,
    Param,
    RetryAction,
    RetryRule,
    Variable,
    chain,
    dag,
    get_current_context,
    task,
    task_group,
)
from airflow.sdk.exceptions import AirflowSkipException

from slipway_dataops.notices import tell, tell_failure
from slipway_dataops.operators import KubeflowPipelinesRunOperator
from slipway_dataops.triggers import FinishedDropTrigger

# What works on data is imported by the tasks: whoever parses this file needs none of it.

DROPS, DATA, MODELS = "s3://epos-drops", "s3://epos-data/dataops", "s3://epos-models/models"
S3_CONNECTION = "minio_default"
PARAMETERS = "dataops_parameters"
Json = dict[str, Any]

FINISHED_DROPS = Asset(
    # Without an address: that of an s3 asset makes Airflow load the whole provider of AWS to check it.
    "epos_drops",
    watchers=[AssetWatcher(name="finished_drops", trigger=FinishedDropTrigger(S3_CONNECTION, DROPS))],
)


def stages() -> Any:
    """The stages with the site's object store."""
    from epos.store import Location
    from slipway_dataops.connections import client
    from slipway_dataops.stages import Stages

    return Stages(client(S3_CONNECTION), *map(Location.parse, (DROPS, DATA, MODELS)))


def params() -> Json:
    """The run's configuration."""
    return dict(get_current_context()["params"])


@task
def find() -> list[str]:
    """The drops that this run is about: those named in its configuration, those that started it, or those of its data interval."""
    context = get_current_context()
    events = [event for listed in (context.get("triggering_asset_events") or {}).values() for event in listed]
    started_by = [event.extra["payload"]["drop"] for event in events if "payload" in (event.extra or {})]
    named = params()["drops"]
    found: list[str] = stages().find(
        named or started_by, context.get("data_interval_start"), context.get("data_interval_end"), bool(named)
    )
    return found


@task
def acquire(drop: str) -> Json:
    """Snapshot of the drop: every file with its hash. What was handled before is skipped."""
    work = stages()
    acquired: Json = work.acquire(drop)
    done = work.record(acquired)
    if done and not params()["retrain"]:
        raise AirflowSkipException(f"drop {drop}, {acquired['hash'][:12]}, was handled by run {done['run']['run_id']}")
    return acquired


@task
def observe(acquired: Json) -> Json:
    """Schema, statistics, drift, as a report."""
    observed: Json = stages().observe(acquired, params()["max_drift"])
    return observed


@task
def clean(acquired: Json) -> Json:
    """Takes out images that cannot be used."""
    cleaned: Json = stages().clean(acquired, params()["max_removed"])
    return cleaned


@task
def transform(cleaned: Json) -> Json:
    """Brings the images into one form."""
    transformed: Json = stages().transform(cleaned, params()["max_side"])
    return transformed


@task
def split(transformed: Json) -> Json:
    """Images to learn from and held out, with manifest and content hash; the expectations must be met."""
    given = params()
    data_set: Json = stages().split(transformed, given["test_fraction"], given["seed"])
    return data_set


@task
def configure(data_set: Json) -> Json:
    """Parameters of the pipeline's run, and what names it: the same data are trained on once."""
    context = get_current_context()
    again = f" {context['run_id']}" if params()["retrain"] else ""
    site = Variable.get(PARAMETERS, deserialize_json=True)
    parameters = {**site, **params()["parameters"], "data": data_set["location"], "models": MODELS}
    parameters |= {"train_split": "train", "test_split": "test"}
    return {"key": f"data {data_set['hash'][:12]}{again}", "parameters": parameters}


@task
def record_lineage(
    acquired: Json, observed: Json, cleaned: Json, transformed: Json, data_set: Json, configured: Json, run: Json
) -> Json:
    """Links files, data, run and model."""
    context = get_current_context()
    airflow = {"dag": context["dag"].dag_id, "run": context["run_id"]}
    parts = {"drop": acquired, "observe": observed, "clean": cleaned, "transform": transformed, "split": data_set}
    linked: Json = stages().link({**parts, "run": run, "parameters": configured["parameters"], "airflow": airflow})
    return linked


@task
def notify(linked: Json) -> None:
    """Says what came of it."""
    from slipway_dataops.stages import summary

    tell(summary(linked))


@task_group
def process(drop: str) -> None:
    """One drop, from its files to what came of it."""
    acquired = acquire(drop)
    observed = observe(acquired)
    cleaned = clean(acquired)
    chain(observed, cleaned)
    transformed = transform(cleaned)
    data_set = split(transformed)
    configured = configure(data_set)
    # One task submits and waits: it keeps its slot in the pool, whose deferred tasks count, so one training has the GPU at a time.
    train = KubeflowPipelinesRunOperator(
        task_id="train",
        pipeline="epos",
        experiment="dataops",
        run_key=configured["key"],
        parameters=configured["parameters"],
        deferrable=True,
        pool="training",
        # It has a time limit of its own.
        execution_timeout=None,
    )
    linked = record_lineage(acquired, observed, cleaned, transformed, data_set, configured, train.output)
    notify(linked)


@dag(
    dag_id="dataops",
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        timetable=CronDataIntervalTimetable("0 3 * * *", timezone="UTC"), assets=[FINISHED_DROPS]
    ),
    start_date=datetime(2026, 1, 1),
    catchup=False,
    # Each is compared with what was accepted before it.
    max_active_runs=1,
    tags=["slipway"],
    params={
        "drops": Param([], type="array", items={"type": "string"}, description="Only these drops"),
        "retrain": Param(False, type="boolean", description="Train on data that were trained on before"),
        "parameters": Param({}, type="object", description="Parameters of the pipeline, over those of the site"),
        "max_drift": Param(
            None,
            type=["null", "number"],
            minimum=0,
            description="Largest population stability index; none: report only",
        ),
        "max_removed": Param(
            0.2, type="number", minimum=0, maximum=1, description="Share of images that cleaning may take out"
        ),
        "max_side": Param(640, type="integer", minimum=32, description="Longest side of an image, px"),
        "test_fraction": Param(
            0.15,
            type="number",
            exclusiveMinimum=0,
            exclusiveMaximum=1,
            description="Share of images to hold out, without a test folder",
        ),
        "seed": Param(1, type="integer", description="Of that choice"),
    },
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=30),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=10),
        "execution_timeout": timedelta(hours=2),
        # Data and options do not get better by trying again.
        "retry_policy": ExceptionRetryPolicy(
            rules=[RetryRule(exception=["epos.errors.DataError", "epos.errors.UsageError"], action=RetryAction.FAIL)]
        ),
        "on_failure_callback": tell_failure,
    },
)
def dataops() -> None:
    """The DAG."""
    process.expand(drop=find())


dataops()

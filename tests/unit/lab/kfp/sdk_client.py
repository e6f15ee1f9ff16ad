"""What test_sdk.py runs in the environment of the KFP SDK: the unmodified client against the server at an address.

python sdk_client.py http://127.0.0.1:PORT FOLDER
"""

# Annotations are evaluated: the SDK's decorators read them.
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kfp
from kfp import compiler, dsl, kubernetes
from kfp_server_api import ApiException


@dsl.container_component  # type: ignore[untyped-decorator]
def count(number: int, text: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    """A step."""
    return dsl.ContainerSpec(image="image", command=["count"], args=[number, text])


@dsl.pipeline(name="counting")  # type: ignore[untyped-decorator]
def counting(number: int = 3, label: str = "none") -> None:
    """A pipeline with a platform spec."""
    kubernetes.use_secret_as_env(count(number=number), "secret", {"key": "KEY"})


def fails(status: int, act: Callable[..., Any], *arguments: Any, **named: Any) -> dict[str, Any]:
    """The body of the error that an act must end with."""
    try:
        act(*arguments, **named)
    except ApiException as error:
        assert error.status == status, error
        body: dict[str, Any] = json.loads(error.body)
        return body
    raise AssertionError(f"{act} did not fail")


def check_pipelines(client: kfp.Client, package: str) -> tuple[str, str]:
    """Upload, versions, lists; gives a pipeline and its newest version."""
    pipeline = client.upload_pipeline(package, pipeline_name="counting", description="counts", namespace=None)
    assert (pipeline.display_name, pipeline.description) == ("counting", "counts")
    version = client.upload_pipeline_version(package, "v2", pipeline_name="counting")
    assert client.get_pipeline_id("counting") == pipeline.pipeline_id
    assert client.get_pipeline(pipeline.pipeline_id).created_at.tzinfo
    got = client.get_pipeline_version(pipeline.pipeline_id, version.pipeline_version_id)
    assert set(got.pipeline_spec) == {"pipeline_spec", "platform_spec"}
    assert "number" in got.pipeline_spec["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    for name in "abc":
        client.upload_pipeline(package, pipeline_name=name)
    first = client.list_pipelines(page_size=3, sort_by="name desc")
    second = client.list_pipelines(page_size=3, sort_by="name desc", page_token=first.next_page_token)
    assert [each.display_name for each in first.pipelines + second.pipelines] == ["counting", "c", "b", "a"]
    assert second.next_page_token is None and first.total_size == second.total_size == 4
    assert client.list_pipeline_versions(pipeline.pipeline_id).total_size == 2
    found = client.list_pipeline_versions(
        pipeline.pipeline_id,
        filter=json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": "v2"}]}),
    )
    assert [each.pipeline_version_id for each in found.pipeline_versions] == [version.pipeline_version_id]
    assert "error_message" in fails(409, client.upload_pipeline, package, pipeline_name="counting")
    assert fails(400, client.delete_pipeline, first.pipelines[1].pipeline_id)["code"] == 3
    for each in client.list_pipeline_versions(first.pipelines[1].pipeline_id).pipeline_versions:
        client.delete_pipeline_version(first.pipelines[1].pipeline_id, each.pipeline_version_id)
    client.delete_pipeline(first.pipelines[1].pipeline_id)
    assert fails(404, client.get_pipeline, first.pipelines[1].pipeline_id)["code"] == 5
    return pipeline.pipeline_id, version.pipeline_version_id


def check_experiments(client: kfp.Client) -> str:
    """Experiments; gives the id of one."""
    experiment = client.create_experiment("trials", description="of mine")
    assert client.create_experiment("trials").experiment_id == experiment.experiment_id
    assert client.get_experiment(experiment_name="trials").description == "of mine"
    assert {each.display_name for each in client.list_experiments().experiments} == {"Default", "trials"}
    client.archive_experiment(experiment.experiment_id)
    assert client.get_experiment(experiment.experiment_id).storage_state == "ARCHIVED"
    client.unarchive_experiment(experiment.experiment_id)
    other = client.create_experiment("other")
    client.delete_experiment(other.experiment_id)
    fails(404, client.get_experiment, other.experiment_id)
    return str(experiment.experiment_id)


def check_runs(client: kfp.Client, package: str, experiment_id: str, pipeline_id: str, version_id: str) -> None:
    """Runs from a file, a function and a version."""
    result = client.create_run_from_pipeline_package(package, {"number": 4}, run_name="one", experiment_name="trials")
    done = client.wait_for_run_completion(result.run_id, timeout=30, sleep_duration=1)
    assert (done.state, done.error, done.experiment_id) == ("SUCCEEDED", None, experiment_id)
    assert [each.state for each in done.state_history] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert done.runtime_config.parameters == {"number": 4}
    assert done.finished_at >= done.created_at and done.run_details.task_details[0].display_name == "count"
    assert client.create_run_from_pipeline_func(counting, {}, enable_caching=False).run_info.state == "PENDING"
    run = client.run_pipeline(
        experiment_id, "slow", pipeline_id=pipeline_id, version_id=version_id, params={"label": "x"}
    )
    assert run.pipeline_version_reference.pipeline_version_id == version_id and run.pipeline_spec is None
    client.terminate_run(run.run_id)
    assert client.get_run(run.run_id).state == "CANCELING"
    assert client.wait_for_run_completion(run.run_id, timeout=30, sleep_duration=1).state == "FAILED"
    assert client.list_runs(experiment_id=experiment_id, sort_by="created_at desc").total_size == 2
    failed = json.dumps({"predicates": [{"operation": 1, "key": "state", "stringValue": "FAILED"}]})
    assert [each.run_id for each in client.list_runs(filter=failed).runs] == [run.run_id]
    client.archive_run(run.run_id)
    assert client.get_run(run.run_id).storage_state == "ARCHIVED"
    client.unarchive_run(run.run_id)
    client.delete_run(run.run_id)
    fails(404, client.get_run, run.run_id)
    error = fails(400, client.run_pipeline, experiment_id, "r", package, {"number": "four"})
    assert error["details"][0]["message"].startswith("input parameter number requires type double or integer")
    error = fails(400, client.run_pipeline, experiment_id, "r", package, {"wrong": 1})
    assert error["details"][0]["message"] == "parameter(s) provided are not required by pipeline: wrong"


def check_recurring_runs(client: kfp.Client, experiment_id: str, pipeline_id: str, version_id: str) -> None:
    """Schedules."""
    nightly = client.create_recurring_run(
        experiment_id,
        "nightly",
        pipeline_id=pipeline_id,
        version_id=version_id,
        cron_expression="0 0 2 * * *",
        max_concurrency=2,
        no_catchup=True,
        params={"number": 1},
    )
    assert (nightly.status, nightly.no_catchup, nightly.max_concurrency) == ("ENABLED", True, "2")
    start = datetime.now(UTC) + timedelta(hours=1)
    often = client.create_recurring_run(
        experiment_id,
        "often",
        pipeline_id=pipeline_id,
        version_id=version_id,
        interval_second=60,
        start_time=start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        enabled=False,
    )
    assert often.trigger.periodic_schedule.interval_second == "60"
    assert often.trigger.periodic_schedule.start_time == start.replace(microsecond=0)
    client.enable_recurring_run(often.recurring_run_id)
    assert client.get_recurring_run(often.recurring_run_id).status == "ENABLED"
    client.disable_recurring_run(often.recurring_run_id)
    assert client.list_recurring_runs(experiment_id=experiment_id).total_size == 2
    client.delete_recurring_run(often.recurring_run_id)
    fails(404, client.get_recurring_run, often.recurring_run_id)
    fails(
        400,
        client.create_recurring_run,
        experiment_id,
        "x",
        pipeline_id=pipeline_id,
        version_id=version_id,
        cron_expression="* *",
    )


def main(host: str, folder: str) -> None:
    """All of it."""
    package = str(Path(folder) / "counting.yaml")
    compiler.Compiler().compile(counting, package)
    client = kfp.Client(host=host, namespace="kubeflow")
    assert client.get_kfp_healthz().multi_user is False
    pipeline_id, version_id = check_pipelines(client, package)
    experiment_id = check_experiments(client)
    check_runs(client, package, experiment_id, pipeline_id, version_id)
    check_recurring_runs(client, experiment_id, pipeline_id, version_id)
    print("all done")


if __name__ == "__main__":
    main(*sys.argv[1:])

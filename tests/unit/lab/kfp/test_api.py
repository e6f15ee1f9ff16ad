"""What the recordings do not show: the server's refusals, archives and other forms, as the real server's source has them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import zipfile
from typing import Any

import pytest
import yaml

from tests.lab.kfp.kfp_server.store import Json, Run, Task, Unavailable
from tests.unit.lab.kfp.conftest import Server

SPEC: Json = {
    "pipelineInfo": {"name": "adding"},
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
    "deploymentSpec": {"executors": {"exec-add": {"container": {"image": "image"}}}},
    "components": {"comp-add": {"executorLabel": "exec-add"}},
    "root": {
        "dag": {"tasks": {"add": {"componentRef": {"name": "comp-add"}, "taskInfo": {"name": "add"}}}},
        "inputDefinitions": {
            "parameters": {
                "number": {"parameterType": "NUMBER_INTEGER"},
                "text": {"parameterType": "STRING", "isOptional": True},
                "flag": {"parameterType": "BOOLEAN", "defaultValue": False, "isOptional": True},
                "items": {"parameterType": "LIST", "defaultValue": [], "isOptional": True},
                "map": {"parameterType": "STRUCT", "defaultValue": {}, "isOptional": True},
                "choice": {"parameterType": "STRING", "literals": ["a", "b"], "defaultValue": "a"},
            }
        },
    },
}
PLATFORM: Json = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-add": {"nodeSelector": {}}}}}}}


def changed(**changes: Any) -> Json:
    """The pipeline with other keys."""
    return {**SPEC, **changes}


def start(server: Server, status: int = 200, parameters: Json | None = None, **body: Any) -> Json:
    """Start a run of the pipeline."""
    request = {
        "display_name": "run",
        "pipeline_spec": SPEC,
        "runtime_config": {"parameters": parameters or {"number": 1}},
        **body,
    }
    return server.ask("POST", "runs", status, json=request)


def message(error: Json) -> str:
    """What an error says to people."""
    assert set(error) == {"code", "message", "details"}
    detail = error["details"][0]
    assert set(detail) == {"@type", "code", "message"} and detail["code"] == error["code"]
    assert error["message"].endswith(detail["message"]) or detail["message"] in error["message"] or error["code"] == 13
    return str(detail["message"])


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"text": "x"}, "parameter number is not optional, yet has neither default value nor user provided value"),
        ({"number": 1, "other": 2, "more": 3}, "parameter(s) provided are not required by pipeline: other, more"),
        (
            {"number": "1"},
            "input parameter number requires type double or integer, but the parameter value is not of number value type",
        ),
        (
            {"number": True},
            "input parameter number requires type double or integer, but the parameter value is not of number value type",
        ),
        (
            {"number": 1, "text": 1},
            "input parameter text requires type string, but the input parameter is not of string value type",
        ),
        (
            {"number": 1, "flag": "no"},
            "input parameter flag requires type bool, but the input parameter is not of bool value type",
        ),
        (
            {"number": 1, "items": {}},
            "input parameter items requires type list, but the input parameter is not of list value type",
        ),
        (
            {"number": 1, "map": []},
            "input parameter map requires type struct, but the input parameter is not of struct value type",
        ),
        (
            {"number": 1, "choice": "c"},
            "input parameter \"choice\" value c does not match any of the allowed literal values: ['a', 'b']",
        ),
    ],
)
def test_wrong_parameters_are_refused(server: Server, parameters: Json, says: str) -> None:
    error = start(server, 400, parameters)
    assert error["code"] == 3 and message(error) == says
    prefix = "Failed to create a new run: Failed to generate the ExecutionSpec: invalid pipeline job inputs: Invalid input error: "
    assert error["message"] == prefix + says
    assert server.store.list_runs() == []


def test_parameters_of_every_type_are_kept(server: Server) -> None:
    parameters = {"number": 2.5, "text": "", "flag": True, "items": [1, "b"], "map": {"b": 1, "a": 2.0}, "choice": "b"}
    run = start(server, parameters=parameters)
    assert json.dumps(run["runtime_config"]["parameters"]) == json.dumps(
        {"choice": "b", "flag": True, "items": [1, "b"], "map": {"a": 2, "b": 1}, "number": 2.5, "text": ""}
    )
    stored = server.store.run(run["run_id"])
    assert stored and stored.runtime_config["parameters"] == parameters and stored.workflow.startswith("adding-")


@pytest.mark.parametrize(
    ("body", "status", "code", "says"),
    [
        ({"display_name": ""}, 500, 13, "Run name cannot be empty"),
        ({"pipeline_spec": None}, 500, 13, "Failed to fetch a template with an empty pipeline spec manifest"),
        ({"pipeline_spec": changed(schemaVersion="2.0.0")}, 500, 13, "KFP only supports schema version 2.1.0"),
        ({"pipeline_spec": {"some": "thing"}}, 500, 13, "unknown template format"),
        ({"pipeline_spec": changed(components={})}, 500, 13, "task add: component comp-add not found"),
        ({"pipeline_spec": changed(deploymentSpec={})}, 500, 13, "executor exec-add not found"),
        ({"pipeline_spec": None, "pipeline_version_reference": {"pipeline_version_id": "no"}}, 500, 13, "PipelineVersion no not found"),
        ({"pipeline_spec": None, "pipeline_version_reference": {"pipeline_id": "no"}}, 500, 13, "Pipeline no not found"),
        ({"experiment_id": "no"}, 404, 5, "ResourceNotFoundError: Experiment no not found"),
        ({"experimentid": "x"}, 400, 3, 'unknown field "experimentid"'),
        ({"display_name": 5}, 400, 3, "invalid value for string field display_name: 5"),
        ({"runtime_config": []}, 400, 3, "unexpected token [] for field runtime_config"),
        ({"scheduled_at": "now"}, 400, 3, "invalid google.protobuf.Timestamp"),
    ],
)  # fmt: skip
def test_wrong_runs_are_refused(server: Server, body: Json, status: int, code: int, says: str) -> None:
    error = start(server, status, **body)
    assert error["code"] == code and says in error["message"]
    assert server.store.list_runs() == []


def test_body_that_is_no_json_is_refused(server: Server) -> None:
    error = server.ask("POST", "runs", 400, data="{")
    assert error["code"] == 3 and error["details"] == [] and error["message"].startswith("proto: syntax error")


def test_camel_case_is_as_good(server: Server) -> None:
    run = server.ask(
        "POST", "runs", json={"displayName": "a", "pipelineSpec": SPEC, "runtimeConfig": {"parameters": {"number": 1}}}
    )
    assert run["display_name"] == "a" and "experiment_id" in run


def test_run_of_both_specs(server: Server) -> None:
    run = start(server, pipeline_spec={"pipeline_spec": SPEC, "platform_spec": PLATFORM})
    assert run["pipeline_spec"] == {"pipeline_spec": SPEC, "platform_spec": PLATFORM}
    stored = server.store.run(run["run_id"])
    assert stored and (stored.pipeline_spec, stored.platform_spec) == (SPEC, PLATFORM)
    assert server.store.changed.is_set()


def test_run_of_a_pipeline_takes_its_latest_version(server: Server) -> None:
    pipeline = server.upload("adding", json.dumps(SPEC))
    reference = {"pipeline_id": pipeline["pipeline_id"]}
    run = start(server, pipeline_spec=None, pipeline_version_reference=reference)
    assert set(run["pipeline_version_reference"]) == {"pipeline_id", "pipeline_version_id"}
    other = server.upload("other", json.dumps(SPEC))
    wrong = {**run["pipeline_version_reference"], "pipeline_id": other["pipeline_id"]}
    assert "belongs to pipeline" in start(server, 500, pipeline_spec=None, pipeline_version_reference=wrong)["message"]


def archive(kind: str, name: str, content: bytes) -> bytes:
    """An archive with one file."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_upload_of_archives(server: Server, kind: str) -> None:
    content = yaml.safe_dump_all([SPEC, PLATFORM]).encode()
    pipeline = server.upload("", archive(kind, "pipeline.yaml", content), file=f"adding.{kind}")
    assert pipeline["name"] == f"adding.{kind}"
    [version] = server.ask("GET", f"pipelines/{pipeline['pipeline_id']}/versions")["pipeline_versions"]
    assert version["pipeline_spec"] == {"pipeline_spec": SPEC, "platform_spec": PLATFORM}
    assert (
        "Expecting a pipeline.yaml"
        in server.upload("b", archive(kind, "a.txt", content), 400, f"b.{kind}")["error_message"]
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "unable to decode yaml document"),
        ("kind: Workflow", "unknown template format"),
        (
            json.dumps(changed(schemaVersion="1")),
            "KFP only supports schema version 2.1.0, but the pipeline spec has version 1",
        ),
        (json.dumps(changed(pipelineInfo={"name": "A B"})), "must contain only lowercase alphanumeric characters"),
        (json.dumps(changed(extra=1)), 'unknown field "extra"'),
        (json.dumps(changed(components=[])), "unexpected value in field components"),
        (yaml.safe_dump_all([SPEC, SPEC]), "multiple pipeline specs provided"),
    ],
)
def test_wrong_uploads_are_refused(server: Server, content: str, says: str) -> None:
    error = server.upload("p", content, 400)
    assert set(error) == {"error_message", "error_details"} and says in error["error_message"]
    assert server.ask("GET", "pipelines") == {}


def test_upload_of_no_file_and_of_a_version_of_nothing(server: Server) -> None:
    assert server.ask("POST", "pipelines/upload", 400)["error_message"] == "Failed to read pipeline from file"
    error = server.upload("v", json.dumps(SPEC), 400, path="upload_version", pipelineid="no")
    assert error["error_message"] == "Failed to create a pipeline version"
    assert "Expected JSON object" in server.upload("p", json.dumps(SPEC), 400, tags="[1]")["error_message"]


def test_pipelines_by_name_with_tags_and_without_versions(server: Server) -> None:
    server.upload("tagged", json.dumps(SPEC), tags='{"team": "a"}')
    made = server.ask("POST", "pipelines", json={"display_name": "empty", "description": "none yet"})
    assert message(server.ask("POST", "pipelines", 409, json={"name": "empty"})).startswith(
        "Failed to create a new pipeline. The name empty"
    )
    assert message(server.ask("POST", "pipelines", 400, json={})) == "name is required"
    assert server.ask("GET", "pipelines/names/empty") == made
    assert message(server.ask("GET", "pipelines/names/no", 404)) == "Namespace/Pipeline /no not found"
    found = {"predicates": [{"operation": "EQUALS", "key": "tags.team", "string_value": "a"}]}
    assert [
        each["name"] for each in server.ask("GET", "pipelines", params={"filter": json.dumps(found)})["pipelines"]
    ] == ["tagged"]
    address = f"pipelines/{made['pipeline_id']}"
    assert server.ask("PATCH", address, json={"display_name": "Empty", "tags": {"a": "b"}})["tags"] == {"a": "b"}
    assert server.ask("GET", address)["display_name"] == "Empty"
    server.ask("DELETE", address)
    assert message(server.ask("DELETE", address, 404)) == f"Pipeline {made['pipeline_id']} not found"


def test_pipeline_with_versions_is_deleted_only_with_them(server: Server) -> None:
    pipeline_id = server.upload("p", json.dumps(SPEC))["pipeline_id"]
    [version] = server.ask("GET", f"pipelines/{pipeline_id}/versions")["pipeline_versions"]
    assert "Set cascade=true" in message(server.ask("DELETE", f"pipelines/{pipeline_id}", 400))
    server.ask("DELETE", f"pipelines/{pipeline_id}", params={"cascade": "true"})
    server.ask("GET", f"pipelines/{pipeline_id}/versions/{version['pipeline_version_id']}", 404)


def test_experiments(server: Server) -> None:
    made = server.ask("POST", "experiments", json={"display_name": "mine", "description": "of mine"})
    assert list(made) == [
        "experiment_id",
        "display_name",
        "description",
        "created_at",
        "storage_state",
        "last_run_created_at",
    ]
    assert made["last_run_created_at"] == "1970-01-01T00:00:00Z"
    error = server.ask("POST", "experiments", 409, json={"display_name": "mine"})
    assert error["code"] == 6 and "The name mine already exists" in message(error)
    assert "non-empty name" in server.ask("POST", "experiments", 500, json={})["message"]
    default = server.ask("GET", "experiments", params={"sort_by": "name"})["experiments"][0]
    assert server.ask("DELETE", f"experiments/{default['experiment_id']}", 409)["code"] == 10
    server.ask("DELETE", f"experiments/{made['experiment_id']}")
    assert (
        message(server.ask("GET", f"experiments/{made['experiment_id']}", 404))
        == f"Experiment {made['experiment_id']} not found"
    )
    server.ask("DELETE", "experiments/no", 404)


def test_archived_experiment_takes_runs_and_schedules_with_it(server: Server) -> None:
    experiment_id = server.ask("POST", "experiments", json={"display_name": "mine"})["experiment_id"]
    run_id = start(server, experiment_id=experiment_id)["run_id"]
    other = start(server)["run_id"]
    recurring_id = schedule(server, experiment_id=experiment_id)["recurring_run_id"]
    server.ask("POST", f"experiments/{experiment_id}:archive")
    assert server.ask("GET", f"runs/{run_id}")["storage_state"] == "ARCHIVED"
    assert server.ask("GET", f"runs/{other}")["storage_state"] == "AVAILABLE"
    assert server.ask("GET", f"recurringruns/{recurring_id}")["status"] == "DISABLED"
    error = server.ask("POST", f"runs/{run_id}:unarchive", 400)
    assert error["code"] == 9 and "must be un-archived first" in message(error)
    server.ask("POST", f"experiments/{experiment_id}:unarchive")
    server.ask("POST", f"runs/{run_id}:unarchive")
    assert server.ask("GET", f"runs/{run_id}")["storage_state"] == "AVAILABLE"


def finish(server: Server, run_id: str, state: str) -> Run:
    """End a run as the engine does."""
    run = server.store.run(run_id)
    assert run
    run.enter("RUNNING")
    run.enter(state)
    server.store.save_run(run)
    return run


def test_terminate(server: Server) -> None:
    run_id = start(server)["run_id"]
    server.store.changed.clear()
    assert server.ask("POST", f"runs/{run_id}:terminate") == {}
    assert server.store.changed.is_set()
    assert server.ask("GET", f"runs/{run_id}")["state"] == "CANCELING"
    assert server.ask("GET", "runs")["runs"][0]["state"] == "CANCELING"
    error = server.ask("POST", f"runs/{run_id}:terminate", 400)
    assert message(error) == f"Failed to terminate a run {run_id}. Row not found"
    finish(server, run_id, "FAILED")
    assert server.ask("GET", f"runs/{run_id}")["state"] == "FAILED"
    server.ask("POST", "runs/no:terminate", 404)


def test_retry(server: Server) -> None:
    run_id = start(server)["run_id"]
    error = server.ask("POST", f"runs/{run_id}:retry", 409)
    assert error["code"] == 10 and message(error) == "Workflow must be Failed/Error to retry"
    finish(server, run_id, "SUCCEEDED")
    server.ask("POST", f"runs/{run_id}:retry", 409)
    server.ask("POST", f"runs/{run_id}:terminate", 400)
    other = start(server)["run_id"]
    server.ask("POST", f"runs/{other}:terminate")
    finish(server, other, "FAILED")
    server.ask("POST", f"runs/{other}:retry")
    [active] = server.store.list_active_runs()
    assert (active.run_id, active.state, active.cancel, bool(active.retry)) == (other, "RUNNING", "", True)
    assert server.ask("GET", f"runs/{other}")["finished_at"] == "1970-01-01T00:00:00Z"
    server.store.retry_begun(other)
    assert server.store.list_active_runs()[0].retry == ""


def test_engine_and_api_do_not_undo_each_other(server: Server) -> None:
    run_id = start(server)["run_id"]
    run = server.store.run(run_id)
    assert run
    server.ask("POST", f"runs/{run_id}:terminate")
    server.ask("POST", f"runs/{run_id}:archive")
    run.enter("RUNNING")
    server.store.save_run(run)
    now = server.store.run(run_id)
    assert now and now.cancel and now.storage_state == "ARCHIVED" and now.state == "RUNNING"
    server.ask("DELETE", f"runs/{run_id}")
    server.store.save_run(run)
    server.store.save_task(Task(run_id, "late"))
    assert server.store.run(run_id) is None and server.store.tasks(run_id) == []
    server.ask("DELETE", f"runs/{run_id}", 404)


def test_artifacts_of_a_task(server: Server) -> None:
    run_id = start(server)["run_id"]
    task = Task(run_id, "add", pods=["adding-1"], state_json={"artifacts": {"executor-logs": "minio://bucket/log"}})
    server.store.save_task(task)
    answer = server.ask("GET", f"runs/{run_id}/nodes/adding-1/artifacts/main-logs:read")
    assert base64.b64decode(answer["data"]) == b"a line\n"
    server.ask("GET", f"runs/{run_id}/nodes/adding-2/artifacts/main-logs:read", 404)


def test_unknown_addresses(server: Server) -> None:
    assert server.ask("GET", "nothing", 404) == {"code": 5, "message": "Not Found", "details": []}
    assert server.ask("PUT", "runs", 501)["code"] == 12


def test_database_that_is_away(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: object) -> None:
        raise Unavailable("gone")

    monkeypatch.setattr(server.store, "run", away)
    error = server.ask("GET", "runs/x", 500)
    assert error["code"] == 13 and message(error) == "Internal Server Error"
    server.ask("GET", "healthz")


def schedule(server: Server, status: int = 200, **body: Any) -> Json:
    """Create a schedule."""
    request = {
        "display_name": "nightly",
        "pipeline_spec": SPEC,
        "runtime_config": {"parameters": {"number": 1}},
        "max_concurrency": 1,
        "trigger": {"cron_schedule": {"cron": "0 0 2 * * *"}},
        "mode": "ENABLE",
        **body,
    }
    return server.ask("POST", "recurringruns", status, json=request)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"max_concurrency": 11}, 400, "Max concurrency of a recurring run must be at least 1 and at most 10. Received 11"),
        ({"trigger": {"cron_schedule": {"cron": "* *"}}}, 400, "Expected 5 to 6 fields, found 2: * *"),
        ({"trigger": {"periodic_schedule": {"interval_second": "0"}}}, 400, "Found invalid period schedule interval 0"),
        ({"trigger": {"periodic_schedule": {"interval_second": "x"}}}, 400, "invalid value for int64 field interval_second"),
        ({"mode": "SOMETIMES"}, 400, "invalid value for enum field mode"),
        ({"display_name": ""}, 500, "Recurring run's name cannot be empty"),
        ({"runtime_config": {}}, 400, "parameter number is not optional"),
        ({"pipeline_spec": {}}, 500, "Failed to fetch a template with an empty pipeline spec manifest"),
        ({"experiment_id": "no"}, 404, "Experiment no not found"),
    ],
)  # fmt: skip
def test_wrong_schedules_are_refused(server: Server, body: Json, status: int, says: str) -> None:
    assert says in schedule(server, status, **body)["message"]
    assert server.ask("GET", "recurringruns") == {}

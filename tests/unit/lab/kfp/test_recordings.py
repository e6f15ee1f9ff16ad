"""The server against what the real one answered: the recorded exchanges of the SDK with Kubeflow Pipelines 2.17, sent again in their order.

What the engine of the real server did in between is put into the store from the recordings; all else is the server's own.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.lab.kfp.kfp_server.store import RUN_NOT_FINISHED, TASK_NOT_FINISHED, Experiment, Json, Run, Task
from tests.unit.lab.kfp.conftest import TIMEOUT_S, Server

RECORDINGS = [json.loads(line) for line in (Path(__file__).parent / "data/kfp-api.jsonl").read_text().splitlines()]
ABOVE, ABOVE_DETAILS = "(as above)", "(as in GET /runs/{id})"
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
SPECS = {
    each["body"]["pipeline_spec"]["pipelineInfo"]["name"]: each["body"]["pipeline_spec"]
    for each in RECORDINGS
    if each["method"] == "POST" and "pipelineInfo" in ((each["body"] or {}).get("pipeline_spec") or ())
}


@dataclass
class Replay:
    """Recorded ids and what they are here."""

    server: Server
    ids: dict[str, str] = field(default_factory=dict)

    def here(self, value: Any) -> Any:
        """A part of a recorded request with ids of here."""
        return json.loads(ID.sub(lambda match: self.ids.get(match[0], match[0]), json.dumps(value)))

    def send(self, recording: Json) -> requests.Response:
        """Send the recorded request."""
        body, files = self.here(recording["body"]), None
        if body and body.get("pipeline_spec") == ABOVE:
            body["pipeline_spec"] = SPECS[body["display_name"].split(".")[0]]
        if recording["multipart"]:
            files = {"uploadfile": ("pipeline.yaml", json.dumps(SPECS["contract-happy"]))}
        return requests.request(
            recording["method"],
            self.server.url + self.here(recording["path"]),
            params=[tuple(each) for each in self.here(recording["query"])],
            json=body,
            files=files,
            timeout=TIMEOUT_S,
        )

    def learn(self, recorded: Json, answered: Json) -> None:
        """Take the ids of what a request made; a version that came with its pipeline is first seen in a list."""
        for key, value in recorded.items():
            if key.endswith("_id"):
                self.ids.setdefault(value, answered.get(key, ""))
        here = {each["display_name"]: each for each in answered.get("pipeline_versions", [])}
        for version in recorded.get("pipeline_versions", []):
            self.learn(version, here.get(version["display_name"], {}))

    def advance(self, recorded: Json) -> None:
        """Bring the run to the recorded state, as an engine would have done in the meantime."""
        run = self.server.store.run(self.ids[recorded["run_id"]])
        assert run
        if recorded["state"] == "CANCELING" and len(recorded["state_history"]) == 2:
            # The state right after the request; the engine had only started the run.
            run.state = "RUNNING"
        else:
            run.state = recorded["state"]
        run.state_history = recorded["state_history"]
        run.finished_at = recorded["finished_at"].replace(RUN_NOT_FINISHED, "")
        self.server.store.save_run(run)
        for task in _tasks(recorded):
            self.ids.setdefault(task["task_id"], task["task_id"])
            self.server.store.save_task(
                Task(
                    run_id=run.run_id,
                    display_name=task["display_name"],
                    task_id=task["task_id"],
                    create_time=task["create_time"],
                    start_time=task["start_time"],
                    end_time=task["end_time"].replace(TASK_NOT_FINISHED, ""),
                    state=task.get("state", ""),
                    state_history=task["state_history"],
                    pods=[child["pod_name"] for child in task.get("child_tasks", [])],
                )
            )

    def compare(self, recorded: Json, answered: Json) -> None:
        """Same keys in the same order, same types, same values but for ids and times."""
        ids = {here: there for there, here in self.ids.items()}
        answered = json.loads(ID.sub(lambda match: ids.get(match[0], match[0]), json.dumps(answered)))
        expected, found = _comparable(recorded, recorded), _comparable(answered, recorded)
        assert json.dumps(found, indent=1) == json.dumps(expected, indent=1)


def _tasks(run: Json) -> list[Json]:
    """The recorded tasks without those that came from ML Metadata alone, as the stand-in has none."""
    details = run.get("run_details", {})
    return (
        [] if details == ABOVE_DETAILS else [task for task in details.get("task_details", []) if "display_name" in task]
    )


def _comparable(value: Any, recorded: Any) -> Any:
    """A value with times made equal, lists of things in the order of their ids, and without what the recording left out."""
    if isinstance(value, dict):
        kept = {}
        for key, each in value.items():
            there = recorded.get(key) if isinstance(recorded, dict) else None
            if there in (ABOVE, ABOVE_DETAILS):
                # The recorder put this into every run of a list, also where there is a reference instead.
                if not (key == "pipeline_spec" and "pipeline_version_reference" in recorded):
                    kept[key] = there
            elif key == "task_details":
                kept[key] = _by_id(_tasks({"run_details": value}), _tasks({"run_details": recorded}), "task_id")
            else:
                kept[key] = _comparable(each, there)
        return kept
    if isinstance(value, list):
        keys = [
            key for key in ("run_id", "pipeline_version_id") if value and isinstance(value[0], dict) and key in value[0]
        ]
        if keys:
            return _by_id(value, recorded, keys[0])
        return [_comparable(each, None) for each in value]
    if isinstance(value, str) and TIME.fullmatch(value) and value not in (RUN_NOT_FINISHED, TASK_NOT_FINISHED):
        return "a time"
    return value


def _by_id(values: list[Json], recorded: list[Json], key: str) -> list[Json]:
    there = {each[key]: each for each in recorded}
    return [_comparable(each, there.get(each[key])) for each in sorted(values, key=lambda each: str(each[key]))]


def _prepare(server: Server) -> Replay:
    """What was there before the first recorded request: an experiment with one run."""
    replay = Replay(server)
    recorded = RECORDINGS[1]["response"]["experiments"][0]
    experiment = Experiment(name=recorded["display_name"], last_run_created_at=recorded["last_run_created_at"])
    server.store.add(experiment)
    replay.ids[recorded["experiment_id"]] = experiment.id
    listed = next(
        each["response"]["runs"] for each in RECORDINGS if each["path"].endswith("/runs") and each["method"] == "GET"
    )
    first = listed[0]
    run = Run(
        experiment_id=experiment.id,
        display_name=first["display_name"],
        pipeline_spec=SPECS["contract-happy"],
        runtime_config=first["runtime_config"],
        state=first["state"],
        state_history=first["state_history"],
        finished_at=first["finished_at"],
    )
    server.store.add_run(run)
    server.store.save_task(Task(run.run_id, "make"))
    replay.ids[first["run_id"]] = run.run_id
    return replay


def test_every_recorded_exchange(server: Server) -> None:
    replay = _prepare(server)
    for number, recording in enumerate(RECORDINGS):
        recorded = recording["response"]
        if recording["method"] == "GET" and isinstance(recorded, dict) and "state" in recorded:
            replay.advance(recorded)
        response = replay.send(recording)
        assert response.status_code == recording["status"], (number, response.text)
        answered = response.json()
        if recording["path"].endswith("/healthz"):
            assert {key: type(value) for key, value in answered.items()} == {
                key: type(value) for key, value in recorded.items()
            }
            assert answered["tag_name"] == "slipway-stand-in"
            continue
        if recording["status"] >= 400:
            recorded = json.loads(ast.literal_eval(recorded))
            if "error_details" in recorded:
                # Go's stack is no part of the contract.
                recorded["error_details"] = recorded["error_details"].split("\n")[0]
        replay.learn(recorded, answered)
        if recording["path"].endswith(":terminate"):
            assert server.store.run(replay.here(recording["path"]).split("/")[-1].split(":")[0]).cancel  # type: ignore[union-attr]
        try:
            replay.compare(recorded, answered)
        except AssertionError as error:
            raise AssertionError(f"recording {number}, {recording['method']} {recording['path']}: {error}") from error

"""Submitting and following a run, against a small server that answers as KFP 2.17 does and fails as servers do."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import submit
import yaml

NOW, NEVER = "2026-11-21T14:29:03Z", "0001-01-01T00:00:00Z"


class Kfp:
    """The server's state, and what goes wrong with it."""

    def __init__(self) -> None:
        self.pipelines: dict[str, dict[str, str]] = {}
        self.uploads: list[bytes] = []
        self.runs: list[dict[str, Any]] = []
        self.polls: list[tuple[str, list[dict[str, Any]]]] = []
        self.faults: list[int] = []
        self.lose_answer_to: str | None = None
        self.authorization: str | None = None
        self.message = ""
        self.requests: list[str] = []

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        name = query.get("name", [""])[0]
        match (method, path.removeprefix("/apis/v2beta1/").split("/")):
            case ("GET", ["healthz"]):
                return 200, {"multi_user": False, "tag_name": "test"}
            case ("GET", ["pipelines"]):
                wanted = json.loads(query["filter"][0])["predicates"][0]["stringValue"]
                return 200, {
                    "pipelines": [{"pipeline_id": f"id-{n}", "display_name": n} for n in self.pipelines if n == wanted]
                }
            case ("POST", ["pipelines", "upload"]):
                if name in self.pipelines:
                    return 409, {"error_message": "exists", "error_details": "a stack trace"}
                self.pipelines[name] = {name: "version-0"}
                return 200, {"pipeline_id": f"id-{name}", "display_name": name}
            case ("POST", ["pipelines", "upload_version"]):
                self.uploads.append(body)
                versions = self.pipelines[query["pipelineid"][0].removeprefix("id-")]
                versions[name] = f"version-{len(versions)}"
                return 200, {"pipeline_version_id": versions[name], "display_name": name}
            case ("GET", ["pipelines", pipeline, "versions"]):
                versions = self.pipelines[pipeline.removeprefix("id-")]
                listed = [{"pipeline_version_id": v, "display_name": n} for n, v in versions.items()]
                return 200, {"pipeline_versions": listed}
            case ("GET", ["experiments"]):
                return 200, {"experiments": [{"experiment_id": "e", "display_name": "slipway"}]}
            case ("GET", ["runs"]):
                return 200, {"runs": self.runs}
            case ("POST", ["runs"]):
                self.runs.append({**json.loads(body), "run_id": f"run-{len(self.runs) + 1}", "state": "PENDING"})
                return 200, self.runs[-1]
            case ("GET", ["runs", run_id]):
                state, details = self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]
                error = {"code": 2, "message": self.message} if self.message else None
                return 200, {"run_id": run_id, "state": state, "error": error, "run_details": {"task_details": details}}
        return 404, {"code": 5, "message": f"no {path}"}


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Kfp, str]]:
    """The server and its address."""
    server = Kfp()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            server.requests.append(f"{self.command} {parts.path}")
            if server.faults:
                status, value = server.faults.pop(0), {"code": 13, "message": "the database is away"}
            elif server.authorization not in (None, self.headers.get("Authorization")):
                status, value = 401, {"message": "who are you?"}
            else:
                status, value = server.answer(self.command, parts.path, parse_qs(parts.query), body)
                if server.lose_answer_to == f"{self.command} {parts.path}":
                    server.lose_answer_to = None
                    self.close_connection = True
                    return
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _serve

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(submit, "_POLL", 0.02)
    monkeypatch.delenv("KFP_USER", raising=False)
    yield server, f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    thread.join()
    http.server_close()


def task(name: str, state: str, end: str = NEVER) -> dict[str, Any]:
    return {"display_name": name, "state": state, "start_time": NOW, "end_time": end}


def test_a_run_is_followed_to_its_end(kfp: tuple[Kfp, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, host = kfp
    later = "2026-11-21T14:29:13Z"
    server.polls = [
        ("PENDING", []),
        ("RUNNING", [task("load-driver", "RUNNING"), task("load", "RUNNING"), task("root(0)", "RUNNING")]),
        ("RUNNING", [task("load", "SUCCEEDED", later), task("load(0)", "SUCCEEDED"), task("train", "RUNNING")]),
        (
            "SUCCEEDED",
            [task("load", "SUCCEEDED", later), task("train", "SUCCEEDED", later), task("executor", "SKIPPED")],
        ),
    ]
    out = tmp_path / "run.json"
    command = [
        "iris",
        "--host",
        host,
        "--image",
        "registry.test/epos:1",
        "--parameter",
        "steps=20",
        "--follow",
        "--json",
        str(out),
    ]
    assert submit.main(command) == 0
    record = json.loads(out.read_text())
    assert (record["pipeline"], record["run_id"], record["state"]) == ("iris", "run-1", "SUCCEEDED")
    assert record["parameters"] == {"steps": 20} == server.runs[0]["runtime_config"]["parameters"]
    assert record["tasks"]["load"] == {
        "state": "SUCCEEDED", "started": "2026-11-21T14:29:03+00:00", "ended": "2026-11-21T14:29:13+00:00", "seconds": 10.0
    }  # fmt: skip
    assert set(record["tasks"]) == {"load", "train"} and "error" not in record
    lines = [re.sub(r"^[\d:]+ ", "", line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == ["run: PENDING", "load: RUNNING", "run: RUNNING", "load: SUCCEEDED, 10 s", "train: RUNNING",
                     "train: SUCCEEDED, 10 s", "run: SUCCEEDED"]  # fmt: skip
    assert server.pipelines["iris"].keys() == {"iris", record["version"]}
    assert server.runs[0]["pipeline_version_reference"] == {
        "pipeline_id": "id-iris",
        "pipeline_version_id": "version-1",
    }

    assert submit.main(command[:5]) == 0
    assert len(server.uploads) == 1 and len(server.runs) == 2, "the same pipeline is uploaded once"
    assert submit.main([*command[:4], "registry.test/epos:2"]) == 0
    assert len(server.uploads) == 2 and len(server.pipelines["iris"]) == 3, "another image makes another version"


def test_a_failed_task_is_named(kfp: tuple[Kfp, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server, host = kfp
    server.polls = [
        ("FAILED", [task("load", "SUCCEEDED"), task("validate", "FAILED"), task("validate-driver", "SUCCEEDED")])
    ]
    out = tmp_path / "run.json"
    assert (
        submit.main(["iris", "--host", host, "--image", "i", "--follow", "--json", str(out), "--namespace", "runs"])
        == 1
    )
    error = capsys.readouterr().err
    assert "run run-1 ended FAILED; failed: validate\n" in error
    assert "logs: kubectl -n runs logs -l pipeline/runid=run-1 -c main" in error
    record = json.loads(out.read_text())
    assert (
        record["state"] == "FAILED"
        and record["tasks"]["validate"]["state"] == "FAILED"
        and "validate" in record["error"]
    )
    server.message = "out of quota"
    assert submit.main(["iris", "--host", host, "--image", "i", "--follow"]) == 1
    assert "ended FAILED: out of quota; failed: validate" in capsys.readouterr().err


def test_a_run_that_takes_too_long_is_left_alone(kfp: tuple[Kfp, str], capsys: pytest.CaptureFixture[str]) -> None:
    server, host = kfp
    server.polls = [("RUNNING", [task("load", "SUCCEEDED"), task("train", "PENDING")])]
    assert submit.main(["iris", "--host", host, "--image", "i", "--follow", "--timeout", "0.2"]) == 1
    assert "run run-1 goes on after 0 s: train PENDING" in capsys.readouterr().err
    server.polls = [("PENDING", [])]
    assert submit.main(["iris", "--host", host, "--image", "i", "--follow", "--timeout", "0.2"]) == 1
    assert "no task has started" in capsys.readouterr().err


def test_a_server_that_is_away_is_waited_for(kfp: tuple[Kfp, str], capsys: pytest.CaptureFixture[str]) -> None:
    server, host = kfp
    server.faults = [500, 503, 502]
    server.polls = [("SUCCEEDED", [])]
    assert submit.main(["iris", "--host", host, "--image", "i", "--follow", "--away", "30"]) == 0
    assert (
        not server.faults and "does not answer (the database is away); waiting for it, 30 s" in capsys.readouterr().out
    )
    server.faults = [500] * 1000
    assert submit.main(["iris", "--host", host, "--image", "i", "--follow", "--away", "0.2"]) == 1
    assert "no answer for 0 s: the database is away" in capsys.readouterr().err


def test_an_answer_that_got_lost_starts_no_second_run(kfp: tuple[Kfp, str]) -> None:
    server, host = kfp
    server.lose_answer_to = "POST /apis/v2beta1/runs"
    assert submit.main(["iris", "--host", host, "--image", "i"]) == 0
    assert server.lose_answer_to is None and len(server.runs) == 1
    server.lose_answer_to = "POST /apis/v2beta1/pipelines/upload_version"
    assert submit.main(["iris", "--host", host, "--image", "other"]) == 0
    assert len(server.uploads) == 2


def test_the_login_goes_with_every_request(
    kfp: tuple[Kfp, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, host = kfp
    server.authorization = "Basic " + base64.b64encode(b"person:a b").decode()
    (tmp_path / "word").write_text("a b\n")
    command = ["iris", "--host", host, "--image", "i"]
    assert submit.main([*command, "--user", "person", "--password-file", str(tmp_path / "word")]) == 0
    monkeypatch.setenv("KFP_USER", "person")
    monkeypatch.setenv("KFP_PASSWORD", "a b")
    assert submit.main(command) == 0
    monkeypatch.setenv("KFP_PASSWORD", "wrong")
    before = len(server.requests)
    assert submit.main(command) == 1
    assert "401 who are you?" in capsys.readouterr().err and len(server.requests) == before + 1, "a refusal is final"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["iris"], "--image is needed in place of slipway-epos"),
        (["none"], "none: neither a file nor one of epos, iris"),
        (["epos", "--image", "i"], "--parameter domain=VALUE is needed"),
        (
            ["iris", "--image", "i", "--parameter", "speed=1"],
            "expected NAME=VALUE with a NAME of min_accuracy, seed, steps",
        ),
        (["iris", "--image", "i", "--parameter", "steps"], "--parameter steps: expected NAME=VALUE"),
        (["iris", "--image", "i", "--parameter", "steps=many"], "--parameter steps=many: 'many' is no NUMBER_INTEGER"),
        (["iris", "--image", "i", "--user", "person"], "--user needs --password-file"),
        (["iris", "--image", "i", "--user", "p", "--password-file", "/none"], "--password-file: /none: No such file"),
        (["iris", "--image", "i", "--ca", "/none.pem"], "--ca: /none.pem: no such file"),
        ([__file__, "--image", "i"], "is no compiled pipeline"),
        ([], "the following arguments are required: PIPELINE"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_sent(
    kfp: tuple[Kfp, str],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, host = kfp
    monkeypatch.delenv("KFP_PASSWORD", raising=False)
    assert submit.main([*arguments, "--host", host]) == 2
    assert message in capsys.readouterr().err and not server.requests


def test_the_image_takes_its_place_and_accelerators_go() -> None:
    path = submit.find("epos")
    fitted = submit.read(path, "registry.test/epos@sha256:1", gpu=False)
    spec, platform = yaml.safe_load_all(fitted.text)
    containers = [e["container"] for e in spec["deploymentSpec"]["executors"].values()]
    assert {c["image"] for c in containers} == {"registry.test/epos@sha256:1"}
    assert (
        not [c for c in containers if "accelerator" in c["resources"]]
        and containers[0]["resources"]["resourceCpuLimit"]
    )
    assert spec["root"]["inputDefinitions"]["parameters"]["image"]["defaultValue"] == "registry.test/epos@sha256:1"
    assert platform == list(yaml.safe_load_all(path.read_text()))[1]
    gpu = submit.read(path, "registry.test/epos@sha256:1", gpu=True)
    assert "nvidia.com/gpu" in gpu.text and gpu.version != fitted.version
    assert fitted.tasks["await-rollout"] == {"await-rollout"} and len(fitted.tasks) == 11


def test_parameters_get_their_types() -> None:
    pipeline = submit.read(submit.find("epos"), "i", gpu=True)
    given = ["domain=site.test", "train_steps=500", "min_recall=1", "data=s3://a/b=c"]
    assert submit.arguments(pipeline, given) == {
        "domain": "site.test", "train_steps": 500, "min_recall": 1.0, "data": "s3://a/b=c"
    }  # fmt: skip

"""What people are told."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from slipway_dataops import notices
from slipway_dataops.stages import summary

from .conftest import connect

CHAIN: dict[str, Any] = {
    "drop": {"name": "one"},
    "observe": {"compared_with": "abc", "worst": 0.3},
    "clean": {"removed": {"duplicate": 2}},
    "split": {"train": 30, "test": 5},
    "model": {"verdict": "rejected", "version": "v2", "recall": 0.41234, "reason": "recall 0.412 is below 0.5"},
    "record": "s3://epos-data/dataops/records/one/abc.json",
}


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """An address, and what was said to it."""
    said: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            said.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/private-part", said
    server.shutdown()
    server.server_close()


def test_a_webhook_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as (url, said):
        connect(monkeypatch, notices.CONNECTION, "", password=url)
        assert notices.tell("done")
    assert said == [{"text": "done"}]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert not notices.tell("nobody was asked for")
    with webhook(500) as (url, _):
        connect(monkeypatch, notices.CONNECTION, "", password=url)
        assert not notices.tell("refused")
    assert not notices.tell("away")
    connect(monkeypatch, notices.CONNECTION, "")
    assert not notices.tell("no address")
    assert [text for text in ("nobody was asked for", "refused", "away", "no address") if text not in caplog.text] == []
    assert "private-part" not in caplog.text, "who knows the address may write there"


def test_a_failure_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    ti = SimpleNamespace(dag_id="dataops", run_id="r", task_id="process.split")
    with webhook() as (url, said):
        connect(monkeypatch, notices.CONNECTION, "", password=url)
        notices.tell_failure({"ti": ti, "exception": ValueError("\n".join(map(str, range(14))))})  # type: ignore[typeddict-item]
        notices.tell_failure({"ti": ti, "exception": TimeoutError()})  # type: ignore[typeddict-item]
    assert said[0]["text"].startswith("DAG dataops, run r: task process.split failed: 0\n1\n")
    assert said[0]["text"].endswith("9\n... and 4 lines more")
    assert said[1]["text"].endswith("failed: TimeoutError")


def test_summaries() -> None:
    text = "drop one (30 images to learn from, 5 held out, 2 removed, drift 0.30 strong): model v2 was rejected, recall 0.412: "
    assert summary(CHAIN) == f"{text}recall 0.412 is below 0.5; {CHAIN['record']}"
    first = CHAIN | {"observe": {"compared_with": None, "worst": 0.0}, "clean": {"removed": {}}}
    released = {"verdict": "released", "version": "v1", "recall": 0.75, "commit": "c"}
    assert summary(first | {"model": released}) == (
        f"drop one (30 images to learn from, 5 held out): model v1 was released, recall 0.750; {CHAIN['record']}"
    )
    assert "is not recorded" in summary(first | {"model": {"verdict": "unknown"}})

"""Pushes are told to receivers, and nobody waits for them."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .service import Service

import git_webhooks  # isort: skip


class Receiver:
    """Keeps what it is told; `status` is its answer."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        self.came = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_POST(self) -> None:
                receiver.told.append(({**self.headers}, self.rfile.read(int(self.headers["Content-Length"]))))
                receiver.came.set()
                self.send_response(receiver.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/api/webhook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    yield running
    running.server.shutdown()
    running.server.server_close()


@pytest.fixture
def notifier(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> git_webhooks.Notifier:
    """One that was not started."""
    monkeypatch.setattr(git_webhooks, "PAUSES", (0, 0.2, 0.2))
    (tmp_path / "secret").write_text("key\n")
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps(
            {"approvers": ["admin"], "address": "http://git.git", "webhooks": ["http://127.0.0.1:9/", receiver.url]}
        )
    )
    return git_webhooks.Notifier(tmp_path / "events", settings, tmp_path / "secret")


def test_events_are_signed_and_sent_once_in_order(
    notifier: git_webhooks.Notifier, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (2, 1):
        (notifier.events / f"{number}.json").write_text(f'{{"number": {number}}}')
    (notifier.events / "3.part").write_text("not yet")
    notifier.send()
    notifier.send()
    assert [json.loads(body)["number"] for _, body in receiver.told] == [1, 2]
    headers, body = receiver.told[0]
    assert headers["X-Hub-Signature-256"] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert (headers["X-Github-Event"], headers["Content-Type"]) == ("push", "application/json")
    # The other receiver, where nobody listens, is a line in the log.
    assert capsys.readouterr().err.count("http://127.0.0.1:9/ was not told of a push") == 2


def test_an_answer_with_an_error_is_logged(
    notifier: git_webhooks.Notifier, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 400
    (notifier.events / "1.json").write_text("{}")
    notifier.send()
    assert f"{receiver.url} was not told of a push: HTTP Error 400" in capsys.readouterr().err


def test_a_receiver_may_be_starting(notifier: git_webhooks.Notifier, receiver: Receiver, tmp_path: Path) -> None:
    late = ThreadingHTTPServer(receiver.server.server_address, receiver.server.RequestHandlerClass, False)
    receiver.server.server_close()
    (notifier.events / "1.json").write_text("{}")

    def start() -> None:
        late.server_bind()
        late.server_activate()
        late.handle_request()

    timer = threading.Timer(0.1, start)
    timer.start()
    notifier.send()
    timer.join()
    late.server_close()
    assert len(receiver.told) == 1


def test_without_a_key_nothing_is_sent(
    notifier: git_webhooks.Notifier, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier.secret.unlink()
    (notifier.events / "1.json").write_text("{}")
    notifier.send()
    assert receiver.told == []
    assert "1.json is not sent" in capsys.readouterr().err


def test_a_push_is_told(guarded: Service, notifier: git_webhooks.Notifier, receiver: Receiver) -> None:
    notifier.start()
    guarded.server.notifier = notifier
    clone = guarded.commit("apps/a.yaml", b"{}\n")
    started = time.monotonic()
    guarded.git("push", "-q", "origin", "main", cwd=clone)
    assert receiver.came.wait(10)
    assert time.monotonic() - started < git_webhooks.PATIENCE
    event = json.loads(receiver.told[0][1])
    assert (event["ref"], event["after"]) == ("refs/heads/main", guarded.head())

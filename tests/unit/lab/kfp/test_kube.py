"""The client for the Kubernetes API, against a server of HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kfp.kfp_server.kube import KubeClient, KubeError

POD = {"metadata": {"name": "a"}}


class Handler(BaseHTTPRequestHandler):
    """Answers by the path, and remembers what it was asked."""

    asked: list[tuple[str, str, str, str]] = []  # noqa: RUF012 (filled by all requests of a test)

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        self.asked.append((self.command, self.path, str(self.headers["Authorization"]), body))
        path = self.path.removeprefix("/api/v1/namespaces/here/")
        if path.startswith("pods?watch=true"):
            self._send(200, b'{"type":"ADDED","object":{}}\n{"type":"MODI', b'FIED","object":{"n":1}}\n')
        elif path.startswith("pods/a/log"):
            self._send(200, b"one\n", b"two\n")
        elif path.startswith("pods?labelSelector"):
            self._send(200, json.dumps({"items": [POD]}).encode())
        elif path == "pods" and self.command == "POST":
            self._send(409, json.dumps({"message": 'pods "a" already exists'}).encode())
        elif path.startswith("pods/a"):
            self._send(200, json.dumps(POD).encode())
        elif path == "pods/broken":
            self._send(503, b"<html>away</html>")
        else:
            self._send(404, json.dumps({"message": "not found"}).encode())

    do_GET = do_POST = do_DELETE = _answer

    def _send(self, status: int, *pieces: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(sum(map(len, pieces))))
        self.end_headers()
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What a pod finds of its account; the certificate is not used here."""
    (tmp_path / "namespace").write_text("here\n")
    (tmp_path / "token").write_text("secret\n")
    return tmp_path


@pytest.fixture
def kube(account: Path) -> Iterator[KubeClient]:
    """A client of a server."""
    Handler.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield KubeClient(f"http://127.0.0.1:{server.server_port}", account)
    server.shutdown()
    server.server_close()


def test_objects(kube: KubeClient) -> None:
    """Read, list, remove; what is not there is none. Results are of another group."""
    assert kube.get("pods", "a") == POD and kube.get("pods", "b") is None
    assert kube.list("pods", "a=b,c in (d)") == [POD]
    kube.delete("pods", "a", 0)
    kube.delete("pods", "b")
    assert kube.get("workflowtaskresults", "b") is None
    asked: list[Any] = [(method, path.removeprefix("/api/v1/namespaces/here/")) for method, path, _, _ in Handler.asked]
    assert asked[2:] == [
        ("GET", "pods?labelSelector=a%3Db%2Cc+in+%28d%29"), ("DELETE", "pods/a?gracePeriodSeconds=0"), ("DELETE", "pods/b"),
        ("GET", "/apis/argoproj.io/v1alpha1/namespaces/here/workflowtaskresults/b"),
    ]  # fmt: skip
    assert {token for _, _, token, _ in Handler.asked} == {"Bearer secret"}


def test_streams(kube: KubeClient) -> None:
    """Events come whole, however they are cut; the log as it is."""
    assert [event["type"] for event in kube.watch("pods", field="metadata.name=a")] == ["ADDED", "MODIFIED"]
    assert b"".join(kube.log("a", "main")) == b"one\ntwo\n"


def test_refusals(kube: KubeClient, account: Path) -> None:
    """The API's own words, and whether it may be asked again."""
    with pytest.raises(KubeError, match="already exists") as refused:
        kube.create("pods", POD)
    assert refused.value.status == 409 and not refused.value.passing
    with pytest.raises(KubeError, match="away") as away:
        kube.get("pods", "broken")
    assert away.value.passing
    with pytest.raises(KubeError, match="cannot be reached") as unreachable:
        KubeClient("http://127.0.0.1:9", account).get("pods", "a")
    assert unreachable.value.status == 0 and unreachable.value.passing

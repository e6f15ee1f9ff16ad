"""The server's API on a port of this machine, with its store in memory and no engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import uvicorn

from tests.lab.kfp.kfp_server import api, web
from tests.lab.kfp.kfp_server.store import Json, Store
from tests.unit.lab.kfp import memory

NAMESPACE = "kubeflow"
TIMEOUT_S = 20


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A web application in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + TIMEOUT_S
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(TIMEOUT_S)


@dataclass
class Server:
    """The server, seen from outside and from behind."""

    url: str
    store: Store
    api: api.Api

    def ask(self, method: str, path: str, status: int = 200, **arguments: Any) -> Json:
        """Send a request below /apis/v2beta1 and give the JSON of its answer, which has a certain status."""
        response = requests.request(method, f"{self.url}/apis/v2beta1/{path}", timeout=TIMEOUT_S, **arguments)
        assert response.status_code == status, response.text
        assert response.headers["X-Slipway-Stand-In"] == "kfp"
        answer: Json = response.json()
        return answer

    def upload(
        self,
        name: str,
        content: bytes | str,
        status: int = 200,
        file: str = "p.yaml",
        path: str = "upload",
        **query: str,
    ) -> Json:
        """Upload a pipeline or, by another path, a version."""
        return self.ask(
            "POST", f"pipelines/{path}", status, params={"name": name, **query}, files={"uploadfile": (file, content)}
        )


@pytest.fixture
def server() -> Iterator[Server]:
    """A server with nothing in it but the default experiment."""
    store = memory.store()
    artifacts = {"minio://bucket/log": b"a line\n"}
    service = api.Api(store, NAMESPACE, read_artifact=artifacts.__getitem__)
    service.default_experiment()
    with serving(web.app(service)) as url:
        yield Server(url, store, service)

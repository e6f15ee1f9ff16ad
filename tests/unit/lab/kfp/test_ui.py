"""The pages in place of the UI, and the idle part."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from tests.lab.kfp.kfp_server import idle, ui
from tests.lab.kfp.kfp_server.store import Task
from tests.unit.lab.kfp.conftest import TIMEOUT_S, Server, serving
from tests.unit.lab.kfp.test_api import start


@pytest.fixture
def pages(server: Server) -> Iterator[str]:
    """The pages in front of the server."""
    with serving(ui.app(server.url)) as url:
        yield url


def test_pages_show_runs_and_tasks_and_say_what_they_are(server: Server, pages: str) -> None:
    run_id = start(server, display_name="<b>first</b>")["run_id"]
    task = Task(run_id, "add", pods=["adding-1"])
    task.enter("SUCCEEDED")
    server.store.save_task(task)
    front = requests.get(pages, timeout=TIMEOUT_S)
    assert "This is a stand-in" in front.text and front.headers["X-Slipway-Stand-In"] == "kfp"
    assert "&lt;b&gt;first&lt;/b&gt;" in front.text and "<b>first" not in front.text and f"/runs/{run_id}" in front.text
    page = requests.get(f"{pages}/runs/{run_id}", timeout=TIMEOUT_S).text
    assert "This is a stand-in" in page and "PENDING" in page and "SUCCEEDED" in page and "adding-1" in page
    assert requests.get(f"{pages}/runs/no", timeout=TIMEOUT_S).status_code == 404


def test_the_api_is_behind_the_pages(server: Server, pages: str) -> None:
    through = Server(pages, server.store, server.api)
    run_id = start(through)["run_id"]
    assert through.ask("GET", f"runs/{run_id}") == server.ask("GET", f"runs/{run_id}")
    assert through.ask("GET", "runs", params={"page_size": "1"})["total_size"] == 1
    assert through.ask("GET", "runs/no", 404)["code"] == 5
    through.ask("POST", f"runs/{run_id}:terminate")
    through.ask("DELETE", f"runs/{run_id}")
    assert through.upload("p", "rubbish", 400)["error_message"] == "unknown template format"


def test_probes_of_the_pages(server: Server, pages: str) -> None:
    assert requests.get(f"{pages}/apis/v1beta1/healthz", timeout=TIMEOUT_S).json()["apiServerReady"] is True
    with serving(ui.app("http://127.0.0.1:9")) as alone:
        probe = requests.get(f"{alone}/apis/v1beta1/healthz", timeout=TIMEOUT_S)
        assert probe.status_code == 200 and probe.json()["apiServerReady"] is False
        page = requests.get(alone, timeout=TIMEOUT_S)
        assert page.status_code == 502 and "The API does not answer" in page.text


def test_address_of_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ML_PIPELINE_SERVICE_HOST", raising=False)
    monkeypatch.delenv("ML_PIPELINE_SERVICE_PORT", raising=False)
    assert ui.api_address() == "http://ml-pipeline:8888"
    monkeypatch.setenv("ML_PIPELINE_SERVICE_HOST", "10.0.0.1")
    assert ui.api_address() == "http://10.0.0.1:8888"


def test_idle_answers_probes_only() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = threading.Event()
    thread = threading.Thread(target=idle.serve, args=(stop, (port,)), daemon=True)
    thread.start()
    end = time.monotonic() + TIMEOUT_S
    while True:
        try:
            assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S).status_code == 200
            break
        except requests.ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert requests.get(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT_S).status_code == 404
    stop.set()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()

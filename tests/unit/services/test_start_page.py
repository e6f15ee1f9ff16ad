"""The start page: what it shows, that nothing makes it wait, and that it shows no more than it should."""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib.util
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SOURCE = Path(__file__).parents[3] / "services/start_page.py"
# Any certificate in PEM form will do for the fingerprint.
PEM = "-----BEGIN CERTIFICATE-----\n" + base64.b64encode(b"certificate").decode() + "\n-----END CERTIFICATE-----\n"


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("start_page", SOURCE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their module up by its name.
    sys.modules["start_page"] = module
    specification.loader.exec_module(module)
    return module


start_page = load()


class Component:
    """Something that answers as the test wants, on a port of its own."""

    def __init__(self) -> None:
        self.status = 200
        self.delay = 0.0
        component = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(component.delay)
                self.send_response(component.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/healthz"


@pytest.fixture
def component() -> Iterator[Component]:
    made = Component()
    yield made
    made.server.shutdown()
    made.server.server_close()


def config(*components: dict[str, Any]) -> dict[str, Any]:
    return {
        "site": "lab",
        "domain": "lab.internal",
        "kubeconfig": ".slipway/lab/kubeconfig",
        "ca": ".slipway/lab/ca.crt",
        "components": list(components),
    }


class Served:
    """The start page behind a port."""

    def __init__(self, folder: Path, data: dict[str, Any], timeout: float = 0.5, ca: bool = True) -> None:
        (folder / "page.json").write_text(json.dumps(data))
        if ca:
            (folder / "ca.crt").write_text(PEM)
        self.watch = start_page.Watch(start_page.Page.load(folder / "page.json"), 0.05, timeout)
        self.server = start_page.Server(0, self.watch, folder / "ca.crt")
        self.watch.start()
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def get(self, path: str, method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read().decode()
        finally:
            connection.close()

    def states(self) -> dict[str, dict[str, Any]]:
        return {item["name"]: item for item in json.loads(self.get("/status.json")[2])["components"]}

    def await_state(self, name: str, state: str) -> dict[str, Any]:
        end = time.monotonic() + 5
        while (item := self.states()[name])["state"] != state:
            assert time.monotonic() < end, item
            time.sleep(0.02)
        return item

    def close(self) -> None:
        self.watch.stop.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    made: list[Served] = []

    def start(*components: dict[str, Any], **options: Any) -> Served:
        made.append(Served(tmp_path, config(*components), **options))
        return made[-1]

    yield start
    for each in made:
        each.close()


def test_a_component_goes_and_comes_back(serve: Any, component: Component) -> None:
    served = serve({"name": "minio", "title": "MinIO", "health": component.url})
    healthy = served.await_state("minio", "healthy")
    assert (healthy["text"], healthy["reason"]) == ("Healthy", "")
    component.status = 503
    silent = served.await_state("minio", "not answering")
    assert silent["reason"] == "it answers HTTP 503 Service Unavailable"
    assert silent["text"].startswith("Not answering since ") and silent["text"].endswith(silent["reason"])
    assert 'data-state="not answering">Not answering since ' in served.get("/")[2]
    time.sleep(0.2)
    assert served.states()["minio"]["since"] == silent["since"]
    component.status = 302
    served.await_state("minio", "healthy")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/", "the connection is refused"),
        ("http://no-such-host.invalid/", "the name no-such-host.invalid is not known"),
    ],
)
def test_reasons(url: str, reason: str) -> None:
    assert start_page.ask(url, 2) == reason


def test_who_speaks_something_else_or_other_tls_does_not_answer(component: Component) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            stream, _ = listener.accept()
            stream.recv(1000)
            stream.sendall(b"220 smtp\r\n")
            stream.close()

        threading.Thread(target=babble, daemon=True).start()
        assert "BadStatusLine" in start_page.ask(f"http://127.0.0.1:{listener.getsockname()[1]}/", 2)
    assert start_page.ask(component.url.replace("http", "https"), 2).startswith("TLS: ")


def test_no_request_waits_for_a_component(serve: Any, component: Component) -> None:
    component.delay = 3
    served = serve({"name": "slow", "title": "Slow", "health": component.url}, timeout=2)
    # One that waited would know.
    assert served.get("/")[0] == 200
    assert served.states()["slow"]["state"] == "not checked yet"
    assert served.await_state("slow", "not answering")["reason"] == "no answer within 2 s"


def test_a_question_that_never_ends_counts_as_no_answer() -> None:
    now = [1000.0]
    item = start_page.Component("x", "X", health="http://x/")
    probe = start_page.Probe(item, 5, 3, lambda: "", lambda: now[0])
    probe.look()
    now[0] += 11
    assert probe.state.state == "healthy"
    now[0] += 1
    assert (probe.state.state, probe.state.since) == ("not answering", 1000.0)


def test_what_is_not_asked(serve: Any) -> None:
    served = serve(
        {"name": "wiki", "title": "Wiki", "url": "https://wiki.example.org/"},
        {"name": "gpu-operator", "title": "GPU operator", "version": "v1", "description": "GPUs"},
    )
    html = served.get("/")[2]
    assert {item["state"] for item in served.states().values()} == {"not checked"}
    assert 'id="state-wiki"' in html and 'id="state-gpu-operator"' not in html
    assert '<th scope="row">GPU operator</th><td>v1</td><td>GPUs</td>' in html


def test_credentials_are_commands(serve: Any) -> None:
    served = serve(
        {
            "name": "git",
            "title": "Git",
            "command": "git clone https://git.lab.internal/platform.git",
            "credentials": {"namespace": "git", "secret": "git-users", "key": "admin.write", "user": "admin"},
        },
        {
            "name": "minio",
            "title": "MinIO",
            "url": "https://minio.lab.internal/",
            "credentials": {"namespace": "minio", "secret": "root", "key": "rootPassword", "user_key": "rootUser"},
        },
    )
    html = served.get("/")[2].replace("&#x27;", "'")
    assert "kubectl -n git get secret git-users -o jsonpath='{.data.admin\\.write}' | base64 -d" in html
    assert "kubectl -n minio get secret root -o jsonpath='{.data.rootUser}' | base64 -d" in html
    assert "User: <code>admin</code>" in html
    assert "git clone https://git.lab.internal/platform.git" in html
    assert "export KUBECONFIG=.slipway/lab/kubeconfig" in html


def test_what_others_wrote_is_text(serve: Any) -> None:
    bad = "<script>alert(1)</script>\"'"
    served = serve({"name": "x", "title": bad, "description": bad, "version": bad, "url": "https://x/", "command": bad})
    html = served.get("/")[2]
    assert "<script>alert" not in html and html.count("<script>") == 1


def test_the_policy_allows_what_is_in_the_page_and_nothing_else(serve: Any) -> None:
    status, headers, html = serve({"name": "x", "title": "X", "url": "https://x/"}).get("/")
    assert status == 200
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy and "http" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r'\bstyle="|\bon\w+="|src="', html)
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
    assert headers["server"] == "slipway"


class Outline(HTMLParser):
    """Tags that are open, headings in order, and what `aria-labelledby` names."""

    VOID = ("meta", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.ids: set[str] = set()
        self.named: set[str] = set()
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if found := values.get("id"):
            assert found not in self.ids
            self.ids.add(found)
        self.named |= set((values.get("aria-labelledby") or "").split())
        self.language = self.language or (values.get("lang") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_has_an_outline(serve: Any) -> None:
    served = serve(
        {"name": "a", "title": "A", "url": "https://a/", "credentials": {"namespace": "n", "secret": "s", "key": "k"}},
        {"name": "b", "title": "B"},
    )
    outline = Outline()
    outline.feed(served.get("/")[2])
    assert outline.open == [] and outline.language == "en"
    assert outline.headings[0] == 1 and outline.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))
    assert outline.named <= outline.ids


def test_the_authority(serve: Any, tmp_path: Path) -> None:
    served = serve({"name": "x", "title": "X"})
    status, headers, text = served.get("/ca.crt")
    assert (status, text, headers["content-type"]) == (200, PEM, "application/x-x509-ca-cert")
    assert headers["content-disposition"] == 'attachment; filename="lab.internal-ca.crt"'
    assert hashlib.sha256(b"certificate").digest().hex(":").upper() in served.get("/")[2]
    (tmp_path / "ca.crt").unlink()
    assert served.get("/ca.crt")[0] == 404
    assert "/ca.crt" not in served.get("/")[2]


def test_other_requests(serve: Any) -> None:
    served = serve({"name": "x", "title": "X"})
    assert served.get("/healthz")[::2] == (200, "ok\n")
    assert served.get("/etc/passwd")[0] == served.get("/../page.json")[0] == 404
    assert served.get("/?a=b")[0] == 200
    assert served.get("/", "POST")[0] == 501
    status, headers, body = served.get("/", "HEAD")
    assert (status, body) == (200, "") and int(headers["content-length"]) > 1000


def test_a_broken_line_does_not_disturb(serve: Any) -> None:
    served = serve({"name": "x", "title": "X"})
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as stream:
        stream.sendall(b"nonsense\r\n\r\n")
        assert b"400" in stream.recv(1000)
    assert served.get("/healthz")[0] == 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"site": "x"}',
        json.dumps(config({"title": "no name"})),
        json.dumps(config({"name": "x", "title": "X", "url": "javascript:alert(1)"})),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "page.json").write_text(text)
    with pytest.raises(SystemExit, match=r"start_page: .*page\.json: "):
        start_page.Page.load(tmp_path / "page.json")

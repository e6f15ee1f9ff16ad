"""The doctor reads a node right: files on made file systems, ports on servers of the test's own."""

from __future__ import annotations

import base64
import http.server
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway import doctor_probe

from modules import doctor_probe as module

from .authorities import Made, make, write
from .fakes import run_module

DATA = "var/lib/rancher/k3s"


def put(root: Path, path: str, text: str = "", mode: int = 0o600) -> Path:
    """Make a file, and its folders with mode 0755."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers by path; `texts` holds status and text, `seen` what was asked with which authorization."""

    texts: dict[str, tuple[int, str]]
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization", "")))
        status, text = self.texts.get(self.path, (404, "none"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@contextmanager
def serve(
    texts: dict[str, tuple[int, str]], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """A server on this machine; its port, and what it was asked."""
    handler = type("Handler", (Answers,), {"texts": texts, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_port, handler.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def authority() -> Made:
    return make("k3s-server-ca", authority=True)


@pytest.fixture
def root(tmp_path: Path, authority: Made) -> Path:
    """A server's file system: certificates, tokens, a member."""
    put(tmp_path, f"{DATA}/server/tls/server-ca.crt", authority.pem)
    leaf = make("system:admin", authority)
    write(tmp_path / DATA / "server/tls", "client-admin", leaf, authority)
    (tmp_path / DATA / "server/tls/client-admin.key").chmod(0o600)
    put(tmp_path, f"{DATA}/server/token", "K10abc::server:secret\n")
    (tmp_path / DATA / "server/node-token").symlink_to(tmp_path / DATA / "server/token")
    put(tmp_path, f"{DATA}/server/db/etcd/name", "server-1-0123abcd")
    put(tmp_path, f"{DATA}/server/db/etcd/member/snap/db", "x" * 5000)
    (tmp_path / DATA / "server/db/etcd/member/wal").mkdir()
    (tmp_path / DATA / "server").chmod(0o700)
    return tmp_path


def listener(folder: Path, authority: Made, name: str = "k3s", asks: bool = False) -> ssl.SSLContext:
    """TLS with a certificate for `name`; it `asks` for one of the authority's."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*write(folder, f"served-{name}", make(name, authority, names=(name,)), authority))
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.pem)
    return context


def test_this_machine() -> None:
    """Everything that can be read is, and what is not there is no failure."""
    result = run_module(module, {"role": "server", "address": "127.0.0.1", "front_door": "example.org"})
    found = result["probe"]
    assert result["changed"] is False
    assert found["file_systems"][0]["size"] > 0 and found["memory_mb"] > 0 and found["available_mb"] > 0
    assert found["service"]["unit"] == "k3s.service" and set(found["served"]) == {"kubelet", "API", "front door"}
    assert "PRIVATE" not in json.dumps(found)


def test_only_certificates_leave_the_node(root: Path) -> None:
    put(root, f"{DATA}/agent/serving-kubelet.crt", (root / DATA / "server/tls/client-admin.key").read_text())
    put(root, f"{DATA}/server/tls/etcd/client.crt", (root / DATA / "server/tls/client-admin.crt").read_text())
    found = doctor_probe.certificates(root)
    assert sorted(path.rpartition("/")[2] for path in found) == ["client-admin.crt", "client.crt", "server-ca.crt"]
    assert "KEY" not in "".join(found.values())
    assert found[f"/{DATA}/server/tls/client-admin.crt"].count("BEGIN CERTIFICATE") == 2


def test_modes_and_who_gets_at_it(root: Path) -> None:
    config = put(root, "etc/rancher/k3s/token", mode=0o640)
    put(root, "etc/rancher/k3s/config.yaml", mode=0o644)
    (root / DATA / "server/token").chmod(0o644)
    found = {
        each["path"].rpartition("/")[2]: each for each in doctor_probe.modes(root) if "etc/rancher" in each["path"]
    }
    assert (found["token"]["mode"], found["token"]["open"], found["token"]["uid"]) == ("0640", False, os.geteuid())
    assert (found["config.yaml"]["mode"], found["config.yaml"]["open"]) == ("0644", True)
    config.unlink()
    # The folder above is closed; the link is as its target.
    data = {each["path"].rpartition("/")[2]: each for each in doctor_probe.modes(root) if DATA in each["path"]}
    for name in ("token", "node-token"):
        assert (data[name]["mode"], data[name]["open"]) == ("0644", False)
    assert "client-admin.key" in data


def test_what_was_written_after_the_start(root: Path) -> None:
    put(root, "proc/uptime", "1000.00 1.0")
    tick = os.sysconf("SC_CLK_TCK")
    fields = ["S", *["0"] * 18, str(900 * tick), "0"]
    put(root, "proc/42/stat", f"42 (k3s) server) {' '.join(fields)}")
    now = time.time()
    start = doctor_probe.started(42, root, now)
    assert start is not None and abs(now - 100 - start) < 0.1
    assert doctor_probe.started(43, root, now) is None
    for name, age in (
        ("etc/rancher/k3s/config.yaml", 50),
        ("usr/local/bin/k3s", 150),
        ("etc/systemd/system/k3s.service", 99),
    ):
        os.utime(put(root, name), (now - age, now - age))
    assert doctor_probe.changed_since(start, "k3s.service", root) == ["/etc/rancher/k3s/config.yaml"]
    os.utime(root / "etc/systemd/system/k3s.service", (now - 20, now - 20))
    assert len(doctor_probe.changed_since(start, "k3s.service", root)) == 2
    assert doctor_probe.changed_since(None, "k3s.service", root) == []


def test_file_systems_once_each(tmp_path: Path) -> None:
    (tmp_path / DATA).mkdir(parents=True)
    (found,) = doctor_probe.file_systems(doctor_probe.PLACES, tmp_path)
    assert found["paths"] == list(doctor_probe.PLACES)
    assert 0 < found["free"] < found["size"]


def test_served_certificate_whoever_has_issued_it(tmp_path: Path, authority: Made) -> None:
    with serve({}, listener(tmp_path, authority, "front.example")) as (port, _):
        pem = doctor_probe.served("127.0.0.1", port, "front.example")
    assert pem == (tmp_path / "served-front.example.crt").read_text()[: len(pem)]
    with serve({}) as (port, _):
        assert doctor_probe.served("127.0.0.1", port) == ""
    assert doctor_probe.served("127.0.0.1", port) == ""


CHECKS = "[+]ping ok\n[-]etcd failed: reason withheld\n[-]informer-sync failed: reason withheld\nreadyz check failed\n"


def test_readiness_by_the_administrator_that_lies_there(root: Path, authority: Made) -> None:
    tls = listener(root, authority, asks=True)
    for status, text, failed in (
        (200, "[+]ping ok\nreadyz check passed\n", []),
        (500, CHECKS, ["etcd", "informer-sync"]),
    ):
        with serve({"/readyz?verbose": (status, text)}, tls) as (port, _):
            assert doctor_probe.Api(root, port).readiness() == {"status": status, "failed": failed, "error": ""}
    gone = doctor_probe.Api(root, port).readiness()
    assert gone["status"] == 0 and "refused" in gone["error"]


def test_who_is_not_the_cluster_gets_no_token(root: Path, tmp_path: Path) -> None:
    """The port may be another program's: its certificate is of another authority."""
    other = make("k3s-server-ca", authority=True)
    with serve({"/db/info": (200, "{}")}, listener(root, other, "other")) as (port, seen):
        assert doctor_probe.Api(root, port).members() is None
        assert "certificate verify failed" in doctor_probe.Api(root, port).readiness()["error"]
        assert seen == []


def member(number: int, **more: Any) -> dict[str, Any]:
    url = f"https://10.0.0.{number}:2380"
    return {"ID": number, "name": f"server-{number}-0123abcd", "peerURLs": [url], "clientURLs": [url], **more}


def test_members(root: Path, authority: Made) -> None:
    rows = [member(1), member(2, isLearner=True)]
    with serve({"/db/info": (200, json.dumps({"members": rows}))}, listener(root, authority)) as (port, seen):
        assert doctor_probe.Api(root, port).members() == [
            {"name": "server-1-0123abcd", "urls": ["https://10.0.0.1:2380"], "learner": False},
            {"name": "server-2-0123abcd", "urls": ["https://10.0.0.2:2380"], "learner": True},
        ]
    assert seen == [("/db/info", "Basic " + base64.b64encode(b"server:secret").decode())]


@pytest.mark.parametrize(
    "answer",
    [
        # Without a majority a server tells of itself alone.
        (200, json.dumps({"members": [{"name": "server-1-0123abcd", "peerURLs": ["https://10.0.0.1:2380"]}]})),
        (200, "{"),
        (200, "[]"),
        (500, "no leader"),
        (401, "Unauthorized"),
    ],
)
def test_members_that_nobody_knows(root: Path, authority: Made, answer: tuple[int, str]) -> None:
    with serve({"/db/info": answer}, listener(root, authority)) as (port, _):
        assert doctor_probe.Api(root, port).members() is None


METRICS = """# HELP etcd_server_has_leader Whether or not a leader exists.
etcd_server_has_leader 1
etcd_server_is_leader 1
etcd_mvcc_db_total_size_in_bytes 2.5743360e+07
etcd_mvcc_db_total_size_in_use_in_bytes 1.4237696e+07
etcd_server_quota_backend_bytes 2.147483648e+09
etcd_server_has_leader_of_something 5
"""


def test_a_member_and_its_snapshots(root: Path) -> None:
    folder = root / DATA / "server/db/snapshots"
    now = time.time()
    for name, age in (("old", 90), ("new", 10)):
        os.utime(put(folder, f"etcd-snapshot-{name}"), (now - age, now - age))
    put(folder, ".part")
    texts = {"/metrics": (200, METRICS), "/health": (503, '{"health":"false","reason":"ALARM NOSPACE"}')}
    with serve(texts) as (port, _):
        found = doctor_probe.etcd(root, doctor_probe.Api(root, 1), port)
    assert found is not None
    assert found["metrics"]["etcd_mvcc_db_total_size_in_bytes"] == 25743360
    assert set(found["metrics"]) == set(doctor_probe.METRICS) - {"etcd_server_is_learner"}
    assert (found["member"], found["size"], found["alarm"]) == ("server-1-0123abcd", 5000, "ALARM NOSPACE")
    assert found["snapshots"] == {
        "folder": f"/{DATA}/server/db/snapshots",
        "count": 2,
        "newest": "etcd-snapshot-new",
        "time": pytest.approx(now - 10, abs=0.1),
    }
    assert found["members"] is None


def test_a_member_that_is_stopped(root: Path) -> None:
    """Its files tell size and snapshots; a healthy one has no alarm."""
    put(root, "etc/rancher/k3s/config.yaml", 'token: x\netcd-snapshot-dir: "/srv/snapshots"\n')
    put(root, "srv/snapshots/a")
    found = doctor_probe.etcd(root, doctor_probe.Api(root, 1), 1)
    assert found is not None
    assert (found["metrics"], found["alarm"], found["size"]) == ({}, "", 5000)
    assert (found["snapshots"]["folder"], found["snapshots"]["newest"]) == ("/srv/snapshots", "a")
    with serve({"/health": (200, '{"health":"true","reason":""}')}) as (port, _):
        again = doctor_probe.etcd(root, doctor_probe.Api(root, 1), port)
    assert again is not None and again["alarm"] == ""
    assert doctor_probe.etcd(root / "srv", doctor_probe.Api(root, 1), 1) is None


def test_the_service_by_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that cannot join is activating for ever: its last words are what somebody wants to read."""
    words = {
        "systemctl": "ActiveState=activating\nUnitFileState=enabled\nNRestarts=7\nMainPID=0\nNeedDaemonReload=no\n",
        "journalctl": 'level=error msg="token CA hash\n does not match"\n',
    }
    for name, text in words.items():
        put(tmp_path, f"bin/{name}", f"#!/bin/sh\ncat <<'END'\n{text}END\n", 0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    put(tmp_path, "etc/systemd/system/k3s-agent.service")
    assert doctor_probe.service("agent", tmp_path, 0) == {
        "unit": "k3s-agent.service",
        "there": True,
        "active": "activating",
        "enabled": "enabled",
        "restarts": 7,
        "reload": False,
        "started": None,
        "last": 'level=error msg="token CA hash does not match"',
    }

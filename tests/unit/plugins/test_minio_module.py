"""The module minio_access from Secrets to HTTP: a kubectl that leads to a server which speaks as much of MinIO as is used."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.kube import Json

from modules import minio_access, minio_rotation

from .fakes import FakeKube, run_module

XML = '<?xml version="1.0"?><{0}>{1}</{0}>'
ROOT, SECRET_KEY = "slipway-root", "never-to-be-shown"


class MinioServer:
    """State, and the requests that changed it. Signatures are not checked: `refuses` lists users that fail theirs."""

    def __init__(self) -> None:
        self.buckets: set[str] = set()
        self.policies: dict[str, Json] = {}
        self.users: dict[str, Json] = {}
        self.refuses: set[str] = set()
        self.lifecycles: dict[str, str] = {}
        self.versioning: dict[str, str] = {}
        self.quotas: dict[str, str] = {}
        self.changes: list[str] = []
        self.content_type = "application/xml"
        minio = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self, status: int, body: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Type", minio.content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            def handle_request(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urlsplit(self.path)
                query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
                if url.path == "/minio/health/cluster":
                    return self.answer(200)
                user = re.search(r"Credential=([^/]+)/", self.headers["Authorization"])
                if user and user[1] in minio.refuses:
                    return self.answer(403, XML.format("Error", "<Code>SignatureDoesNotMatch</Code>"))
                if url.path.startswith("/minio/admin/v3/"):
                    return self.answer(*minio.admin(url.path.rsplit("/", 1)[1], query, body))
                if url.path == "/":
                    return self.answer(200, XML.format("ListAllMyBucketsResult", "<Buckets/>"))
                if "lifecycle" in query:
                    return self.answer(*minio.lifecycle(self.command, url.path.strip("/"), body.decode()))
                if "versioning" in query:
                    return self.answer(*minio.versions(self.command, url.path.strip("/"), body.decode()))
                return self.answer(*minio.bucket(self.command, url.path.strip("/")))

            do_GET = do_HEAD = do_PUT = do_DELETE = handle_request

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def bucket(self, command: str, name: str) -> tuple[int, str]:
        if command == "PUT":
            self.changes.append(f"bucket {name}")
            self.buckets.add(name)
        return (200, "") if name in self.buckets else (404, "")

    def lifecycle(self, command: str, name: str, body: str) -> tuple[int, str]:
        if command == "GET":
            missing = "NoSuchLifecycleConfiguration" if name in self.buckets else "NoSuchBucket"
            found = self.lifecycles.get(name)
            return (200, found) if found else (404, XML.format("Error", f"<Code>{missing}</Code>"))
        self.changes.append(f"lifecycle {name} {command}")
        self.lifecycles[name] = body if command == "PUT" else ""
        return 200, ""

    def versions(self, command: str, name: str, body: str) -> tuple[int, str]:
        if name not in self.buckets:
            return 404, XML.format("Error", "<Code>NoSuchBucket</Code>")
        if command == "GET":
            return 200, self.versioning.get(name, "<VersioningConfiguration/>")
        self.changes.append(f"versioning {name}")
        self.versioning[name] = body
        return 200, ""

    def admin(self, command: str, query: dict[str, str], body: bytes) -> tuple[int, str]:
        if command == "info-canned-policy":
            found = self.policies.get(query["name"])
            wrapped = {"PolicyName": query["name"], "Policy": found}
            return (200, json.dumps(wrapped)) if found else (404, '{"Code": "XMinioAdminNoSuchPolicy"}')
        if command == "user-info":
            user = self.users.get(query["accessKey"])
            return (200, json.dumps(user)) if user else (404, '{"Code": "XMinioAdminNoSuchUser"}')
        if command == "get-bucket-quota":
            missing = query["bucket"] not in self.buckets
            return (404, '{"Code": "NoSuchBucket"}') if missing else (200, self.quotas.get(query["bucket"], "{}"))
        self.changes.append(command)
        if command == "add-canned-policy":
            self.policies[query["name"]] = json.loads(body)
        elif command == "add-user":
            self.users.setdefault(query["accessKey"], {})["status"] = "enabled"
            self.refuses.discard(query["accessKey"])
            assert SECRET_KEY.encode() not in body
        elif command == "set-user-or-group-policy":
            self.users[query["userOrGroup"]]["policyName"] = query["policyName"]
        elif command == "set-bucket-quota":
            self.quotas[query["bucket"]] = body.decode()
        elif command == "remove-user":
            del self.users[query["accessKey"]]
        else:
            return 501, f"{command} is not known here"
        return 200, ""


@pytest.fixture
def minio() -> Iterator[MinioServer]:
    served = MinioServer()
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def arguments(minio: MinioServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Json:
    kube = FakeKube({"/api/v1/namespaces/minio/services/minio": {"metadata": {}}})
    for namespace, name, keys in (
        ("minio", "minio-root", {"rootUser": ROOT, "rootPassword": "root-" + SECRET_KEY}),
        ("pipelines", "minio-epos", {"accessKey": "epos", "secretKey": SECRET_KEY}),
    ):
        secrets.ensure(kube, namespace, name, [secrets.Key(key, value=value) for key, value in keys.items()], {})
    for module in (minio_access, minio_rotation):
        monkeypatch.setattr(module, "KubeClient", lambda kubeconfig: kube)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "Forwarding from 127.0.0.1:{minio.server.server_port} -> 9000"\nexec sleep 30\n'
    )
    kubectl.chmod(0o755)
    return {
        "kubeconfig": "/k",
        "kubectl": str(kubectl),
        "tenants": [
            {"name": "epos", "buckets": ["datasets"], "secret": {"namespace": "pipelines", "name": "minio-epos"}}
        ],
    }


def test_from_nothing_to_nothing_to_do(minio: MinioServer, arguments: Json) -> None:
    planned = run_module(minio_access, arguments, check=True)
    assert minio.changes == []
    first = run_module(minio_access, arguments)
    again = run_module(minio_access, arguments)
    assert planned["changed"] and planned["changes"] == first["changes"] and planned["diff"] == first["diff"]
    assert minio.changes == ["add-canned-policy", "bucket datasets", "add-user", "set-user-or-group-policy"]
    assert (again["changed"], again["changes"]) == (False, [])
    assert SECRET_KEY not in json.dumps([planned, first, again])


def test_a_secret_key_changed_by_hand_is_set_again(minio: MinioServer, arguments: Json) -> None:
    run_module(minio_access, arguments)
    minio.refuses.add("epos")
    assert run_module(minio_access, arguments)["changes"] == ["user of tenant epos: secret key set"]
    assert run_module(minio_access, arguments)["changed"] is False


def test_what_expires_leaves_rules_of_others(minio: MinioServer, arguments: Json) -> None:
    run_module(minio_access, arguments)
    theirs = (
        "<Rule><ID>theirs</ID><Status>Enabled</Status><Filter><Prefix>tmp/</Prefix></Filter>"
        "<Expiration><Days>1</Days></Expiration></Rule>"
    )
    minio.lifecycles["datasets"] = f"<LifecycleConfiguration>{theirs}</LifecycleConfiguration>"
    tenant = arguments["tenants"][0]
    expire = [{"bucket": "datasets", "prefix": "v2/artifacts/", "days": 90}]
    wanted = {**arguments, "tenants": [{**tenant, "expire": expire}]}
    assert run_module(minio_access, wanted)["changes"] == ["bucket datasets: expiry set"]
    assert run_module(minio_access, wanted)["changed"] is False
    for word in ("theirs", "tmp/", "slipway-0", "v2/artifacts/", "<Days>90</Days>"):
        assert word in minio.lifecycles["datasets"]
    assert run_module(minio_access, arguments)["changes"] == ["bucket datasets: expiry set"]
    assert "slipway" not in minio.lifecycles["datasets"] and "theirs" in minio.lifecycles["datasets"]
    minio.lifecycles["datasets"] = ""
    run_module(minio_access, wanted)
    run_module(minio_access, arguments)
    assert minio.changes[-1] == "lifecycle datasets DELETE"


def test_versions_quota_and_the_end_of_versions(minio: MinioServer, arguments: Json) -> None:
    tenant = {
        **arguments["tenants"][0],
        "versioned": ["datasets"],
        "expire_versions": [{"bucket": "datasets", "prefix": "v2/", "days": 7}],
        "quota": [{"bucket": "datasets", "size": "2Gi"}],
    }
    wanted = {**arguments, "tenants": [tenant]}
    planned = run_module(minio_access, wanted, check=True)
    assert minio.changes == []
    assert run_module(minio_access, wanted)["changes"] == planned["changes"]
    assert planned["changes"][2:5] == [
        "bucket datasets: versions kept",
        "bucket datasets: expiry set",
        "bucket datasets: quota 2Gi set",
    ]
    assert json.loads(minio.quotas["datasets"]) == {"quota": 2147483648, "quotatype": "hard"}
    for word in ("<NoncurrentDays>7</NoncurrentDays>", "<ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>"):
        assert word in minio.lifecycles["datasets"]
    assert run_module(minio_access, wanted)["changed"] is False


def test_a_bucket_of_nobody_stops_it_before_any_change(minio: MinioServer, arguments: Json) -> None:
    minio.buckets.add("datasets")
    for check in (True, False):
        message = run_module(minio_access, arguments, check)["msg"]
        assert "tenant 'epos': bucket 'datasets' is in the store already" in message
    assert minio.changes == []
    assert run_module(minio_access, {**arguments, "adopt": ["datasets"]})["changed"] is True
    assert run_module(minio_access, arguments)["changed"] is False


def test_a_key_is_exchanged_and_an_installation_in_between_leaves_both(minio: MinioServer, arguments: Json) -> None:
    run_module(minio_access, arguments)
    rotating = {**arguments, "timeout": 5}
    planned = run_module(minio_rotation, {**rotating, "state": "begun"}, check=True)
    assert minio.changes[-1] == "set-user-or-group-policy" and set(minio.users) == {"epos"}
    begun = run_module(minio_rotation, {**rotating, "state": "begun"})
    assert (
        begun["changes"] == planned["changes"] == ["tenant epos: second key made, Secret pipelines/minio-epos has it"]
    )
    assert {name: user["policyName"] for name, user in minio.users.items()} == {"epos": "epos", "epos.2": "epos"}
    assert run_module(minio_access, arguments)["changed"] is False
    results = [run_module(minio_rotation, {**rotating, "state": state}) for state in ("begun", "handed_over", "ended")]
    assert [result["changes"] for result in results] == [[], [], ["tenant epos: former key removed"]]
    assert set(minio.users) == {"epos.2"}
    assert run_module(minio_rotation, {**rotating, "state": "ended"})["changed"] is False
    assert run_module(minio_access, arguments)["changed"] is False


def test_refused_root_credentials_are_named(minio: MinioServer, arguments: Json) -> None:
    minio.refuses.add(ROOT)
    message = run_module(minio_access, arguments)["msg"]
    assert "MinIO refuses the credentials of Secret minio/minio-root" in message
    assert minio.changes == []


def test_errors_of_the_server_are_shown(minio: MinioServer, arguments: Json, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minio, "bucket", lambda command, name: (507, XML.format("Error", "<Code>StorageFull</Code>")))
    result = run_module(minio_access, arguments)
    assert result["failed"] and result["msg"].startswith("MinIO at 127.0.0.1:")
    assert SECRET_KEY not in json.dumps(result)

"""A store of somebody else is judged before anything is changed, in words that say what to do."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.kube import Json

from modules import minio_external

from .fakes import FakeKube, run_module
from .test_minio_module import SECRET_KEY, XML, MinioServer

LISTED = XML.format("ListBucketResult", "<Name>datasets</Name><IsTruncated>false</IsTruncated>")


class Store(MinioServer):
    """One that lists buckets; `refusal` is the code that it answers with."""

    def __init__(self) -> None:
        super().__init__()
        self.refusal = ""
        self.status = 403
        self.text = ""

    def bucket(self, command: str, name: str) -> tuple[int, str]:
        if self.text:
            return self.status, self.text
        if self.refusal:
            return self.status, XML.format("Error", f"<Code>{self.refusal}</Code>")
        return (200, LISTED) if name in self.buckets else (404, XML.format("Error", "<Code>NoSuchBucket</Code>"))

    def admin(self, command: str, query: dict[str, str], body: bytes) -> tuple[int, str]:
        assert command == "list-canned-policies"
        return (self.status, json.dumps({"Code": self.refusal})) if self.refusal else (200, "{}")


@pytest.fixture
def store() -> Iterator[Store]:
    served = Store()
    served.buckets = {"datasets", "models"}
    yield served
    served.server.shutdown()
    served.server.server_close()


@pytest.fixture
def kube(monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    kube = FakeKube()
    keys = [secrets.Key("accessKey", value="epos"), secrets.Key("secretKey", value=SECRET_KEY)]
    secrets.ensure(kube, "epos", "minio-epos", keys, {})
    monkeypatch.setattr(minio_external, "KubeClient", lambda kubeconfig: kube)
    return kube


@pytest.fixture
def arguments(store: Store, kube: FakeKube) -> Json:
    tenant = {
        "name": "epos",
        "buckets": ["datasets"],
        "read": ["models"],
        "secret": {"namespace": "epos", "name": "minio-epos"},
    }
    endpoint = f"127.0.0.1:{store.server.server_port}"
    return {"kubeconfig": "/k", "kubectl": "/kubectl", "endpoint": endpoint, "tenants": [tenant], "timeout": 2}


def faults(arguments: Json) -> list[str]:
    answer = run_module(minio_external, arguments)
    assert answer["changed" if "changed" in answer else "failed"] is not None
    assert SECRET_KEY not in json.dumps(answer)
    found: list[str] = answer.get("faults", [])
    if found:
        assert answer["msg"].startswith("The external store cannot be used; nothing was changed:\n- ")
    return found


def test_a_good_store(arguments: Json) -> None:
    assert faults(arguments) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("InvalidAccessKeyId", "bucket datasets: the store knows no such accessKey (InvalidAccessKeyId)"),
        ("SignatureDoesNotMatch", "bucket datasets: secretKey is not that of accessKey (SignatureDoesNotMatch)"),
        ("RequestTimeTooSkewed", "its clock and that of this machine differ by more than 15 minutes"),
        ("AccessDenied", "bucket datasets: the user needs the right to list it"),
    ],
)
def test_what_a_store_refuses(store: Store, arguments: Json, code: str, said: str) -> None:
    store.refusal = code
    found = faults(arguments)
    assert found[0].startswith(f"Secret epos/minio-epos: {arguments['endpoint']}, ")
    assert said in found[0]
    # One reason that holds for every bucket is said once.
    assert len(found) == (2 if code == "AccessDenied" else 1)


def test_a_bucket_that_is_missing(store: Store, arguments: Json) -> None:
    store.buckets.remove("models")
    (fault,) = faults(arguments)
    assert fault.endswith("bucket models: make it (NoSuchBucket)")


def test_what_is_no_store(store: Store, arguments: Json) -> None:
    store.content_type = "text/plain"
    store.status, store.text = 400, "Client sent an HTTP request to an HTTPS server.\n"
    (fault,) = faults(arguments)
    assert "it wants TLS, which the platform's pods do not speak to it" in fault
    store.status, store.text = 404, "no page"
    for store.content_type in ("text/html", "application/xml"):
        (fault,) = faults(arguments)
        assert "it does not answer as an S3 store does" in fault
    store.status, store.text = 200, "<html>hello</html>"
    (fault,) = faults(arguments)
    assert "it does not answer as an S3 store does" in fault


def test_nobody_there(arguments: Json) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (fault,) = faults({**arguments, "endpoint": f"127.0.0.1:{free.getsockname()[1]}"})
    assert "nobody listens there: is the store running, is the port right?" in fault
    (fault,) = faults({**arguments, "endpoint": "store.invalid:9000"})
    assert "no such name" in fault


def test_secrets_that_cannot_be_used(arguments: Json, kube: FakeKube) -> None:
    data: dict[str, Any] = kube.objects[secrets.path("epos", "minio-epos")]["data"]
    data["secretKey"] = "bmV2ZXItdG8tYmUtc2hvd24K"
    assert faults(arguments) == [
        "Secret epos/minio-epos: secretKey ends in a line break; make it from a file without one (printf %s ... > file)"
    ]
    del data["secretKey"]
    assert faults(arguments) == ["Secret epos/minio-epos has no secretKey"]
    kube.objects.clear()
    assert faults(arguments) == [
        "Secret epos/minio-epos is not there. Make it: kubectl -n epos create secret generic minio-epos "
        "--from-file=accessKey=<file> --from-file=secretKey=<file>"
    ]


def test_an_administrator(store: Store, arguments: Json, kube: FakeKube) -> None:
    wanted = {**arguments, "root_secret": {"namespace": "minio", "name": "minio-root"}}
    (fault,) = faults(wanted)
    assert fault.startswith("Secret minio/minio-root is not there. Make it: kubectl -n minio create secret generic")
    keys = [secrets.Key("rootUser", value="admin"), secrets.Key("rootPassword", value=SECRET_KEY)]
    secrets.ensure(kube, "minio", "minio-root", keys, {})
    assert faults(wanted) == []
    store.refusal = "AccessDenied"
    (fault,) = faults(wanted)
    assert "it lets this user not administer it, or is no MinIO" in fault
    store.refusal = "SignatureDoesNotMatch"
    (fault,) = faults(wanted)
    assert "secretKey is not that of accessKey" in fault


def test_a_service_of_the_cluster_is_reached_through_kubectl(store: Store, arguments: Json, tmp_path: Path) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/said\necho "Forwarding from 127.0.0.1:{store.server.server_port} -> 9000"\nexec sleep 30\n'
    )
    kubectl.chmod(0o755)
    assert faults({**arguments, "kubectl": str(kubectl), "endpoint": "store.shared.svc:9000"}) == []
    assert "--namespace shared port-forward --address 127.0.0.1 service/store :9000" in (tmp_path / "said").read_text()

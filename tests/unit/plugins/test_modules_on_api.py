"""The modules as Ansible runs them, against an HTTP server that speaks as much of the Kubernetes API as they use."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.slipway.kube import Json, KubeClient, KubeError

from modules import cluster_secret, minio_access, workloads_ready

from .fakes import FakeKube, run_module


class Api:
    """A FakeKube behind HTTP, with a kubeconfig that leads to it."""

    def __init__(self, directory: Path) -> None:
        self.kube = FakeKube()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self, status: int, body: Json) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_request(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                path = self.path.split("?")[0]
                try:
                    if self.headers["Authorization"] != "Bearer test-token":
                        return self.answer(401, {"message": "Unauthorized"})
                    if self.command == "GET":
                        found = api.kube.get(path)
                        return self.answer(200, found) if found else self.answer(404, {"message": "not found"})
                    if self.command == "POST":
                        return self.answer(201, api.kube.create(path, body))
                    assert self.headers["Content-Type"] == "application/merge-patch+json"
                    return self.answer(200, api.kube.merge_patch(path, body))
                except KubeError as error:
                    return self.answer(error.status, {"message": str(error)})

            do_GET = do_POST = do_PATCH = handle_request

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.kubeconfig = str(directory / "kubeconfig")
        self.write_kubeconfig("test-token")

    def write_kubeconfig(self, token: str) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "users": [{"name": "c", "user": {"token": token}}],
        }
        Path(self.kubeconfig).write_text(yaml.safe_dump(content))


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    served = Api(tmp_path)
    yield served
    served.server.shutdown()
    served.server.server_close()


def secret_arguments(api: Api) -> Json:
    keys = [
        {"name": "rootUser", "public": "root"},
        {"name": "rootPassword", "length": 40},
        {"name": "given", "value": "hunter2hunter2"},
    ]
    return {"kubeconfig": api.kubeconfig, "namespace": "minio", "name": "minio-root", "keys": keys}


def test_cluster_secret_is_made_once_and_shows_names_only(api: Api) -> None:
    check = run_module(cluster_secret, secret_arguments(api), check=True)
    first = run_module(cluster_secret, secret_arguments(api))
    again = run_module(cluster_secret, secret_arguments(api))
    assert (check["changed"], first["changed"], again["changed"]) == (True, True, False)
    assert check["added"] == first["added"] == ["given", "rootPassword", "rootUser"]
    assert again["existing"] == first["added"]
    assert check["diff"] == first["diff"]
    data = api.kube.objects["/api/v1/namespaces/minio/secrets/minio-root"]["data"]
    shown = json.dumps([check, first, again])
    assert "hunter2" not in shown and data["rootPassword"] not in shown


def test_cluster_secret_refuses_weak_lengths_and_both_kinds_of_value(api: Api) -> None:
    arguments = secret_arguments(api)
    arguments["keys"] = [{"name": "weak", "length": 4}]
    assert "key weak: length 4 is not within 16..256" in run_module(cluster_secret, arguments)["msg"]
    arguments["keys"] = [{"name": "both", "value": "a-secret", "public": "b"}]
    assert "mutually exclusive" in run_module(cluster_secret, arguments)["msg"]


def test_errors_of_the_api_are_clear(api: Api, tmp_path: Path) -> None:
    api.write_kubeconfig("wrong")
    assert "401 Unauthorized" in run_module(cluster_secret, secret_arguments(api))["msg"]
    arguments = {**secret_arguments(api), "kubeconfig": str(tmp_path / "none")}
    assert f"kubeconfig {tmp_path}/none cannot be used" in run_module(cluster_secret, arguments)["msg"]
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(KubeError, match="cannot be reached"):
        KubeClient(api.kubeconfig).get("/api/v1/nodes")


def test_workloads_ready(api: Api) -> None:
    arguments = {"kubeconfig": api.kubeconfig, "namespaces": ["a"], "timeout": 0, "kubectl": "/bin/kubectl"}
    failed = run_module(workloads_ready, arguments)
    assert failed["failed"] and "Namespace a: there is no workload in it" in failed["msg"]
    assert f"Next: /bin/kubectl --kubeconfig {api.kubeconfig} get pods" in failed["msg"]
    looked = run_module(workloads_ready, arguments, check=True)
    assert looked["waiting"] == failed["waiting"] and not looked["changed"] and not looked.get("failed")
    ready = {"metadata": {"name": "d", "generation": 1}, "status": {"observedGeneration": 1}, "spec": {"replicas": 0}}
    api.kube.objects["/apis/apps/v1/namespaces/a/deployments"] = {"items": [ready]}
    assert run_module(workloads_ready, arguments)["changed"] is False


def test_minio_access_in_check_mode_before_minio_is_there(api: Api) -> None:
    secret = {"namespace": "pipelines", "name": "minio-epos"}
    arguments = {
        "kubeconfig": api.kubeconfig,
        "kubectl": "/none",
        "tenants": [{"name": "epos", "buckets": ["datasets"], "secret": secret}],
    }
    result = run_module(minio_access, arguments, check=True)
    assert result["changed"] and "bucket datasets made" in result["changes"]
    assert "there is no Secret minio/minio-root" in run_module(minio_access, arguments)["msg"]
    arguments["tenants"] = [{"name": "epos", "buckets": ["Bad"], "secret": secret}]
    assert "MinIO is unchanged" in run_module(minio_access, arguments)["msg"]

"""The GPU operator's stand-in against a kubelet's registration server over a real socket, and against an HTTP server as API."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.lab import hardware
from tests.lab.gpu_operator import host
from tests.lab.gpu_operator.agent import Agent, Folders, Settings
from tests.lab.gpu_operator.api import MESSAGES
from tests.lab.gpu_operator.cluster import ApiError, Cluster
from tests.lab.gpu_operator.devices import Device
from tests.lab.gpu_operator.plugin import KubeletError, Plugin

TIMEOUT_S = 5.0


def eventually(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "not within 5 s"
        time.sleep(0.01)


class Kubelet:
    """As much of a kubelet as a device plugin sees: the registration server, and a watcher of each plugin's devices."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[Any] = []
        self.lists: list[dict[str, str]] = []
        self.refusal = ""
        self._channel: Any = None
        self._server: Any = None

    def start(self) -> None:
        """Start as a kubelet does: first all sockets in the folder go."""
        for path in self.folder.iterdir():
            path.unlink()
        self._server = grpc.server(ThreadPoolExecutor(2))
        method = grpc.unary_unary_rpc_method_handler(
            self._register, MESSAGES["RegisterRequest"].FromString, MESSAGES["Empty"].SerializeToString
        )
        handler = grpc.method_handlers_generic_handler("v1beta1.Registration", {"Register": method})
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.folder}/kubelet.sock")
        self._server.start()

    def stop(self) -> None:
        """Die: connections and socket go."""
        if self._channel is not None:
            self._channel.close()
        if self._server is not None:
            self._server.stop(None).wait()
        self._channel = self._server = None

    def _register(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        if self.refusal:
            context.abort(grpc.StatusCode.UNKNOWN, self.refusal)
        # The kubelet asks back before it answers.
        self._channel = grpc.insecure_channel(f"unix:{self.folder}/{request.endpoint}")
        assert self.call("GetDevicePluginOptions", "DevicePluginOptions").get_preferred_allocation_available
        watch = self._channel.unary_stream(
            "/v1beta1.DevicePlugin/ListAndWatch",
            request_serializer=MESSAGES["Empty"].SerializeToString,
            response_deserializer=MESSAGES["ListAndWatchResponse"].FromString,
        )
        threading.Thread(target=self._watch, args=(watch(MESSAGES["Empty"]()),), daemon=True).start()
        return MESSAGES["Empty"]()

    def _watch(self, stream: Any) -> None:
        try:
            for answer in stream:
                self.lists.append({device.ID: device.health for device in answer.devices})
        except (grpc.RpcError, ValueError):
            pass

    def call(self, method: str, answer: str, request: Any = None) -> Any:
        """Ask the plugin that registered last."""
        request = request or MESSAGES["Empty"]()
        ask = self._channel.unary_unary(
            f"/v1beta1.DevicePlugin/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=MESSAGES[answer].FromString,
        )
        return ask(request, timeout=TIMEOUT_S)

    def allocate(self, *ids: str) -> Any:
        """What one container gets for these devices."""
        request = MESSAGES["AllocateRequest"](container_requests=[{"devices_ids": ids}])
        (answer,) = self.call("Allocate", "AllocateResponse", request).container_responses
        return answer

    def prefer(self, available: list[str], size: int, must: tuple[str, ...] = ()) -> list[str]:
        """The devices that the plugin would take."""
        wish = {"available_deviceIDs": available, "must_include_deviceIDs": must, "allocation_size": size}
        request = MESSAGES["PreferredAllocationRequest"](container_requests=[wish])
        (answer,) = self.call("GetPreferredAllocation", "PreferredAllocationResponse", request).container_responses
        return list(answer.deviceIDs)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    """A running kubelet."""
    folder = tmp_path / "device-plugins"
    folder.mkdir()
    kubelet = Kubelet(folder)
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture
def plugin(kubelet: Kubelet) -> Iterator[Plugin]:
    """A plugin for it that offers nothing yet."""
    plugin = Plugin(kubelet.folder, Path("/var/lib/lab-hardware"))
    yield plugin
    plugin.stop()


def devices(*ids: str, ill: str = "") -> list[Device]:
    return [Device(id, id.partition("::")[0], id.partition("::")[0] != ill) for id in ids]


def test_messages_have_the_bytes_of_the_kubelets_own() -> None:
    """By hand from api.proto: field number and type, length, content."""
    options = MESSAGES["DevicePluginOptions"](get_preferred_allocation_available=True)
    request = MESSAGES["RegisterRequest"](version="v1", endpoint="e", resource_name="r", options=options)
    assert request.SerializeToString() == b'\n\x02v1\x12\x01e\x1a\x01r"\x02\x10\x01'
    answer = MESSAGES["AllocateResponse"](
        container_responses=[
            {
                "envs": {"a": "b"},
                "mounts": [{"container_path": "c", "host_path": "h", "read_only": True}],
                "cdi_devices": [{"name": "n"}],
            }
        ]
    )
    assert answer.SerializeToString() == b"\n\x17\n\x06\n\x01a\x12\x01b\x12\x08\n\x01c\x12\x01h\x18\x01*\x03\n\x01n"


def test_registers_and_lists_devices(kubelet: Kubelet, plugin: Plugin) -> None:
    plugin.offer(devices("GPU-a", "GPU-b", ill="GPU-b"), single=False)
    assert plugin.registered
    (request,) = kubelet.requests
    assert (request.version, request.resource_name) == ("v1beta1", "nvidia.com/gpu")
    assert (kubelet.folder / request.endpoint).is_socket()
    eventually(lambda: kubelet.lists == [{"GPU-a": "Healthy", "GPU-b": "Unhealthy"}])


def test_change_is_sent_without_another_registration(kubelet: Kubelet, plugin: Plugin) -> None:
    plugin.offer(devices("GPU-a"), single=False)
    eventually(lambda: kubelet.lists)
    plugin.offer(devices("GPU-a", ill="GPU-a"), single=False)
    plugin.offer(devices("GPU-a", ill="GPU-a"), single=False)
    plugin.offer(devices("GPU-a::0", "GPU-a::1"), single=True)
    eventually(lambda: kubelet.lists[-1] == {"GPU-a::0": "Healthy", "GPU-a::1": "Healthy"})
    assert len(kubelet.lists) in (2, 3)
    assert len(kubelet.requests) == 1


def test_container_gets_its_gpus(kubelet: Kubelet, plugin: Plugin) -> None:
    plugin.offer(devices("GPU-a::0", "GPU-a::1", "GPU-b::0", "GPU-b::1"), single=False)
    answer = kubelet.allocate("GPU-b::1", "GPU-a::0", "GPU-a::1")
    assert dict(answer.envs) == {"NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b"}
    assert {mount.container_path: mount.host_path for mount in answer.mounts} == {
        "/var/lib/lab-hardware": "/var/lib/lab-hardware",
        "/usr/bin/nvidia-smi": "/var/lib/lab-hardware/usr/bin/nvidia-smi",
        "/usr/bin/vectorAdd": "/var/lib/lab-hardware/usr/bin/vectorAdd",
    }
    assert all(mount.read_only for mount in answer.mounts)
    assert [device.name for device in answer.cdi_devices] == [
        "k8s.device-plugin.nvidia.com/gpu=GPU-a",
        "k8s.device-plugin.nvidia.com/gpu=GPU-b",
    ]


def test_unknown_device_and_too_many_shares_are_refused(kubelet: Kubelet, plugin: Plugin) -> None:
    plugin.offer(devices("GPU-a::0", "GPU-a::1"), single=True)
    with pytest.raises(grpc.RpcError, match="no such device: GPU-z"):
        kubelet.allocate("GPU-z")
    with pytest.raises(grpc.RpcError, match="maximum request size for shared resources is 1; found 2"):
        kubelet.allocate("GPU-a::0", "GPU-a::1")
    assert kubelet.allocate("GPU-a::1").envs["NVIDIA_VISIBLE_DEVICES"] == "GPU-a"


def test_preferred_devices_are_spread_over_gpus(kubelet: Kubelet, plugin: Plugin) -> None:
    ids = ["GPU-b::0", "GPU-b::1", "GPU-a::0", "GPU-a::1"]
    plugin.offer(devices(*ids), single=False)
    assert kubelet.prefer(ids, 1) == ["GPU-b::0"]
    assert kubelet.prefer(ids, 2) == ["GPU-b::0", "GPU-a::0"]
    assert kubelet.prefer(ids, 3, must=("GPU-b::1",)) == ["GPU-b::1", "GPU-a::0", "GPU-b::0"]
    # One share of b is taken already: a has more room.
    assert kubelet.prefer(ids[1:], 1) == ["GPU-a::0"]
    assert kubelet.prefer(["GPU-a::0"], 3) == ["GPU-a::0"]


def await_lists(kubelet: Kubelet, count: int) -> None:
    """Wait until the kubelet has seen so many lists of devices."""
    eventually(lambda: len(kubelet.lists) == count)


def test_registers_again_when_the_kubelet_restarts(kubelet: Kubelet, plugin: Plugin) -> None:
    for number in range(1, 4):
        plugin.offer(devices("GPU-a"), single=False)
        await_lists(kubelet, number)
        kubelet.stop()
        assert not plugin.registered
        with pytest.raises(KubeletError, match="there is no kubelet"):
            plugin.offer(devices("GPU-a"), single=False)
        kubelet.start()
        assert not plugin.registered
    plugin.offer(devices("GPU-a"), single=False)
    # What the plugin before leaves behind must not take the new socket with it.
    time.sleep(0.2)
    assert plugin.registered
    assert len(kubelet.requests) == 4


def test_refusal_is_reported_and_tried_again(kubelet: Kubelet, plugin: Plugin) -> None:
    kubelet.refusal = "unsupported version"
    with pytest.raises(KubeletError, match=r"kubelet\.sock: UNKNOWN: unsupported version"):
        plugin.offer(devices("GPU-a"), single=False)
    assert not plugin.registered
    kubelet.refusal = ""
    plugin.offer(devices("GPU-a"), single=False)
    assert plugin.registered


def test_without_devices_there_is_no_registration(kubelet: Kubelet, plugin: Plugin) -> None:
    plugin.offer([], single=False)
    assert kubelet.requests == []
    plugin.offer(devices("GPU-a"), single=False)
    plugin.offer([], single=False)
    assert not plugin.registered
    assert [path.name for path in kubelet.folder.iterdir()] == ["kubelet.sock"]


class Api:
    """The objects behind an HTTP server that speaks as much of the Kubernetes API as the stand-in uses."""

    def __init__(self) -> None:
        role = {"metadata": {"name": "owner", "uid": "u-1"}}
        self.objects: dict[str, Any] = {
            "/api/v1/nodes/a1": {"metadata": {"resourceVersion": "1", "labels": {"kubernetes.io/os": "linux"}}},
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/owner": role,
        }
        self.writes: list[tuple[str, str]] = []
        self.healthy = True
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                assert self.headers["Authorization"] == "Bearer token-1"
                status, content = api.handle(self.command, self.path.partition("?")[0], body)
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def labels(self) -> dict[str, str]:
        """The node's labels."""
        labels: dict[str, str] = self.objects["/api/v1/nodes/a1"]["metadata"]["labels"]
        return labels

    def handle(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """One request: status and answer."""
        if not self.healthy:
            return 503, {"message": "not now"}
        if method == "GET":
            return (200, self.objects[path]) if path in self.objects else (404, {"message": "not found"})
        self.writes.append((method, path))
        if method == "POST":
            path = f"{path}/{body['metadata']['name']}"
        elif body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        if method == "PATCH":
            labels = {**self.labels, **body["metadata"]["labels"]}
            body = {"metadata": {"labels": {name: value for name, value in labels.items() if value is not None}}}
        body["metadata"]["resourceVersion"] = str(len(self.writes) + 1)
        self.objects[path] = body
        return 200, body


@pytest.fixture
def api() -> Iterator[Api]:
    """A running API."""
    api = Api()
    yield api
    api.server.shutdown()
    api.server.server_close()


@pytest.fixture
def cluster(api: Api, tmp_path: Path) -> Cluster:
    """A client of it."""
    (tmp_path / "token").write_text("token-1\n")
    return Cluster(http.client.HTTPConnection("127.0.0.1", api.server.server_port, timeout=5), tmp_path / "token")


@pytest.fixture
def folders(tmp_path: Path, kubelet: Kubelet) -> Folders:
    """A node with two GPUs and the configurations of the chart."""
    configs = tmp_path / "config"
    configs.mkdir()
    for share in (1, 4):
        resources = [{"name": "nvidia.com/gpu", "replicas": share}]
        (configs / f"share-{share}").write_text(json.dumps({"sharing": {"timeSlicing": {"resources": resources}}}))
    hardware.write(tmp_path / "hardware", "a1", 2)
    return Folders(tmp_path / "hardware", configs, kubelet.folder, tmp_path / "cdi", tmp_path / "toolkit")


@pytest.fixture
def agent(folders: Folders, cluster: Cluster) -> Iterator[Agent]:
    """The whole stand-in of a node."""
    agent = Agent(Settings("a1", "share-1", "all-disabled", "nvidia", "owner"), folders, cluster)
    yield agent
    agent.stop()


def test_node_with_gpus(agent: Agent, api: Api, kubelet: Kubelet, folders: Folders) -> None:
    assert not agent.ready
    agent.step()
    assert agent.ready
    uuids = [hardware.gpu_uuid("a1", index) for index in range(2)]
    eventually(lambda: kubelet.lists == [dict.fromkeys(uuids, "Healthy")])
    assert api.labels["nvidia.com/gpu.count"] == "2"
    assert api.labels["kubernetes.io/os"] == "linux"
    # The operator names the state of a GPU that can be split.
    assert api.labels["nvidia.com/mig.config"] == "all-disabled"
    assert api.labels["nvidia.com/mig.config.state"] == "success"
    spec = json.loads((folders.cdi / host.CDI_FILE).read_text())
    assert [device["name"] for device in spec["devices"]] == sorted(uuids)
    assert (folders.toolkit / "toolkit/nvidia-container-runtime").stat().st_mode & 0o777 == 0o755
    writes = list(api.writes)
    agent.step()
    assert api.writes == writes


def test_fault_and_repair_reach_the_kubelet(agent: Agent, kubelet: Kubelet, folders: Folders) -> None:
    agent.step()
    uuid = hardware.gpu_uuid("a1", 1)
    fault = folders.hardware / hardware.FAULTS / uuid
    fault.write_text("too hot\n")
    agent.step()
    eventually(lambda: kubelet.lists and kubelet.lists[-1][uuid] == "Unhealthy")
    fault.unlink()
    agent.step()
    eventually(lambda: kubelet.lists[-1][uuid] == "Healthy")


def test_sharing_follows_the_nodes_label(
    agent: Agent, api: Api, kubelet: Kubelet, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.step()
    api.labels["nvidia.com/device-plugin.config"] = "share-4"
    agent.step()
    eventually(lambda: len(kubelet.lists[-1]) == 8)
    assert api.labels["nvidia.com/gpu.replicas"] == "4"
    assert api.labels["nvidia.com/gpu.product"] == "Simulated-GPU-SHARED"
    # A name that nobody knows changes nothing and is said once.
    api.labels["nvidia.com/device-plugin.config"] = "share-9"
    for _ in range(3):
        agent.step()
    assert len(kubelet.lists[-1]) == 8
    assert capsys.readouterr().out.count("device plugin configuration share-9") == 1
    del api.labels["nvidia.com/device-plugin.config"]
    agent.step()
    eventually(lambda: len(kubelet.lists[-1]) == 2)
    assert "node: well again" in capsys.readouterr().out


def test_mig_follows_the_nodes_label(agent: Agent, api: Api, kubelet: Kubelet) -> None:
    api.labels["nvidia.com/mig.config"] = "all-1g.10gb"
    agent.step()
    eventually(lambda: kubelet.lists and len(kubelet.lists[-1]) == 14)
    assert all(id.startswith("MIG-") for id in kubelet.lists[-1])
    assert api.labels["nvidia.com/mig.config.state"] == "success"
    api.labels["nvidia.com/mig.config"] = "all-wrong"
    agent.step()
    assert api.labels["nvidia.com/mig.config.state"] == "failed"
    assert len(kubelet.lists[-1]) == 14
    api.labels["nvidia.com/mig.config"] = "all-disabled"
    agent.step()
    eventually(lambda: len(kubelet.lists[-1]) == 2)
    assert api.labels["nvidia.com/mig.config.state"] == "success"


def test_node_without_gpus_idles(agent: Agent, api: Api, kubelet: Kubelet, folders: Folders) -> None:
    agent.step()
    hardware.write(folders.hardware, "a1", 0)
    agent.step()
    assert agent.ready
    assert not [path for path in kubelet.folder.iterdir() if path.name != "kubelet.sock"]
    assert {name for name in api.labels if name.startswith("nvidia.com/")} == {"nvidia.com/mig.config"}


def test_health_is_followed_without_the_api(
    agent: Agent, api: Api, kubelet: Kubelet, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.step()
    api.healthy = False
    (folders.hardware / hardware.FAULTS / hardware.gpu_uuid("a1", 0)).write_text("hot")
    agent.step()
    eventually(lambda: "Unhealthy" in kubelet.lists[-1].values())
    assert "node: GET /api/v1/nodes/a1" in capsys.readouterr().out


def test_nothing_is_offered_before_the_sharing_is_known(agent: Agent, api: Api, kubelet: Kubelet) -> None:
    api.healthy = False
    agent.step()
    assert not agent.ready
    assert kubelet.requests == []


def test_runtime_classes_are_taken_over_and_belong_to_the_release(agent: Agent, api: Api) -> None:
    path = "/apis/node.k8s.io/v1/runtimeclasses"
    shipped = {"metadata": {"name": "nvidia", "resourceVersion": "7", "labels": {"by": "k3s"}}, "handler": "nvidia"}
    api.objects[f"{path}/nvidia"] = shipped
    agent.step()
    for name in ("nvidia", "nvidia-cdi", "nvidia-legacy"):
        found = api.objects[f"{path}/{name}"]
        (owner,) = found["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"]) == ("ClusterRole", "owner", "u-1")
        assert found["handler"] == name
    assert "labels" not in api.objects[f"{path}/nvidia"]["metadata"]


def test_label_that_somebody_changed_meanwhile_is_left(api: Api, cluster: Cluster) -> None:
    _, version = cluster.read_labels("a1")
    cluster.write_labels("a1", version, {"x": "1"})
    with pytest.raises(ApiError, match="PATCH /api/v1/nodes/a1: 409") as refused:
        cluster.write_labels("a1", version, {"x": "2"})
    assert refused.value.status == 409
    assert api.labels["x"] == "1"


def test_api_that_is_gone_is_an_error(api: Api, cluster: Cluster) -> None:
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(ApiError, match="GET /api/v1/nodes/a1"):
        cluster.read_labels("a1")

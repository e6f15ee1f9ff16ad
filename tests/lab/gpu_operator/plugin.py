"""The device plugin: registers with the kubelet and answers its questions over gRPC."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from .api import HEALTHY, MESSAGES, UNHEALTHY, VERSION
from .devices import RESOURCE, Device
from .host import CDI_KIND, mounts

# Each stream of devices holds one thread; a kubelet that was killed leaves one for a while.
THREADS = 6
REGISTER_TIMEOUT_S = 5.0


class KubeletError(Exception):
    """The kubelet did not take the registration; the message says why."""


class Plugin:
    """Devices of one resource, offered through the kubelet's folder of plugin sockets."""

    def __init__(self, folder: Path, hardware: Path) -> None:
        self._kubelet = folder / "kubelet.sock"
        self._socket = folder / "nvidia-gpu.sock"
        self._mounts = mounts(hardware)
        self._changed = threading.Condition()
        self._devices: list[Device] = []
        self._single = False
        self._server: Any = None
        self._seen: tuple[int, int] | None = None

    @property
    def registered(self) -> bool:
        """Whether the kubelet that runs now has our registration: at its start a kubelet removes all plugins' sockets."""
        return self._server is not None and self._socket.exists() and self._seen == self._identify_kubelet()

    def offer(self, devices: Sequence[Device], single: bool) -> None:
        """Offer exactly these devices; without any there is no registration.

        Args:
            single: refuse a container more than one device.

        Raises:
            KubeletError: the kubelet refused; try again later.
            OSError: there is no kubelet.
        """
        with self._changed:
            self._single = single
            if self._devices != list(devices):
                self._devices = list(devices)
                self._changed.notify_all()
        if not devices:
            self.stop()
        elif not self.registered:
            self.stop()
            self._start()

    def stop(self) -> None:
        """Take back the registration."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None
        self._socket.unlink(missing_ok=True)

    def _identify_kubelet(self) -> tuple[int, int] | None:
        """Tells one start of the kubelet from the next; None while there is none."""
        try:
            status = self._kubelet.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _start(self) -> None:
        self._seen = self._identify_kubelet()
        if self._seen is None:
            raise KubeletError(f"{self._kubelet}: there is no kubelet")
        self._server = grpc.server(ThreadPoolExecutor(THREADS))
        self._server.add_generic_rpc_handlers((self._handlers(),))
        self._server.add_insecure_port(f"unix:{self._socket}")
        self._server.start()
        try:
            self._register()
        except grpc.RpcError as error:
            self.stop()
            raise KubeletError(f"{self._kubelet}: {error.code().name}: {error.details()}") from error

    def _register(self) -> None:
        options = MESSAGES["DevicePluginOptions"](get_preferred_allocation_available=True)
        request = MESSAGES["RegisterRequest"](
            version=VERSION, endpoint=self._socket.name, resource_name=RESOURCE, options=options
        )
        with grpc.insecure_channel(f"unix:{self._kubelet}") as channel:
            register = channel.unary_unary(
                f"/{VERSION}.Registration/Register",
                request_serializer=MESSAGES["RegisterRequest"].SerializeToString,
                response_deserializer=MESSAGES["Empty"].FromString,
            )
            register(request, timeout=REGISTER_TIMEOUT_S)

    def _handlers(self) -> Any:
        def unary(function: Any, request: str) -> Any:
            return grpc.unary_unary_rpc_method_handler(function, MESSAGES[request].FromString, _serialize)

        return grpc.method_handlers_generic_handler(
            f"{VERSION}.DevicePlugin",
            {
                "GetDevicePluginOptions": unary(self._options, "Empty"),
                "ListAndWatch": grpc.unary_stream_rpc_method_handler(
                    self._watch, MESSAGES["Empty"].FromString, _serialize
                ),
                "GetPreferredAllocation": unary(self._prefer, "PreferredAllocationRequest"),
                "Allocate": unary(self._allocate, "AllocateRequest"),
            },
        )

    def _options(self, request: Any, context: Any) -> Any:
        return MESSAGES["DevicePluginOptions"](get_preferred_allocation_available=True)

    def _watch(self, request: Any, context: Any) -> Iterator[Any]:
        """Send all devices now and after every change, until the kubelet is gone or we stop."""
        context.add_callback(self._wake)
        sent: list[Device] | None = None
        while True:
            with self._changed:
                while self._devices is sent and context.is_active():
                    self._changed.wait()
                sent = self._devices
            if not context.is_active():
                return
            yield MESSAGES["ListAndWatchResponse"](
                devices=[
                    MESSAGES["Device"](ID=device.id, health=HEALTHY if device.healthy else UNHEALTHY) for device in sent
                ]
            )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _prefer(self, request: Any, context: Any) -> Any:
        """Spread over the GPUs: next comes the one of which the container has the least and which has the most free."""
        answer = MESSAGES["PreferredAllocationResponse"]()
        for container in request.container_requests:
            chosen = list(container.must_include_deviceIDs)
            free = [id for id in container.available_deviceIDs if id not in chosen]
            while free and len(chosen) < container.allocation_size:
                rank = {device.id: number for number, device in enumerate(self._devices)}
                mine, left = Counter(map(_visible, chosen)), Counter(map(_visible, free))
                ranked = [(mine[_visible(id)], -left[_visible(id)], rank.get(id, len(rank)), id) for id in free]
                chosen.append(min(ranked)[-1])
                free.remove(chosen[-1])
            answer.container_responses.add(deviceIDs=chosen)
        return answer

    def _allocate(self, request: Any, context: Any) -> Any:
        """Say what containers need for their devices: variable, mounts, and CDI names for runtimes that know them."""
        known = {device.id for device in self._devices}
        answer = MESSAGES["AllocateResponse"]()
        for container in request.container_requests:
            ids = set(container.devices_ids)
            if ids - known:
                context.abort(grpc.StatusCode.NOT_FOUND, f"no such device: {', '.join(sorted(ids - known))}")
            if self._single and len(ids) > 1:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"maximum request size for shared resources is 1; found {len(ids)}",
                )
            visible = sorted({_visible(id) for id in ids})
            answer.container_responses.add(
                envs={"NVIDIA_VISIBLE_DEVICES": ",".join(visible)},
                mounts=[
                    MESSAGES["Mount"](host_path=source, container_path=target, read_only=True)
                    for source, target in self._mounts.items()
                ],
                cdi_devices=[MESSAGES["CDIDevice"](name=f"{CDI_KIND}={name}") for name in visible],
            )
        return answer


def _visible(id: str) -> str:
    """What a container sees of a device: replicas of one are the same."""
    return id.partition("::")[0]


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data

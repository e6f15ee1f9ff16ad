"""The loop of the stand-in: hardware and the node's labels on one side, kubelet and labels on the other."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .cluster import ApiError, Cluster
from .devices import (
    CONFIG_LABEL,
    MIG_LABEL,
    MIG_STATE_LABEL,
    ConfigError,
    Gpu,
    Profile,
    Sharing,
    make_devices,
    make_labels,
    make_metrics,
    read_gpus,
    read_profile,
    read_sharing,
)
from .host import write_cdi, write_runtimes
from .plugin import KubeletError, Plugin

HARDWARE = Path("/var/lib/lab-hardware")
CONFIGS = Path("/config")
KUBELET = Path("/var/lib/kubelet/device-plugins")
CDI = Path("/var/run/cdi")
TOOLKIT = Path("/usr/local/nvidia")
METRICS_PORT = 9400
INTERVAL_S = 1.0


def say(text: str) -> None:
    """Write a line of the pod's log."""
    print(text, flush=True)


@dataclass(frozen=True)
class Settings:
    """What the chart says."""

    node: str
    default_config: str
    default_mig: str
    runtime_class: str
    owner: str


@dataclass(frozen=True)
class Folders:
    """The node's folders as the stand-in sees them."""

    hardware: Path = HARDWARE
    configs: Path = CONFIGS
    kubelet: Path = KUBELET
    cdi: Path = CDI
    toolkit: Path = TOOLKIT


class Agent:
    """One node's stand-in for device plugin, feature discovery, MIG manager and toolkit."""

    def __init__(self, settings: Settings, folders: Folders, cluster: Cluster) -> None:
        self._settings, self._folders, self._cluster = settings, folders, cluster
        self._plugin = Plugin(folders.kubelet, folders.hardware)
        self._labels: dict[str, str] = {}
        self._version = ""
        self._sharing: Sharing | None = None
        self._profile = Profile()
        self._profile_state = "success"
        self._owns_runtime_classes = False
        self._trouble: dict[str, str] = {}
        self.gpus: list[Gpu] = []

    @property
    def ready(self) -> bool:
        """Whether the kubelet knows this node's GPUs; true without any."""
        return self._sharing is not None and (not self.gpus or self._plugin.registered)

    def step(self) -> None:
        """Look at everything once and act on it. What fails is logged once and tried again by the next step."""
        self._try("node", self._follow_node)
        self._try("hardware", self._follow_hardware)
        if self._sharing is not None:
            self._try("kubelet", self._offer)
            self._try("labels", self._write_labels)
        self._try("RuntimeClasses", self._own_runtime_classes)

    def stop(self) -> None:
        """Leave the kubelet."""
        self._plugin.stop()

    def _try(self, what: str, action: Callable[[], None]) -> None:
        trouble = ""
        try:
            action()
        except (ApiError, ConfigError, KubeletError, OSError) as error:
            trouble = str(error)
        if trouble != self._trouble.get(what, ""):
            say(f"{what}: {trouble or 'well again'}")
        self._trouble[what] = trouble

    def _follow_node(self) -> None:
        self._labels, self._version = self._cluster.read_labels(self._settings.node)
        name = self._labels.get(CONFIG_LABEL) or self._settings.default_config
        self._sharing = read_sharing(self._folders.configs, name)
        try:
            self._profile = read_profile(self._labels.get(MIG_LABEL, ""))
            self._profile_state = "success"
        except ConfigError:
            self._profile_state = "failed"
            raise

    def _follow_hardware(self) -> None:
        gpus = read_gpus(self._folders.hardware)
        for gpu in gpus:
            before = next((old.fault for old in self.gpus if old.uuid == gpu.uuid), "")
            if gpu.fault != before:
                say(f"{gpu.uuid} is {f'unhealthy: {gpu.fault}' if gpu.fault else 'healthy again'}")
        self.gpus = gpus

    def _offer(self) -> None:
        assert self._sharing is not None
        devices = make_devices(self.gpus, self._sharing, self._profile)
        if devices:
            write_runtimes(self._folders.toolkit)
            write_cdi(self._folders.cdi, self._folders.hardware, [device.visible for device in devices])
        known = self._plugin.registered
        self._plugin.offer(devices, self._sharing.single)
        if devices and not known:
            say(f"registered {len(devices)} devices of {len(self.gpus)} GPUs")

    def _write_labels(self) -> None:
        """As feature discovery and the MIG manager do; a GPU that can be split gets its profile named, whoever asks."""
        assert self._sharing is not None
        labels = make_labels(self.gpus, self._sharing, self._profile)
        labels[MIG_STATE_LABEL] = self._profile_state if self.gpus else None
        if self.gpus and self._settings.default_mig and not self._labels.get(MIG_LABEL):
            labels[MIG_LABEL] = self._settings.default_mig
        changes = {name: value for name, value in labels.items() if self._labels.get(name) != value}
        if changes:
            self._cluster.write_labels(self._settings.node, self._version, changes)

    def _own_runtime_classes(self) -> None:
        if not self._owns_runtime_classes:
            for name in (self._settings.runtime_class, "nvidia-cdi", "nvidia-legacy"):
                self._cluster.own_runtime_class(name, self._settings.owner)
            self._owns_runtime_classes = True


def serve(agent: Agent, node: str) -> None:
    """Serve metrics, and whether the agent is ready, from a thread of its own."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            status, text = 404, ""
            if self.path == "/metrics":
                status, text = 200, make_metrics(agent.gpus, node)
            elif self.path == "/health":
                status = 200 if agent.ready else 503
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("", METRICS_PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main(words: list[str]) -> int:
    """Run until a signal asks to stop; returns the exit status."""
    parser = argparse.ArgumentParser(prog="gpu_operator", description=__doc__)
    for field in fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", required=True)
    settings = Settings(**vars(parser.parse_args(words)))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(settings, Folders(), Cluster.of_pod())
    serve(agent, settings.node)
    say(f"stand-in for the NVIDIA GPU operator: simulated GPUs on {settings.node}")
    while True:
        agent.step()
        if stop.wait(INTERVAL_S):
            break
    agent.stop()
    return 0

"""A client that asks a Service on and on, and the workload that answers it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import yaml

from .conftest import Run, Site

PORT = 30808


def said(run: Run) -> str:
    """What a run printed, without line breaks."""
    return " ".join(run.output.split())


def deployment(site: Site, name: str, node: str = "") -> list[dict[str, Any]]:
    """Two pods that answer HTTP, spread over the nodes or all on one, and a budget that keeps one of them."""
    labels = {"app": name}
    image = yaml.safe_load((site.state / "bundle/bundle.yml").read_text())["images"]["busybox"]
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}
    pod = {
        # What nobody tells of its end is waited for no longer than that.
        "terminationGracePeriodSeconds": 8,
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]
            }
        },
        "containers": [
            {
                "name": "main",
                "image": image,
                "command": ["/bin/sh", "-c", "echo here > /tmp/index.html && exec busybox httpd -f -p 8080 -h /tmp"],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
                # It answers until the nodes have heard that it goes.
                "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            }
        ],
        **({"nodeSelector": {"kubernetes.io/hostname": node}} if node else {}),
    }
    metadata = {"name": name, "namespace": "default"}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata,
            "spec": {"minAvailable": 1, "selector": {"matchLabels": labels}},
        },
    ]


def start(site: Site, *objects: dict[str, Any]) -> None:
    """Apply objects and wait for the Deployments among them."""
    for item in objects:
        site.apply(item)
    for item in objects:
        if item["kind"] == "Deployment":
            words = ["rollout", "status", f"deployment/{item['metadata']['name']}", "--timeout=120s"]
            subprocess.run([*site.kubectl_words(), *words], check=True, capture_output=True)


def remove(site: Site, *names: str) -> None:
    """Delete objects, and wait until their pods are gone."""
    subprocess.run([*site.kubectl_words(), "delete", *names, "--cascade=foreground"], check=True, capture_output=True)


@dataclass
class Client:
    """Asks a Service through every node by turns and counts."""

    addresses: list[str]
    asked: int = 0
    lost: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, address: str) -> str:
        """Ask at one node; return what is wrong, empty if it answers."""
        try:
            with urllib.request.urlopen(f"http://{address}:{PORT}/", timeout=2) as answer:
                content = answer.read()
        except OSError as error:
            return str(error)
        return "" if content == b"here\n" else f"it answered {content[:80]!r}"

    def begin(self) -> None:
        """Return when every node answers: one whose server has just gone away learns of a new Service some seconds later."""
        end = time.monotonic() + 60
        for address in self.addresses:
            while wrong := self.ask(address):
                assert time.monotonic() < end, f"{address}: {wrong}"
                time.sleep(0.2)

    def run(self) -> None:
        """Ask until it is ended."""
        while not self.ended.wait(0.2):
            address = self.addresses[self.asked % len(self.addresses)]
            self.asked += 1
            if wrong := self.ask(address):
                self.lost.append(f"{self.asked} at {address}: {wrong}")

    def lost_at_most(self, number: int) -> None:
        """Fail if more requests than that got no answer."""
        print(json.dumps({"asked": self.asked, "lost": self.lost}))
        assert self.asked > 100
        assert len(self.lost) <= number, self.lost


@contextmanager
def asking(site: Site, nodes: Iterable[str] = (), not_on: str = "") -> Iterator[Client]:
    """A client of a Service of two pods, through these nodes (default: all); none of the pods is on the node `not_on`."""
    objects = deployment(site, "polled")
    if not_on:
        term = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [not_on]}
        affinity = objects[0]["spec"]["template"]["spec"]["affinity"]
        affinity["nodeAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}
        }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "polled", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "polled"},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": PORT}],
        },
    }
    start(site, *objects, service)
    client = Client([site.nodes[name] for name in nodes or site.nodes])
    client.begin()
    thread = threading.Thread(target=client.run)
    thread.start()
    try:
        yield client
    finally:
        client.ended.set()
        thread.join()

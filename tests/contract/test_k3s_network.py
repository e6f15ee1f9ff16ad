"""Pod network, Services and DNS between nodes: k3s docs networking."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.contract.conftest import Kubectl, Node, wait_for

# More than one packet of the largest size: a wrong MTU lets small answers pass and these hang.
BYTES = 3_000_000
MANIFEST = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: contract-web, namespace: contract-test}
spec:
  selector: {matchLabels: {app: contract-web}}
  template:
    metadata: {labels: {app: contract-web}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: IMAGE
        imagePullPolicy: IfNotPresent
        command: [sh, -c, "mkdir /www; hostname > /www/name; head -c BYTES /dev/zero > /www/big; exec httpd -f -p 8080 -h /www"]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: contract-test}
spec: {selector: {app: contract-web}, ports: [{port: 80, targetPort: 8080}]}
"""


@pytest.fixture(scope="module")
def pods(kubectl: Kubectl, busybox: str) -> Iterator[dict[str, str]]:
    """A small web server on each node: pod name -> address."""
    kubectl("create namespace contract-test")
    try:
        kubectl("apply -f -", MANIFEST.replace("IMAGE", busybox).replace("BYTES", str(BYTES)))
        kubectl("rollout status daemonset/contract-web -n contract-test --timeout=60s")
        items = json.loads(kubectl("get pod -n contract-test -o json"))["items"]
        yield {item["metadata"]["name"]: item["status"]["podIP"] for item in items}
    finally:
        kubectl("delete namespace contract-test --wait=true --timeout=60s")


def get(kubectl: Kubectl, pod: str, host: str, port: int, path: str, tail: str) -> str:
    """What a pod gets from an address by HTTP, through a filter."""
    request = f"printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {host} {port} | {tail}"
    return kubectl(f'exec -n contract-test {pod} -- sh -c "{request}"').strip()


def test_pods_reach_pods_of_all_nodes(kubectl: Kubectl, pods: dict[str, str], nodes: list[Node]) -> None:
    """Pods see each other across nodes, with packets of full size."""
    assert len(pods) == len(nodes)
    for pod in pods:
        for other, address in pods.items():
            assert get(kubectl, pod, address, 8080, "/name", "tail -n 1") == other
            assert int(get(kubectl, pod, address, 8080, "/big", "wc -c")) > BYTES


def test_services_and_names(server: Node, kubectl: Kubectl, pods: dict[str, str]) -> None:
    """Cluster addresses and DNS names work on every node, and requests reach the pods behind a Service."""
    address = kubectl("get service web -n contract-test -o jsonpath={.spec.clusterIP}")
    for pod in pods:
        # CoreDNS and kube-proxy learn of a new Service a moment after its pods are ready.
        lookup = f"k3s kubectl exec -n contract-test {pod} -- nslookup web.contract-test.svc.cluster.local."
        wait_for("the name", lambda lookup=lookup: address in server.try_run(lookup).out, timeout=120)  # type: ignore[misc]
        wait_for("an answer", lambda pod=pod: get(kubectl, pod, address, 80, "/name", "tail -n 1") in pods, timeout=120)  # type: ignore[misc]


def test_nodes_have_names(
    kubectl: Kubectl, pods: dict[str, str], nodes: list[Node], node_names: dict[str, str]
) -> None:
    """CoreDNS resolves the names of nodes from its NodeHosts, which the kubelet brings it some time after a node has joined."""
    for pod in pods:
        for node in nodes:
            ask = f"exec -n contract-test {pod} -- sh -c 'nslookup {node_names[node.name]}. || true'"
            wait_for(f"an address of {node.name}", lambda ask=ask, node=node: node.address in kubectl(ask), timeout=180)  # type: ignore[misc]

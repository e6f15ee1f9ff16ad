"""Traefik and servicelb: k3s docs networking/networking-services.

The site is looked at as its users do: by HTTP from here to the addresses of the nodes.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.contract.conftest import Kubectl, Node, wait_for

NAMESPACE = "contract-ingress"
PORT = 18099
ENABLE = "svccontroller.k3s.cattle.io/enablelb"
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: contract-ingress, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "mkdir /www; echo hello > /www/name; exec httpd -f -p 8080 -h /www"]
    readinessProbe: {httpGet: {path: /name, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: contract-ingress}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: contract-ingress}
spec:
  rules:
  - host: ingress.contract.test
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
---
apiVersion: traefik.io/v1alpha1
kind: Middleware
metadata: {name: strip, namespace: contract-ingress}
spec: {stripPrefix: {prefixes: [/prefix]}}
---
apiVersion: traefik.io/v1alpha1
kind: IngressRoute
metadata: {name: web, namespace: contract-ingress}
spec:
  entryPoints: [web, websecure]
  routes:
  - kind: Rule
    match: Host(`route.contract.test`)
    middlewares: [{name: strip}]
    services: [{name: web, port: 80}]
"""
BALANCED = """
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: contract-ingress}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: PORT, targetPort: 8080}]}
"""


def get(address: str, port: int, host: str = "", path: str = "/name") -> tuple[int, str]:
    """Status and content of an answer; status 0 where nobody answers. Over TLS with any certificate on port 443."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    if port == 443:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(address, port, timeout=5, context=context)
    try:
        connection.request("GET", path, headers={"Host": host or address})
        answer = connection.getresponse()
        return answer.status, answer.read().decode().strip()
    except OSError:
        return 0, ""
    finally:
        connection.close()


def addresses(kubectl: Kubectl, name: str, namespace: str = NAMESPACE, kind: str = "service") -> list[str]:
    """The addresses in the status of a Service or an Ingress."""
    status = json.loads(kubectl(f"get {kind} {name} -n {namespace} -o json"))["status"]
    return sorted(item["ip"] for item in status["loadBalancer"].get("ingress", []))


@pytest.fixture(scope="module")
def entries(server: Node, kubectl: Kubectl) -> list[str]:
    """The addresses at which a Service is offered: of all nodes without a taint that keeps ordinary DaemonSets away."""
    config = yaml.safe_load(server.run("cat /etc/rancher/k3s/config.yaml"))
    if missing := {"traefik", "servicelb"} & set(config.get("disable") or []):
        pytest.skip(f"this site does without {' and '.join(sorted(missing))}")
    return sorted(
        address["address"]
        for item in json.loads(kubectl("get node -o json"))["items"]
        for address in item["status"]["addresses"]
        if address["type"] == "InternalIP"
        and all(
            taint["effect"] == "PreferNoSchedule" or taint["key"].startswith("node")
            for taint in item["spec"].get("taints", [])
        )
    )


@pytest.fixture(scope="module")
def web(entries: list[str], kubectl: Kubectl, busybox: str) -> Iterator[list[str]]:
    """A small web server behind an Ingress and an IngressRoute; gives the addresses of the nodes."""
    kubectl(f"create namespace {NAMESPACE}")
    try:
        kubectl("apply -f -", MANIFEST.replace("IMAGE", busybox))
        kubectl(f"wait pod/web -n {NAMESPACE} --for=condition=Ready --timeout=60s")
        yield entries
    finally:
        kubectl(f"delete namespace {NAMESPACE} --wait=true --timeout=60s")


def offer(kubectl: Kubectl, name: str) -> None:
    """Make a Service of type LoadBalancer for the web server."""
    kubectl("apply -f -", BALANCED.replace("NAME", name).replace("PORT", str(PORT)))


@pytest.fixture
def balanced(web: list[str], kubectl: Kubectl) -> Iterator[list[str]]:
    """A Service of type LoadBalancer that has its addresses; gives those of the nodes."""
    offer(kubectl, "balanced")
    wait_for("addresses", lambda: addresses(kubectl, "balanced") == web)
    yield web
    kubectl(f"delete service balanced -n {NAMESPACE}")


def test_traefik_answers_on_every_node(entries: list[str], kubectl: Kubectl) -> None:
    """Its Service has the nodes' addresses, and nobody is behind a name that no route has."""
    kubectl("rollout status deployment/traefik -n kube-system --timeout=60s")
    wait_for("addresses", lambda: addresses(kubectl, "traefik", "kube-system") == entries)
    for address in entries:
        wait_for("Traefik", lambda address=address: get(address, 443, "unknown.contract.test")[0] == 404)  # type: ignore[misc]
        # A site may lead everybody from HTTP to HTTPS.
        status = get(address, 80, "unknown.contract.test")[0]
        assert status == 404 or 300 <= status < 400


def test_default_class(kubectl: Kubectl, entries: list[str]) -> None:
    """IngressClass traefik is the default one."""
    found = json.loads(kubectl("get ingressclass traefik -o json"))
    assert found["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true"
    assert found["spec"]["controller"] == "traefik.io/ingress-controller"


@pytest.mark.parametrize(("host", "path"), [("ingress", "/name"), ("route", "/prefix/name")])
def test_routes_answer_on_every_node(web: list[str], host: str, path: str) -> None:
    """An Ingress without a class, and an IngressRoute with a Middleware: over HTTP, and over TLS without a certificate of their own."""
    for address in web:
        for port in (80, 443):
            wait_for(
                f"{address}:{port}",
                lambda address=address, port=port: get(address, port, f"{host}.contract.test", path) == (200, "hello"),  # type: ignore[misc]
                timeout=30,
            )


def test_ingress_tells_its_addresses(web: list[str], kubectl: Kubectl) -> None:
    """An Ingress has the addresses of Traefik's Service in its status."""
    wait_for("addresses", lambda: addresses(kubectl, "web", kind="ingress") == web, timeout=30)


def test_services_get_addresses_and_lose_them(balanced: list[str], kubectl: Kubectl) -> None:
    """A Service of type LoadBalancer answers on its port of every node until it is of another type."""
    for address in balanced:
        wait_for("an answer", lambda address=address: get(address, PORT) == (200, "hello"), timeout=30)  # type: ignore[misc]
    kubectl(f"patch service balanced -n {NAMESPACE} -p '{json.dumps({'spec': {'type': 'ClusterIP'}})}'")
    wait_for("no addresses", lambda: not addresses(kubectl, "balanced"), timeout=30)
    for address in balanced:
        wait_for("nobody", lambda address=address: get(address, PORT)[0] == 0, timeout=30)  # type: ignore[misc]


def test_labels_choose_nodes(balanced: list[str], kubectl: Kubectl, node_names: dict[str, str], server: Node) -> None:
    """Where a node has the label enablelb, only those with the value true are offered."""
    name = node_names[server.name]
    try:
        kubectl(f"label node {name} {ENABLE}=true")
        wait_for("one address", lambda: addresses(kubectl, "balanced") == [server.address], timeout=30)
        wait_for("an answer", lambda: get(server.address, PORT) == (200, "hello"), timeout=30)
        for address in set(balanced) - {server.address}:
            wait_for("nobody", lambda address=address: get(address, PORT)[0] == 0, timeout=30)  # type: ignore[misc]
    finally:
        kubectl(f"label node {name} {ENABLE}-")
        # k3s sees that the last label is gone when a Service changes, and not before.
        for service in (f"balanced -n {NAMESPACE}", "traefik -n kube-system"):
            kubectl(f"annotate service {service} contract-test=1")
            kubectl(f"annotate service {service} contract-test-")
    wait_for("all addresses", lambda: addresses(kubectl, "balanced") == balanced, timeout=30)
    wait_for("all addresses", lambda: addresses(kubectl, "traefik", "kube-system") == balanced, timeout=30)


def test_local_traffic_goes_where_the_pods_are(balanced: list[str], kubectl: Kubectl) -> None:
    """With externalTrafficPolicy Local only nodes with a ready pod are offered."""
    host = kubectl(f"get pod web -n {NAMESPACE} -o jsonpath={{.status.hostIP}}")
    kubectl(f"patch service balanced -n {NAMESPACE} -p '{json.dumps({'spec': {'externalTrafficPolicy': 'Local'}})}'")
    wait_for("the pod's node", lambda: addresses(kubectl, "balanced") == [host], timeout=30)
    wait_for("an answer", lambda: get(host, PORT) == (200, "hello"), timeout=30)


def test_a_taken_port_stays_with_its_service(balanced: list[str], kubectl: Kubectl) -> None:
    """A second Service of the same port waits until the first one is gone."""
    offer(kubectl, "second")
    # Longer than an address takes where the port is free.
    time.sleep(3)
    assert addresses(kubectl, "second") == []
    kubectl(f"patch service balanced -n {NAMESPACE} -p '{json.dumps({'spec': {'type': 'ClusterIP'}})}'")
    wait_for("its addresses", lambda: addresses(kubectl, "second") == balanced, timeout=30)
    kubectl(f"delete service second -n {NAMESPACE}")

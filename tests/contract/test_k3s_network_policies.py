"""NetworkPolicies, by the cases of upstream's suite (k8s.io/kubernetes test/e2e/network/netpol): k3s docs networking.

Pods a and b in the namespaces x and y, a on the server's node and b on the agent's, all serve 80 and 81. A case says
which of the connections between them are refused.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import yaml

from tests.contract.conftest import DATA, Kubectl, Node, wait_for

PREFIX = "contract-policy-"
NAMESPACES = ("x", "y")
PORTS = (80, 81)
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: POD, namespace: NAMESPACE, labels: {pod: POD}}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
  - name: web
    image: IMAGE
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "mkdir /www; echo POD.NAMESPACE > /www/name; httpd -p 80 -h /www; exec httpd -f -p 81 -h /www"]
    ports: [{name: serve-80, containerPort: 80}, {name: serve-81, containerPort: 81}]
    readinessProbe: {httpGet: {path: /name, port: 81}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: POD, namespace: NAMESPACE}
spec: {selector: {pod: POD}, ports: [{port: 8000, targetPort: 80}]}
"""

# A connection: who calls (namespace/pod), whom, and the port.
Denied = Callable[[str, str, int], bool]
Specs = list[tuple[str, str]]


def request(address: str, port: int) -> str:
    """The shell command that prints the name of who answers, or nothing."""
    return f"printf 'GET /name HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {address} {port} 2>/dev/null | tail -n 1"


def answer_of(name: str) -> str:
    """What a pod (namespace/pod) answers."""
    return f"{name[2]}.{PREFIX}{name[0]}"


@dataclass(frozen=True)
class Pods:
    """The pods of this module: namespace/pod -> address, and how to use them."""

    server: Node
    addresses: dict[str, str]
    services: dict[str, str]

    def run(self, name: str, script: str) -> str:
        """The command for the server that runs a shell script in a pod."""
        return f"k3s kubectl exec -n {PREFIX}{name[0]} {name[2]} -- sh -c {shlex.quote(script)}"

    def reached(self) -> set[tuple[str, str, int]]:
        """Try all connections between different pods; return those that reached whom they were meant for."""
        script = "".join(
            f"{request(address, port)} | sed 's,^,{name} {port} ,' &\n"
            for name, address in self.addresses.items()
            for port in PORTS
        )
        # All at once: starting kubectl takes longer than the connections, and the kernel limits how often it tells an
        # address about refusals, so that some of them are only seen by a timeout.
        script += "wait"
        calls = [f"{self.run(name, script)} | sed 's,^,{name} ,' &\n" for name in self.addresses]
        found = set()
        for line in self.server.run("".join(calls) + "wait").splitlines():
            caller, called, port, answer = line.split()
            assert answer == answer_of(called)
            if caller != called:
                found.add((caller, called, int(port)))
        return found

    def get(self, caller: str, address: str, port: int, called: str) -> bool:
        """Whether a pod reaches another one at an address."""
        result = self.server.try_run(self.run(caller, request(address, port)))
        return result.out.strip() == answer_of(called)

    def expect(self, denied: Denied) -> None:
        """Wait until exactly the connections that `denied` names are refused."""
        names = list(self.addresses)
        wanted = {(f, t, p) for f in names for t in names for p in PORTS if f != t and not denied(f, t, p)}
        seen: list[set[tuple[str, str, int]]] = []

        def same() -> bool:
            seen.append(self.reached())
            return seen[-1] == wanted

        try:
            wait_for("what the policies say", same, timeout=30)
        except AssertionError as error:
            raise AssertionError(
                f"refused by mistake: {sorted(wanted - seen[-1])}; let through by mistake: {sorted(seen[-1] - wanted)}"
            ) from error


@pytest.fixture(scope="module")
def installed(kubectl: Kubectl, busybox: str, server: Node, agent: Node, node_names: dict[str, str]) -> Iterator[Pods]:
    """The pods, ready."""
    places = {"a": node_names[server.name], "b": node_names[agent.name]}
    namespaces = " ".join(PREFIX + name for name in NAMESPACES)
    try:
        for name in NAMESPACES:
            kubectl(f"create namespace {PREFIX}{name}")
            kubectl(f"label namespace {PREFIX}{name} contract={name}")
            for pod, node in places.items():
                words = {"POD": pod, "NAMESPACE": PREFIX + name, "NODE": node, "IMAGE": busybox}
                text = MANIFEST
                for word, value in words.items():
                    text = text.replace(word, value)
                kubectl("apply -f -", text)
        for name in NAMESPACES:
            kubectl(f"wait pod --all -n {PREFIX}{name} --for=condition=Ready --timeout=60s")
        addresses, services = {}, {}
        for name in NAMESPACES:
            items = json.loads(kubectl(f"get pod,service -n {PREFIX}{name} -o json"))["items"]
            for item in items:
                key = f"{name}/{item['metadata']['name']}"
                if item["kind"] == "Pod":
                    addresses[key] = item["status"]["podIP"]
                else:
                    services[key] = item["spec"]["clusterIP"]
        yield Pods(server, addresses, services)
    finally:
        kubectl(f"delete namespace {namespaces} --ignore-not-found --wait=true --timeout=60s")


@pytest.fixture
def pods(installed: Pods, kubectl: Kubectl) -> Iterator[Pods]:
    """The pods, without policies before and after."""
    yield installed
    for name in NAMESPACES:
        kubectl(f"delete networkpolicy --all -n {PREFIX}{name}")


def apply(kubectl: Kubectl, specs: Specs) -> None:
    """Create policies: each the namespace and the YAML of the spec."""
    for number, (namespace, spec) in enumerate(specs):
        policy = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": f"policy-{number}", "namespace": PREFIX + namespace},
            "spec": yaml.safe_load(spec),
        }
        kubectl("apply -f -", json.dumps(policy))


# "y" is quoted: to YAML 1.1 it is a boolean.
CASES: dict[str, tuple[Specs, Denied]] = {
    "no policy": ([], lambda f, t, p: False),
    "default deny ingress": ([("x", "{podSelector: {}}")], lambda f, t, p: t[0] == "x"),
    "default deny all": (
        [("x", "{podSelector: {}, policyTypes: [Ingress, Egress]}")],
        lambda f, t, p: "x" in (f[0], t[0]),
    ),
    "from a pod of the server's namespace": (
        [("x", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}")],
        lambda f, t, p: t == "x/a" and f != "x/b",
    ),
    "to a target although the rest is denied": (
        [
            ("x", "{podSelector: {}}"),
            ("x", "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]}"),
        ],
        lambda f, t, p: t == "x/a",
    ),
    "from another namespace by expressions": (
        [
            (
                "x",
                "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions:"
                ' [{key: kubernetes.io/metadata.name, operator: In, values: [contract-policy-y]}]}}]}]}',
            )
        ],
        lambda f, t, p: t[0] == "x" and f[0] != "y",
    ),
    "podSelector and namespaceSelector": (
        [
            (
                "x",
                "{podSelector: {}, ingress: [{from:"
                ' [{namespaceSelector: {matchLabels: {contract: "y"}}, podSelector: {matchLabels: {pod: b}}}]}]}',
            )
        ],
        lambda f, t, p: t[0] == "x" and f != "y/b",
    ),
    "podSelector or namespaceSelector": (
        [
            (
                "x",
                "{podSelector: {}, ingress: [{from:"
                ' [{namespaceSelector: {matchLabels: {contract: "y"}}}, {podSelector: {matchLabels: {pod: b}}}]}]}',
            )
        ],
        lambda f, t, p: f == "x/a" and t[0] == "x",
    ),
    "by number, name and range of ports": (
        [
            ("x", "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: serve-81}]}]}"),
            ("x", "{podSelector: {matchLabels: {pod: b}}, ingress: [{ports: [{port: 75, endPort: 80}]}]}"),
        ],
        lambda f, t, p: (t, p) in {("x/a", 80), ("x/b", 81)},
    ),
    "another protocol": (
        [("x", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}, {port: 80, protocol: SCTP}]}]}")],
        lambda f, t, p: t[0] == "x",
    ),
    "egress to a named port of some pods": (
        [
            (
                "x",
                "{podSelector: {}, policyTypes: [Egress], egress:"
                " [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}], ports: [{port: serve-80}]}]}",
            )
        ],
        lambda f, t, p: f[0] == "x" and not (t[2] == "b" and p == 80),
    ),
    "both ends must allow": (
        [
            ("x", '{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {contract: "y"}}}]}]}'),
            ("y", "{podSelector: {matchLabels: {pod: b}}, ingress: [{from: [{podSelector: {}}]}]}"),
        ],
        lambda f, t, p: (f[0] == "x" and t != "y/a") or (t == "y/b" and f[0] != "y"),
    ),
    "allow all beats one port": (
        [("x", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}"), ("x", "{podSelector: {}, ingress: [{}]}")],
        lambda f, t, p: False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_cases_of_upstream(pods: Pods, kubectl: Kubectl, case: str) -> None:
    """Policies let through and refuse what upstream's suite says, on one node and between nodes."""
    specs, denied = CASES[case]
    apply(kubectl, specs)
    pods.expect(denied)


def test_ip_blocks(pods: Pods, kubectl: Kubectl) -> None:
    """An ipBlock allows addresses, except those that it excepts; what one policy excepts another may allow."""
    open_block = f"{{ipBlock: {{cidr: 0.0.0.0/0, except: [{pods.addresses['x/b']}/32]}}}}"
    one = f"{{ipBlock: {{cidr: {pods.addresses['x/b']}/32}}}}"
    spec = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [PEER]}]}"
    apply(kubectl, [("x", spec.replace("PEER", open_block))])
    pods.expect(lambda f, t, p: (f, t) == ("x/a", "x/b"))
    apply(kubectl, [("x", spec.replace("PEER", one))])
    pods.expect(lambda f, t, p: f == "x/a" and t != "x/b")
    apply(kubectl, [("x", spec.replace("PEER", one)), ("x", spec.replace("PEER", open_block))])
    pods.expect(lambda f, t, p: False)


def test_labels_that_change(pods: Pods, kubectl: Kubectl) -> None:
    """Labels that a pod or a namespace gets decide from then on."""
    apply(
        kubectl,
        [("x", "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {new: label}}}]}]}")],
    )  # fmt: skip
    pods.expect(lambda f, t, p: t == "x/a")
    try:
        kubectl(f"label namespace {PREFIX}y new=label")
        pods.expect(lambda f, t, p: t == "x/a" and f[0] != "y")
        kubectl(f"label pod b -n {PREFIX}x pod=a --overwrite")
        pods.expect(lambda f, t, p: t[0] == "x" and f[0] != "y")
    finally:
        kubectl(f"label namespace {PREFIX}y new-")
        kubectl(f"label pod b -n {PREFIX}x pod=b --overwrite")


def test_services(pods: Pods, kubectl: Kubectl) -> None:
    """Policies count the pod behind a Service and its port, not the Service's."""
    apply(
        kubectl,
        [("x", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}]}]}")],
    )  # fmt: skip
    pods.expect(lambda f, t, p: f[0] == "x" and (t, p) != ("x/b", 80))
    assert pods.get("x/a", pods.services["x/b"], 8000, "x/b")
    assert not pods.get("x/b", pods.services["x/a"], 8000, "x/a")
    # Nothing keeps a pod from itself.
    assert pods.get("x/a", pods.services["x/a"], 8000, "x/a")


def test_names_over_udp(pods: Pods, kubectl: Kubectl) -> None:
    """UDP is counted as well: names are found once the policy names the port."""
    address = kubectl("get service kubernetes -o jsonpath={.spec.clusterIP}")
    lookup = pods.run("x/a", "timeout 5 nslookup kubernetes.default.svc.cluster.local.")

    def found() -> bool:
        return re.search(rf"{re.escape(address)}$", pods.server.try_run(lookup).out, re.MULTILINE) is not None

    spec = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: PROTOCOL}]}]}"
    apply(kubectl, [("x", spec.replace("PROTOCOL", "TCP"))])
    wait_for("the refusal", lambda: not found(), timeout=20)
    apply(kubectl, [("x", spec.replace("PROTOCOL", "UDP"))])
    wait_for("the name", found, timeout=20)


def test_the_own_node_may_always_come_in(pods: Pods, kubectl: Kubectl, server: Node, agent: Node) -> None:
    """Probes of the kubelet pass a default deny; other nodes do not."""
    apply(kubectl, [("x", "{podSelector: {}, policyTypes: [Ingress, Egress]}")])
    pods.expect(lambda f, t, p: "x" in (f[0], t[0]))
    for pod, own, other in (("x/a", server, agent), ("x/b", agent, server)):
        curl = f"curl -s -o /dev/null -m 5 http://{pods.addresses[pod]}/name"
        assert own.try_run(curl).rc == 0
        assert other.try_run(curl).rc != 0
    shown = json.loads(kubectl(f"get pod -n {PREFIX}x -o json"))["items"]
    assert all(status["ready"] for item in shown for status in item["status"]["containerStatuses"])


def test_rights_of_the_controller(agent: Node) -> None:
    """The agents' own identity may read what it needs for policies, and change none of it."""
    kubectl = f"k3s kubectl --kubeconfig {DATA}/agent/k3scontroller.kubeconfig auth can-i -A"
    for resource in ("networkpolicies.networking.k8s.io", "pods", "namespaces"):
        assert agent.try_run(f"{kubectl} watch {resource}").out.strip() == "yes", resource
        assert agent.try_run(f"{kubectl} delete {resource}").out.strip() == "no", resource


@pytest.mark.fault
def test_rules_outlive_k3s(pods: Pods, kubectl: Kubectl, agent: Node) -> None:
    """A stopped k3s leaves its rules; what changed meanwhile is in force after the start."""
    apply(kubectl, [("x", "{podSelector: {}}")])
    pods.expect(lambda f, t, p: t[0] == "x")
    agent.run("systemctl stop k3s-agent")
    try:
        kubectl(f"delete networkpolicy --all -n {PREFIX}x")
        wait_for("the server's node", lambda: pods.get("y/a", pods.addresses["x/a"], 80, "x/a"), timeout=20)
        assert not pods.get("y/a", pods.addresses["x/b"], 80, "x/b")
    finally:
        agent.run("systemctl start k3s-agent", timeout=120)
    wait_for("the agent's node", lambda: pods.get("y/a", pods.addresses["x/b"], 80, "x/b"), timeout=20)

"""Which connections show a flow: from policies, as the module makes them, to the table."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.slipway.flows import Addresses, policies

from tests.e2e.flows import (
    ELSEWHERE,
    NAME,
    SPARES,
    Check,
    Json,
    Labels,
    Table,
    Way,
    World,
    selects,
    table,
    variants,
)

ADDRESSES = Addresses(
    ("10.0.0.1/32",),
    6443,
    ("10.0.0.1/32", "10.0.0.2/32", "10.42.0.0/32", "10.42.1.0/32"),
    ("10.42.0.0/24", "10.42.1.0/24"),
)
DNS_LABELS = {"k8s-app": "kube-dns"}
SPARE = SPARES[0]


def node(name: str, address: str, pods: str, ready: str = "True") -> Json:
    addresses = [{"type": "InternalIP", "address": text} for text in ("fd00::1", address)]
    return {
        "metadata": {"name": name},
        "spec": {"podCIDRs": ["fd01::/64", pods]},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": ready}]},
    }


def pod(namespace: str, name: str, labels: Labels, address: str, *ports: int, **more: Any) -> Json:
    """A pod that runs; the number of its node is in its address."""
    containers = [{"ports": [{"containerPort": port, "protocol": "TCP"} for port in ports]}]
    return {
        "metadata": {"namespace": namespace, "name": name, "labels": labels, **more.get("metadata", {})},
        "spec": {"nodeName": "sa"[int(address.split(".")[2])], "containers": containers, **more.get("spec", {})},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": more.get("ready", "True")}]},
    }


def service(namespace: str, name: str, address: str, port: int, **more: Any) -> Json:
    spec = {"clusterIP": address, "ports": [{"name": "main", "port": port}], **more.get("spec", {})}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec, "status": more.get("status", {})}


def endpoints(namespace: str, name: str, port: int, *addresses: str, ready: bool = True) -> Json:
    return {
        "metadata": {
            "namespace": namespace,
            "name": f"{name}-x",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": port, "protocol": "TCP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses],
    }


def world(flows: dict[str, list[Json]], **lists: list[Json]) -> World:
    """A site of the nodes s and a, with flows by namespace, and what `lists` names besides."""
    names = {ELSEWHERE, "kube-system", "shop", "office", *flows}
    api = [service("default", "kubernetes", "10.43.0.1", 443)], [endpoints("default", "kubernetes", 6443, "10.0.0.1")]
    found = {
        "/apis/networking.k8s.io/v1/networkpolicies": [
            policy for name, several in flows.items() for policy in policies(several, name, ADDRESSES)
        ]
        + lists.get("others", []),
        "/api/v1/namespaces": [{"metadata": {"name": name, "labels": {NAME: name}}} for name in names],
        "/api/v1/nodes": [
            node("a", "10.0.0.2", "10.42.1.0/24"),
            node("down", "10.0.0.9", "10.42.9.0/24", "False"),
            node("s", "10.0.0.1", "10.42.0.0/24"),
        ],
        "/api/v1/pods": lists.get("pods", []),
        "/api/v1/services": api[0] + lists.get("services", []),
        "/apis/discovery.k8s.io/v1/endpointslices": api[1] + lists.get("slices", []),
    }
    return World.read(lambda path: found[path])


def shown(made: Table, flow: str) -> tuple[set[str], set[str]]:
    """What is let through and what is refused for a flow, without the nodes that probes are on."""
    checks = [check for check in made.checks if check.flow == flow]
    words = [(check.allowed, str(check).removeprefix(f"{flow}: ")) for check in checks]
    for name in "sa":
        words = [(allowed, text.replace(f" on {name}", "")) for allowed, text in words]
    return {text for allowed, text in words if allowed}, {text for allowed, text in words if not allowed}


PAGE = {"app": "page"}
VISITORS = {"name": "visitors", "of": PAGE, "from": [{"namespace": "office", "pods": {"app": "desk"}}], "ports": [8080]}
DESK = "a pod of office with app=desk"
STRANGER, OTHER = "a pod of shop with no label", "a pod of default with no label"


def test_a_server_is_called_where_it_is_and_where_it_is_played() -> None:
    pods = [
        pod("shop", "page-1", PAGE, "10.42.1.7", 8080, metadata={"ownerReferences": [{"uid": "1"}]}),
        pod("shop", "page-2", PAGE, "10.42.0.7", 8080, metadata={"ownerReferences": [{"uid": "1"}]}),
        pod("shop", "late", PAGE, "10.42.0.8", 8080, ready="False"),
        pod("shop", "going", PAGE, "10.42.0.9", 8080, metadata={"deletionTimestamp": "now"}),
        pod("shop", "left", {**PAGE, "slipway-test": "flows"}, "10.42.0.10", 8080),
        pod("shop", "agent", PAGE, "10.0.0.2", 8080, spec={"hostNetwork": True, "nodeName": "a"}),
    ]
    here = world(
        {"shop": [VISITORS]},
        pods=pods,
        services=[service("shop", "page", "10.43.0.5", 80), service("shop", "old", "10.43.0.6", 80)],
        slices=[
            endpoints("shop", "page", 8080, "10.42.1.7", "10.42.0.7"),
            endpoints("shop", "old", 8080, "10.42.1.7", ready=False),
        ],
    )
    made = table(here)
    assert made.problems == made.limits == []
    allowed, refused = shown(made, "shop/visitors")
    played = "a pod of shop with app=page port 8080/TCP"
    assert allowed == {
        f"{DESK} -> pod shop/page-1 port 8080/TCP",
        f"{DESK} -> Service shop/page port 80/TCP (pod shop/page-1 port 8080/TCP)",
        f"{DESK} -> {played}",
    }
    assert refused == {
        f"{caller} -> {target}" for caller in (STRANGER, OTHER) for target in ("pod shop/page-1 port 8080/TCP", played)
    } | {f"{DESK} -> a pod of shop with app=page port {SPARE}/TCP"}
    # A refusal counts once the same target was reached.
    for check in made.checks:
        if check.after and check.flow == "shop/visitors":
            assert check.after.allowed
            assert check.after.ways[0].target == check.ways[0].target
    page = here.probe("shop", PAGE)
    assert made.ports(page) == {(8080, "TCP"), (SPARE, "TCP")}
    assert {end.kind for end in made.probes} == {"probe", "node"}


def test_a_port_that_no_pod_names_has_to_be_open_somewhere() -> None:
    pods = [pod("shop", "page", PAGE, "10.42.1.7", 9000), pod("shop", "page-b", PAGE, "10.42.1.8")]
    allowed, _ = shown(table(world({"shop": [VISITORS]}, pods=pods)), "shop/visitors")
    assert f"{DESK} -> pod shop/page port 8080/TCP or pod shop/page-b port 8080/TCP" in allowed


def test_callers_have_what_their_own_flows_ask_for() -> None:
    inner = {"name": "inner", "of": {"role": "buyer", "app": "desk"}, "to": [{"namespace": "shop", "pods": PAGE}]}
    made = table(world({"shop": [VISITORS], "office": [inner]}))
    assert made.problems == []
    allowed, _ = shown(made, "shop/visitors")
    assert allowed == {"a pod of office with app=desk,role=buyer -> a pod of shop with app=page port 8080/TCP"}
    # Without a port of its own the flow is shown on one that the other end has open.
    assert shown(made, "office/inner")[0] == allowed


def test_without_a_port_any_that_pods_name_will_do() -> None:
    outer = {"name": "outer", "of": {"app": "desk"}, "to": [{"namespace": "shop", "pods": PAGE}]}
    pods = [pod("shop", "page", PAGE, "10.42.1.7", 9000, 8080, 8081)]
    allowed, _ = shown(table(world({"office": [outer]}, pods=pods)), "office/outer")
    real = " or ".join(f"pod shop/page port {port}/TCP" for port in (9000, 8080, 8081))
    assert allowed == {f"{DESK} -> {real}", f"{DESK} -> a pod of shop with app=page port {SPARE}/TCP"}
    allowed, _ = shown(table(world({"office": [outer], "shop": [VISITORS]}, pods=pods)), "office/outer")
    assert allowed == {f"{DESK} -> pod shop/page port 8080/TCP", f"{DESK} -> a pod of shop with app=page port 8080/TCP"}


def test_flows_that_do_not_fit_are_named() -> None:
    inner = {"name": "inner", "of": {"app": "desk"}, "to": ["dns"]}
    problems = table(world({"shop": [VISITORS], "office": [inner]})).problems
    assert len(problems) == 1
    assert problems[0].startswith(
        "shop/visitors: lets through what the flows of office refuse: a pod of office with app=desk on "
    )
    outer = {"name": "outer", "to": [{"namespace": "shop"}], "ports": [9]}
    problems = table(world({"shop": [VISITORS], "office": [outer]})).problems
    assert any(text.startswith("office/outer: lets through what the flows of shop refuse: ") for text in problems)


def test_each_value_of_a_list_is_shown() -> None:
    flow = {**VISITORS, "of": {"app": ["page", "shelf"]}, "from": [{"namespace": ["office", "hall"]}]}
    here = world({"shop": [flow]})
    allowed, _ = shown(table(here), "shop/visitors")
    assert allowed == {
        f"a pod of {place} with no label -> a pod of shop with app={app} port 8080/TCP"
        for place in ("office", "hall")
        for app in ("page", "shelf")
    }
    # The namespace of a component that is not installed.
    assert here.made == {"hall": {NAME: "hall"}}


def test_namespaces_by_label() -> None:
    flow = {**VISITORS, "from": [{"namespace_labels": {"team": "ml"}}]}
    here = world({"shop": [flow]})
    allowed, _ = shown(table(here), "shop/visitors")
    (name,) = here.made
    assert here.made[name] == {"team": "ml", NAME: name}
    assert allowed == {f"a pod of {name} with no label -> a pod of shop with app=page port 8080/TCP"}
    here = world({"shop": [flow]})
    here.namespaces["office"]["team"] = "ml"
    allowed, _ = shown(table(here), "shop/visitors")
    assert here.made == {}
    assert allowed == {"a pod of office with no label -> a pod of shop with app=page port 8080/TCP"}


def test_the_api_is_called_at_its_address_and_as_a_service() -> None:
    allowed, refused = shown(table(world({"shop": [{"name": "api", "of": PAGE, "to": ["api"]}]})), "shop/api")
    page = "a pod of shop with app=page"
    assert allowed == {
        f"{page} -> node s port 6443/TCP",
        f"{page} -> Service default/kubernetes port 443/TCP (node s port 6443/TCP)",
    }
    assert refused == {
        f"{STRANGER} -> node s port 6443/TCP",
        f"{page} -> {OTHER} port 6443/TCP",
        f"{page} -> node s port {SPARE}/TCP",
    }


def test_names_are_looked_up_over_both_protocols() -> None:
    dns = pod("kube-system", "dns", DNS_LABELS, "10.42.0.3")
    dns["spec"]["containers"][0]["ports"] = [{"containerPort": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    here = world({"shop": [{"name": "names", "to": ["dns"]}]}, pods=[dns])
    allowed, refused = shown(table(here), "shop/names")
    for protocol in ("UDP", "TCP"):
        assert f"{STRANGER} -> pod kube-system/dns port 53/{protocol}" in allowed
        assert f"{STRANGER} -> a pod of kube-system with k8s-app=kube-dns port {SPARE}/{protocol}" in refused
        assert f"{STRANGER} -> {OTHER} port 53/{protocol}" in refused


def test_outside_is_a_node() -> None:
    flows = {"shop": [{"name": "packages", "of": PAGE, "to": ["outside"], "ports": [443]}]}
    here = world(flows)
    made = table(here)
    page = here.probe("shop", PAGE)
    away = next(host for host in here.hosts() if host.node != page.node)
    assert made.limits == []
    assert Check("shop/packages", page, (Way(away, 443, "TCP"),)) in made.checks
    # A node's port that leads to pods is not outside.
    taken = {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}}
    balancer = service("kube-system", "door", "10.43.0.7", 443, status=taken)
    made = table(world(flows, services=[balancer]))
    assert made.problems == []
    assert made.limits == [f"shop/packages: {page} -> port 443/TCP outside"]
    _, refused = shown(made, "shop/packages")
    assert refused == {f"a pod of shop with app=page -> {OTHER} port 443/TCP"}


def test_other_protocols_are_not_shown() -> None:
    made = table(world({"shop": [{**VISITORS, "ports": [{"port": 5000, "protocol": "SCTP"}]}]}))
    assert made.problems == []
    assert made.limits == ["shop/visitors: port 5000/SCTP"]


def test_nodes_call_from_elsewhere() -> None:
    here = world(
        {"shop": [{"name": "hook", "of": PAGE, "from": ["nodes"], "ports": [9443]}]},
        pods=[pod("shop", "page-a", PAGE, "10.42.1.7", 9443), pod("shop", "page-s", PAGE, "10.42.0.7", 9443)],
    )
    made = table(here)
    assert made.problems == []
    callers = {
        (check.source.node, way.target.node)
        for check in made.checks
        for way in check.ways
        if check.flow == "shop/hook" and check.allowed
    }
    assert callers == {("s", "a"), ("a", "s")}


def test_nothing_by_default() -> None:
    here = world({"shop": [VISITORS]})
    checks = [check for check in table(here).checks if check.flow == "shop/default-deny"]
    refused = [(check.source.namespace, check.ways[0].target.namespace) for check in checks if not check.allowed]
    assert refused == [("default", "shop"), ("shop", "default")]
    # Somebody must be there to be refused.
    for check in checks:
        if check.allowed:
            assert check.source.kind == "node"
            assert check.source.node == check.ways[0].target.node


def test_policies_of_others_that_open_everything_are_found() -> None:
    rogue = {
        "metadata": {"namespace": "shop", "name": "rogue"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{}], "egress": [{}]},
    }
    problems = table(world({"shop": [VISITORS]}, others=[rogue])).problems
    assert "shop/visitors: no connection is known that shows what it refuses" in problems
    assert any(text.startswith("shop/default-deny: ") and "on every port" in text for text in problems)


def test_nobody_is_sent_to_a_probe() -> None:
    impatient = service(
        "shop", "page", "None", 80, spec={"publishNotReadyAddresses": True, "selector": PAGE, "clusterIP": "None"}
    )
    pods = [pod("shop", "page-1", PAGE, "10.42.1.7", 8080)]
    made = table(world({"shop": [VISITORS]}, pods=pods, services=[impatient]))
    assert made.problems == []
    assert not [end for end in made.probes if ("app", "page") in end.labels]
    made = table(world({"shop": [VISITORS]}, services=[impatient]))
    assert made.problems[0] == "shop/visitors: no connection is known that shows what it lets through"


def policy(kind: str, rule: Json, selector: Json | None = None) -> Json:
    spec = {"podSelector": selector or {}, "policyTypes": [kind], kind.lower(): [rule]}
    return {"metadata": {"namespace": "shop", "name": "p"}, "spec": spec}


@pytest.mark.parametrize(
    ("rule", "source", "port", "expected"),
    [
        ({}, "office", 80, True),
        ({"ports": [{"port": 80, "protocol": "TCP"}]}, "office", 81, False),
        ({"ports": [{"port": 80, "protocol": "UDP"}]}, "office", 80, False),
        ({"ports": [{"port": 80, "endPort": 90}]}, "office", 85, True),
        ({"ports": [{"port": 80, "endPort": 90}]}, "office", 91, False),
        ({"ports": [{"port": "web"}]}, "office", 80, False),
        ({"ports": [{"protocol": "TCP"}]}, "office", 80, True),
        ({"from": [{"podSelector": {}}]}, "office", 80, False),
        ({"from": [{"podSelector": {}}]}, "shop", 80, True),
        ({"from": [{"namespaceSelector": {}}]}, "office", 80, True),
        ({"from": [{"namespaceSelector": {"matchLabels": {NAME: "hall"}}}]}, "office", 80, False),
        ({"from": [{"ipBlock": {"cidr": "10.42.0.0/16"}}]}, "office", 80, True),
        ({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.42.0.0/16"]}}]}, "office", 80, False),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}, "s", 80, None),
        ({"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, "s", 80, True),
        ({"from": [{"podSelector": {}}]}, "s", 80, False),
        ({"from": [{"podSelector": {}}]}, "a", 80, True),
    ],
)
def test_what_a_policy_lets_through(rule: Json, source: str, port: int, expected: bool | None) -> None:
    here = world({}, others=[policy("Ingress", rule)])
    target = here.pod(pod("shop", "page", PAGE, "10.42.1.7"))
    nodes = {host.node: host for host in here.hosts()}
    caller = nodes.get(source) or here.probe(source, {"app": "x"})
    assert here.allows(caller, target, port, "TCP") is expected


def test_both_ends_decide() -> None:
    here = world({}, others=[policy("Egress", {"to": [{"podSelector": {}}]}, {"matchLabels": PAGE})])
    page, other = here.probe("shop", PAGE), here.probe("shop", {})
    assert here.allows(page, other, 80, "TCP") is True
    assert here.allows(page, here.probe("office", {}), 80, "TCP") is False
    assert here.allows(page, here.address("10.0.0.1"), 80, "TCP") is False
    assert here.allows(other, here.probe("office", {}), 80, "TCP") is True
    assert here.allows(page, page, 80, "TCP") is True


@pytest.mark.parametrize(
    ("term", "labels", "expected"),
    [
        ({"operator": "In", "values": ["a"]}, {"k": "a"}, True),
        ({"operator": "In", "values": ["a"]}, {}, False),
        ({"operator": "NotIn", "values": ["a"]}, {"k": "a"}, False),
        ({"operator": "NotIn", "values": ["a"]}, {}, True),
        ({"operator": "Exists"}, {"k": ""}, True),
        ({"operator": "Exists"}, {}, False),
        ({"operator": "DoesNotExist"}, {"k": ""}, False),
        ({"operator": "DoesNotExist"}, {}, True),
    ],
)
def test_selectors(term: Json, labels: Labels, expected: bool) -> None:
    selector = {"matchExpressions": [{"key": "k", **term}]}
    assert selects(selector, labels) is expected
    assert all(selects(selector, each) for each in variants(selector))

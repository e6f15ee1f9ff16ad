"""NetworkPolicies from named flows."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.flows import Addresses, policies
from ansible.module_utils.slipway.kube import Json

from .fakes import FakeKube

ADDRESSES = Addresses(("10.0.0.1/32",), 6443, ("10.0.0.1/32", "10.42.0.0/32"), ("10.42.0.0/24",))


def spec(flow: Json) -> Any:
    """Return the spec of the policy of one flow."""
    deny, policy = policies([flow], "shop", ADDRESSES)
    assert deny["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert policy["metadata"]["name"] == f"slipway-{flow['name']}"
    return policy["spec"]


def node(name: str, address: str, cidr: str, server: bool) -> Json:
    labels = {"node-role.kubernetes.io/control-plane": "true"} if server else {}
    addresses = [{"type": "InternalIP", "address": address}, {"type": "InternalIP", "address": "fd00::1"}]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": [cidr, "fd01::/64"]},
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": name}]},
    }


def test_addresses_are_asked_of_the_cluster() -> None:
    items = [node("s", "10.0.0.1", "10.42.0.0/24", True), node("a", "10.0.0.2", "10.42.1.0/24", False)]
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
    kube = FakeKube({"/api/v1/nodes": {"items": items}, slices: {"ports": [{"port": 7443}]}})
    assert Addresses.read(kube) == Addresses(
        ("10.0.0.1/32",),
        7443,
        ("10.0.0.1/32", "10.0.0.2/32", "10.42.0.0/32", "10.42.1.0/32"),
        ("10.42.0.0/24", "10.42.1.0/24"),
    )


def test_no_flows_no_policies() -> None:
    assert policies([], "shop", ADDRESSES) == []


def test_pods_of_this_and_other_namespaces() -> None:
    flow = {
        "name": "in",
        "of": {"app": "page", "tier": ["a", "b"]},
        "from": [{"pods": {"app": "x"}}, {"namespace": "other", "pods": {}}, {"namespace_labels": {"team": "ml"}}],
        "ports": [8080, {"port": 53, "protocol": "UDP"}],
    }
    ports = [{"port": 8080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]
    other = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}, "podSelector": {}}
    assert spec(flow) == {
        "podSelector": {
            "matchLabels": {"app": "page"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}],
        },
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "x"}}}], "ports": ports},
            {"from": [other], "ports": ports},
            {"from": [{"namespaceSelector": {"matchLabels": {"team": "ml"}}}], "ports": ports},
        ],
    }


def test_words_bring_their_addresses_and_ports() -> None:
    rules = spec({"name": "out", "to": ["api", "dns", "outside", "nodes", "front_door"]})["egress"]
    api, dns, outside, nodes, front_door = rules
    assert api == {
        "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
        "ports": [{"port": 6443, "protocol": "TCP"}],
    }
    assert {port["protocol"] for port in dns["ports"]} == {"UDP", "TCP"}
    assert dns["to"][0]["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
    assert outside == {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.42.0.0/24"]}}]}
    assert [peer["ipBlock"]["cidr"] for peer in nodes["to"]] == ["10.0.0.1/32", "10.42.0.0/32"]
    assert front_door["to"][0]["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": "traefik"}}


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"to": ["dns"]}, "a flow of shop: name: None"),
        ({"name": "A b", "to": ["dns"]}, "is no DNS label"),
        ({"name": "x"}, "exactly one of from and to"),
        ({"name": "x", "to": ["dns"], "from": ["nodes"]}, "exactly one of from and to"),
        ({"name": "x", "to": []}, "to: a list of peers"),
        ({"name": "x", "to": "dns"}, "to: a list of peers"),
        ({"name": "x", "to": ["everyone"]}, "'everyone' is neither a mapping nor one of"),
        ({"name": "x", "to": [{}]}, "a peer has pods"),
        ({"name": "x", "to": [{"labels": {}}]}, "a peer has pods"),
        ({"name": "x", "to": [{"pods": {"a": 1}}]}, "a: 1 is neither"),
        ({"name": "x", "to": ["dns"], "ports": [0]}, "ports: 0 is no port"),
        ({"name": "x", "to": ["dns"], "ports": ["http"]}, "ports: 'http' is no port"),
        ({"name": "x", "to": ["dns"], "port": [80]}, "port: unknown"),
        ({"name": "x", "to": ["dns"], "of": "app"}, "of: 'app' is no mapping"),
    ],
)
def test_wrong_flows_are_named(flow: Json, message: str) -> None:
    with pytest.raises(SlipwayError, match=message):
        policies([flow], "shop", ADDRESSES)


def test_one_name_for_two_flows_is_refused() -> None:
    with pytest.raises(SlipwayError, match="flow x of shop: name: given twice"):
        policies([{"name": "x", "to": ["dns"]}, {"name": "x", "to": ["api"]}], "shop", ADDRESSES)


def test_a_word_without_addresses_is_refused_rather_than_everybody_allowed() -> None:
    with pytest.raises(SlipwayError, match="no address is known for api"):
        policies([{"name": "x", "to": ["api"]}], "shop", Addresses((), 6443, (), ()))

"""NetworkPolicies from named flows: who may speak to whom, everything else is refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, items
from ansible.module_utils.slipway.objects import MANAGED_BY

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,50}[a-z0-9])?")
_KEYS = {"name", "of", "from", "to", "ports"}
_PEER_KEYS = {"pods", "namespace", "namespace_labels"}
WORDS = ("api", "dns", "nodes", "outside", "front_door")
# Where k3s' Traefik runs.
FRONT_DOOR = {"namespace": "kube-system", "pods": {"app.kubernetes.io/name": "traefik"}}
DNS = {"namespace": "kube-system", "pods": {"k8s-app": "kube-dns"}}
DNS_PORTS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


@dataclass(frozen=True)
class Addresses:
    """Addresses of a cluster that policies can only name as such, as CIDRs."""

    api: tuple[str, ...]
    api_port: int
    nodes: tuple[str, ...]
    pods: tuple[str, ...]

    @classmethod
    def read(cls, kube: Kube) -> Addresses:
        """Ask the cluster.

        A policy counts after a Service's address was replaced by that of a server, and a node that calls a pod of
        another node does so from the first address of its range of pods (flannel.1) or from its own.
        """
        api, nodes, pods = [], [], []
        for node in items(kube, "/api/v1/nodes"):
            own = [
                f"{item['address']}/32"
                for item in node.get("status", {}).get("addresses") or []
                if item["type"] == "InternalIP" and ":" not in item["address"]
            ]
            nodes += own
            if CONTROL_PLANE in (node["metadata"].get("labels") or {}):
                api += own
            for cidr in node.get("spec", {}).get("podCIDRs") or []:
                if ":" not in cidr:
                    pods.append(cidr)
                    nodes.append(f"{ipaddress.ip_network(cidr).network_address}/32")
        slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes"
        ports = (kube.get(slices) or {}).get("ports") or [{"port": 6443}]
        return cls(tuple(sorted(api)), int(ports[0]["port"]), tuple(sorted(nodes)), tuple(sorted(pods)))


def policies(flows: Sequence[Mapping[str, Any]], namespace: str, addresses: Addresses) -> list[Json]:
    """A policy that refuses everything, and one policy for each flow; nothing without flows.

    A flow is a mapping: `name` (a DNS label); `of`, the labels of the pods concerned, {} for all, a list of values for
    any of them; either `from` or `to`, a list of peers; `ports`, numbers (TCP) or mappings of `port` and `protocol`.
    A peer is a word of WORDS or a mapping: `pods` (labels), and of whose namespaces: `namespace` (name or names) or
    `namespace_labels`; without either, this one.

    Raises:
        SlipwayError: a flow is wrong; names it and the key.
    """
    if not flows:
        return []
    everything: Json = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    made = [_policy("slipway-default-deny", namespace, everything)]
    names = [flow.get("name") for flow in flows]
    for flow in flows:
        made.append(_of_flow(flow, namespace, addresses))
        if names.count(flow["name"]) > 1:
            raise SlipwayError(f"flow {flow['name']} of {namespace}: name: given twice")
    return made


def _policy(name: str, namespace: str, spec: Json) -> Json:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(MANAGED_BY)},
        "spec": spec,
    }


def _of_flow(flow: Mapping[str, Any], namespace: str, addresses: Addresses) -> Json:
    name = flow.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise SlipwayError(f"a flow of {namespace}: name: {name!r} is no DNS label of at most 52 characters")
    where = f"flow {name} of {namespace}"
    if unknown := sorted(set(flow) - _KEYS):
        raise SlipwayError(f"{where}: {', '.join(unknown)}: unknown; there are {', '.join(sorted(_KEYS))}")
    if ("from" in flow) == ("to" in flow):
        raise SlipwayError(f"{where}: exactly one of from and to is needed")
    direction = "from" if "from" in flow else "to"
    peers = flow[direction]
    if not isinstance(peers, Sequence) or isinstance(peers, str) or not peers:
        raise SlipwayError(f"{where}: {direction}: a list of peers is needed")
    ports = [_port(port, where) for port in flow.get("ports") or []]
    rules = [_rule(peer, ports, direction, where, addresses) for peer in peers]
    kind = {"from": "Ingress", "to": "Egress"}[direction]
    spec = {"podSelector": _selector(flow.get("of", {}), f"{where}: of"), "policyTypes": [kind], kind.lower(): rules}
    return _policy(f"slipway-{name}", namespace, spec)


def _rule(peer: Any, ports: list[Json], direction: str, where: str, addresses: Addresses) -> Json:
    own: list[Json] = []
    found: list[Json]
    match peer:
        case "api":
            blocks, own = addresses.api, [{"port": addresses.api_port, "protocol": "TCP"}]
            found = [{"ipBlock": {"cidr": cidr}} for cidr in blocks]
        case "nodes":
            found = [{"ipBlock": {"cidr": cidr}} for cidr in addresses.nodes]
        case "outside":
            world: Json = {"cidr": "0.0.0.0/0", "except": list(addresses.pods)}
            found = [{"ipBlock": world}]
        case "dns":
            found, own = [_pods(DNS, where)], DNS_PORTS
        case "front_door":
            found = [_pods(FRONT_DOOR, where)]
        case Mapping():
            found = [_pods(peer, f"{where}: {direction}")]
        case _:
            raise SlipwayError(f"{where}: {direction}: {peer!r} is neither a mapping nor one of {', '.join(WORDS)}")
    # No peers at all would mean everybody.
    if not found:
        raise SlipwayError(f"{where}: {direction}: no address is known for {peer}")
    rule: Json = {direction: found}
    if ports or own:
        rule["ports"] = ports or own
    return rule


def _pods(peer: Mapping[str, Any], where: str) -> Json:
    if not peer or not set(peer) <= _PEER_KEYS or {"namespace", "namespace_labels"} <= set(peer):
        raise SlipwayError(f"{where}: {dict(peer)}: a peer has pods, and namespace or namespace_labels")
    found: Json = {}
    if "namespace" in peer:
        found["namespaceSelector"] = _selector({"kubernetes.io/metadata.name": peer["namespace"]}, where)
    if "namespace_labels" in peer:
        found["namespaceSelector"] = _selector(peer["namespace_labels"], where)
    if "pods" in peer:
        found["podSelector"] = _selector(peer["pods"], where)
    return found


def _selector(labels: Any, where: str) -> Json:
    if not isinstance(labels, Mapping):
        raise SlipwayError(f"{where}: {labels!r} is no mapping of labels")
    exact: Json = {}
    several: list[Json] = []
    for key, value in labels.items():
        if isinstance(value, str):
            exact[key] = value
        elif isinstance(value, Sequence) and value:
            several.append({"key": key, "operator": "In", "values": list(value)})
        else:
            raise SlipwayError(f"{where}: {key}: {value!r} is neither a label's value nor a list of them")
    return {**({"matchLabels": exact} if exact else {}), **({"matchExpressions": several} if several else {})}


def _port(port: Any, where: str) -> Json:
    number, protocol = (port.get("port"), port.get("protocol", "TCP")) if isinstance(port, Mapping) else (port, "TCP")
    if type(number) is not int or not 0 < number < 65536 or protocol not in ("TCP", "UDP", "SCTP"):
        raise SlipwayError(f"{where}: ports: {port!r} is no port")
    return {"port": number, "protocol": protocol}

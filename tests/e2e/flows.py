"""From NetworkPolicies to connections that show them: what each lets through, and what it does not.

Nothing here speaks to a cluster. Connections start and end at probes, pods of the test that carry the labels which the
policies ask for, and end at the real pods where there are some.
"""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]
Labels = dict[str, str]

# On everything that the test makes.
MARK = {"slipway-test": "flows"}
MANAGED = ("app.kubernetes.io/managed-by", "slipway")
NAME = "kubernetes.io/metadata.name"
# A namespace without policies, for pods that no flow knows.
ELSEWHERE = "default"
# Where the nodes' own processes are played: Pod Security lets pods have the node's network there.
SYSTEM = "kube-system"
# Ports that no flow names; where a flow names none either, everybody talks to the first.
SPARES = (20017, 20018, 20019, 20020)
# Enough to have each end on a node of its own.
NODES = 2


@dataclass(frozen=True)
class End:
    """Where a connection starts or ends: a `probe`, a real `pod`, a probe in a node's own network (`node`), an `address` that is no pod's.

    Of a probe's address only its node's range is known before it runs; `addresses` then has one that stands for it. A
    node calls pods of other nodes from one of several.
    """

    kind: str
    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def is_pod(self) -> bool:
        """Whether policies see a pod in it; pods in the network of their node are part of the node to them."""
        return self.kind in ("probe", "pod")

    def __str__(self) -> str:
        labels = ",".join(f"{key}={value}" for key, value in self.labels if (key, value) not in MARK.items())
        match self.kind:
            case "probe":
                return f"a pod of {self.namespace} with {labels or 'no label'} on {self.node}"
            case "pod":
                return f"pod {self.namespace}/{self.name}"
            case "node":
                return f"node {self.node}"
        return self.name


@dataclass(frozen=True)
class Service:
    """A Service's port, and the addresses and the port behind it."""

    name: str
    address: str
    port: int
    protocol: str
    behind: tuple[str, ...]
    behind_port: int


@dataclass(frozen=True)
class Way:
    """To an end's port, directly or through a Service."""

    target: End
    port: int
    protocol: str
    service: Service | None = None

    def __str__(self) -> str:
        port = f"port {self.port}/{self.protocol}"
        if self.service:
            return f"Service {self.service.name} port {self.service.port}/{self.protocol} ({self.target} {port})"
        return f"{self.target} {port}"


@dataclass(frozen=True)
class Check:
    """A connection of a flow: let through, then one of `ways` must answer, or refused, then none may.

    A refusal proves nothing unless `after` was let through.
    """

    flow: str
    source: End
    ways: tuple[Way, ...]
    after: Check | None = None

    @property
    def allowed(self) -> bool:
        """Whether it is to be let through."""
        return self.after is None

    def __str__(self) -> str:
        return f"{self.flow}: {route(self.source, self.ways)}"


def route(source: End, ways: Iterable[Way]) -> str:
    """A connection in words."""
    return f"{source} -> {' or '.join(str(way) for way in ways)}"


@dataclass(frozen=True)
class Node:
    """A node that probes may run on: its address and the range of its pods."""

    name: str
    address: str
    pods: ipaddress.IPv4Network


def selects(selector: Json, labels: Labels) -> bool:
    """Whether a label selector chooses labels; an empty one chooses all."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for term in selector.get("matchExpressions") or []:
        key, values = term["key"], term.get("values") or []
        if not {
            "In": key in labels and labels[key] in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[term["operator"]]:
            return False
    return True


def variants(selector: Json) -> list[Labels]:
    """Labels that a selector chooses: one set for each value that it lists."""
    several = []
    for term in selector.get("matchExpressions") or []:
        values = {"In": term.get("values"), "Exists": ["yes"]}.get(term["operator"])
        if values:
            several.append([(term["key"], value) for value in values])
    exact = dict(selector.get("matchLabels") or {})
    return [{**exact, **dict(chosen)} for chosen in itertools.product(*several)]


def name_of(policy: Json) -> str:
    """What messages call a flow: its namespace and name."""
    return f"{policy['metadata']['namespace']}/{policy['metadata']['name'].removeprefix('slipway-')}"


def has_label(item: Json, label: tuple[str, str]) -> bool:
    """Whether an object carries a label."""
    return (item["metadata"].get("labels") or {}).get(label[0]) == label[1]


def ready_nodes(items: list[Json]) -> list[Node]:
    """Nodes that run pods, by their IPv4 addresses."""
    found = []
    for item in sorted(items, key=lambda item: str(item["metadata"]["name"])):
        conditions = {each["type"]: each["status"] for each in item["status"]["conditions"]}
        own = [each["address"] for each in item["status"]["addresses"] if each["type"] == "InternalIP"]
        ranges = [ipaddress.ip_network(cidr) for cidr in item["spec"].get("podCIDRs") or []]
        addresses = [address for address in own if ":" not in address]
        pods = [each for each in ranges if isinstance(each, ipaddress.IPv4Network)]
        if conditions.get("Ready") == "True" and addresses and pods:
            found.append(Node(item["metadata"]["name"], addresses[0], pods[0]))
    return found


def is_real(item: Json) -> bool:
    """Whether it is a pod that policies count and that should answer."""
    conditions = {each["type"]: each["status"] for each in item["status"].get("conditions") or []}
    return bool(
        conditions.get("Ready") == "True"
        and item["status"].get("podIP")
        and not item["spec"].get("hostNetwork")
        and "deletionTimestamp" not in item["metadata"]
        and not all(has_label(item, label) for label in MARK.items())
    )


def service_ports(services: list[Json], slices: list[Json]) -> list[Service]:
    """Each port of each Service that has an address of its own, with the ready endpoints behind it."""
    found: dict[tuple[str, str, str], Service] = {}
    own = {(item["metadata"]["namespace"], item["metadata"]["name"]): item["spec"] for item in services}
    for item in slices:
        namespace = item["metadata"]["namespace"]
        name = (item["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
        spec = own.get((namespace, name), {})
        if item["addressType"] != "IPv4" or spec.get("clusterIP", "None") == "None":
            continue
        ready = [
            address
            for endpoint in item.get("endpoints") or []
            if (endpoint.get("conditions") or {}).get("ready", True)
            for address in endpoint["addresses"]
        ]
        behind = {port.get("name") or "": port["port"] for port in item.get("ports") or []}
        for port in spec["ports"]:
            key = (namespace, name, port.get("name", ""))
            if key[2] in behind:
                place = (f"{namespace}/{name}", spec["clusterIP"], port["port"], port.get("protocol", "TCP"))
                before = found[key].behind if key in found else ()
                found[key] = Service(*place, (*before, *ready), behind[key[2]])
    return [service for service in found.values() if service.behind]


@dataclass
class World:
    """What the cluster holds, and what its policies say about connections."""

    policies: list[Json]
    namespaces: dict[str, Labels]
    nodes: list[Node]
    pods: list[Json] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    # Namespace and selector of Services that send people to pods that are not ready.
    impatient: list[tuple[str, Labels]] = field(default_factory=list)
    # Addresses and ports of nodes that lead to a Service.
    taken: set[tuple[str, int]] = field(default_factory=set)
    # Namespaces that flows name and that do not exist.
    made: dict[str, Labels] = field(default_factory=dict)

    @classmethod
    def read(cls, items: Callable[[str], list[Json]]) -> World:
        """Ask the cluster: `items` returns the objects that the API lists at a path."""
        services = items("/api/v1/services")
        return cls(
            policies=items("/apis/networking.k8s.io/v1/networkpolicies"),
            namespaces={
                item["metadata"]["name"]: item["metadata"].get("labels") or {} for item in items("/api/v1/namespaces")
            },
            nodes=ready_nodes(items("/api/v1/nodes"))[:NODES],
            pods=[item for item in items("/api/v1/pods") if is_real(item)],
            services=service_ports(services, items("/apis/discovery.k8s.io/v1/endpointslices")),
            impatient=[
                (item["metadata"]["namespace"], item["spec"]["selector"])
                for item in services
                if item["spec"].get("publishNotReadyAddresses") and item["spec"].get("selector")
            ],
            taken={
                (ingress["ip"], port["port"])
                for item in services
                for ingress in item.get("status", {}).get("loadBalancer", {}).get("ingress") or []
                for port in item["spec"]["ports"]
                if "ip" in ingress
            },
        )

    def probe(self, namespace: str, labels: Labels) -> End:
        """A pod of the test."""
        every = tuple(sorted({**labels, **MARK}.items()))
        digest = hashlib.sha256(repr((namespace, every)).encode()).hexdigest()
        node = self.nodes[int(digest, 16) % len(self.nodes)]
        return End("probe", namespace, f"slipway-flow-{digest[:8]}", node.name, (str(node.pods[2]),), every)

    def host(self, node: Node) -> End:
        """A pod of the test in a node's own network; the node calls pods elsewhere from flannel.1 or its own address."""
        addresses = (node.address, str(node.pods.network_address))
        return End("node", SYSTEM, f"slipway-flow-{node.name}", node.name, addresses, tuple(sorted(MARK.items())))

    def hosts(self, avoid: Iterable[str] = ()) -> list[End]:
        """All of them, those on the nodes `avoid` last."""
        names = set(avoid)
        return [self.host(node) for node in sorted(self.nodes, key=lambda node: node.name in names)]

    def pod(self, item: Json) -> End:
        """A real pod."""
        metadata = item["metadata"]
        labels = tuple(sorted((metadata.get("labels") or {}).items()))
        place = (item["spec"]["nodeName"], (item["status"]["podIP"],))
        return End("pod", metadata["namespace"], metadata["name"], *place, labels)

    def address(self, text: str) -> End:
        """An address that is no pod's: a node's, if that has a probe."""
        for host in self.hosts():
            if host.addresses[0] == text:
                return host
        return End("address", "", text, "", (text,))

    def at(self, address: str) -> End:
        """Who has an address."""
        for item in self.pods:
            if item["status"]["podIP"] == address:
                return self.pod(item)
        return self.address(address)

    def allows(self, source: End, target: End, port: int, protocol: str) -> bool | None:
        """Whether the policies of both ends let a connection through; None if that hangs on the address that a node calls from."""
        if source == target or (source.node == target.node and not source.is_pod):
            return True
        if not self._passes("Egress", source, target, target.addresses[0], port, protocol):
            return False
        found = {self._passes("Ingress", target, source, each, port, protocol) for each in source.addresses}
        return found.pop() if len(found) == 1 else None

    def _passes(self, kind: str, pod: End, other: End, address: str, port: int, protocol: str) -> bool:
        if not pod.is_pod:
            return True
        side = {"Ingress": "from", "Egress": "to"}[kind]
        guards = [
            policy
            for policy in self.policies
            if policy["metadata"]["namespace"] == pod.namespace
            and kind in policy["spec"]["policyTypes"]
            and selects(policy["spec"].get("podSelector") or {}, dict(pod.labels))
        ]
        rules = [rule for policy in guards for rule in policy["spec"].get(kind.lower()) or []]
        return not guards or any(
            (not rule.get(side) or any(self._is_peer(peer, pod.namespace, other, address) for peer in rule[side]))
            and (not rule.get("ports") or any(_is_port(each, port, protocol) for each in rule["ports"]))
            for rule in rules
        )

    def _is_peer(self, peer: Json, namespace: str, other: End, address: str) -> bool:
        if block := peer.get("ipBlock"):
            inside, *outside = [
                ipaddress.ip_address(address) in ipaddress.ip_network(cidr)
                for cidr in (block["cidr"], *(block.get("except") or []))
            ]
            return inside and not any(outside)
        if not other.is_pod:
            return False
        if "namespaceSelector" in peer:
            labels = self.namespaces.get(other.namespace, self.made.get(other.namespace, {}))
            if not selects(peer["namespaceSelector"], labels):
                return False
        elif other.namespace != namespace:
            return False
        return selects(peer.get("podSelector") or {}, dict(other.labels))

    def places(self, selector: Json | None, namespace: str) -> list[list[str]]:
        """The namespaces of a peer: for each that it names, one list; any of a list will do. Those that do not exist are to be made."""
        if selector is None:
            return [[namespace]]
        found = []
        for labels in variants(selector):
            chosen = [
                name
                for name, has in sorted(self.namespaces.items())
                if selects(selector, has) and labels.items() <= has.items()
            ]
            if not chosen:
                digest = hashlib.sha256(repr(sorted(labels.items())).encode()).hexdigest()[:8]
                name = labels.get(NAME, f"slipway-flow-{digest}")
                self.made[name] = {**labels, NAME: name}
                chosen = [name]
            # One that no policy guards has no opinion of its own.
            found.append(sorted(chosen, key=lambda name: name != ELSEWHERE))
        return found

    def candidates(self, places: list[str], labels: Labels, kind: str) -> list[End]:
        """Probes with `labels`, if need be with those besides that flows of their own namespace (`kind`) ask for."""
        found = []
        for place in places:
            extras: list[Labels] = [{}]
            for policy in self.policies:
                if policy["metadata"]["namespace"] == place and kind in policy["spec"]["policyTypes"]:
                    extras += variants(policy["spec"].get("podSelector") or {})
            for extra in extras:
                if all(labels.get(key, value) == value for key, value in extra.items()):
                    found.append(self.probe(place, {**extra, **labels}))
        return list(dict.fromkeys(found))

    def real(self, places: list[str], selector: Json, port: int | None, protocol: str) -> list[tuple[Way, ...]]:
        """Ways to real pods that a selector chooses, one pod of each workload.

        Each of those that name the port has to answer; where none does, any of the others. Without a port any of those that they name.
        """
        found: dict[tuple[str, int], Way] = {}
        named: dict[str, Way] = {}
        for item in self.pods:
            metadata = item["metadata"]
            if metadata["namespace"] not in places or not selects(selector, metadata.get("labels") or {}):
                continue
            ports = [
                each["containerPort"]
                for container in item["spec"]["containers"]
                for each in container.get("ports") or []
                if each.get("protocol", "TCP") == protocol
            ]
            owner = (metadata.get("ownerReferences") or [{"uid": metadata["name"]}])[0]["uid"]
            for number in ports if port is None else [port]:
                way = Way(self.pod(item), number, protocol)
                if port in ports:
                    named.setdefault(owner, way)
                found.setdefault((owner, number), way)
        return [(way,) for way in named.values()] or [tuple(found.values())] * bool(found)

    def named_ports(self, places: list[str], protocol: str) -> list[int]:
        """Ports that flows let others call in some namespaces."""
        return sorted(
            {
                port["port"]
                for policy in self.policies
                for rule in policy["spec"].get("ingress") or []
                for port in rule.get("ports") or []
                if policy["metadata"]["namespace"] in places
                and port.get("protocol", "TCP") == protocol
                and isinstance(port.get("port"), int)
            }
        )

    def services_of(self, target: End, port: int, protocol: str) -> list[Service]:
        """Services that lead to an end's port."""
        return [
            service
            for service in self.services
            if (service.behind_port, service.protocol) == (port, protocol) and target.addresses[0] in service.behind
        ]

    def is_endpoint(self, end: End) -> bool:
        """Whether a Service would send people to this probe."""
        return end.kind == "probe" and any(
            namespace == end.namespace and selector.items() <= dict(end.labels).items()
            for namespace, selector in self.impatient
        )


def _is_port(rule: Json, port: int, protocol: str) -> bool:
    if rule.get("protocol", "TCP") != protocol:
        return False
    number = rule.get("port")
    # Flows have numbers; a name in a policy of somebody else belongs to ports that no probe has.
    return number is None or (isinstance(number, int) and number <= port <= rule.get("endPort", number))


@dataclass
class Table:
    """The connections that show the flows, what is wrong with these, and what no connection within the cluster can show."""

    checks: list[Check] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)

    @property
    def probes(self) -> set[End]:
        """Pods to make."""
        ends = {end for check in self.checks for end in (check.source, *(way.target for way in check.ways))}
        return {end for end in ends if end.kind in ("probe", "node")}

    def ports(self, end: End) -> set[tuple[int, str]]:
        """What a probe listens on."""
        return {(way.port, way.protocol) for check in self.checks for way in check.ways if way.target == end}


def table(world: World) -> Table:
    """For each of Slipway's policies what it lets through, real pods first, and what it does not."""
    made = Table()
    own = [policy for policy in world.policies if has_label(policy, MANAGED)]
    for policy in sorted(own, key=name_of):
        maker = _Maker(world, policy)
        maker.make()
        kept = [
            check
            for check in dict.fromkeys(maker.checks)
            if not any(world.is_endpoint(end) for end in (check.source, *(way.target for way in check.ways)))
        ]
        if not maker.problems and not maker.limits:
            for allowed, what in ((True, "lets through"), (False, "refuses")):
                if not any(check.allowed == allowed for check in kept):
                    maker.problems.append(f"{maker.flow}: no connection is known that shows what it {what}")
        made.checks += kept
        made.problems += dict.fromkeys(maker.problems)
        made.limits += dict.fromkeys(maker.limits)
    return made


class _Maker:
    """The connections of one policy."""

    def __init__(self, world: World, policy: Json) -> None:
        self.world = world
        self.spec = policy["spec"]
        self.namespace: str = policy["metadata"]["namespace"]
        self.flow = name_of(policy)
        self.checks: list[Check] = []
        self.problems: list[str] = []
        self.limits: list[str] = []

    def make(self) -> None:
        rules = {kind: self.spec.get(kind.lower()) or [] for kind in self.spec["policyTypes"]}
        if not any(rules.values()):
            self._nothing()
        for own in variants(self.spec.get("podSelector") or {}):
            for kind, rule in ((kind, rule) for kind, several in rules.items() for rule in several):
                peers = rule.get({"Ingress": "from", "Egress": "to"}[kind]) or []
                if not peers:
                    self.problems.append(f"{self.flow}: a rule without peers lets everybody through")
                for peer in peers:
                    for port in rule.get("ports") or [{}]:
                        make = self._ingress if kind == "Ingress" else self._egress
                        protocol = port.get("protocol", "TCP")
                        if protocol == "SCTP":
                            # Many kernels come without it.
                            self.limits.append(f"{self.flow}: port {port.get('port')}/SCTP")
                        else:
                            make(own, peer, port.get("port"), protocol)

    def _nothing(self) -> None:
        """A policy without rules: its pods neither call nor are called by a stranger, but their node reaches them."""
        here, there = (self.world.probe(place, {}) for place in (self.namespace, ELSEWHERE))
        nodes = {host.node: host for host in self.world.hosts()}
        for target, stranger in ((here, there), (there, here)):
            way = self._spare(stranger, target)
            if way is None:
                self.problems.append(f"{self.flow}: {stranger} may call {target} on every port")
                continue
            after = Check(self.flow, nodes[target.node], (way,))
            self.checks += [after, Check(self.flow, stranger, (way,), after)]

    def _ingress(self, own: Labels, peer: Json, port: int | None, protocol: str) -> None:
        probe = Way(self.world.probe(self.namespace, own), port or SPARES[0], protocol)
        for ways in (*self.world.real([self.namespace], {"matchLabels": own}, port, protocol), (probe,)):
            for sources in self._sources(peer, [way.target.node for way in ways]):
                self._show(sources, [ways], protocol)

    def _egress(self, own: Labels, peer: Json, port: int | None, protocol: str) -> None:
        source = self.world.probe(self.namespace, own)
        if block := peer.get("ipBlock"):
            choices = self._addresses(block["cidr"], source, port, protocol)
            if choices:
                self._show([source], choices, protocol)
            else:
                self._outside_is_not_pods(source, Way(self.world.probe(ELSEWHERE, {}), port or SPARES[0], protocol))
            return
        selector = peer.get("podSelector") or {}
        for places in self.world.places(peer.get("namespaceSelector"), self.namespace):
            real = self.world.real(places, selector, port, protocol)
            if port is None:
                real = [tuple(way for way in ways if self._open(source, (way,))) for ways in real]
            for ways in [ways for ways in real if ways and self._open(source, ways)] or filter(None, real):
                self._show([source], [ways], protocol)
            ports = [port] if port else [*self.world.named_ports(places, protocol), SPARES[0]]
            for labels in variants(selector):
                probes = self.world.candidates(places, labels, "Ingress")
                choices = [(Way(probe, number, protocol),) for probe in probes for number in ports]
                self._show([source], choices, protocol)

    def _sources(self, peer: Json, nodes: list[str]) -> Iterator[list[End]]:
        """Who calls on behalf of a peer: one list for each value that the peer names, any of a list will do."""
        if "ipBlock" in peer:
            # A node always reaches its own pods, so one of another node tells more.
            yield self.world.hosts(avoid=nodes)
            return
        for places in self.world.places(peer.get("namespaceSelector"), self.namespace):
            for labels in variants(peer.get("podSelector") or {}):
                yield self.world.candidates(places, labels, "Egress")

    def _outside_is_not_pods(self, source: End, way: Way) -> None:
        """Where the nodes' own port leads to a Service, nothing that is certainly there listens on it outside."""
        self.limits.append(f"{self.flow}: {source} -> port {way.port}/{way.protocol} outside")
        own = next(host for host in self.world.hosts() if host.node == way.target.node)
        after = Check(self.flow, own, (way,))
        self.checks.append(after)
        self._refuse(source, (way,), after)

    def _addresses(self, cidr: str, source: End, port: int | None, protocol: str) -> list[tuple[Way, ...]]:
        network = ipaddress.ip_network(cidr)
        if network.num_addresses == 1:
            return [(Way(self.world.address(str(network[0])), port or SPARES[0], protocol),)]
        hosts = self.world.hosts(avoid=[source.node])
        number = port or SPARES[0]
        return [(Way(host, number, protocol),) for host in hosts if (host.addresses[0], number) not in self.world.taken]

    def _show(self, sources: list[End], choices: list[tuple[Way, ...]], protocol: str) -> None:
        """The first source and ways that all policies let through; who does not get there; which port is not open."""
        for source, ways in itertools.product(sources, choices):
            if self._open(source, ways):
                break
        else:
            ends = {end for source in sources for end in (source, *(way.target for ways in choices for way in ways))}
            others = sorted({end.namespace for end in ends if end.is_pod} - {self.namespace}) or [self.namespace]
            tried = "; or ".join(route(source, ways) for source in sources for ways in choices)
            self.problems.append(f"{self.flow}: lets through what the flows of {', '.join(others)} refuse: {tried}")
            return
        after = Check(self.flow, source, ways)
        self.checks.append(after)
        self._through_services(source, ways)
        stranger, other = (self.world.probe(place, {}) for place in (self.namespace, ELSEWHERE))
        for caller in (stranger, other):
            self._refuse(caller, ways, after)
        # A pod that it has no business with, on the same port.
        if "Egress" in self.spec["policyTypes"]:
            self._refuse(source, tuple(replace(way, target=other) for way in ways[:1]), after)
        target = ways[0].target
        if target.kind in ("probe", "node") and (spare := self._spare(source, target, protocol)):
            self._refuse(source, (spare,), after)

    def _open(self, source: End, ways: tuple[Way, ...]) -> bool:
        return all(self.world.allows(source, way.target, way.port, way.protocol) for way in ways)

    def _through_services(self, source: End, ways: tuple[Way, ...]) -> None:
        for way in ways:
            for service in self.world.services_of(way.target, way.port, way.protocol):
                behind = [self.world.at(address) for address in service.behind]
                if all(self.world.allows(source, each, way.port, way.protocol) for each in behind):
                    self.checks.append(Check(self.flow, source, (replace(way, service=service),)))

    def _refuse(self, source: End, ways: tuple[Way, ...], after: Check) -> None:
        if all(self.world.allows(source, way.target, way.port, way.protocol) is False for way in ways):
            self.checks.append(Check(self.flow, source, ways, after))

    def _spare(self, source: End, target: End, protocol: str = "TCP") -> Way | None:
        for port in SPARES:
            if self.world.allows(source, target, port, protocol) is False:
                return Way(target, port, protocol)
        return None

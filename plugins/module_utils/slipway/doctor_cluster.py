"""Judges what the API of a cluster tells the doctor. No input or output here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ansible.module_utils.slipway.doctor import CLUSTER, DAY, Lifetime, Limits, Look, Site, version_remedy
from ansible.module_utils.slipway.drain import is_cordoned, is_ours, listed, title
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import K3sVersion, parse_version
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.preflight import Node, Problem
from ansible.module_utils.slipway.workloads import Waiting, judge_node, node_version, pod_fault

# Conditions of a Node that are bad when true.
_PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
_VOTER = "EtcdIsVoter"
# Whose pods stay; others run to an end, and may well wait, fail or have images of people.
_LASTING = ("ReplicaSet", "StatefulSet", "DaemonSet")
# A claim or a pod that is younger may be under way.
_PATIENCE = timedelta(minutes=5)
# Restarts that are longer ago have no cause that can still be found.
_RECENT = timedelta(days=1)


@dataclass(frozen=True)
class Cluster:
    """What the API tells: objects by their kinds, and the workloads of the platform that are not ready."""

    nodes: Mapping[str, Json]
    pods: Sequence[Json] = ()
    claims: Sequence[Json] = ()
    classes: Sequence[Json] = ()
    certificates: Sequence[Json] = ()
    waiting: Sequence[Waiting] = ()


def judge_cluster(nodes: Sequence[Node], cluster: Cluster, site: Site, limits: Limits, now: datetime) -> list[Problem]:
    """Everything that the API tells."""
    found: list[Problem] = []
    hosts = {node.name.lower(): node for node in nodes}
    for name in sorted({*hosts, *cluster.nodes}):
        look = Look(hosts[name].name if name in hosts else name)
        _judge_node(look, name, hosts.get(name), cluster, site)
        found += look.found
    look = Look(CLUSTER)
    _judge_versions(look, nodes, cluster, site)
    _judge_workloads(look, cluster, site)
    _judge_pods(look, cluster, site, limits, now)
    _judge_claims(look, cluster, site, now)
    _judge_issued(look, cluster, site, limits, now)
    _judge_images(look, cluster, site)
    return found + look.found


def _conditions(item: Json) -> dict[str, Json]:
    return {each.get("type", ""): each for each in (item.get("status") or {}).get("conditions") or []}


def _judge_node(look: Look, name: str, host: Node | None, cluster: Cluster, site: Site) -> None:
    node = cluster.nodes.get(name)
    if node is None:
        look.error("node", "the cluster does not know it", "a member", f"{site.playbook}site.yml")
        return
    if host is None:
        remedy = f"name it in hosts.yml, or: {site.kubectl} delete node {name}"
        look.warn("node", "not in the inventory", "every node in it", remedy)
    if reason := judge_node(node):
        look.error(
            "node",
            reason,
            "Ready",
            f"{site.kubectl} describe node {name}; on the node: journalctl -u k3s -u k3s-agent -n 50",
        )
    conditions = _conditions(node)
    for kind in _PRESSURES:
        if conditions.get(kind, {}).get("status") == "True":
            message = f"{kind}: {conditions[kind].get('message', '')}"
            look.error("node", message, f"no {kind}", f"{site.kubectl} describe node {name}")
    voter = conditions.get(_VOTER)
    if voter and voter.get("status") != "True":
        message = voter.get("message") or voter.get("reason") or "no reason given"
        remedy = "start k3s there; if the machine is gone, take it out of the cluster and hosts.yml"
        look.error("etcd vote", f"without a vote: {message}", "a voter", remedy)
    if is_cordoned(node):
        if is_ours(node):
            found, remedy = "by an upgrade that was interrupted", f"{site.playbook}upgrade.yml, which goes on there"
        else:
            found, remedy = "by hand", f"{site.kubectl} uncordon {name}"
        look.warn("cordoned", found, "schedulable", remedy)
    look.well("node", f"Ready, {node_version(node)}")


def _judge_versions(look: Look, nodes: Sequence[Node], cluster: Cluster, site: Site) -> None:
    """What runs against what lies there, against the bundle, and against each other."""
    running = {name: node_version(node) for name, node in cluster.nodes.items() if node_version(node)}
    servers: dict[str, K3sVersion] = {}
    agents: dict[str, K3sVersion] = {}
    for host in nodes:
        version = running.get(host.name.lower(), "")
        there = host.probe["k3s"]["version"] if host.probe else ""
        own = Look(host.name)
        if version and there and version != there:
            unit = host.probe["service"]["unit"] if host.probe else "k3s"
            remedy = f"{site.playbook}upgrade.yml if one was interrupted; else, on the node: systemctl restart {unit}"
            own.warn("version", f"runs k3s {version}, the program that lies there is {there}", "the same", remedy)
        elif version and not there and site.version not in ("", version):
            own.warn(
                "version",
                f"runs k3s {version}, the bundle has {site.version}",
                "the same",
                version_remedy(version, site),
            )
        look.found += own.found
        try:
            (servers if host.role == "server" else agents)[host.name] = parse_version(version)
        except SlipwayError:
            continue
    if not servers:
        return
    oldest = min(servers, key=lambda name: servers[name])
    remedy = f"{site.playbook}upgrade.yml"
    if len(set(servers.values())) > 1:
        others = [name for name in servers if servers[name] != servers[oldest]]
        look.warn("version", f"{oldest} runs an older k3s than {listed(others)}", "one version", remedy)
    if newer := [name for name, version in agents.items() if version.line > servers[oldest].line]:
        look.error(
            "version", f"{listed(newer)}: a newer minor than that of server {oldest}", "not newer than a server", remedy
        )
    look.well("version", f"k3s {', '.join(sorted(set(running.values())))}")


def _judge_workloads(look: Look, cluster: Cluster, site: Site) -> None:
    for waiting in cluster.waiting:
        kind, _, name = waiting.what.partition(" ")
        # They have a line of their own.
        if kind == "Node":
            continue
        namespace, _, name = name.partition("/")
        remedy = (
            f"{site.kubectl} -n {namespace} describe {kind.lower()} {name}" if name else f"{site.playbook}platform.yml"
        )
        look.error("workloads", str(waiting), "ready", remedy)
    look.well("workloads", "those of k3s and the platform are ready")


def _controller(item: Json) -> tuple[str, str]:
    """Kind and name of what makes a pod."""
    for owner in item["metadata"].get("ownerReferences") or []:
        if owner.get("controller"):
            return str(owner["kind"]), str(owner["name"])
    return "", ""


def _workload(pod: Json) -> str:
    """What people call the pods of one kind by: the name without what makes each pod's its own."""
    kind, name = _controller(pod)
    if kind == "ReplicaSet":
        return name.rpartition("-")[0] or name
    return name or str(pod["metadata"]["name"])


def _since(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text or "").astimezone(UTC)
    except ValueError:
        return None


def _is_old(item: Json, now: datetime) -> bool:
    made = _since(item["metadata"].get("creationTimestamp"))
    return made is not None and now - made > _PATIENCE


def _judge_pods(look: Look, cluster: Cluster, site: Site, limits: Limits, now: datetime) -> None:
    """Pods that stay: those outside of the platform that are not ready (those of the platform have workloads), and restarts of all."""
    faulty: dict[str, list[str]] = {}
    for pod in cluster.pods:
        metadata = pod["metadata"]
        if _controller(pod)[0] not in _LASTING:
            continue
        fault = "" if metadata["namespace"] in site.namespaces or not _is_old(pod, now) else pod_fault(pod)
        if fault:
            faulty.setdefault(metadata["namespace"], []).append(f"{metadata['name']}: {fault}")
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = ((status.get("lastState") or {}).get("terminated")) or {}
            last = _since(ended.get("finishedAt"))
            if status.get("restartCount", 0) >= limits.restarts and last and now - last < _RECENT:
                hours = (now - last).total_seconds() / 3600
                found = f"{title(pod)}, {status['name']}: {status['restartCount']} restarts, the last {hours:.1f} h ago"
                why = f" ({ended.get('reason', '')}, exit status {ended.get('exitCode')})"
                remedy = (
                    f"{site.kubectl} -n {metadata['namespace']} logs {metadata['name']} -c {status['name']} --previous"
                )
                look.warn("restarts", found + why, f"fewer than {limits.restarts}", remedy)
    for namespace, pods in sorted(faulty.items()):
        more = f" (and {len(pods) - 1} more)" if len(pods) > 1 else ""
        remedy = f"{site.kubectl} -n {namespace} describe pod {pods[0].partition(':')[0]}"
        look.warn("pods", f"{namespace}/{pods[0]}{more}", "ready", remedy)
    look.well("pods", f"{len(cluster.pods)}, those that stay are ready")


def _judge_claims(look: Look, cluster: Cluster, site: Site, now: datetime) -> None:
    used = {
        f"{pod['metadata']['namespace']}/{volume['persistentVolumeClaim']['claimName']}"
        for pod in cluster.pods
        for volume in (pod.get("spec") or {}).get("volumes") or []
        if volume.get("persistentVolumeClaim")
    }
    waiting = {
        item["metadata"]["name"] for item in cluster.classes if item.get("volumeBindingMode") == "WaitForFirstConsumer"
    }
    for claim in cluster.claims:
        phase = (claim.get("status") or {}).get("phase")
        metadata = claim["metadata"]
        remedy = f"{site.kubectl} -n {metadata['namespace']} describe pvc {metadata['name']}"
        if phase == "Lost":
            look.error("claims", f"{title(claim)} has lost its volume", "bound", remedy)
        # One that nobody uses yet waits rightly.
        idle = (claim.get("spec") or {}).get("storageClassName") in waiting and title(claim) not in used
        if phase == "Pending" and _is_old(claim, now) and not idle:
            look.warn("claims", f"{title(claim)} is pending", "bound", remedy)
    look.well("claims", f"{len(cluster.claims)}, none waits")


def _judge_issued(look: Look, cluster: Cluster, site: Site, limits: Limits, now: datetime) -> None:
    """Certificates that cert-manager renews."""
    for item in cluster.certificates:
        ready = _conditions(item).get("Ready") or {}
        metadata = item["metadata"]
        remedy = f"{site.kubectl} -n {metadata['namespace']} describe certificate {metadata['name']}"
        if ready.get("status") != "True":
            found = f"{title(item)}: {ready.get('message') or 'not issued yet'}"
            look.error("issued certificates", found, "issued", remedy)
        elif ends := _since((item.get("status") or {}).get("notAfter")):
            age = Lifetime((ends - now).total_seconds() / DAY)
            renewal = _since(item["status"].get("renewalTime"))
            # What is issued for a short time only ends soon, and is renewed in time.
            if (severity := age.severity(*limits.certificates)) and (
                renewal is None or now > renewal + timedelta(hours=1)
            ):
                look.add(
                    severity,
                    "issued certificates",
                    f"{title(item)} {age}, and is not renewed",
                    "renewed in time",
                    remedy,
                )
    if cluster.certificates:
        look.well("issued certificates", f"{len(cluster.certificates)}, all valid")


def whole_reference(image: str) -> str:
    """An image reference with registry and tag, without a digest beside a tag: how two of them can be compared."""
    name, _, digest = image.partition("@")
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif first != "localhost" and not re.search(r"[.:]", first):
        name = f"docker.io/{name}"
    if ":" in name.rpartition("/")[2]:
        return name
    return f"{name}@{digest}" if digest else f"{name}:latest"


def _judge_images(look: Look, cluster: Cluster, site: Site) -> None:
    """Containers of the platform whose image the bundle does not have."""
    if not site.images:
        return
    known = {whole_reference(image) for image in site.images}
    drift: Counter[tuple[str, str, str]] = Counter()
    seen = 0
    for pod in cluster.pods:
        namespace = pod["metadata"]["namespace"]
        if namespace not in site.namespaces or _controller(pod)[0] not in _LASTING:
            continue
        spec = pod.get("spec") or {}
        for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
            seen += 1
            if whole_reference(container["image"]) not in known:
                drift[namespace, _workload(pod), container["image"]] += 1
    for (namespace, workload, image), number in sorted(drift.items()):
        times = f" in {number} containers" if number > 1 else ""
        remedy = f"{site.playbook}site.yml puts the bundle's back; one that you want: take it into the release"
        look.warn("images", f"{namespace}/{workload} runs {image}{times}", "an image of the bundle", remedy)
    look.well("images", f"all {seen} containers of the platform run images of the bundle")

"""The doctor names every fault of a cluster, and calls nothing a fault that is none."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from ansible.module_utils.slipway.doctor import Limits, Site
from ansible.module_utils.slipway.doctor_cluster import Cluster, judge_cluster, whole_reference
from ansible.module_utils.slipway.drain import MARK
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.preflight import Node, Problem
from ansible.module_utils.slipway.workloads import Waiting

from .authorities import NOW

VERSION, OLD = "v1.35.8+k3s1", "v1.35.4+k3s1"
IMAGES = frozenset({"quay.io/minio/minio:1", "localhost/lab/argocd:2", "redis:7"})
SITE = Site(
    "ansible-playbook playbooks/", "kubectl --kubeconfig k", VERSION, IMAGES, namespaces=("kube-system", "minio")
)


def at(**ago: float) -> str:
    """A time before now, as Kubernetes writes it."""
    return (NOW - timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def host(name: str, role: str = "server", version: str = VERSION) -> Node:
    unit = "k3s.service" if role == "server" else "k3s-agent.service"
    return Node(name, role, probe={"k3s": {"version": version}, "service": {"unit": unit}} if version else None)


def item(name: str, version: str = VERSION, spec: Json | None = None, **conditions: str) -> Json:
    """A Node; what is True or False may have a message after a blank."""
    status = {"Ready": "True", "MemoryPressure": "False"} | conditions
    return {
        "metadata": {"name": name, "annotations": {}},
        "spec": spec or {},
        "status": {
            "nodeInfo": {"kubeletVersion": version},
            "conditions": [
                {"type": kind, "status": text.partition(" ")[0], "message": text.partition(" ")[2]}
                for kind, text in status.items()
            ],
        },
    }


def pod(name: str, namespace: str = "minio", owner: str = "ReplicaSet", **more: Any) -> Json:
    """A ready pod of an image of the bundle."""
    metadata = {"name": name, "namespace": namespace, "creationTimestamp": at(hours=5)}
    owners = [{"kind": owner, "name": name.rpartition("-")[0], "controller": True}] if owner else []
    return {
        "metadata": metadata | {"ownerReferences": owners},
        "spec": {
            "containers": [{"name": "main", "image": more.pop("image", "quay.io/minio/minio:1")}],
            **more.pop("spec", {}),
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], **more},
    }


def faults(cluster: Cluster, *hosts: Node, site: Site = SITE) -> list[Problem]:
    found = judge_cluster(hosts or [host("server-1"), host("agent-1", "agent")], cluster, site, Limits(), NOW)
    return [each for each in found if each.severity != "ok"]


def nodes(*found: Json) -> dict[str, Json]:
    return {each["metadata"]["name"]: each for each in found or (item("server-1"), item("agent-1"))}


def one(cluster: Cluster, *hosts: Node, site: Site = SITE) -> Problem:
    (found,) = faults(cluster, *hosts, site=site)
    assert found.wanted and found.remedy
    return found


def test_a_good_cluster_has_no_fault_and_tells_what_was_looked_at() -> None:
    cluster = Cluster(nodes(), [pod("minio-1-a")])
    found = judge_cluster([host("server-1"), host("Agent-1", "agent")], cluster, SITE, Limits(), NOW)
    assert {each.severity for each in found} == {"ok"}
    assert {(each.node, each.check) for each in found} == {
        ("server-1", "node"),
        ("Agent-1", "node"),
        *(("cluster", check) for check in ("version", "workloads", "pods", "claims", "images")),
    }


@pytest.mark.parametrize(
    ("node", "severity", "check", "found", "remedy"),
    [
        (
            item("agent-1", Ready="False kubelet stopped"),
            "error",
            "node",
            "not Ready: kubelet stopped",
            "describe node agent-1",
        ),
        (
            item("agent-1", DiskPressure="True no room"),
            "error",
            "node",
            "DiskPressure: no room",
            "describe node agent-1",
        ),
        (
            item("agent-1", EtcdIsVoter="False learner"),
            "error",
            "etcd vote",
            "without a vote: learner",
            "start k3s there",
        ),
        (item("agent-1", spec={"unschedulable": True}), "warning", "cordoned", "by hand", "uncordon agent-1"),
    ],
)
def test_a_node(node: Json, severity: str, check: str, found: str, remedy: str) -> None:
    fault = one(Cluster(nodes(item("server-1"), node)))
    assert (fault.severity, fault.node, fault.check) == (severity, "agent-1", check)
    assert found in fault.found and remedy in fault.remedy


def test_a_node_that_an_upgrade_has_cordoned() -> None:
    node = item("agent-1", spec={"unschedulable": True})
    node["metadata"]["annotations"][MARK] = "x"
    assert "playbooks/upgrade.yml" in one(Cluster(nodes(item("server-1"), node))).remedy


def test_nodes_and_inventory() -> None:
    found = faults(Cluster(nodes(item("server-1"), item("stranger"))))
    assert [(each.severity, each.node) for each in found] == [("error", "agent-1"), ("warning", "stranger")]
    assert "playbooks/site.yml" in found[0].remedy and "delete node stranger" in found[1].remedy


def test_k3s_that_was_not_started_since_its_program_was_replaced() -> None:
    fault = one(Cluster(nodes(item("server-1"), item("agent-1", OLD))))
    assert (fault.severity, fault.node, fault.check) == ("warning", "agent-1", "version")
    assert f"runs k3s {OLD}, the program that lies there is {VERSION}" in fault.found
    assert "systemctl restart k3s-agent.service" in fault.remedy


def test_versions_of_nodes_that_cannot_be_looked_at() -> None:
    fault = one(Cluster(nodes(item("server-1"), item("agent-1", OLD))), host("server-1"), host("agent-1", "agent", ""))
    assert f"runs k3s {OLD}, the bundle has {VERSION}" in fault.found and "playbooks/upgrade.yml" in fault.remedy


def test_versions_among_each_other() -> None:
    hosts = [host("a"), host("b", version=OLD), host("c", "agent", "v1.36.0+k3s1")]
    found = faults(Cluster(nodes(item("a"), item("b", OLD), item("c", "v1.36.0+k3s1"))), *hosts)
    assert [(each.severity, each.node) for each in found] == [("warning", "cluster"), ("error", "cluster")]
    assert "b runs an older k3s than a" in found[0].found
    assert "c: a newer minor than that of server b" in found[1].found
    assert faults(Cluster(nodes(item("a", "v1.35.8+other"))), host("a", version="v1.35.8+other")) == []


def test_workloads() -> None:
    waiting = [
        Waiting("Deployment minio/minio", "0 of 1 pods are ready"),
        Waiting("Namespace minio", "there is no workload in it"),
    ]
    found = faults(Cluster(nodes(), waiting=waiting))
    assert [each.severity for each in found] == ["error", "error"]
    assert "kubectl --kubeconfig k -n minio describe deployment minio" in found[0].remedy
    assert "playbooks/platform.yml" in found[1].remedy


BROKEN: Json = {"conditions": [{"type": "Ready", "status": "False"}], "containerStatuses": []}


def test_pods_of_people_that_stay() -> None:
    """Pods of the platform have workloads; those that run to an end may fail; a young one may be starting."""
    young = pod("b-1-a", "people", **BROKEN)
    young["metadata"]["creationTimestamp"] = at(minutes=1)
    others = [
        young,
        pod("job-a", "people", "Job", **BROKEN),
        pod("bare", "people", "", **BROKEN),
        pod("minio-1-a", **BROKEN),
    ]
    assert faults(Cluster(nodes(), others)) == []
    fault = one(Cluster(nodes(), [*others, pod("a-1-a", "people", **BROKEN), pod("a-1-b", "people", **BROKEN)]))
    assert (fault.severity, fault.check) == ("warning", "pods")
    assert "people/a-1-a: Running: not ready (and 1 more)" in fault.found and "describe pod a-1-a" in fault.remedy


@pytest.mark.parametrize(("number", "hours", "named"), [(5, 1, True), (4, 1, False), (50, 30, False)])
def test_restarts(number: int, hours: int, named: bool) -> None:
    last = {"terminated": {"finishedAt": at(hours=hours), "reason": "OOMKilled", "exitCode": 137}}
    status = {"name": "main", "restartCount": number, "lastState": last, "ready": True}
    found = faults(Cluster(nodes(), [pod("minio-1-a", containerStatuses=[status])]))
    assert len(found) == named
    for fault in found:
        assert "minio/minio-1-a, main: 5 restarts, the last 1.0 h ago (OOMKilled, exit status 137)" in fault.found
        assert "logs minio-1-a -c main --previous" in fault.remedy


def claim(name: str, phase: str, kind: str = "local-path", **age: float) -> Json:
    metadata = {"name": name, "namespace": "minio", "creationTimestamp": at(**age or {"hours": 1})}
    return {"metadata": metadata, "spec": {"storageClassName": kind}, "status": {"phase": phase}}


def test_claims() -> None:
    classes = [{"metadata": {"name": "local-path"}, "volumeBindingMode": "WaitForFirstConsumer"}]
    user = pod(
        "minio-1-a",
        spec={
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "used"}}]
        },
    )
    claims = [
        claim("bound", "Bound"),
        claim("lost", "Lost"),
        claim("used", "Pending"),
        claim("unused", "Pending"),
        claim("other", "Pending", "nfs"),
        claim("young", "Pending", "nfs", minutes=1),
    ]
    found = faults(Cluster(nodes(), [user], claims, classes))
    assert [(each.severity, each.found.partition(" ")[0]) for each in found] == [
        ("error", "minio/lost"),
        ("warning", "minio/used"),
        ("warning", "minio/other"),
    ]
    assert "describe pvc used" in found[1].remedy


def issued(ready: str = "True", **status: Any) -> Json:
    conditions = [{"type": "Ready", "status": ready, "message": "the issuer does not answer"}]
    return {
        "metadata": {"name": "front-door", "namespace": "front-door"},
        "status": {"conditions": conditions, **status},
    }


@pytest.mark.parametrize(
    ("certificate", "severity"),
    [
        (issued(notAfter=at(days=-60), renewalTime=at(days=-30)), ""),
        # One for a day is renewed in time.
        (issued(notAfter=at(days=-1), renewalTime=at(days=-0.3)), ""),
        (issued(notAfter=at(days=-20), renewalTime=at(days=10)), "warning"),
        (issued(notAfter=at(days=-2), renewalTime=at(days=28)), "error"),
        (issued("False"), "error"),
        (issued(""), "error"),
    ],
)
def test_issued_certificates(certificate: Json, severity: str) -> None:
    found = faults(Cluster(nodes(), certificates=[certificate]))
    assert [each.severity for each in found] == ([severity] if severity else [])
    assert all("describe certificate front-door" in each.remedy for each in found)


@pytest.mark.parametrize(
    ("image", "known"),
    [
        ("quay.io/minio/minio:1", True),
        ("quay.io/minio/minio:1@sha256:abc", True),
        ("docker.io/library/redis:7", True),
        ("redis:7", True),
        ("redis:8", False),
        ("redis", False),
        ("localhost/lab/argocd:2", True),
        ("docker.io/minio/minio:1", False),
        ("busybox@sha256:abc", False),
    ],
)
def test_images_of_the_bundle(image: str, known: bool) -> None:
    found = faults(Cluster(nodes(), [pod("minio-5d-a", image=image), pod("minio-5d-b", image=image)]))
    assert len(found) == (0 if known else 1)
    for fault in found:
        assert (fault.severity, fault.check) == ("warning", "images")
        assert f"minio/minio runs {image} in 2 containers" in fault.found
        assert "playbooks/site.yml" in fault.remedy


def test_images_of_people_are_theirs() -> None:
    """In other namespaces, and in pods that run to an end; and without a bundle there is nothing to compare with."""
    foreign = "example.org/x:1"
    others = [
        pod("x-1-a", "people", image=foreign),
        pod("step", owner="Workflow", image=foreign),
        pod("y", owner="", image=foreign),
    ]
    assert faults(Cluster(nodes(), others)) == []
    platform = [pod("minio-1-a", image=foreign)]
    assert len(faults(Cluster(nodes(), platform))) == 1
    assert faults(Cluster(nodes(), platform), site=Site(namespaces=("minio",))) == []


def test_init_containers_count() -> None:
    spec = {"initContainers": [{"name": "init", "image": "example.org/x:1"}]}
    assert "runs example.org/x:1" in one(Cluster(nodes(), [pod("minio-0", owner="StatefulSet", spec=spec)])).found


def test_whole_references() -> None:
    assert whole_reference("rancher/pause") == "docker.io/rancher/pause:latest"
    assert whole_reference("registry:5000/a") == "registry:5000/a:latest"
    assert whole_reference("a@sha256:1") == "docker.io/library/a@sha256:1"

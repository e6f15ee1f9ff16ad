"""Readiness is judged as the controllers mean it, and a failed wait shows evidence."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.workloads import (
    Waiting,
    Wanted,
    await_ready,
    container_fault,
    evidence,
    judge,
    judge_node,
    parse_expected,
    pod_fault,
    unready,
)

from .fakes import Clock, FakeKube


def workload(name: str = "web", generation: int = 1, spec: Json | None = None, **status: Any) -> Json:
    return {
        "metadata": {"name": name, "generation": generation},
        "spec": spec or {},
        "status": {"observedGeneration": 1, **status},
    }


READY = workload(replicas=1, updatedReplicas=1, availableReplicas=1, readyReplicas=1)


@pytest.mark.parametrize(
    ("kind", "item", "reason"),
    [
        ("Deployment", READY, ""),
        ("Deployment", workload(), "0 of 1 pods are of its newest version"),
        ("Deployment", workload(spec={"replicas": 0}), ""),
        ("Deployment", workload(generation=2, updatedReplicas=1, availableReplicas=1), "not been taken up"),
        ("Deployment", workload(updatedReplicas=1, replicas=1), "0 of 1 pods are ready"),
        ("Deployment", workload(updatedReplicas=1, availableReplicas=1, replicas=2), "1 pods of an older version"),
        ("StatefulSet", READY, ""),
        ("StatefulSet", workload(spec={"replicas": 3}, updatedReplicas=3, readyReplicas=1), "1 of 3 pods are ready"),
        ("StatefulSet", workload(spec={"updateStrategy": {"type": "OnDelete"}}, readyReplicas=1), ""),
        ("DaemonSet", workload(desiredNumberScheduled=2, updatedNumberScheduled=2, numberAvailable=1), "1 of 2"),
        ("DaemonSet", workload(desiredNumberScheduled=0), ""),
        ("Job", workload(conditions=[{"type": "Complete", "status": "True"}]), ""),
        ("Job", workload(active=1), "it has not completed"),
        ("Job", workload(spec={"suspend": True}), ""),
    ],
)
def test_judgement(kind: str, item: Json, reason: str) -> None:
    found, hopeless = judge(kind, item)
    assert (reason in found) if reason else not found
    assert not hopeless


def test_refused_pods_are_explained() -> None:
    item = workload(conditions=[{"type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity"}])
    assert judge("Deployment", item)[0].endswith("; violates PodSecurity")


def test_a_failed_job_is_final() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "m"}
    assert judge("Job", workload(conditions=[failed])) == ("failed: BackoffLimitExceeded m", True)


def node(status: str, taints: list[Json] | None = None) -> Json:
    conditions = [{"type": "Ready", "status": status, "message": "cni missing"}]
    return {"metadata": {"name": "n1"}, "spec": {"taints": taints or []}, "status": {"conditions": conditions}}


def test_nodes() -> None:
    assert judge_node(node("True")) == ""
    assert judge_node(node("False")) == "not Ready: cni missing"
    assert "tainted" in judge_node(node("True", [{"key": "node.kubernetes.io/not-ready"}]))
    kube = FakeKube({"/api/v1/nodes": {"items": [node("True")]}})
    assert [str(item) for item in unready(kube, Wanted(nodes=("n1", "n2")))] == ["Node n2: it has not joined"]


def test_empty_namespaces_and_expected_workloads_are_waited_for() -> None:
    kube = FakeKube({"/apis/apps/v1/namespaces/a/deployments": {"items": [READY]}})
    wanted = Wanted(("a", "b"), expect=(("a", "Deployment", "web"), ("c", "DaemonSet", "agent")))
    assert [str(item) for item in unready(kube, wanted)] == [
        "Namespace b: there is no workload in it",
        "DaemonSet c/agent: it does not exist yet",
    ]


def test_only_what_is_asked_for_counts() -> None:
    broken = workload("other")
    cron = {**workload("nightly"), "metadata": {"name": "nightly", "ownerReferences": [{"kind": "CronJob"}]}}
    kube = FakeKube(
        {
            "/apis/apps/v1/namespaces/a/deployments": {"items": [READY, broken]},
            "/apis/batch/v1/namespaces/a/jobs": {"items": [workload("once"), cron]},
        }
    )
    assert unready(kube, Wanted(expect=(("a", "Deployment", "web"),))) == []
    assert [item.what for item in unready(kube, Wanted(("a",)))] == ["Deployment a/other"]
    assert [item.what for item in unready(kube, Wanted(("a",), jobs=True))] == ["Deployment a/other", "Job a/once"]


def test_waiting_outlives_an_api_that_is_away_and_ends_when_ready() -> None:
    clock = Clock()

    class Starting(FakeKube):
        def get(self, path: str, **query: str) -> Json | None:
            if clock.now < 3:
                raise KubeError("cannot be reached")
            return super().get(path)

    kube = Starting({"/apis/apps/v1/namespaces/a/deployments": {"items": [READY]}})
    assert await_ready(kube, Wanted(("a",)), 60, 0.5, clock, clock.sleep) == []
    assert clock.now == 3


def test_waiting_ends_at_the_timeout_or_when_hopeless() -> None:
    clock = Clock()
    kube = FakeKube()
    assert len(await_ready(kube, Wanted(("a",)), 10, 0.5, clock, clock.sleep)) == 1
    assert clock.now == 10
    failed = workload(conditions=[{"type": "Failed", "status": "True"}])
    kube.objects["/apis/batch/v1/namespaces/a/jobs"] = {"items": [failed]}
    await_ready(kube, Wanted(("a",), jobs=True), 10, 0.5, clock, clock.sleep)
    assert clock.now == 10


CRASHED = {
    "name": "main",
    "restartCount": 4,
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
}


@pytest.mark.parametrize(
    ("container", "text"),
    [
        ({"name": "c", "ready": True, "state": {"running": {}}}, ""),
        ({"name": "c", "ready": False, "started": True, "state": {"running": {}}}, "readiness probe fails"),
        ({"name": "c", "state": {"terminated": {"exitCode": 0}}}, ""),
        ({"name": "c", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}, "137 (OOMKilled)"),
        (CRASHED, "CrashLoopBackOff back-off 5m0s, before that ended with 1 (Error), 4 restarts"),
    ],
)
def test_container_states(container: Json, text: str) -> None:
    assert (text in container_fault(container)) if text else not container_fault(container)


def pod(name: str, **status: Any) -> Json:
    return {"metadata": {"name": name}, "spec": {"nodeName": "agent-1"}, "status": status}


def test_pod_states() -> None:
    assert pod_fault(pod("a", phase="Succeeded")) == ""
    assert pod_fault(pod("a", phase="Running", conditions=[{"type": "Ready", "status": "True"}])) == ""
    lost = [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: Insufficient memory"}]
    assert pod_fault(pod("a", phase="Pending", conditions=lost)) == f"Pending: {lost[0]['message']}"


def test_evidence_shows_pods_warnings_logs_and_the_next_step() -> None:
    well = pod("web-2", phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    pods = [pod("web-1", phase="Running", containerStatuses=[CRASHED]), well]
    events = [
        {
            "type": kind,
            "metadata": {},
            "lastTimestamp": f"2026-11-21T10:00:{second:02}Z",
            "reason": "BackOff",
            "message": f"event  {second}",
            "count": 3,
            "involvedObject": {"kind": "Pod", "name": "web-1"},
        }
        for second, kind in enumerate(["Warning"] * 12 + ["Normal"])
    ]
    events.append({**events[0], "message": "long over", "involvedObject": {"kind": "Pod", "name": "web-2"}})
    log = "/api/v1/namespaces/a/pods/web-1/log"
    kube = FakeKube(
        {
            "/apis/apps/v1/namespaces/a/deployments": {"items": [workload()]},
            "/api/v1/namespaces/a/pods": {"items": pods},
            "/api/v1/namespaces/a/events": {"items": events},
        },
        {log: "\n".join(f"line {number}" for number in range(30))},
    )
    text = evidence(kube, unready(kube, Wanted(("a",))), ["a"], "kubectl --kubeconfig /k")
    assert "Deployment a/web: 0 of 1 pods" in text
    assert "web-1 on agent-1: Running: main CrashLoopBackOff" in text
    assert "event 11" in text and "event 12" not in text and "event 1\n" not in text and "(x3)" in text
    assert "long over" not in text
    assert "line 29" in text and "line 15" in text and "line 14\n" not in text
    assert kube.queries == [{"container": "main", "tailLines": "15", "previous": "true"}]
    assert text.endswith("Next: kubectl --kubeconfig /k --namespace a describe pod web-1")


def test_a_missing_node_is_looked_for_on_the_node() -> None:
    text = evidence(FakeKube(), [Waiting("Node agent-1", "it has not joined")], [], "kubectl")
    assert text.endswith("Next: on agent-1: sudo journalctl --unit k3s --unit k3s-agent --lines 50")


def test_evidence_survives_an_api_that_is_away() -> None:
    class Away(FakeKube):
        def get(self, path: str, **query: str) -> Json | None:
            raise KubeError("cannot be reached")

    waiting = await_ready(Away(), Wanted(("a",)), 0)
    text = evidence(Away(), waiting, ["a"], "kubectl")
    assert "Kubernetes API: cannot be reached" in text and "Namespace a: cannot be reached" in text
    assert text.endswith("Next: on a server: sudo journalctl --unit k3s --lines 50")


def test_expected_must_be_well_formed() -> None:
    assert parse_expected("a/Deployment/b") == ("a", "Deployment", "b")
    for text in ("a/b", "a/deployment/b", "a//b", "a/Pod/b"):
        with pytest.raises(SlipwayError, match="namespace/Kind/name"):
            parse_expected(text)

"""GPUs: each one computes, the scheduler hands them out, quotas hold. A site without GPUs skips all of it aloud."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from .gpus import RESOURCE, GpuNode, examine, gpu_nodes, gpu_pods
from .site import Job, Site, Store, unschedulable
from .training import SMALL, remove

SLEEP = "exec sleep 900"


@pytest.fixture
def nodes(site: Site) -> list[GpuNode]:
    """The nodes that advertise GPUs."""
    found = gpu_nodes(site)
    if not found:
        pytest.skip(f"no node of this site advertises {RESOURCE}")
    return found


@pytest.mark.smoke
def test_every_gpu_computes(site: Site, nodes: list[GpuNode], report_dir: Path) -> None:
    """The check passes on every GPU of every node; the report has a line for each."""
    findings = examine(site)
    (report_dir / "gpus.json").write_text(json.dumps(findings, indent=1) + "\n")
    for finding in findings:
        state = {True: "passed", False: "FAILED", None: "busy, not examined"}[finding["passed"]]
        print(
            f"  {finding['node']}: {finding['uuid']} {finding['name']}: {state} after {finding['seconds']} s",
            flush=True,
        )
    failed = [finding for finding in findings if finding["passed"] is False]
    assert not failed, json.dumps(failed, indent=1)


@pytest.mark.fault
def test_used_up_gpus_are_waited_for(site: Site, nodes: list[GpuNode]) -> None:
    """A pod for which no GPU is free waits and says why; it runs as soon as one is given back, on the node that has it."""
    with gpu_pods(site, "gpu-test-full") as pods:
        holders = [pods.start(SLEEP) for node in nodes for _ in range(node.slots - node.used)]
        pods.wait("not all GPUs could be taken", holders, lambda pod: pod.status.phase == "Running")
        late = pods.start(SLEEP)
        pods.wait("no reason for waiting", [late], lambda pod: f"Insufficient {RESOURCE}" in unschedulable(pod))
        place = pods.read(holders[0]).spec.node_name
        pods.remove(holders[0])
        pods.wait("the free GPU was not given out", [late], lambda pod: pod.status.phase == "Running")
        assert pods.read(late).spec.node_name == place


@pytest.mark.fault
def test_quota_of_a_namespace_holds(site: Site, nodes: list[GpuNode]) -> None:
    """A pod that would exceed its namespace's quota is refused with both figures."""
    quotas = [
        item
        for item in site.core.list_resource_quota_for_all_namespaces().items
        if f"requests.{RESOURCE}" in (item.spec.hard or {})
    ]
    if not quotas:
        pytest.skip("no namespace of this site has a GPU quota")
    with gpu_pods(site, "gpu-test-quota") as pods:
        for quota in quotas:
            limit = int(quota.spec.hard[f"requests.{RESOURCE}"])
            with pytest.raises(ApiException) as refusal:
                pods.start(SLEEP, gpus=limit + 1, namespace=quota.metadata.namespace)
            assert refusal.value.status == 403
            assert "exceeded quota" in str(refusal.value.body)
            assert f"limited: requests.{RESOURCE}={limit}" in str(refusal.value.body)


@pytest.mark.fault
@pytest.mark.usefixtures("few_images")
def test_trainings_wait_and_share(trained: dict[str, Any], site: Site, store: Store, nodes: list[GpuNode]) -> None:
    """Two trainings ask for a GPU each: both wait while none is free; where time-slicing lends one GPU twice, both run on it."""
    shared = next((node for node in nodes if node.slots > node.devices and node.slots - node.used >= 2), None)
    if shared is None:
        pytest.skip("no node of this site shares its GPUs")
    arguments = [*SMALL, "--train-steps", "2", "--min-recall", "0", "--models", "s3://epos-models/test-share"]
    with gpu_pods(site, "gpu-test-share") as pods:
        holders = {node.name: [pods.start(SLEEP, node.name) for _ in range(node.slots - node.used)] for node in nodes}
        everyone = [name for names in holders.values() for name in names]
        pods.wait("not all GPUs could be taken", everyone, lambda pod: pod.status.phase == "Running")
        with (
            Job(site, "epos-test-share-a", arguments, gpus=1) as one,
            Job(site, "epos-test-share-b", arguments, gpus=1) as two,
        ):
            for job in (one, two):
                job.await_pending(f"Insufficient {RESOURCE}", timeout=60)
            pods.remove(*holders[shared.name])
            logs = [job.follow(timeout=600) for job in (one, two)]
            assert [job.finished() for job in (one, two)] == ["Complete", "Complete"], "\n".join(logs)[-4000:]
            ended = [pod for job in (one, two) for pod in job.pods()]
    assert {pod.spec.node_name for pod in ended} == {shared.name}
    times = [pod.status.container_statuses[0].state.terminated for pod in ended]
    assert max(time.started_at for time in times) < min(time.finished_at for time in times), "one after the other"
    given = {gpu for log in logs for gpu in re.findall(r"(?:GPU|MIG)-[0-9a-f-]{36}", log)}
    assert len(given) <= shared.devices
    remove(store, "epos-models", "test-share/")

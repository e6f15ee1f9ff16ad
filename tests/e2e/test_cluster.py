"""The cluster is healthy and keeps its promises about access."""

from __future__ import annotations

import base64
import re
import ssl
import time
import urllib.error
import urllib.request

import pytest

from .site import Site

# What other installers leave behind; none may be anybody's password here.
DEFAULT_PASSWORDS = re.compile(
    r"(?i)^(admin|password|minio123|minioadmin|changeme!?|console123|12341234|postgres|secret)$"
)


@pytest.mark.smoke
def test_nodes_are_ready(site: Site) -> None:
    """Every node is Ready and under no pressure."""
    nodes = site.core.list_node().items
    assert nodes
    for node in nodes:
        conditions = {condition.type: condition.status for condition in node.status.conditions}
        assert conditions["Ready"] == "True", node.metadata.name
        assert [kind for kind, status in conditions.items() if kind.endswith("Pressure") and status != "False"] == []


@pytest.mark.smoke
def test_workloads_are_available(site: Site) -> None:
    """Every Deployment, StatefulSet and DaemonSet has all its pods."""
    short = [
        f"{item.metadata.namespace}/{item.metadata.name}"
        for item in [
            *site.apps.list_deployment_for_all_namespaces().items,
            *site.apps.list_stateful_set_for_all_namespaces().items,
        ]
        if (item.status.ready_replicas or 0) < item.spec.replicas
    ]
    short += [
        f"{item.metadata.namespace}/{item.metadata.name}"
        for item in site.apps.list_daemon_set_for_all_namespaces().items
        if item.status.number_ready < item.status.desired_number_scheduled
    ]
    assert short == []


@pytest.mark.smoke
def test_metrics_are_served(site: Site) -> None:
    """metrics-server answers through the API's aggregation layer for every node."""
    wanted = {node.metadata.name for node in site.core.list_node().items}
    # It reports a node only after its second scrape, 15 s apart.
    for _ in range(60):
        metrics = site.custom.list_cluster_custom_object("metrics.k8s.io", "v1beta1", "nodes")
        if {item["metadata"]["name"] for item in metrics["items"]} == wanted:
            return
        time.sleep(1)
    raise AssertionError(
        f"metrics of {sorted(i['metadata']['name'] for i in metrics['items'])}, not of {sorted(wanted)}"
    )


@pytest.mark.smoke
def test_strangers_are_refused(site: Site) -> None:
    """The API answers 401 to a request without credentials."""
    context = ssl._create_unverified_context()
    host = site.core.api_client.configuration.host
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"{host}/api/v1/namespaces", context=context, timeout=10)
    assert refusal.value.code == 401


@pytest.mark.smoke
def test_no_default_password(site: Site) -> None:
    """No Secret holds a well-known password; every generated one is long."""
    weak = []
    for secret in site.core.list_secret_for_all_namespaces().items:
        for key, value in (secret.data or {}).items():
            text = base64.b64decode(value).decode(errors="replace")
            generated = (secret.metadata.labels or {}).get("app.kubernetes.io/managed-by") == "slipway"
            # Argo CD makes its own with 16 letters and digits, which is 95 bits.
            short = generated and re.search(r"(?i)password|secret|token", key) and len(text) < 16
            if short or (re.search(r"(?i)pass|secret|token", key) and DEFAULT_PASSWORDS.match(text)):
                weak.append(f"{secret.metadata.namespace}/{secret.metadata.name}:{key}")
    assert weak == []

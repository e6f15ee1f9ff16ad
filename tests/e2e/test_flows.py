"""Who may speak to whom: each NetworkPolicy lets through what it says, and refuses the rest."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway.kube import KubeClient

from .flows import MANAGED, has_label
from .probes import Probes
from .site import Site

DENY = "slipway-default-deny"


@pytest.mark.smoke
def test_every_component_refuses_by_default(site: Site) -> None:
    """Each namespace with flows has all policies that were made for it, and one that refuses everything else both ways."""
    kube = KubeClient(str(site.kubeconfig))
    listed: dict[str, dict[str, Any]] = {}
    for policy in (kube.get("/apis/networking.k8s.io/v1/networkpolicies") or {})["items"]:
        if has_label(policy, MANAGED):
            listed.setdefault(policy["metadata"]["namespace"], {})[policy["metadata"]["name"]] = policy["spec"]
    recorded: dict[str, set[str]] = {}
    for record in (kube.get("/api/v1/configmaps", fieldSelector="metadata.name=slipway-namespace") or {})["items"]:
        for _, kind, namespace, name, _ in json.loads(record["data"]["objects"]):
            if kind == "NetworkPolicy":
                recorded.setdefault(namespace, set()).add(name)
    assert recorded
    assert {namespace: set(specs) for namespace, specs in listed.items()} == recorded
    for namespace, specs in listed.items():
        assert specs[DENY] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, namespace


@pytest.mark.fault
def test_each_flow_lets_through_and_refuses(site: Site, report_dir: Path) -> None:
    """Each flow's connections are made, to the real pods where there are some; without its labels or on another port nobody gets there."""
    with Probes(site) as probes:
        table = probes.table
        allowed = probes.run(check for check in table.checks if check.allowed)
        # What nobody can reach refuses for no reason that counts.
        worked = {check for check, outcome in allowed.items() if outcome.answered}
        refused = probes.run(check for check in table.checks if not check.allowed and check.after in worked)
    outcomes = {**allowed, **refused}
    lines = [
        {"check": str(check), "wanted": "let through" if check.allowed else "refused", "found": str(outcome)}
        for check, outcome in outcomes.items()
    ]
    (report_dir / "flows.json").write_text(json.dumps(lines, indent=1) + "\n")
    for flow in sorted({check.flow for check in table.checks}):
        count = Counter(check.allowed for check in outcomes if check.flow == flow)
        print(f"  {flow}: {count[True]} let through, {count[False]} refused", flush=True)
    for limit in table.limits:
        print(f"  not shown: {limit}", flush=True)
    failures = [
        f"{check}: should be {'let through' if check.allowed else 'refused'}: {outcome}"
        for check, outcome in outcomes.items()
        if check.allowed != outcome.answered
    ]
    if failures or table.problems:
        pytest.fail("\n".join([*failures, *table.problems]), pytrace=False)

#!/usr/bin/python
"""Module: judge what the probes found."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_report
short_description: Report every problem of every node in one table
description:
  - Judges the results of M(preflight_probe), the inventory, the variables and the bundle.
  - Its action part collects the options marked so, prints the table, and fails after it if there is an error.
  - Writes the report as JSON; changes nothing else. Runs on the controller.
options:
  nodes:
    description: The hosts and what came of probing them. Collected by the action part.
    type: list
    elements: dict
    default: []
  variables:
    description: Names of the variables of each host. Collected by the action part.
    type: dict
    default: {}
  values:
    description: Values of those that have a role's prefix, by host. Collected by the action part.
    type: dict
    default: {}
  sources:
    description: Files and directories of the inventory, to name the place of a variable. Collected by the action part.
    type: list
    elements: path
    default: []
  needs:
    description:
      - What each component needs, by its name; null where its role does not say, a text where that cannot be found out, and why.
      - Collected by the action part, from C(_<role>_needs) in C(vars/) of each of I(active) and of the role C(k3s).
    type: dict
    default: {}
  images:
    description: Archives of images for each node, with C(sha256) and C(src). Collected by the action part.
    type: list
    elements: dict
    default: []
  active:
    description: The components that the site has work for.
    type: list
    elements: str
    default: []
  kubeconfig:
    description: Path of the kubeconfig file; it need not be there. What a cluster tells of its nodes, pods and claims is taken from it.
    type: path
  requirements:
    description: Thresholds, as the defaults of the role C(preflight) without its prefix.
    type: dict
    required: true
  roles:
    description: Directory of the roles.
    type: path
    required: true
  site_defaults:
    description: Directory of the variables that all sites share.
    type: path
    required: true
  bundle:
    description: Directory of the bundle.
    type: path
    required: true
  components:
    description: The components that the site installs.
    type: list
    elements: str
    default: []
  report:
    description: File for the report.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: The same; the report is written, too.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Report
  preflight_report:
    requirements: {min_cpus: 2, min_memory_mb: 2000}
    roles: roles
    site_defaults: playbooks/group_vars
    bundle: "{{ slipway_bundle_dir }}"
    report: "{{ slipway_state_dir }}/report/preflight.json"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
table:
  description: The report for a person.
  returned: always
  type: str
problems:
  description: Severity, node, check, found, wanted and remedy of each problem.
  returned: always
  type: list
  elements: dict
errors:
  description: Number of errors.
  returned: always
  type: int
"""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import bundle as bundles
from ansible.module_utils.slipway import capacity
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.gpus import Declared, declare
from ansible.module_utils.slipway.kube import KubeClient, KubeError, items
from ansible.module_utils.slipway.preflight import (
    CONTROLLER,
    Node,
    Problem,
    Release,
    Requirements,
    in_order,
    judge,
    summary_line,
    table,
)
from ansible.module_utils.slipway.variables import judge_values, judge_variables, load_known

# For one answer of the API.
API_SECONDS = 5


def judge_bundle(path: Path, charts: list[str]) -> tuple[Release, list[Problem]]:
    """Verify the bundle; what it says of the release, and a problem for each thing wrong with it or missing of `charts`."""

    def problem(found: str) -> Problem:
        wanted = "the files that bundle.yml lists"
        return Problem("error", CONTROLLER, "bundle", found, wanted, "make bundle, or carry a whole one in again")

    stamp = bundles.Stamp(bundles.default_stamp(path))
    try:
        manifest = bundles.read_manifest(path)
    except SlipwayError as error:
        return Release(), [problem(str(error))]
    faults = bundles.verify(path, manifest["artifacts"], stamp)
    stamp.save()
    there = [item["name"] for item in manifest["artifacts"] if item["kind"] == "chart"]
    faults += [f"{path}: there is no chart {chart}, which this site needs" for chart in charts if chart not in there]
    release = Release(str(manifest["arch"]), str(manifest["versions"].get("k3s", "")))
    return release, [problem(fault) for fault in faults]


def read_node(item: dict[str, Any]) -> Node:
    """A host as the action part describes it."""
    try:
        gpus = declare(item.get("gpus", {}))
    except SlipwayError:
        # That value is a problem of its own in the report.
        gpus = Declared()
    lists = {name: tuple(item.get(name, ())) for name in ("kubelet_args", "disable")}
    return Node(**{**item, **lists, "gpus": gpus})


def look(kubeconfig: str | None) -> capacity.Cluster | None:
    """What a running cluster tells; None where there is none that answers. Raises SlipwayError."""
    if not kubeconfig or not Path(kubeconfig).is_file():
        return None
    try:
        # One that is there answers at once; one that is not must not hold up its repair.
        kube = KubeClient(kubeconfig, timeout=API_SECONDS)
        nodes, pods, claims = (items(kube, f"/api/v1/{kind}") for kind in ("nodes", "pods", "persistentvolumeclaims"))
    except KubeError:
        return None
    return capacity.read_cluster(nodes, pods, claims)


def judge_plan(params: dict[str, Any], nodes: list[Node], bundle: bool) -> tuple[str, dict[str, Any], list[Problem]]:
    """What the components need and the nodes have, for people and as data, and what does not fit.

    Without a readable `bundle` roles cannot say what they need, which is a problem of the bundle's. Raises SlipwayError.
    """
    if not params["needs"]:
        return "", {}, []
    disabled = {name for node in nodes for name in node.disable}
    needs, problems = [], []
    for component, given in params["needs"].items():
        try:
            if isinstance(given, str):
                raise SlipwayError(given)
            needs.append(capacity.read_need(component, given, "local-storage" not in disabled))
        except SlipwayError as error:
            needs.append(capacity.read_need(component, None, False))
            if not bundle:
                continue
            wanted, remedy = "what it needs, to plan with", f"correct the variables of the role {component}"
            problems.append(
                Problem("error", CONTROLLER, "capacity", f"{component}: {' '.join(str(error).split())}", wanted, remedy)
            )
    cluster = look(params["kubeconfig"])
    images = [
        {"sha256": each["sha256"], "size": Path(each["src"]).stat().st_size}
        for each in params["images"]
        if Path(each["src"]).is_file()
    ]
    nodes = [node for node in nodes if not node.absent]
    rooms = [capacity.room_of(node, needs, cluster, images) for node in nodes]
    claims = capacity.known_claims(nodes, cluster)
    data = {"needs": [asdict(need) for need in needs], "nodes": [asdict(room) for room in rooms]}
    return capacity.plan(needs, rooms, claims), data, problems + capacity.judge_capacity(needs, rooms, claims)


def run(params: dict[str, Any]) -> dict[str, Any]:
    """The module's result. Raises SlipwayError when the report itself cannot be made."""
    nodes = [read_node(item) for item in params["nodes"]]
    try:
        requirements = Requirements(**params["requirements"])
    except TypeError as error:
        raise SlipwayError(f"requirements: {error}") from error
    needs_operator = "gpu_operator" in params["components"] and any(node.gpus.gpus for node in nodes)
    charts = ["gpu-operator"] if needs_operator else []
    release, problems = judge_bundle(Path(params["bundle"]).resolve(), charts)
    known = load_known(Path(params["roles"]), Path(params["site_defaults"]))
    sources = [Path(source) for source in params["sources"]]
    problems += judge_variables(params["variables"], known, sources)
    problems += judge_values(params["values"], known, sources)
    plan, data, unfit = judge_plan(params, nodes, bool(release.arch))
    problems = in_order([*problems, *unfit, *judge(nodes, requirements, release)])
    errors = sum(problem.severity == "error" for problem in problems)
    report = {
        "ok": errors == 0,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "errors": errors,
        "warnings": len(problems) - errors,
        "problems": [asdict(problem) for problem in problems],
        "plan": data,
        "nodes": {
            node.name: {"role": node.role, "clock_offset": node.offset, "clock_error": node.error, "probe": node.probe}
            for node in nodes
        },
    }
    write_atomically(Path(params["report"]), json.dumps(report, indent=2) + "\n")
    return {
        "changed": False,
        "errors": errors,
        "problems": report["problems"],
        "table": table(problems, {node.name: summary_line(node) for node in nodes}, plan),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "dict", "default": []},
            "variables": {"type": "dict", "default": {}},
            "values": {"type": "dict", "default": {}},
            "sources": {"type": "list", "elements": "path", "default": []},
            "requirements": {"type": "dict", "required": True},
            "roles": {"type": "path", "required": True},
            "site_defaults": {"type": "path", "required": True},
            "bundle": {"type": "path", "required": True},
            "components": {"type": "list", "elements": "str", "default": []},
            "active": {"type": "list", "elements": "str", "default": []},
            "needs": {"type": "dict", "default": {}},
            "images": {"type": "list", "elements": "dict", "default": []},
            "kubeconfig": {"type": "path"},
            "report": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params)
    except (SlipwayError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

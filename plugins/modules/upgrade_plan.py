#!/usr/bin/python
"""Module: what an upgrade of k3s would do, and what keeps it from being done."""

from __future__ import annotations

DOCUMENTATION = r"""
module: upgrade_plan
short_description: Judge whether the nodes can be upgraded, and say in which order
description:
  - Compares the versions of the nodes with the one to come, looks for pods and budgets that would block a drain and for data that it would
    lose, and asks whether the platform is well. Everything is in one table; errors fail the task after it.
  - What is to be done is read from the nodes and the cluster each time, so an interrupted upgrade goes on where it was.
  - Changes nothing. Runs on the controller.
extends_documentation_fragment: [kube]
options:
  servers:
    description: The hosts of the inventory that are servers.
    type: list
    elements: str
    required: true
  agents:
    description: Those that are agents.
    type: list
    elements: str
    default: []
  states:
    description: What M(k3s_state) says of each host, by its name.
    type: dict
    required: true
  version:
    description: The version to come, such as C(v1.35.8+k3s1).
    type: str
    required: true
  released:
    description: The day of its release, such as C(2026-08-27); empty where nobody says.
    type: str
    default: ""
  namespaces:
    description: Namespaces whose workloads must be well before and after; those without any are left out.
    type: list
    elements: str
    default: []
  unmanaged_pods:
    description: Whether pods that no controller makes anew may be evicted, or block.
    type: str
    choices: [refuse, delete]
    default: refuse
  empty_dirs:
    description: Whether pods with an emptyDir, whose content is lost, may be evicted, or block.
    type: str
    choices: [refuse, delete]
    default: delete
  timeout:
    description: Seconds to wait for the API and the nodes, and then for the workloads. An interrupted run may have left them restarting.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: The same.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Plan the upgrade
  upgrade_plan:
    kubeconfig: "{{ slipway_kubeconfig }}"
    version: v1.35.8+k3s1
    servers: [server-1]
    states: {server-1: "{{ hostvars['server-1']._k3s_state }}"}
"""

RETURN = r"""
servers:
  description: Servers to upgrade, in this order.
  returned: success
  type: list
  elements: str
agents:
  description: Agents to upgrade after them.
  returned: success
  type: list
  elements: str
snapshot:
  description: The server to take a snapshot on before anything changes; empty where none is needed.
  returned: success
  type: str
namespaces:
  description: Those of the namespaces that hold workloads.
  returned: success
  type: list
  elements: str
table:
  description: The plan and every problem, for a person.
  returned: always
  type: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.drain import Rules, is_cordoned, is_ours, obstacles, read_cluster
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s_upgrade import NodeState, Plan, judge_versions, make_plan
from ansible.module_utils.slipway.kube import Json, Kube, KubeClient, KubeError, items
from ansible.module_utils.slipway.preflight import CONTROLLER, Problem, in_order, table
from ansible.module_utils.slipway.workloads import (
    KINDS,
    Wanted,
    await_ready,
    judge_node,
    node_version,
    read_nodes,
)

# Workloads of these kinds are awaited.
_LASTING = [path for kind, path in KINDS.items() if kind != "Job"]


def read_states(roles: dict[str, str], states: dict[str, Json], known: dict[str, Json]) -> list[NodeState]:
    """The hosts, by their role, as the nodes (`states`) and the cluster (`known`, by name) tell."""
    found = []
    for name, role in roles.items():
        state = states[name]
        # Kubernetes registers nodes in lower case.
        node = known.get(name.lower())
        found.append(
            NodeState(
                name=name,
                role=role,
                installed=bool(state["has_data"] or state["has_password"]),
                binary=state["version"],
                started=state["started"],
                kubelet=node_version(node) if node else "",
                unready=judge_node(node) if node else "",
                ours=node is not None and is_ours(node),
            )
        )
    return found


def settled_nodes(kube: Kube, timeout: float, interval: float = 1) -> dict[str, Json]:
    """Every Node by its name, once all are ready that we have not cordoned, or `timeout` seconds are over. Raises KubeError."""
    deadline = time.monotonic() + timeout
    while True:
        over = time.monotonic() >= deadline
        try:
            nodes = read_nodes(kube)
            if over or not any(judge_node(node) and not is_ours(node) for node in nodes.values()):
                return nodes
        except KubeError as error:
            if over or 400 <= error.status < 500:
                raise
        time.sleep(interval)


def judge_drains(kube: Kube, plan: Plan, rules: Rules, resumed: bool) -> list[Problem]:
    """What blocks the drains of the planned nodes, and what they cost.

    A budget without room blocks nothing yet where an earlier run was interrupted (`resumed`): it may be the node of that run that it lacks.
    """
    cluster = read_cluster(kube)
    problems: list[Problem] = []
    for name in plan.nodes:
        key = name.lower()
        if is_cordoned(cluster.nodes[key]) and not is_ours(cluster.nodes[key]):
            wanted = "nothing: it stays so"
            problems.append(Problem("warning", name, "cordoned", "by hand", wanted, f"kubectl uncordon {key}"))
        if cluster.staying(key):
            text = "no other node can take its pods, so they stay and go on over the restart"
            problems.append(Problem("warning", name, "drain", text, "another node", "none is needed"))
        for obstacle in obstacles(cluster, key, rules):
            if obstacle.blocks and not (resumed and obstacle.passing):
                remedy = "end or move the pods, give the budget room, or say what may be lost (k3s_upgrade_*)"
                problems.append(Problem("error", name, "drain", obstacle.text, "nothing that blocks it", remedy))
            else:
                problems.append(
                    Problem("warning", name, "drain", obstacle.text, "nothing that it costs", "none is needed")
                )
    return problems


def judge_platform(kube: Kube, namespaces: list[str], timeout: float) -> list[Problem]:
    """Workloads that are not well within `timeout` seconds."""
    waiting = await_ready(kube, Wanted(namespaces=tuple(namespaces)), timeout)
    remedy = (
        "mend it first (make up with the bundle of the version that runs): an upgrade could not be told from its cause"
    )
    return [Problem("error", CONTROLLER, "workloads", str(item), "well before the upgrade", remedy) for item in waiting]


def run(kube: Kube, params: dict[str, Any]) -> dict[str, Any]:
    """The module's result; `errors` is their number. Raises SlipwayError."""
    target = params["version"]
    known = settled_nodes(kube, params["timeout"])
    roles = {name: role for role in ("server", "agent") for name in params[f"{role}s"]}
    states = read_states(roles, params["states"], known)
    plan = make_plan(states, target)
    built = str((kube.get("/version") or {}).get("buildDate", ""))
    problems = judge_versions(states, target, params["released"], built)
    for name in sorted(set(known) - {state.name.lower() for state in states}):
        remedy = "name it in hosts.yml, or remove it from the cluster"
        problems.append(Problem("warning", name, "inventory", "not in it, so not upgraded", "every node", remedy))
    namespaces = [name for name in params["namespaces"] if any(items(kube, path.format(name)) for path in _LASTING)]
    if plan.nodes:
        rules = Rules(params["unmanaged_pods"] == "delete", params["empty_dirs"] == "delete")
        resumed = any(state.ours for state in states)
        problems += judge_drains(kube, plan, rules, resumed)
        # What waits for a node that an interrupted run has cordoned is no fault.
        if not resumed:
            problems += judge_platform(kube, namespaces, params["timeout"])
    problems = in_order(problems)
    summary = {
        state.name: f"{state.role:6}  {state.kubelet or 'not in the cluster'}"
        + (f" -> {target}" + (", begun by an earlier run" if state.ours else "") if state.name in plan.nodes else "")
        for state in states
    }
    return {
        "changed": False,
        "servers": list(plan.servers),
        "agents": list(plan.agents),
        "snapshot": plan.snapshot,
        "namespaces": namespaces,
        "table": table(problems, summary, title="upgrade"),
        "errors": sum(problem.severity == "error" for problem in problems),
    }


def main() -> None:
    rule = {"type": "str", "choices": ["refuse", "delete"]}
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "servers": {"type": "list", "elements": "str", "required": True},
            "agents": {"type": "list", "elements": "str", "default": []},
            "states": {"type": "dict", "required": True},
            "version": {"type": "str", "required": True},
            "released": {"type": "str", "default": ""},
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "unmanaged_pods": {**rule, "default": "refuse"},
            "empty_dirs": {**rule, "default": "delete"},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    try:
        result = run(KubeClient(module.params["kubeconfig"]), module.params)
    except SlipwayError as error:
        module.fail_json(msg=f"{error}\nNothing was changed.")
    if result.pop("errors"):
        module.fail_json(msg=f"{result.pop('table')}\nNothing was changed. Mend the errors above.", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()

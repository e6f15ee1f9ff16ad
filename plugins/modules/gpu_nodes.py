#!/usr/bin/python
"""Module: GPU nodes of a cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_nodes
short_description: Tell the GPU operator what each node is for, and see that the GPUs are there
description:
  - C(present) labels and taints nodes as declared and remembers in the annotation C(slipway/gpu) what it has set. What it set earlier
    and is no longer declared goes; what somebody else has changed since stays.
  - C(ready) waits until every node offers the GPUs declared and fails with evidence when it does not. Keeps the labels meanwhile, as
    the operator takes its own off nodes in which it has not discovered a GPU yet.
  - C(whole) switches MIG off where a profile is on and waits until it is; refuses while pods hold GPUs. For the time before the operator goes.
  - C(absent) takes all labels and annotations of the operator and of ours off every node. For the time after it has gone.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  state:
    description: What to see to. C(whole) and C(absent) are about every node of the cluster.
    type: str
    choices: [present, ready, whole, absent]
    default: present
  nodes:
    description: What is declared of each node. Those without GPUs are listed too, so that what was set earlier goes.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the node.
        type: str
        required: true
      gpus:
        description: Number of GPUs that the machine has.
        type: int
        default: 0
      share:
        description: Number of pods that share one GPU by turns.
        type: int
        default: 1
      mig:
        description: MIG profile of its GPUs by the name that the MIG manager knows; empty leaves them as they are.
        type: str
        default: ""
      taint:
        description: Whether only pods that ask for GPUs may run there.
        type: bool
        default: false
      driver:
        description: Whose driver it is. C(auto) counts as not yet known.
        type: str
        choices: [auto, host, operator]
        default: auto
  timeout:
    description: Seconds that C(ready) and C(whole) wait at most.
    type: int
    default: 600
  interval:
    description: Seconds between two looks.
    type: float
    default: 1
  kubectl:
    description: How the command for the next step calls kubectl.
    type: path
    default: kubectl
attributes:
  check_mode:
    support: full
    description: Reports what would be changed. C(ready) and C(whole) look once and report in RV(waiting), without waiting or failing.
  diff_mode:
    support: full
    description: Shows the labels, annotations and taints that change.
author: Slipway
"""

EXAMPLES = r"""
- name: Declare the GPUs
  gpu_nodes:
    kubeconfig: "{{ slipway_kubeconfig }}"
    nodes:
      - {name: gpu-a, gpus: 2, share: 4, driver: host}
      - {name: agent-b}
"""

RETURN = r"""
nodes:
  description: Names of the nodes that were changed; in check mode, that would be.
  returned: success
  type: list
  elements: str
waiting:
  description: Why each node is not ready, by its name; empty but in check mode.
  returned: C(ready) and C(whole)
  type: dict
"""

import time
from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.gpus import (
    Change,
    Declared,
    Plan,
    Reasons,
    apply,
    await_nodes,
    check_declarations,
    declare,
    evidence,
    not_whole,
    plan_absent,
    plan_present,
    plan_whole,
    unready,
    users,
)
from ansible.module_utils.slipway.kube import Json, Kube, KubeClient
from ansible.module_utils.slipway.workloads import read_nodes


class GpuNodes:
    """One run of the module. Its methods raise SlipwayError."""

    def __init__(self, kube: Kube, params: dict[str, Any], check: bool) -> None:
        self.kube = kube
        self.params = params
        self.check = check
        # Kubernetes registers nodes in lower case.
        self.declared: dict[str, Declared] = {item["name"].lower(): declare(item) for item in params["nodes"]}
        self.changes: dict[str, Change] = {}

    def present(self) -> None:
        """Label and taint the nodes as declared."""
        check_declarations(self.declared)
        if unknown := sorted(set(self.declared) - set(read_nodes(self.kube))):
            raise SlipwayError(
                f"not in the cluster: {', '.join(unknown)}; install it there first (playbooks/cluster.yml)"
            )
        self._apply(lambda node: plan_present(node, self.declared[node["metadata"]["name"]]), list(self.declared))

    def ready(self) -> dict[str, str]:
        """Wait for the GPUs; return why nodes are not ready."""
        wanted = {name: item for name, item in self.declared.items() if item.gpus}

        def look() -> Reasons:
            # What C(present) predicts need not be predicted again.
            if not self.check:
                self.present()
            nodes = read_nodes(self.kube)
            return {name: unready(nodes.get(name), item) for name, item in wanted.items()}

        return self._wait(look)

    def whole(self) -> dict[str, str]:
        """Switch MIG off; return the nodes where it is not off."""
        if holders := users(self.kube):
            raise SlipwayError(f"pods hold GPUs; end them first: {', '.join(holders)}")
        self._apply(plan_whole, list(read_nodes(self.kube)))

        def look() -> Reasons:
            return {name: not_whole(node) for name, node in read_nodes(self.kube).items() if name in self.changes}

        return self._wait(look)

    def absent(self) -> None:
        """Take everything off."""
        self._apply(plan_absent, list(read_nodes(self.kube)))

    def _apply(self, planned: Callable[[Json], Plan], names: list[str]) -> None:
        self.changes |= {change.node: change for change in apply(self.kube, planned, names, self.check)}

    def _wait(self, look: Callable[[], Reasons]) -> dict[str, str]:
        started = time.monotonic()
        waiting = await_nodes(look, 0 if self.check else self.params["timeout"], self.params["interval"])
        if waiting and not self.check:
            kubectl = f"{self.params['kubectl']} --kubeconfig {self.params['kubeconfig']}"
            raise SlipwayError(f"After {time.monotonic() - started:.0f} s:\n{evidence(self.kube, waiting, kubectl)}")
        return waiting


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "ready", "whole", "absent"], "default": "present"},
            "nodes": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "gpus": {"type": "int", "default": 0},
                    "share": {"type": "int", "default": 1},
                    "mig": {"type": "str", "default": ""},
                    "taint": {"type": "bool", "default": False},
                    "driver": {"type": "str", "choices": ["auto", "host", "operator"], "default": "auto"},
                },
            },
            "timeout": {"type": "int", "default": 600},
            "interval": {"type": "float", "default": 1},
            "kubectl": {"type": "path", "default": "kubectl"},
        },
        supports_check_mode=True,
    )
    result: Json = {}
    try:
        run = GpuNodes(KubeClient(module.params["kubeconfig"]), module.params, module.check_mode)
        waiting = getattr(run, module.params["state"])()
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    if waiting is not None:
        result["waiting"] = waiting
    module.exit_json(
        changed=bool(run.changes),
        nodes=sorted(run.changes),
        diff=[
            {"before_header": name, "after_header": name, "before": change.before, "after": change.after}
            for name, change in sorted(run.changes.items())
        ],
        **result,
    )


if __name__ == "__main__":
    main()

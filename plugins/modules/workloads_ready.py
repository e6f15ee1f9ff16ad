#!/usr/bin/python
"""Module: wait for workloads and nodes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: workloads_ready
short_description: Wait until workloads and nodes of a cluster are ready
description:
  - Waits for every Deployment, StatefulSet and DaemonSet of the namespaces, and for the nodes named.
  - When time is up it fails with the pods' states, the last warnings, log lines, and the command to run next.
  - Changes nothing. Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespaces:
    description: Namespaces of which every workload must be ready. One without any workload is not ready.
    type: list
    elements: str
    default: []
  expect:
    description:
      - Single workloads that must exist and be ready, as C(namespace/Kind/name).
      - For those that somebody else makes in a moment.
    type: list
    elements: str
    default: []
  nodes:
    description: Names of nodes that must have joined and be Ready.
    type: list
    elements: str
    default: []
  version:
    description: Version of k3s that these nodes must report, such as C(v1.35.8+k3s1); empty takes any.
    type: str
    default: ""
  jobs:
    description:
      - Whether Jobs must have completed too; those of CronJobs never count.
      - A failed Job ends the wait at once.
    type: bool
    default: false
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 300
  interval:
    description: Seconds between two looks.
    type: float
    default: 0.5
  kubectl:
    description: How the command for the next step calls kubectl.
    type: path
    default: kubectl
attributes:
  check_mode:
    support: full
    description: Looks once and reports what is not ready in RV(waiting), without waiting or failing.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: The cluster's own services and all nodes are ready
  workloads_ready:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    namespaces: [kube-system]
    expect: [kube-system/Deployment/coredns, kube-system/Deployment/local-path-provisioner]
    nodes: "{{ groups['k3s_cluster'] }}"
"""

RETURN = r"""
waiting:
  description: What is not ready; empty but in check mode.
  returned: success
  type: list
  elements: str
seconds:
  description: How long it took.
  returned: success
  type: float
"""

import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.workloads import Wanted, await_ready, evidence, parse_expected


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "expect": {"type": "list", "elements": "str", "default": []},
            "nodes": {"type": "list", "elements": "str", "default": []},
            "version": {"type": "str", "default": ""},
            "jobs": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 300},
            "interval": {"type": "float", "default": 0.5},
            "kubectl": {"type": "path", "default": "kubectl"},
        },
        supports_check_mode=True,
    )
    params = module.params
    started = time.monotonic()
    try:
        wanted = Wanted(
            namespaces=tuple(params["namespaces"]),
            # Kubernetes registers nodes in lower case.
            nodes=tuple(name.lower() for name in params["nodes"]),
            expect=tuple(parse_expected(text) for text in params["expect"]),
            jobs=params["jobs"],
            version=params["version"],
        )
        kube = KubeClient(params["kubeconfig"])
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    waiting = await_ready(kube, wanted, 0 if module.check_mode else params["timeout"], params["interval"])
    if waiting and not module.check_mode:
        places = sorted({*wanted.namespaces, *(place for place, _, _ in wanted.expect)})
        kubectl = f"{params['kubectl']} --kubeconfig {params['kubeconfig']}"
        module.fail_json(
            msg=f"After {time.monotonic() - started:.0f} s:\n{evidence(kube, waiting, places, kubectl)}",
            waiting=[str(item) for item in waiting],
        )
    module.exit_json(
        changed=False,
        waiting=[str(item) for item in waiting],
        seconds=round(time.monotonic() - started, 1),
    )


if __name__ == "__main__":
    main()

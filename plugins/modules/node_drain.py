#!/usr/bin/python
"""Module: take a node out of use, or give it back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_drain
short_description: Cordon and drain a node by the eviction API, or uncordon it again
description:
  - Budgets are respected, pods are never deleted past them. A refused eviction is asked for again until time is up; then the module fails
    and names what blocks.
  - What is cordoned here is marked, in the same step, by the annotation C(slipway/cordoned) of the Node. Only a marked node is uncordoned again,
    by whichever run, so a node that a person has cordoned stays so.
  - Pods of DaemonSets, static pods and those that have ended stay. Where no other node can take pods, all stay, as they survive a restart of k3s.
    On a node that a person has cordoned, those stay whose volume is there.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  node:
    description: Name of the node.
    type: str
    required: true
  state:
    description: C(drained) cordons and evicts; C(released) uncordons if it was cordoned here.
    type: str
    choices: [drained, released]
    required: true
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
    description: Seconds for the drain, and for an API that does not answer while the node is released.
    type: int
    default: 600
  interval:
    description: Seconds between two looks.
    type: float
    default: 1
attributes:
  check_mode:
    support: full
    description: Reports which pods would be evicted, without waiting.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Drain the node
  node_drain:
    kubeconfig: "{{ slipway_kubeconfig }}"
    node: agent-1
    state: drained
    timeout: 300
  delegate_to: localhost
"""

RETURN = r"""
evicted:
  description: Namespace and name of each pod that was evicted; in check mode, that would be.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.drain import NodeDrain, Rules
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "node": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["drained", "released"], "required": True},
            "unmanaged_pods": {"type": "str", "choices": ["refuse", "delete"], "default": "refuse"},
            "empty_dirs": {"type": "str", "choices": ["refuse", "delete"], "default": "delete"},
            "timeout": {"type": "int", "default": 600},
            "interval": {"type": "float", "default": 1},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        # Kubernetes registers nodes in lower case.
        kube = KubeClient(params["kubeconfig"])
        drain = NodeDrain(kube, params["node"].lower(), module.check_mode, params["interval"])
        if params["state"] == "released":
            drain.release(params["timeout"])
        else:
            rules = Rules(params["unmanaged_pods"] == "delete", params["empty_dirs"] == "delete")
            drain.drain(rules, params["timeout"])
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=drain.changed, evicted=drain.evicted)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: a component's namespace, and who may speak to its pods."""

from __future__ import annotations

DOCUMENTATION = r"""
module: component_namespace
short_description: Ensure that a namespace exists, with a Pod Security level and the flows that are allowed
description:
  - Without I(flows) no NetworkPolicy is made. Otherwise everything that is no flow is refused, in both directions.
  - Each flow is one NetworkPolicy, C(slipway-<name>); those that are not listed any more are removed.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  name:
    description: Name of the namespace.
    type: str
    required: true
  pod_security:
    description: Pod Security Standard that the namespace enforces; where it is C(baseline), C(restricted) is warned about.
    type: str
    choices: [privileged, baseline, restricted]
    default: baseline
  labels:
    description: Further labels of the namespace, by which flows of other namespaces know it.
    type: dict
    default: {}
  flows:
    description:
      - What is allowed. Each flow has C(name), C(of) (labels of the pods concerned, none for all; a list of values for any of them),
        either C(from) or C(to) (a list of peers), and C(ports) (numbers for TCP, or mappings of C(port) and C(protocol)).
      - A peer is a mapping of C(pods) (labels) and C(namespace) (a name or several) or C(namespace_labels), or one of the words C(api)
        (the API servers), C(dns) (the cluster's), C(nodes) (their own processes, such as an API server that calls a webhook), C(outside)
        (every IPv4 address that is no pod's) and C(front_door) (the ingress).
    type: list
    elements: dict
    default: []
attributes:
  check_mode:
    support: full
    description: Reports what would be made.
  diff_mode:
    support: full
    description: Shows namespace and policies before and after.
author: Slipway
"""

EXAMPLES = r"""
- name: Only the ingress reaches the page, and the page nobody
  component_namespace:
    kubeconfig: "{{ slipway_kubeconfig }}"
    name: front-door
    pod_security: restricted
    flows:
      - {name: people, of: {app: page}, from: [front_door], ports: [8080]}
"""

RETURN = r"""
objects:
  description: What was made, changed or removed; in check mode, what would be.
  returned: success
  type: list
  elements: str
  sample: [NetworkPolicy front-door/slipway-people]
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.flows import Addresses, policies
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.objects import ObjectSet, namespace_object


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "pod_security": {
                "type": "str",
                "choices": ["privileged", "baseline", "restricted"],
                "default": "baseline",
            },
            "labels": {"type": "dict", "default": {}},
            "flows": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    name, flows = module.params["name"], module.params["flows"]
    labels = {label: str(value) for label, value in module.params["labels"].items()}
    try:
        kube = KubeClient(module.params["kubeconfig"])
        wanted = [namespace_object(name, module.params["pod_security"], labels)]
        if flows:
            wanted += policies(flows, name, Addresses.read(kube))
        changes = ObjectSet(kube, "namespace", name, module.check_mode).apply(wanted)
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(changes),
        objects=[str(each) for each in (*changes.created, *changes.changed, *changes.removed)],
        diff=changes.diff,
    )


if __name__ == "__main__":
    main()

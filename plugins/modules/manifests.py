#!/usr/bin/python
"""Module: a named set of Kubernetes objects."""

from __future__ import annotations

DOCUMENTATION = r"""
module: manifests
short_description: Ensure that a named set of Kubernetes objects is in the cluster
description:
  - Applies objects by server-side apply. Reports a change only where an object became another, and so repairs what was changed by hand.
  - Removes objects that belonged to the set and are not in it any more. ConfigMap C(slipway-<name>) records what belongs to it.
  - Never removes CustomResourceDefinitions, Namespaces and PersistentVolumeClaims.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  name:
    description: Name of the set, unique in its namespace.
    type: str
    required: true
  namespace:
    description: Namespace of the record, and of objects that name none.
    type: str
    required: true
  state:
    description: Whether the objects must be there.
    type: str
    choices: [present, absent]
    default: present
  objects:
    description: The objects.
    type: list
    elements: dict
    default: []
  namespaces:
    description: Namespaces for the objects that are made where they are missing. One that is there stays as it is, whoever made it.
    type: list
    elements: str
    default: []
  base:
    description: A file with manifests or a directory with a kustomization, which adds its objects to the set.
    type: path
  kustomization:
    description: What is done to the objects of I(base), as in a kustomization.yaml without C(resources).
    type: dict
    default: {}
  kubectl:
    description: The program that renders I(base).
    type: path
    default: kubectl
attributes:
  check_mode:
    support: full
    description: The API server is asked what would become of each object.
  diff_mode:
    support: full
    description: Shows objects before and after; of Secrets only that they change.
author: Slipway
"""

EXAMPLES = r"""
- name: A page has its Service
  manifests:
    kubeconfig: "{{ slipway_kubeconfig }}"
    name: page
    namespace: front-door
    objects:
      - apiVersion: v1
        kind: Service
        metadata: {name: page}
        spec: {selector: {app: page}, ports: [{port: 80}]}
"""

RETURN = r"""
created: &objects
  description: Objects that were made; in check mode, that would be.
  returned: success
  type: list
  elements: str
  sample: [Service front-door/page]
updated: *objects
removed: *objects
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.kustomize import render
from ansible.module_utils.slipway.objects import ObjectSet


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "namespace": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "objects": {"type": "list", "elements": "dict", "default": []},
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "base": {"type": "path"},
            "kustomization": {"type": "dict", "default": {}},
            "kubectl": {"type": "path", "default": "kubectl"},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        kube = KubeClient(params["kubeconfig"])
        members = ObjectSet(kube, params["name"], params["namespace"], module.check_mode)
        if params["state"] == "absent":
            changes = members.remove()
        else:
            base = render(params["kubectl"], params["base"], params["kustomization"]) if params["base"] else []
            members.make_namespaces(params["namespaces"])
            changes = members.apply([*base, *params["objects"]])
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=bool(changes),
        created=[str(each) for each in changes.created],
        updated=[str(each) for each in changes.changed],
        removed=[str(each) for each in changes.removed],
        diff=changes.diff,
    )


if __name__ == "__main__":
    main()

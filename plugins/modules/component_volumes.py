#!/usr/bin/python
"""Module: the volumes of a component, for whoever takes it off."""

from __future__ import annotations

DOCUMENTATION = r"""
module: component_volumes
short_description: Find the volumes of a component, or delete them with their data
description:
  - Those that claims of the component's namespace have or had. Volumes that were kept or set aside count, and the namespace may be gone.
  - A volume is deleted by the provisioner that made it. Where one is left after I(timeout), it fails and says what to do.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  kubectl:
    description: How commands in messages call kubectl.
    type: path
    default: kubectl
  namespace:
    description: Namespace of the component.
    type: str
    required: true
  state:
    description: C(found) only looks. C(absent) deletes them; it is for the time after their claims have gone.
    type: str
    choices: [found, absent]
    default: found
  timeout:
    description: Seconds until they must be gone.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author: Slipway
"""

EXAMPLES = r"""
- name: No commit is left
  component_volumes:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: git
    state: absent
"""

RETURN = r"""
volumes:
  description: What was found, one line for each.
  returned: I(state) is C(found)
  type: list
  elements: str
changes:
  description: One line for each volume that was deleted; in check mode, for each that is due.
  returned: I(state) is C(absent)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.volumes import delete_volumes, describe, of_namespace


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "default": "kubectl"},
            "namespace": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["found", "absent"], "default": "found"},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params

    def delete() -> list[str]:
        kubectl = f"{params['kubectl']} --kubeconfig {params['kubeconfig']}"
        kube = KubeClient(params["kubeconfig"])
        return delete_volumes(kube, params["namespace"], module.check_mode, params["timeout"], kubectl)

    if params["state"] == "absent":
        end_with_changes(module, delete)
    try:
        found = of_namespace(KubeClient(params["kubeconfig"]), params["namespace"])
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, volumes=[describe(volume) for volume in found])


if __name__ == "__main__":
    main()

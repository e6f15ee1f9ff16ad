#!/usr/bin/python
"""Module: which folders on nodes' disks are volumes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_folders
short_description: Tell the folders on nodes' disks that are volumes of the class local-path
description:
  - Reads the cluster's volumes and changes nothing. Runs on the controller.
extends_documentation_fragment: [kube]
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Look at the volumes
  volume_folders:
    kubeconfig: "{{ slipway_kubeconfig }}"
"""

RETURN = r"""
folders:
  description: Paths, by the name of the node.
  returned: success
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient, items
from ansible.module_utils.slipway.volumes import VOLUMES, local_folders


def main() -> None:
    module = AnsibleModule(argument_spec={"kubeconfig": {"type": "path", "required": True}}, supports_check_mode=True)
    try:
        found = local_folders(items(KubeClient(module.params["kubeconfig"]), VOLUMES))
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, folders=found)


if __name__ == "__main__":
    main()

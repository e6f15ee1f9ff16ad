#!/usr/bin/python
"""Module: what the doctor wants to know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_probe
short_description: Look at a node of a running cluster
description:
  - Reads the service, versions, certificates, the datastore's member and snapshots, file systems, memory, and the modes of secret files, and
    asks the ports of k3s on this machine. Needs no API of the cluster; what does not answer is left out.
  - Changes nothing, and returns no secret. Needs root.
  - Its action part never fails, and adds how far the node's clock is off the controller's.
options:
  role:
    description: What the node is by the inventory.
    type: str
    required: true
    choices: [server, agent]
  address:
    description: Address by which others reach the node.
    type: str
    required: true
  front_door:
    description: Domain whose certificate is asked for on port 443 of that address; empty asks for none.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: The same.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Look at the node
  doctor_probe:
    role: server
    address: "{{ ansible_host }}"
  become: true
  register: node
"""

RETURN = r"""
probe:
  description: What was found.
  returned: where the module could run
  type: dict
failure:
  description: Why the module could not run, empty where it did. The task does not fail.
  returned: always
  type: str
reachable:
  description: Whether there was a connection.
  returned: always
  type: bool
clock:
  description:
    - Seconds by which the node's clock is ahead of the controller's (C(offset)) and how exact that is (C(error)).
    - Empty where the node has no date command.
  returned: where the module could run
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.doctor_probe import examine


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True, "choices": ["server", "agent"]},
            "address": {"type": "str", "required": True},
            "front_door": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    module.exit_json(changed=False, probe=examine(params["role"], params["address"], params["front_door"]))


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: how a node is taken out of its cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: removal_plan
short_description: Judge whether a node can be taken out of its cluster, and say how
description:
  - Fails where no other server answers, and where those that remain would be no majority of the datastore's members.
  - Changes nothing. Runs on the controller.
options:
  node:
    description: Name of the node.
    type: str
    required: true
  states:
    description: What M(k3s_state) says of the site's other servers, by name; those that could not be asked are left out.
    type: dict
    required: true
attributes:
  check_mode:
    support: full
    description: The same.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Plan the removal
  removal_plan:
    node: server-1
    states: "{{ states }}"
"""

RETURN = r"""
asked:
  description: The server that does it.
  returned: success
  type: str
voters:
  description: Servers that must be well afterwards; none where the node is no server.
  returned: success
  type: list
  elements: str
known:
  description: Whether the cluster lists the node.
  returned: success
  type: bool
alive:
  description: Whether its pods can be moved in order.
  returned: success
  type: bool
even:
  description: How many servers remain, if that number is even; else 0.
  returned: success
  type: int
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s_members import plan_removal, read_server


def main() -> None:
    module = AnsibleModule(
        argument_spec={"node": {"type": "str", "required": True}, "states": {"type": "dict", "required": True}},
        supports_check_mode=True,
    )
    others = [read_server(name, state) for name, state in module.params["states"].items()]
    try:
        module.exit_json(changed=False, **asdict(plan_removal(module.params["node"], others)))
    except SlipwayError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()

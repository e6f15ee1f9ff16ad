#!/usr/bin/python
"""Module: how secrets of a cluster are rotated."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rotation_plan
short_description: Judge whether secrets of a cluster can be rotated, and say how
description:
  - Fails where a node is not well, as one after the other is restarted; unless a rotation was interrupted, which is then gone on with.
  - Changes nothing. Runs on the controller.
options:
  kinds:
    description: What to rotate.
    type: list
    elements: str
    choices: [server-token, agent-token, encryption-keys, certificates, kubeconfig]
    required: true
  servers:
    description: What M(k3s_state) says of each of the site's servers, by name; none where nothing of the cluster is rotated.
    type: dict
    required: true
  agents:
    description: The same of its agents.
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
- name: Plan the rotation
  rotation_plan:
    kinds: [certificates]
    servers: "{{ servers }}"
    agents: "{{ agents }}"
"""

RETURN = r"""
kinds:
  description: What is rotated, in order; with what an interrupted run has begun.
  returned: success
  type: list
  elements: str
resumed:
  description: Those of them that an interrupted run has begun.
  returned: success
  type: list
  elements: str
lead:
  description: The server that makes what is new.
  returned: success
  type: str
administrator:
  description: The server whose kubeconfig the site has.
  returned: success
  type: str
servers:
  description: All servers.
  returned: success
  type: list
  elements: str
agents:
  description: All agents.
  returned: success
  type: list
  elements: str
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s_rotation import KINDS, plan_rotation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kinds": {"type": "list", "elements": "str", "choices": list(KINDS), "required": True},
            "servers": {"type": "dict", "required": True},
            "agents": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        plan = plan_rotation(module.params["kinds"], module.params["servers"], module.params["agents"])
        module.exit_json(changed=False, **asdict(plan))
    except SlipwayError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()

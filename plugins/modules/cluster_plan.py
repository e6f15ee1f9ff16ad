#!/usr/bin/python
"""Module: what a run does with the servers of a site, and in which order."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_plan
short_description: Order a site's servers by what they say of their cluster
description:
  - Servers that join or come up again are first, so that every vote is there before one that runs is restarted.
  - Fails where the servers run different clusters, or where none of those that hold the data of one answers.
  - Changes nothing. Runs on the controller.
options:
  servers:
    description: The site's servers without those that are declared absent.
    type: list
    elements: str
    required: true
  absent:
    description: Names of machines that are gone for good, servers and agents.
    type: list
    elements: str
    default: []
  absent_servers:
    description: Those of them that the inventory has among the servers.
    type: list
    elements: str
    default: []
  states:
    description: What M(k3s_state) says of each server, by its name.
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
- name: Order the servers
  cluster_plan:
    servers: [server-2, server-3, server-4]
    absent: [server-1]
    absent_servers: [server-1]
    states: "{{ states }}"
"""

RETURN = r"""
asked:
  description: The server that speaks for the cluster; empty before there is one.
  returned: success
  type: str
leaving:
  description: Nodes of machines that are declared absent.
  returned: success
  type: list
  elements: str
first:
  description: Servers that join or come up again.
  returned: success
  type: list
  elements: str
then:
  description: Servers that run.
  returned: success
  type: list
  elements: str
unsettled:
  description: Servers that run and are not ready or do not vote yet.
  returned: success
  type: list
  elements: str
"""

from dataclasses import asdict
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s_members import ClusterPlan, make_cluster_plan, read_server


def plan(params: dict[str, Any]) -> ClusterPlan:
    """The plan of a task's options. Raises SlipwayError."""
    servers = [read_server(name, params["states"][name]) for name in params["servers"]]
    return make_cluster_plan(servers, params["absent"], params["absent_servers"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "absent": {"type": "list", "elements": "str", "default": []},
            "absent_servers": {"type": "list", "elements": "str", "default": []},
            "states": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **asdict(plan(module.params)))
    except SlipwayError as error:
        module.fail_json(msg=str(error))


if __name__ == "__main__":
    main()

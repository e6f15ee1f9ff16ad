#!/usr/bin/python
"""Module: what preflight wants to know of a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight_probe
short_description: Look at a machine before anything is installed on it
description:
  - Reads operating system, kernel features, cgroups, memory, disks, ports, clock, names, GPUs, and which Kubernetes is installed.
  - Changes nothing. Needs root for the names of processes that hold ports.
  - Its action part adds how far the node's clock is off the controller's.
options:
  disk_paths:
    description: Paths whose file systems are looked at; they need not exist.
    type: list
    elements: str
    default: []
  ports:
    description: Ports to look for, such as C(6443/tcp).
    type: list
    elements: str
    default: []
  hardware_root:
    description: Directory below which GPUs and their driver show themselves. Another than C(/) stands for them in a lab.
    type: path
    default: /
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
  preflight_probe:
    disk_paths: [/var/lib/rancher]
    ports: [6443/tcp]
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

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.probe import probe


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "disk_paths": {"type": "list", "elements": "str", "default": []},
            "ports": {"type": "list", "elements": "str", "default": []},
            "hardware_root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    params = module.params
    found = probe(params["disk_paths"], params["ports"], Path(params["hardware_root"]))
    module.exit_json(changed=False, probe=found)


if __name__ == "__main__":
    main()

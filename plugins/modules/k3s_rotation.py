#!/usr/bin/python
"""Ansible module: the record of a rotation on the server that leads it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_rotation
short_description: Note which secrets of k3s are being rotated
description:
  - The record is there from the beginning of a rotation to its end, so that a run after an interruption goes on with it.
options:
  begun:
    description: Kinds that are rotated from now on. One that was begun before keeps its time.
    type: list
    elements: str
    default: []
  ended:
    description: Kinds that are done.
    type: list
    elements: str
    default: []
  path:
    description: The record.
    type: path
    default: /etc/rancher/k3s/rotation.json
author: [Slipway]
"""

EXAMPLES = r"""
- name: Note what begins
  k3s_rotation:
    begun: [certificates]
"""

RETURN = r"""
record:
  description: For each kind under way when it was begun, in seconds since 1970.
  returned: always
  type: dict
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.k3s_rotation import RECORD, begin, read_record, write_record


def main() -> None:
    """Run the module."""
    kinds = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={"begun": kinds, "ended": kinds, "path": {"type": "path", "default": RECORD}},
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    before = read_record(path)
    after = begin(before, module.params["begun"], time.time())
    after = {kind: times for kind, times in after.items() if kind not in module.params["ended"]}
    if after != before and not module.check_mode:
        write_record(path, after)
    module.exit_json(changed=after != before, record=after)


if __name__ == "__main__":
    main()

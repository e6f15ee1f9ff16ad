#!/usr/bin/python
"""Ansible module: which k3s program takes the place of the one that nodes start."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_binary
short_description: Switch a node to the k3s program that was placed beside the present one, and back
description:
  - The next program lies at C(/usr/local/bin/.k3s.next), the one it has replaced at C(/usr/local/bin/.k3s.previous). Each takes its place by a rename,
    so there is always a whole program, and a running one is not written to.
  - Restarts nothing.
options:
  state:
    description:
      - C(switched) puts the next program in place and keeps the one that was there.
      - C(restored) puts the previous one back where that is safe. An agent holds nothing; a server goes back only within one minor
        version, and only if k3s has not become ready on the next one.
      - C(settled) forgets the previous one.
    type: str
    choices: [switched, restored, settled]
    required: true
  role:
    description: Which of the two services this node runs.
    type: str
    choices: [server, agent]
    required: true
  version:
    description: The version to switch to.
    type: str
    required: true
  directory:
    description: Where the program and those beside it lie.
    type: path
    default: /usr/local/bin
  marker:
    description: JSON file on the node that records with which version k3s was last started.
    type: path
    default: /etc/rancher/k3s/slipway.json
author: [Slipway]
"""

EXAMPLES = r"""
- name: Switch to the next program
  k3s_binary:
    state: switched
    role: server
    version: v1.35.8+k3s1
"""

RETURN = r"""
restored:
  description: With C(restored), the version that was put back; empty otherwise.
  returned: always
  type: str
kept:
  description: With C(restored), why the previous program was not put back although it is there; empty otherwise.
  returned: always
  type: str
"""

import json
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import BINARY, MARKER, NEXT, PREVIOUS, binary_version, may_go_back


class Programs:
    """The programs of a node. The methods return whether they changed anything, or in check mode would."""

    def __init__(self, directory: Path, marker: Path, check: bool = False) -> None:
        self.binary, self.next, self.previous = (directory / Path(path).name for path in (BINARY, NEXT, PREVIOUS))
        self.marker = marker
        self.check = check
        self.kept = ""
        self.restored = ""

    def switch(self, version: str) -> bool:
        """Put the next program in place. Raises SlipwayError if it is not there."""
        if binary_version(str(self.binary)) == version:
            return False
        if self.check:
            return True
        found = binary_version(str(self.next))
        if found != version:
            raise SlipwayError(
                f"{self.next}: {found or 'no program'}, not k3s {version}; run the playbook again, which places it"
            )
        if self.binary.exists():
            # A second name for the same file: the rename below then takes only the first one from it.
            draft = self.previous.with_name(f"{self.previous.name}.part")
            if draft.exists():
                draft.unlink()
            os.link(str(self.binary), str(draft))
            draft.replace(self.previous)
        self.next.replace(self.binary)
        return True

    def restore(self, role: str, version: str) -> bool:
        """Put the previous program back where that is safe; `restored` names it, or `kept` says why not."""
        if not self.previous.exists():
            return False
        old = binary_version(str(self.previous))
        if not may_go_back(role, old, version, self._started() == version):
            self.kept = (
                f"k3s {version} may have written to the datastore, so {old or 'the old program'} is not put back"
            )
            return False
        if not self.check:
            self.previous.replace(self.binary)
        self.restored = old
        return True

    def settle(self) -> bool:
        """Forget the previous program."""
        found = [path for path in (self.previous, self.next) if path.exists()]
        for path in found:
            if not self.check:
                path.unlink()
        return bool(found)

    def _started(self) -> str:
        """With which version k3s last became ready; empty where nobody knows."""
        try:
            content = json.loads(self.marker.read_text())
        except (OSError, ValueError):
            return ""
        return str(content.get("version", "")) if isinstance(content, dict) else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["switched", "restored", "settled"], "required": True},
            "role": {"type": "str", "choices": ["server", "agent"], "required": True},
            "version": {"type": "str", "required": True},
            "directory": {"type": "path", "default": str(Path(BINARY).parent)},
            "marker": {"type": "path", "default": MARKER},
        },
        supports_check_mode=True,
    )
    params = module.params
    programs = Programs(Path(params["directory"]), Path(params["marker"]), module.check_mode)
    try:
        if params["state"] == "switched":
            changed = programs.switch(params["version"])
        elif params["state"] == "restored":
            changed = programs.restore(params["role"], params["version"])
        else:
            changed = programs.settle()
    except (SlipwayError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, kept=programs.kept, restored=programs.restored)


if __name__ == "__main__":
    main()

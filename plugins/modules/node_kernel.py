#!/usr/bin/python
"""Ansible module: kernel settings of a node, recorded so that they can be taken back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_kernel
short_description: Load kernel modules and apply sysctl settings, now and at boot
description:
  - Before a value is changed for the first time, the one found is recorded on the node; C(state=absent) restores it and
    removes our files. A value that somebody else has changed since is left alone and reported.
options:
  state:
    description: Apply the settings or take them back.
    type: str
    choices: [present, absent]
    default: present
  sysctl:
    description: Names and values, names with dots.
    type: dict
    default: {}
  modules:
    description: Kernel modules. One that is built in or cannot be loaded by this kernel's design counts as loaded when it works.
    type: list
    elements: str
    default: []
author: [Slipway]
"""

EXAMPLES = r"""
- name: Let pods reach each other
  node_kernel:
    sysctl: {net.ipv4.ip_forward: 1}
    modules: [br_netfilter]
"""

RETURN = r"""
kept:
  description: With C(state=absent), settings left alone because somebody else changed them.
  returned: always
  type: list
  elements: str
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import write_atomically

SYSCTL_FILE = "etc/sysctl.d/90-slipway.conf"
MODULES_FILE = "etc/modules-load.d/slipway.conf"
RECORD = "etc/slipway/kernel.json"


class NodeKernel:
    """The kernel settings below `root` (the node's file system; another directory in tests)."""

    def __init__(self, root: Path = Path("/"), check: bool = False) -> None:
        self.root = root
        self.check = check
        self.diff: dict[str, dict[str, str]] = {"before": {}, "after": {}}

    def path(self, name: str) -> Path:
        """Return the file below /proc/sys of the setting `name`."""
        return self.root / "proc/sys" / name.replace(".", "/")

    def read(self, name: str) -> str:
        """Return the value of `name`; raise ValueError when this kernel has no such setting."""
        try:
            return " ".join(self.path(name).read_text().split())
        except OSError as error:
            raise ValueError(f"node_sysctl: {name}: this kernel has no such setting ({error.strerror})") from None

    def record(self) -> dict[str, Any]:
        """Return the values found before our first change."""
        try:
            content = json.loads((self.root / RECORD).read_text())
        except (OSError, ValueError):
            return {"before": {}, "ours": {}}
        return dict(content)

    def write(self, name: str, content: str) -> bool:
        """Replace the file `name` below the root if its content differs; return whether it did."""
        path = self.root / name
        before = path.read_text() if path.exists() else ""
        if before == content:
            return False
        self.diff["before"][name] = before
        self.diff["after"][name] = content
        if not self.check:
            write_atomically(path, content)
        return True

    def present(self, sysctl: dict[str, str], modules: list[str]) -> bool:
        """Apply the settings; return whether anything changed."""
        record = self.record()
        # Some settings exist only once their module is loaded.
        loaded = [self.load(name) for name in modules]
        wrong = {name: self.read(name) for name in sysctl if self.read(name) != sysctl[name]}
        before = {**wrong, **record["before"]}
        changed = False
        if wrong or sysctl != record["ours"]:
            # The record is written first: a run that dies here can still be taken back.
            changed |= self.write(
                RECORD, json.dumps({"before": before, "ours": sysctl}, indent=2, sort_keys=True) + "\n"
            )
        lines = "".join(f"{name} = {value}\n" for name, value in sorted(sysctl.items()))
        changed |= self.write(SYSCTL_FILE, lines)
        changed |= self.write(MODULES_FILE, "".join(f"{name}\n" for name in modules))
        for name, value in wrong.items():
            self.diff["before"][name], self.diff["after"][name] = value + "\n", sysctl[name] + "\n"
            changed = True
            if not self.check:
                self.path(name).write_text(sysctl[name])
        return changed or any(loaded)

    def load(self, name: str) -> bool:
        """Load the module `name` unless it is there; raise ValueError when that fails."""
        if (self.root / "sys/module" / name).exists():
            return False
        if not self.check:
            answer = subprocess.run(["modprobe", name], capture_output=True, text=True, check=False)
            if answer.returncode:
                raise ValueError(f"node_modules: {name}: {answer.stderr.strip()}")
        return True

    def absent(self) -> tuple[bool, list[str]]:
        """Restore what was found; return whether anything changed and the settings left alone."""
        record = self.record()
        kept = []
        changed = False
        for name, value in record["before"].items():
            now = self.read(name)
            if now == value:
                continue
            if now != record["ours"].get(name, now):
                kept.append(name)
                continue
            changed = True
            if not self.check:
                self.path(name).write_text(value)
        for name in (SYSCTL_FILE, MODULES_FILE, RECORD):
            if (self.root / name).exists():
                changed = True
                if not self.check:
                    (self.root / name).unlink()
        directory = (self.root / RECORD).parent
        if not self.check and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        return changed, kept


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "sysctl": {"type": "dict", "default": {}},
            "modules": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    kernel = NodeKernel(check=module.check_mode)
    kept: list[str] = []
    try:
        if module.params["state"] == "present":
            changed = kernel.present({k: str(v) for k, v in module.params["sysctl"].items()}, module.params["modules"])
        else:
            changed, kept = kernel.absent()
    except ValueError as error:
        module.fail_json(msg=str(error))
    diff = [
        {
            "before_header": name,
            "after_header": name,
            "before": kernel.diff["before"][name],
            "after": kernel.diff["after"][name],
        }
        for name in kernel.diff["before"]
    ]
    module.exit_json(changed=changed, kept=kept, diff=diff)


if __name__ == "__main__":
    main()

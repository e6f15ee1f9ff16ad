#!/usr/bin/python
"""Ansible module: several small files of a node at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_files
short_description: Make directories and small files of root
description:
  - Each file is written whole or not at all. Owner and group are root's.
  - One call for several of them, as each task costs every node a second.
options:
  directories:
    description: Directories.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it is., type: path, required: true}
      mode: {description: "Its mode, as chmod takes it; missing directories above it get the same.", type: str, default: "0755"}
  files:
    description: Files.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it is., type: path, required: true}
      content: {description: What it holds., type: str, required: true}
      mode: {description: "Its mode, as chmod takes it.", type: str, default: "0600"}
      keep: {description: "Whether one that exists stays as it is, its mode included.", type: bool, default: false}
  absent:
    description: Files that must not be there.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Where it would be., type: path, required: true}
      begins: {description: "How its text must begin, or it is somebody else's and stays.", type: str, required: true}
author: [Slipway]
"""

EXAMPLES = r"""
- name: Write the configuration
  node_files:
    directories:
      - {path: /etc/rancher/k3s}
    files:
      - {path: /etc/rancher/k3s/config.yaml, content: "{{ config | to_nice_yaml }}"}
"""

RETURN = r"""
changed_paths:
  description: What was made or changed, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import os
import stat
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import write_atomically


class NodeFiles:
    """What is there, and what was changed.

    Attributes:
        changed: paths that were made or changed.
        diff: for each of them before and after, as Ansible shows it.
    """

    def __init__(self, check: bool = False, owner: int = 0) -> None:
        self.check = check
        self.owner = owner
        self.changed: list[str] = []
        self.diff: list[dict[str, str]] = []

    def directory(self, path: Path, mode: int) -> None:
        """Have a directory of this mode."""
        there = path.is_dir()
        if there and self._is_owned(path, mode):
            return
        self._tell(path, "directory" if there else "", "directory")
        if not self.check:
            missing = [each for each in (*reversed(path.parents), path) if not each.exists()]
            for each in missing:
                each.mkdir()
            for each in missing or [path]:
                self._own(each, mode)

    def file(self, path: Path, content: str, mode: int, keep: bool) -> None:
        """Have a file of this content and mode; with `keep` one that is there stays as it is."""
        before = path.read_text(errors="replace") if path.is_file() else None
        if before is not None and (keep or (before == content and self._is_owned(path, mode))):
            return
        self._tell(path, before or "", content)
        if not self.check:
            if before != content:
                write_atomically(path, content, mode)
            self._own(path, mode)

    def absent(self, path: Path, begins: str) -> None:
        """Have no file of ours, by how its text begins."""
        text = path.read_text(errors="replace") if path.is_file() else ""
        if not text.startswith(begins):
            return
        self._tell(path, text, "")
        if not self.check:
            path.unlink()

    def _is_owned(self, path: Path, mode: int) -> bool:
        found = path.stat()
        return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (mode, self.owner, self.owner)

    def _own(self, path: Path, mode: int) -> None:
        os.chown(path, self.owner, self.owner)
        path.chmod(mode)

    def _tell(self, path: Path, before: str, after: str) -> None:
        self.changed.append(str(path))
        header = {"before_header": str(path), "after_header": str(path)}
        self.diff.append({**header, "before": before, "after": after})


def ensure(files: NodeFiles, params: dict[str, Any]) -> None:
    """Have all that a task asks for.

    Raises:
        ValueError: it asks for something that cannot be.
    """
    for each in params["directories"]:
        files.directory(Path(each["path"]), _mode(each))
    for each in params["files"]:
        files.file(Path(each["path"]), each["content"], _mode(each), each["keep"])
    for each in params["absent"]:
        files.absent(Path(each["path"]), each["begins"])


def _mode(wanted: dict[str, Any]) -> int:
    try:
        return int(wanted["mode"], 8)
    except ValueError:
        raise ValueError(f"{wanted['path']}: {wanted['mode']!r} is no mode; write it as in chmod, in quotes") from None


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0600"},
                    "keep": {"type": "bool", "default": False},
                },
            },
            "absent": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "begins": {"type": "str", "required": True}},
            },
        },
        supports_check_mode=True,
    )
    files = NodeFiles(module.check_mode)
    try:
        ensure(files, module.params)
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(files.changed), changed_paths=files.changed, diff=files.diff)


if __name__ == "__main__":
    main()

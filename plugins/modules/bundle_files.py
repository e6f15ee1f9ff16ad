#!/usr/bin/python
"""Ansible module: files of the bundle on a node. The action of the same name brings them there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_files
short_description: Place files of the bundle on a node, verified by the hashes of its manifest
description:
  - What is missing or different is sent, its SHA-256 is computed on the node, and only a right one is moved into place, in one
    step. Nothing half written is ever seen under the final name.
  - The node records size, time and hash of what was placed, so files of hundreds of MB that nobody touched are not read again.
options:
  files:
    description: What must lie on the node.
    type: list
    elements: dict
    required: true
    suboptions:
      src: {description: The file on the controller, type: path, required: true}
      dest: {description: The file on the node; its directory must exist, type: path, required: true}
      sha256: {description: Hexadecimal digest, type: str, required: true}
      mode: {description: Permissions as an octal string, type: str, default: "0600"}
  record:
    description: JSON file on the node with what was placed.
    type: path
    required: true
  links:
    description: Symbolic links to make, by their path, with their targets. Whatever has such a name already stays.
    type: dict
    default: {}
  received:
    description: Filled by the action. Where each sent file lies on the node, by its C(dest).
    type: dict
    default: {}
author: [Slipway]
"""

EXAMPLES = r"""
- name: Place the binary
  bundle_files:
    record: /var/lib/rancher/k3s/slipway-files.json
    files:
      - src: bundle/bin/k3s
        dest: /usr/local/bin/k3s
        sha256: 5d7c1c2a3c7d4b8a9d3ea6c1ea3d94f4a4a7a9a1cbd4f2e3b0f7c5a1d2e3f4a5
        mode: "0755"
"""

RETURN = r"""
missing:
  description: Files that are not there yet, by their C(dest).
  returned: always
  type: list
  elements: str
"""

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import file_sha256, write_atomically

Record = dict[str, dict[str, Any]]


def read_record(path: Path) -> Record:
    """Return what was placed before; nothing when the record is missing or damaged."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def entry(path: Path, sha256: str) -> dict[str, Any]:
    """Return the record of the file `path`."""
    found = path.stat()
    return {"sha256": sha256, "size": found.st_size, "mtime_ns": found.st_mtime_ns, "inode": found.st_ino}


def is_placed(path: Path, sha256: str, record: Record) -> bool:
    """Return whether `path` has this content; a file that changed since it was recorded is read again, and recorded."""
    if not path.is_file():
        return False
    known = record.get(str(path), {})
    if known != entry(path, known.get("sha256", "")):
        record[str(path)] = entry(path, file_sha256(path))
    return bool(record[str(path)]["sha256"] == sha256)


def place(received: Path, dest: Path, sha256: str, mode: int) -> None:
    """Move the file `received` to `dest`, owned by root, with `mode`.

    Raises:
        ValueError: it has another hash.
    """
    found = file_sha256(received)
    if found != sha256:
        raise ValueError(f"{dest}: arrived with SHA-256 {found} instead of {sha256}")
    # Always the same name: what a power cut leaves is overwritten by the next run.
    temporary = dest.with_name(f".{dest.name}.part")
    shutil.copyfile(received, temporary)
    temporary.chmod(mode)
    temporary.replace(dest)
    received.unlink()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "src": {"type": "path", "required": True},
                    "dest": {"type": "path", "required": True},
                    "sha256": {"type": "str", "required": True, "no_log": False},
                    "mode": {"type": "str", "default": "0600"},
                },
            },
            "record": {"type": "path", "required": True},
            "links": {"type": "dict", "default": {}},
            "received": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["record"])
    record = read_record(path)
    before = json.dumps(record, sort_keys=True)
    missing = []
    changed = False
    try:
        for file in module.params["files"]:
            dest, mode = Path(file["dest"]), int(file["mode"], 8)
            if file["dest"] in module.params["received"]:
                place(Path(module.params["received"][file["dest"]]), dest, file["sha256"], mode)
                record[file["dest"]] = entry(dest, file["sha256"])
                changed = True
            elif not is_placed(dest, file["sha256"], record):
                missing.append(file["dest"])
            elif stat.S_IMODE(dest.stat().st_mode) != mode:
                changed = True
                if not module.check_mode:
                    dest.chmod(mode)
        for name, target in module.params["links"].items():
            if not os.path.lexists(name):
                changed = True
                if not module.check_mode:
                    Path(name).symlink_to(target)
        if not module.check_mode and json.dumps(record, sort_keys=True) != before:
            write_atomically(path, json.dumps(record, indent=1, sort_keys=True), 0o600)
    except (ValueError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed, missing=missing)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Ansible module: put the data of a k3s that is stopped aside."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_aside
short_description: Put what makes a node part of its present cluster aside
description:
  - Moves a server's datastore, certificates, keys and tokens to a folder, and removes nothing. k3s must be stopped.
  - Snapshots, manifests, images, pods and volumes stay where they are. An agent keeps all it has.
  - Notes that the node is being restored. The next start, by whatever lies there then, ends that.
options:
  role:
    description: Which of the two services this node runs.
    type: str
    choices: [server, agent]
    required: true
  folder:
    description: Where to. It must not exist.
    type: path
    required: true
  keep_data:
    description: Whether this server is to begin anew from its own data. They stay, and only a copy of the datastore goes to the folder.
    type: bool
    default: false
author: [Slipway]
"""

EXAMPLES = r"""
- name: Put the data aside
  k3s_aside:
    role: server
    folder: /var/lib/rancher/k3s/before-restore/20261127T120000Z
"""

RETURN = r"""
moved:
  description: What is in the folder now, by the paths that it had.
  returned: success
  type: list
  elements: str
"""

import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.k3s import MARKER

CONFIG = "etc/rancher/k3s"
SERVER = "var/lib/rancher/k3s/server"
# Those of an older cluster would be newer than a restored datastore, which ends the start of k3s.
IDENTITY = ("cred", "tls", "token", "node-token", "agent-token")
TOKENS = ("token", "agent-token")
# k3s' own snapshots outlive the datastore that they are of.
KEPT = ("snapshots", ".metadata")
DATASTORE = "db/etcd"
# Without data a server would begin a new cluster; this tells that it must not.
UNSETTLED = '{"complete": false, "restoring": true}'


def parts(root: Path, keep_data: bool) -> list[Path]:
    """What of a server below `root` is to be moved."""
    # It may name another server to join, which a cluster-reset refuses; the next run writes it anew.
    found = [root / CONFIG / "config.yaml"]
    if not keep_data:
        found += [root / CONFIG / name for name in TOKENS]
        found += [root / SERVER / name for name in IDENTITY]
        database = root / SERVER / "db"
        if database.is_dir():
            found += [path for path in sorted(database.iterdir()) if path.name not in KEPT]
    # Tokens are links to one that may have been moved.
    return [path for path in found if path.exists() or path.is_symlink()]


def put_aside(root: Path, folder: Path, keep_data: bool, check: bool) -> list[str]:
    """Move the parts of a server to `folder`; return the paths that they had. Raises OSError."""
    moved = parts(root, keep_data)
    copied = [root / SERVER / DATASTORE] if keep_data and (root / SERVER / DATASTORE).is_dir() else []
    if not check and moved + copied:
        folder.mkdir(mode=0o700, parents=True)
        folder.parent.chmod(0o700)
        for path in copied:
            shutil.copytree(path, folder / path.relative_to(root))
        for path in moved:
            place = folder / path.relative_to(root)
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The datastore may have a disk of its own.
            shutil.move(str(path), str(place))
    return [f"/{path.relative_to(root)}" for path in moved + copied]


def unsettle(root: Path, check: bool) -> bool:
    """Note that the node is being restored; return whether that was not so yet."""
    marker = root / MARKER.lstrip("/")
    if marker.exists() and marker.read_text() == UNSETTLED:
        return False
    if not check:
        write_atomically(marker, UNSETTLED, 0o600)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "choices": ["server", "agent"], "required": True},
            "folder": {"type": "path", "required": True},
            "keep_data": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    root = Path("/")
    moved: list[str] = []
    try:
        # First, so that no moment is without it.
        changed = unsettle(root, module.check_mode)
        if params["role"] == "server":
            moved = put_aside(root, Path(params["folder"]), params["keep_data"], module.check_mode)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename or params['folder']}: {error.strerror or error}. What was put aside is in {params['folder']}. Run it again."
        )
    module.exit_json(changed=changed or bool(moved), moved=moved)


if __name__ == "__main__":
    main()

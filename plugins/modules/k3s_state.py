#!/usr/bin/python
"""Ansible module: what k3s installation a node holds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_state
short_description: Report the k3s installation of a node
description:
  - Reads files and the service manager, and asks a server that runs for the nodes of its cluster. Changes nothing.
options:
  patience:
    description: Seconds to wait for an answer of this machine's server. 0 asks once.
    type: int
    default: 0
author: [Slipway]
"""

EXAMPLES = r"""
- name: Look at the node
  k3s_state:
  register: k3s
"""

RETURN = r"""
state:
  description: What is installed.
  returned: always
  type: dict
  contains:
    role: {description: "V(server), V(agent) or empty when no unit of ours is there", type: str}
    active: {description: Whether the service has signalled that it is ready, type: bool}
    members:
      description: >-
        The nodes of the cluster, as this server lists them: name, server, ready, votes and reason of each. Null where no server runs here or
        its API does not answer.
      type: list
    has_data: {description: Whether this node holds a member of an embedded etcd, type: bool}
    has_password: {description: Whether the node holds the password by which servers know it again, type: bool}
    server_url: {description: The server that the node's configuration joins or empty, type: str}
    version: {description: "Version of the k3s program that lies there, such as V(v1.35.8+k3s1), or empty", type: str}
    restoring: {description: Whether a restore has put the data of this node aside and it has not been started since, type: bool}
    started: {description: Version that the service was last started with, or empty where nobody has noted it, type: str}
    rotation: {description: "The kinds of a rotation that was begun here and has not ended, each with its times", type: dict}
"""

import contextlib
import json
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import BINARY, MARKER, UNITS, binary_version
from ansible.module_utils.slipway.k3s_members import ask
from ansible.module_utils.slipway.k3s_rotation import RECORD, read_record


def read_state(root: Path = Path("/")) -> dict[str, Any]:
    """Return the installation found under `root` (the node's file system)."""
    role = next((r for r, u in UNITS.items() if (root / "etc/systemd/system" / u).exists()), "")
    server_url = ""
    try:
        for line in (root / "etc/rancher/k3s/config.yaml").read_text().splitlines():
            if line.startswith("server:"):
                server_url = line.partition(":")[2].strip().strip("'\"")
    except OSError:
        pass
    try:
        marker = json.loads((root / MARKER.lstrip("/")).read_text())
    except (OSError, ValueError):
        marker = None
    return {
        "role": role,
        "has_data": (root / "var/lib/rancher/k3s/server/db/etcd/member/wal").is_dir(),
        "has_password": (root / "etc/rancher/node/password").exists(),
        "server_url": server_url,
        "version": binary_version(str(root / BINARY.lstrip("/"))),
        "started": str(marker.get("version", "")) if isinstance(marker, dict) else "",
        "restoring": isinstance(marker, dict) and bool(marker.get("restoring")),
        "rotation": read_record(root / RECORD.lstrip("/")),
    }


def is_active(role: str) -> bool:
    """Whether the service has signalled that it is ready."""
    answer = subprocess.run(["systemctl", "is-active", UNITS[role]], capture_output=True, text=True, check=False)
    return answer.stdout.strip() == "active"


def read_life(role: str, patience: float) -> dict[str, Any]:
    """Whether the service is active, and what a server lists; asks for `patience` seconds until it does."""
    end = time.monotonic() + patience
    while True:
        active = bool(role) and is_active(role)
        members = None
        if active and role == "server":
            # Without a quorum its API answers nothing, or an error.
            with contextlib.suppress(SlipwayError):
                members = [asdict(member) for member in ask()]
        if role != "server" or members is not None or time.monotonic() >= end:
            return {"active": active, "members": members}
        time.sleep(1)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={"patience": {"type": "int", "default": 0}}, supports_check_mode=True)
    state = read_state()
    module.exit_json(changed=False, state={**state, **read_life(state["role"], module.params["patience"])})


if __name__ == "__main__":
    main()

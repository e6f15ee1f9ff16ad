#!/usr/bin/python
"""Ansible module: have a node's certificates made anew."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_certificates
short_description: Stop k3s and remove its certificates, which its next start makes anew
description:
  - Pods go on. What starts k3s again is the next task's, M(k3s_service).
options:
  role:
    description: Which of the two services this node runs.
    type: str
    choices: [server, agent]
    required: true
  service:
    description: Only the certificates of this service, such as C(admin); empty takes all.
    type: str
    default: ""
  since:
    description: When the rotation was begun, in seconds since 1970. Certificates that were made since then stay.
    type: float
    required: true
  data:
    description: Folder of k3s' data.
    type: path
    default: /var/lib/rancher/k3s
author: [Slipway]
"""

EXAMPLES = r"""
- name: Remove the certificates
  k3s_certificates:
    role: agent
    since: 1790000000
"""

RETURN = r"""# """

import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import UNITS, command

# Of each role one that k3s makes at a start where it is missing; it stands for the others.
LEAVES = {"server": "server/tls/serving-kube-apiserver.crt", "agent": "agent/client-kubelet.crt"}
ADMIN = "server/tls/client-admin.crt"


def is_due(leaf: Path, since: float) -> bool:
    """Whether a certificate is older than `since`; where it is missing, only the start is left to do."""
    return leaf.exists() and leaf.stat().st_mtime < since


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "choices": ["server", "agent"], "required": True},
            "service": {"type": "str", "default": ""},
            "since": {"type": "float", "required": True},
            "data": {"type": "path", "default": "/var/lib/rancher/k3s"},
        },
        supports_check_mode=True,
    )
    role, service = module.params["role"], module.params["service"]
    due = is_due(Path(module.params["data"]) / (ADMIN if service == "admin" else LEAVES[role]), module.params["since"])
    if due and not module.check_mode:
        try:
            subprocess.run(["systemctl", "stop", UNITS[role]], capture_output=True, text=True, check=True)
            command("certificate", "rotate", *(["--service", service] if service else []))
        except subprocess.CalledProcessError as error:
            module.fail_json(msg=f"{UNITS[role]} does not stop: {error.stderr.strip()}")
        except SlipwayError as error:
            module.fail_json(
                msg=f"{error}. Next: systemctl start {UNITS[role]}, with the certificates that there are; then run this again."
            )
    module.exit_json(changed=due)


if __name__ == "__main__":
    main()

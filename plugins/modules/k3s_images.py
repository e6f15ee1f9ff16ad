#!/usr/bin/python
"""Ansible module: wait until k3s has imported image archives."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_images
short_description: Wait until the images of archives are known to the container runtime of k3s
description:
  - k3s imports archives that appear or change while it runs. This waits for it, so that no pod waits for an image later.
  - Archives that cannot be read without unpacking them, and those that do not list their images, are not waited for.
  - Changes nothing.
options:
  archives:
    description: Image archives (tar) on the node.
    type: list
    elements: path
    required: true
  timeout:
    description: Seconds to wait.
    type: int
    default: 300
author: [Slipway]
"""

EXAMPLES = r"""
- name: Await the import
  k3s_images:
    archives: [/var/lib/rancher/k3s/agent/images/k3s.tar]
"""

RETURN = r"""
missing:
  description: Images that are not there; empty but in check mode.
  returned: always
  type: list
  elements: str
"""

import json
import subprocess
import tarfile
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.k3s import BINARY


def full_name(reference: str) -> str:
    """The image's name with its registry, as the runtime keeps it."""
    first, slash, _ = reference.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return reference
    return "docker.io/" + (reference if slash else "library/" + reference)


def images_in(archive: Path) -> list[str]:
    """The names of the images in an archive as `docker save` makes it; none where it does not say."""
    try:
        with tarfile.open(str(archive), "r:") as files:
            member = files.extractfile("manifest.json")
            entries = json.loads(member.read().decode()) if member else []
    except (tarfile.TarError, KeyError, ValueError, OSError):
        return []
    return [full_name(name) for entry in entries for name in entry.get("RepoTags") or []]


def known_images() -> list[str]:
    """What the runtime has; nothing while it does not answer."""
    answer = subprocess.run([BINARY, "ctr", "images", "list", "-q"], capture_output=True, text=True, check=False)
    return answer.stdout.split()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "archives": {"type": "list", "elements": "path", "required": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    wanted = [name for archive in module.params["archives"] for name in images_in(Path(archive))]
    end = time.monotonic() + (0 if module.check_mode else module.params["timeout"])
    while True:
        missing = sorted(set(wanted) - set(known_images()))
        if not missing or module.check_mode:
            module.exit_json(changed=False, missing=missing)
        if time.monotonic() > end:
            module.fail_json(
                msg=(
                    f"k3s has not imported {', '.join(missing)} within {module.params['timeout']} s. "
                    "Next: journalctl -u 'k3s*' | grep -i import on this node; a k3s before 1.31.5 imports only when it starts."
                ),
                missing=missing,
            )
        time.sleep(1)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Ansible module: the GPU driver of a host, and what the GPU operator leaves there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_host
short_description: See whether a host has an NVIDIA driver of its own, or remove what the GPU operator left on it
description:
  - C(surveyed) reads only.
  - C(absent) is for the time after the operator has gone from the cluster. It removes its mounts, its container toolkit and the files
    with which that was made known. It never touches a driver or toolkit that was installed on the host by somebody else. Kernel modules
    that the operator loaded stay until the next boot.
options:
  state:
    description: What to do.
    type: str
    choices: [surveyed, absent]
    default: surveyed
  hardware_root:
    description: Directory below which the hardware and its driver show themselves. Another than C(/) stands for them in a lab.
    type: path
    default: /
author: [Slipway]
"""

EXAMPLES = r"""
- name: Look for a driver
  gpu_host:
"""

RETURN = r"""
host_driver:
  description: Whether the host has a driver of its own.
  returned: always
  type: bool
removed:
  description: With C(state=absent), what was removed, in words.
  returned: always
  type: list
  elements: str
runtime_configured:
  description: Whether containerd was configured with runtimes of the operator, which a restart of k3s takes out.
  returned: always
  type: bool
"""

import errno
import shutil
import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.gpu_probe import has_host_driver

CONTAINERD = "var/lib/rancher/k3s/agent/etc/containerd/config.toml"
# Where the operator puts its container toolkit, and the parent that goes when nothing else is in it.
TOOLKIT, TOOLKIT_PARENT = "usr/local/nvidia/toolkit", "usr/local/nvidia"
# Driver, validation marks and the toolkit's own state.
STATE = "run/nvidia"
# Device lists of the toolkit and the device plugin; one of the host's own toolkit has another name.
CDI = "run/cdi"
CDI_FILES = ("management.nvidia.com-*", "k8s.device-plugin.nvidia.com-*")
# Node feature discovery makes these for others to fill.
FEATURES = (
    "etc/kubernetes/node-feature-discovery/features.d",
    "etc/kubernetes/node-feature-discovery",
    "etc/kubernetes",
)


def mounts_below(directory: str, text: str) -> list[str]:
    """Return the mount points in /proc/self/mounts' `text` at or below `directory`, deepest first."""
    points = [line.split()[1] for line in text.splitlines()]
    return sorted((p for p in points if p == directory or p.startswith(directory + "/")), key=len, reverse=True)


def unmount(directory: str, removed: list[str], check: bool) -> None:
    """Undo the mounts below `directory`; raise OSError when one stays."""
    mounts = Path("/proc/self/mounts")
    for point in mounts_below(directory, mounts.read_text()):
        removed.append(f"mount {point}")
        if not check:
            subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    left = mounts_below(directory, mounts.read_text())
    if left and not check:
        # Going on would delete what lies on it.
        raise OSError(errno.EBUSY, "still mounted; unmount it", left[0])


def remove(root: Path, check: bool) -> list[str]:
    """Remove the operator's files below `root` and return what was removed; with `check` only tell."""
    removed = []
    for path in [root / TOOLKIT, root / STATE]:
        if path.exists():
            removed.append(str(path))
            if not check:
                shutil.rmtree(path)
    for pattern in CDI_FILES:
        for path in sorted((root / CDI).glob(pattern)):
            removed.append(str(path))
            if not check:
                path.unlink()
    for path in [root / TOOLKIT_PARENT, root / CDI, *(root / name for name in FEATURES)]:
        if path.is_dir() and not any(path.iterdir()):
            removed.append(str(path))
            if not check:
                path.rmdir()
    return removed


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["surveyed", "absent"], "default": "surveyed"},
            "hardware_root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    root = Path("/")
    config = root / CONTAINERD
    configured = config.is_file() and f"/{TOOLKIT_PARENT}/" in config.read_text(errors="replace")
    removed: list[str] = []
    if module.params["state"] == "absent":
        try:
            unmount(f"/{STATE}", removed, module.check_mode)
            removed += remove(root, module.check_mode)
        except OSError as error:
            module.fail_json(
                msg=f"{error.filename}: {error.strerror}. Removed before that: {', '.join(removed)}. Run it again."
            )
    module.exit_json(
        changed=bool(removed),
        host_driver=has_host_driver(Path(module.params["hardware_root"])),
        removed=removed,
        runtime_configured=configured,
    )


if __name__ == "__main__":
    main()

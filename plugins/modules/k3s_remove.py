#!/usr/bin/python
"""Ansible module: take k3s off a node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_remove
short_description: Stop k3s with all its pods and remove what it left on the node
description:
  - Ends only processes that run below k3s' own container runtime, removes only its mounts, network links, firewall rules and
    files, and leaves mount points in place, emptied. Never flushes a table and never touches the network the node is reached by.
options: {}
author: [Slipway]
"""

EXAMPLES = r"""
- name: Remove k3s
  k3s_remove:
"""

RETURN = r"""
removed:
  description: What was removed, in words.
  returned: always
  type: list
  elements: str
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.k3s import NEXT, PREVIOUS, UNITS

COMMANDS = ("k3s", "kubectl", "crictl", "ctr")
BRIDGE = "cni0"
LINKS = (BRIDGE, "flannel.1", "flannel-v6.1", "flannel-wg", "flannel-wg-v6", "kube-ipvs0")
MOUNTS = ("/run/k3s", "/var/lib/rancher/k3s", "/var/lib/kubelet", "/run/netns/cni-")
DIRECTORIES = (
    "/etc/rancher/k3s",
    "/etc/rancher/node",
    "/run/k3s",
    "/run/flannel",
    "/var/lib/rancher/k3s",
    "/var/lib/kubelet",
    "/var/lib/cni",
    "/var/log/pods",
    "/var/log/containers",
)
# Parents that k3s makes and that go when nothing else uses them.
PARENTS = ("/etc/rancher", "/var/lib/rancher")
# The rules of kube-proxy, flannel and the portmap plugin carry these names; see k3s-killall.sh in k3s' installer.
RULES = re.compile(r"KUBE-|CNI-|flannel|FLANNEL")


def run(*command: str, text: str | None = None) -> str:
    """Run `command`, return its output; a command that fails or is missing returns an empty string."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def descendants(parents: dict[int, int], roots: set[int]) -> set[int]:
    """Return `roots` and all their descendants, given each process's parent."""
    found = set(roots)
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found
        found |= more


def pod_processes() -> set[int]:
    """Return the processes of k3s, its container runtime and all pods."""
    parents: dict[int, int] = {}
    roots: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        except (OSError, ValueError, IndexError):
            continue
        if command.startswith("/var/lib/rancher/k3s/data/"):
            roots.add(pid)
    return descendants(parents, roots)


def mounts_below(prefixes: tuple[str, ...], text: str) -> list[str]:
    """Return the mount points in /proc/self/mounts' `text` that lie below `prefixes`, deepest first."""
    # The kernel writes blanks in names as octal numbers.
    points = [
        re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[1]) for line in text.splitlines() if line
    ]
    # A volume mounted at the data directory itself belongs to the machine.
    chosen = [p for p in points if any(p.startswith(prefix) and p != prefix for prefix in prefixes)]
    return sorted(chosen, key=len, reverse=True)


def empty(path: Path) -> bool:
    """Remove `path` with its content, only the content if it is a mount point; return whether anything was there."""
    if not path.exists():
        return False
    if not path.is_mount():
        shutil.rmtree(path)
        return True
    children = list(path.iterdir())
    for child in children:
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
    return bool(children)


def links(network: Path) -> list[str]:
    """Return the links of pods and of k3s in `network`, a folder such as /sys/class/net."""
    # The kernel takes a pod's link away with its namespace, but in its own time.
    pods = sorted(link.name for link in network.iterdir() if (link / "master").resolve().name == BRIDGE)
    return [*pods, *(name for name in LINKS if (network / name).exists())]


def other_rules(saved: str) -> str:
    """Return the rules of iptables-save's output `saved` without those of k3s."""
    return "".join(line + "\n" for line in saved.splitlines() if not RULES.search(line))


def remove(removed: list[str], check: bool) -> None:
    """Remove everything, noting it in `removed`; with `check` only note it."""
    for unit in UNITS.values():
        path = Path("/etc/systemd/system") / unit
        if path.exists():
            removed.append(unit)
            if not check:
                run("systemctl", "disable", "--now", unit)
                path.unlink()
                run("systemctl", "daemon-reload")
                run("systemctl", "reset-failed", unit)
    processes = pod_processes()
    if processes:
        removed.append(f"{len(processes)} processes")
        end = time.monotonic() + 20
        while not check and processes and time.monotonic() < end:
            for pid in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)
            processes = pod_processes()
    for point in mounts_below(MOUNTS, Path("/proc/self/mounts").read_text()):
        removed.append(f"mount {point}")
        if not check:
            run("umount", "--lazy", point)
    left = mounts_below(MOUNTS, Path("/proc/self/mounts").read_text())
    if left and not check:
        # Going on would delete what lies on a foreign file system.
        raise OSError(errno.EBUSY, "still mounted; unmount it", left[0])
    for name in links(Path("/sys/class/net")):
        removed.append(f"link {name}")
        if not check:
            run("ip", "link", "delete", name)
    for namespace in Path("/run/netns").glob("cni-*"):
        removed.append(f"network namespace {namespace.name}")
        if not check:
            namespace.unlink(missing_ok=True)
    for family in ("iptables", "ip6tables"):
        saved = run(f"{family}-save")
        kept = other_rules(saved)
        if RULES.search(saved):
            removed.append(f"{family} rules")
            if not check:
                run(f"{family}-restore", text=kept)
    for name in COMMANDS:
        path = Path("/usr/local/bin") / name
        if (path.is_symlink() and os.readlink(path) == "k3s") or (name == "k3s" and path.exists()):  # noqa: PTH115 (Python 3.8)
            removed.append(str(path))
            if not check:
                path.unlink()
    for name in (NEXT, PREVIOUS):
        path = Path(name)
        if path.exists():
            removed.append(name)
            if not check:
                path.unlink()
    for name in DIRECTORIES:
        path = Path(name)
        if path.exists() and not (path.is_mount() and not any(path.iterdir())):
            removed.append(name)
            if not check:
                empty(path)
    for name in PARENTS:
        path = Path(name)
        if not check and path.is_dir() and not path.is_mount() and not any(path.iterdir()):
            path.rmdir()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    removed: list[str] = []
    try:
        remove(removed, module.check_mode)
    except OSError as error:
        module.fail_json(
            msg=f"{error.filename}: {error.strerror}. Removed before that: {', '.join(removed)}. Run it again."
        )
    module.exit_json(changed=bool(removed), removed=removed)


if __name__ == "__main__":
    main()

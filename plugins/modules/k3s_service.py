#!/usr/bin/python
"""Ansible module: run the k3s service on exactly the files that lie on the node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_service
short_description: Start or restart k3s when its inputs differ from those it was started with
description:
  - The digest of the input files at the last successful start is kept on the node, so a run that was interrupted between
    writing a file and restarting the service is finished by the next one. Nothing is restarted without a reason.
  - Waits until the service has signalled readiness. C(k3s agent) retries for ever while it cannot join, so the start itself
    does not block and the wait has a limit; when it passes, the message carries the service's last journal lines.
options:
  role:
    description: Which of the two services this node runs.
    type: str
    required: true
    choices: [server, agent]
  inputs:
    description: Files whose content decides about a restart. A missing one counts as empty.
    type: list
    elements: path
    required: true
  pending:
    description: Set in check mode when an earlier task has announced a change of an input file.
    type: bool
    default: false
  since:
    description: Restart a k3s that has run since before this moment (seconds since 1970), whatever its inputs.
    type: float
    default: 0
  marker:
    description: JSON file on the node that records the start.
    type: path
    default: /etc/rancher/k3s/slipway.json
  timeout:
    description: Seconds to wait for readiness.
    type: int
    default: 300
author: [Slipway]
"""

EXAMPLES = r"""
- name: Run k3s
  k3s_service:
    role: server
    inputs: [/usr/local/bin/k3s, /etc/rancher/k3s/config.yaml]
"""

RETURN = r"""
reason:
  description: Why the service was started or restarted; empty when nothing was done.
  returned: always
  type: str
"""

import hashlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import file_sha256, write_atomically
from ansible.module_utils.slipway.k3s import MARKER, UNITS, binary_version, epoch


def digest(paths: list[str]) -> str:
    """Return the SHA-256 over names and contents of `paths`; a missing file counts as empty."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.encode() + b"\0")
        try:
            total.update(bytes.fromhex(file_sha256(Path(path))))
        except FileNotFoundError:
            total.update(b"\0")
    return total.hexdigest()


def read_marker(path: str) -> dict[str, Any]:
    """Return the marker's content, or an empty dict when it is missing or was cut off."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def show(unit: str) -> dict[str, str]:
    """Return the properties of `unit` that decide about it."""
    properties = "ActiveState,UnitFileState,NRestarts,NeedDaemonReload,InvocationID,ExecMainStartTimestampMonotonic"
    answer = subprocess.run(["systemctl", "show", unit, "-p", properties], capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)


def systemctl(*arguments: str) -> None:
    """Run systemctl; raise CalledProcessError with its words on failure."""
    subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=True)


def reason_to_start(
    state: dict[str, str], marker: dict[str, Any], wanted: str, pending: bool, since: float = 0.0
) -> str:
    """Return why the service must be started or restarted, or an empty string."""
    if state.get("ActiveState") != "active":
        return f"it was {state.get('ActiveState', 'unknown')}"
    if pending or marker.get("applied") != wanted:
        return "its files changed since it was started"
    if state.get("NeedDaemonReload") == "yes":
        return "its unit changed since it was loaded"
    if epoch(state.get("ExecMainStartTimestampMonotonic", "")) < since:
        return "it has not been started since what it reads at its start was changed"
    return ""


def is_ready(state: dict[str, str], before: str) -> bool:
    """Return whether the service is active in another invocation than `before` (systemd's InvocationID)."""
    return state.get("ActiveState") == "active" and state.get("InvocationID") != before


def wait_ready(unit: str, timeout: float, before: str) -> dict[str, str]:
    """Wait until `unit` is active in another invocation than `before`; return its last state, active or not."""
    end = time.monotonic() + timeout
    while True:
        state = show(unit)
        if is_ready(state, before) or time.monotonic() > end:
            return state
        time.sleep(0.3)


def journal(unit: str, lines: int = 25) -> str:
    """Return the last journal lines of `unit`."""
    command = ["journalctl", "-u", unit, "-n", str(lines), "--no-pager", "-o", "cat"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True, "choices": ["server", "agent"]},
            "inputs": {"type": "list", "elements": "path", "required": True},
            "pending": {"type": "bool", "default": False},
            "since": {"type": "float", "default": 0.0},
            "marker": {"type": "path", "default": MARKER},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    unit = UNITS[module.params["role"]]
    marker = read_marker(module.params["marker"])
    wanted = digest(module.params["inputs"])
    state = show(unit)
    pending = module.params["pending"] and module.check_mode
    reason = reason_to_start(state, marker, wanted, pending, module.params["since"])
    enable = state.get("UnitFileState") != "enabled"
    changed = bool(reason) or enable or not marker.get("complete")
    if module.check_mode or not changed:
        module.exit_json(changed=changed, reason=reason)

    try:
        systemctl("daemon-reload")
        if enable:
            # Enabled before it is started: a node that reboots during the start comes back with it.
            systemctl("enable", unit)
        if reason:
            systemctl("reset-failed", unit)
            systemctl("--no-block", "restart", unit)
    except subprocess.CalledProcessError as error:
        module.fail_json(msg=f"{unit}: {' '.join(error.cmd)} failed: {error.stderr.strip()}")
    # The queued job first stops a running service; its old "active" must not count.
    before = state.get("InvocationID", "") if reason else ""
    state = wait_ready(unit, module.params["timeout"], before)
    if not is_ready(state, before):
        module.fail_json(
            msg=(
                f"{unit} did not become ready within {module.params['timeout']} s "
                f"(state {state.get('ActiveState')}, {state.get('NRestarts')} restarts).\n"
                f"Its last words:\n{journal(unit)}\n"
                f"Next: journalctl -u {unit} on this node; mend the cause and run the playbook again."
            )
        )
    # A restore that put data aside has ended with this start.
    marker.pop("restoring", None)
    marker = {**marker, "role": module.params["role"], "applied": wanted, "version": binary_version(), "complete": True}
    write_atomically(Path(module.params["marker"]), json.dumps(marker, indent=2), 0o600)
    module.exit_json(changed=True, reason=reason)


if __name__ == "__main__":
    main()

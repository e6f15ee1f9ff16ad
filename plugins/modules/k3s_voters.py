#!/usr/bin/python
"""Ansible module: wait until servers can be counted on."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_voters
short_description: Wait until servers are ready and vote in the cluster's datastore
description:
  - Runs on a server and asks its own API. Between two servers it is the gate, as a cluster of three goes on without one of them, not without two.
  - Changes nothing. When time is up it fails, and says which server lacks what.
options:
  servers:
    description: Names of the servers that must be ready and vote.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait at most. k3s lets a new member vote within 15 s of its having caught up.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    description: Looks once and reports in RV(waiting), without waiting or failing.
author: [Slipway]
"""

EXAMPLES = r"""
- name: Await the votes
  k3s_voters:
    servers: [server-1, server-2]
"""

RETURN = r"""
waiting:
  description: What is missing; empty but in check mode.
  returned: always
  type: list
  elements: str
"""

import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import kubectl
from ansible.module_utils.slipway.k3s_members import ask, lagging

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

INTERVAL_S = 1.0


def look(servers: Sequence[str]) -> list[str]:
    """What is missing now, as lines for a person."""
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
        members = ask()
    except SlipwayError as error:
        return [f"this server's API does not answer: {error}"]
    return [f"{name}: {reason}" for name, reason in lagging(members, servers).items()]


def await_votes(
    servers: Sequence[str],
    timeout: float,
    seen: Callable[[Sequence[str]], list[str]] = look,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Wait until nothing is missing; return what is when `timeout` (seconds) is over."""
    end = clock() + timeout
    while True:
        missing = seen(servers)
        if not missing or clock() >= end:
            return missing
        sleep(INTERVAL_S)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "servers": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    servers, timeout = module.params["servers"], module.params["timeout"]
    missing = await_votes(servers, 0 if module.check_mode else timeout)
    if missing and not module.check_mode:
        module.fail_json(
            msg=(
                f"After {timeout} s not all servers can be counted on, so no other one is touched:\n"
                + "".join(f"  {line}\n" for line in missing)
                + "Next: journalctl -u k3s on the servers named; mend the cause and run the playbook again."
            ),
            waiting=missing,
        )
    module.exit_json(changed=False, waiting=missing)


if __name__ == "__main__":
    main()

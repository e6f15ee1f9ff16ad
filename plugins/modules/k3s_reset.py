#!/usr/bin/python
"""Ansible module: begin a cluster of one from a server's data or a snapshot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_reset
short_description: Make a server the only member of its cluster's datastore
description:
  - Runs C(k3s server --cluster-reset), which reads the node's configuration and ends by itself. The next start of k3s is an ordinary one.
  - k3s must be stopped. A reset from the server's own data that was done since the last start is not done again.
options:
  snapshot:
    description: File with a snapshot to begin from; empty for the data that the server holds.
    type: path
  timeout:
    description: Seconds in which it must have ended.
    type: int
    default: 600
author: [Slipway]
"""

EXAMPLES = r"""
- name: Begin anew from this server's data
  k3s_reset:
"""

RETURN = r"""# """

import subprocess
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import BINARY

FLAG = "/var/lib/rancher/k3s/server/db/reset-flag"
LINES = 20


def command(snapshot: str) -> list[str]:
    """The command line. What configures the server, the token among it, is in files."""
    words = [BINARY, "server", "--cluster-reset"]
    # A path would be looked for in S3 where snapshots go there.
    return [*words, f"--cluster-reset-restore-path={snapshot}", "--etcd-s3=false"] if snapshot else words


def reset(words: list[str], timeout: float) -> None:
    """Run it to its end. Raises SlipwayError with its last words."""
    try:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlipwayError(f"k3s server --cluster-reset: {error}") from error
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-LINES:])
        raise SlipwayError(f"k3s server --cluster-reset ended with {done.returncode}. Its last words:\n{last}")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={"snapshot": {"type": "path"}, "timeout": {"type": "int", "default": 600}},
        supports_check_mode=True,
    )
    snapshot = module.params["snapshot"] or ""
    if not snapshot and Path(FLAG).exists():
        module.exit_json(changed=False)
    if not module.check_mode:
        try:
            reset(command(snapshot), module.params["timeout"])
        except SlipwayError as error:
            module.fail_json(
                msg=f"{error}\nNext: mend the cause and run the playbook again. What was there before is in before-restore."
            )
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Ansible module: a new token on the server that leads a rotation."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_token
short_description: Give a cluster a new token
description:
  - The server that runs on this machine makes the servers' token itself, and keeps what servers share in the datastore under it. It is read from
    the file that k3s writes, so it is in no argument, log or answer.
  - The one for agents is random, and counts once k3s was started with it.
  - Restarts nothing.
options:
  of:
    description: Whose token.
    type: str
    choices: [server, agent]
    required: true
  since:
    description: When the rotation was begun, in seconds since 1970. A token that was made since then stays.
    type: float
    required: true
  config:
    description: Folder of the token files that k3s is started with.
    type: path
    default: /etc/rancher/k3s
  data:
    description: Folder in which k3s itself keeps tokens.
    type: path
    default: /var/lib/rancher/k3s/server
author: [Slipway]
"""

EXAMPLES = r"""
- name: A new token for servers
  k3s_token:
    of: server
    since: 1790000000
"""

RETURN = r"""# """

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.k3s import command

if TYPE_CHECKING:
    from collections.abc import Callable

AGENT_TOKEN_BYTES = 32
# What snapshots from before a rotation are read with.
FORMER = "former-token"


def password(path: Path) -> str:
    """The secret part of a token file: what K10<hash>::<user>: stands before, or all of it. Raises SlipwayError."""
    try:
        found = path.read_text().strip().rpartition(":")[2]
    except OSError as error:
        raise SlipwayError(f"{path}: {error.strerror}") from error
    if not found:
        raise SlipwayError(f"{path} holds no token")
    return found


def _ask_k3s() -> None:
    # Without --token it takes the one beside, without --new-token it makes one: none is in its arguments.
    command("token", "rotate")


def renew_server(
    configured: Path, kept: Path, since: float, check: bool = False, rotate: Callable[[], None] = _ask_k3s
) -> bool:
    """Have a servers' token that is newer than `since` in the file `configured`; `kept` is k3s' own. Return whether it is another one now.

    Raises SlipwayError: k3s refuses, or the two differed before.
    """
    if configured.exists() and configured.stat().st_mtime >= since:
        return False
    former = password(configured)
    if password(kept) == former:
        if check:
            return True
        write_atomically(configured.with_name(FORMER), former, 0o600)
        rotate()
        if password(kept) == former:
            raise SlipwayError(f"k3s token rotate ended well, but {kept} holds the old token; nothing was restarted")
    elif kept.stat().st_mtime < since:
        raise SlipwayError(
            f"k3s runs with another token ({kept}) than it would be started with ({configured}). Nothing was changed. Next: write the secret part of "
            "the first, after its last colon, to the second, and run this again."
        )
    # Else a run was interrupted right here.
    if not check:
        write_atomically(configured, password(kept), 0o600)
    return True


def renew_agent(configured: Path, since: float, check: bool = False) -> bool:
    """Have an agents' token that is newer than `since`; return whether it is another one now."""
    if configured.exists() and configured.stat().st_mtime >= since:
        return False
    if not check:
        write_atomically(configured, secrets.token_hex(AGENT_TOKEN_BYTES), 0o600)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "of": {"type": "str", "choices": ["server", "agent"], "required": True},
            "since": {"type": "float", "required": True},
            "config": {"type": "path", "default": "/etc/rancher/k3s"},
            "data": {"type": "path", "default": "/var/lib/rancher/k3s/server"},
        },
        supports_check_mode=True,
    )
    config, data, since = Path(module.params["config"]), Path(module.params["data"]), module.params["since"]
    try:
        if module.params["of"] == "server":
            changed = renew_server(config / "token", data / "token", since, module.check_mode)
        else:
            changed = renew_agent(config / "agent-token", since, module.check_mode)
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Ansible module: a file with a random secret, made once where it is used."""

from __future__ import annotations

DOCUMENTATION = r"""
module: random_file
short_description: Make a file with a random secret unless it exists
description:
  - The value is made on the node, in the kernel's random generator, and never travels to the controller.
  - An existing, non-empty file is never changed, but for its mode and owner.
options:
  path:
    description: The file; its directory must exist.
    type: path
    required: true
  bytes:
    description: Bytes of randomness; the file holds twice as many hexadecimal digits.
    type: int
    default: 32
  recover_from:
    description: A file with a k3s token, C(K10<hash>::<user>:<password>). If it exists, its password is taken instead of a new one.
    type: path
author: [Slipway]
"""

EXAMPLES = r"""
- name: Make a token
  random_file:
    path: /etc/rancher/k3s/token
"""

RETURN = r"""# """

import secrets
import stat
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.files import write_atomically


def value(count: int, recover_from: Path | None) -> str:
    """Return the password in the k3s token file `recover_from`, or `count` new random bytes as hexadecimal digits."""
    if recover_from and recover_from.exists():
        password = recover_from.read_text().strip().rpartition(":")[2]
        if not password:
            raise ValueError(
                f"{recover_from}: holds no k3s token; restore it, the cluster's data cannot be read without it"
            )
        return password
    return secrets.token_hex(count)


def ensure(path: Path, count: int, recover_from: Path | None, check: bool) -> bool:
    """Make `path` with the secret of `value`, mode 0600; return whether anything changed."""
    if path.exists() and path.stat().st_size:
        if stat.S_IMODE(path.stat().st_mode) == 0o600:
            return False
        if not check:
            path.chmod(0o600)
        return True
    if not check:
        write_atomically(path, value(count, recover_from), 0o600)
    return True


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "bytes": {"type": "int", "default": 32},
            "recover_from": {"type": "path"},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["path"])
    if not module.check_mode and not path.parent.is_dir():
        module.fail_json(msg=f"{path.parent} is not a directory")
    recover_from = Path(module.params["recover_from"]) if module.params["recover_from"] else None
    try:
        changed = ensure(path, module.params["bytes"], recover_from, module.check_mode)
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=changed)


if __name__ == "__main__":
    main()

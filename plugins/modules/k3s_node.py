#!/usr/bin/python
"""Ansible module: make a cluster forget a machine."""

from __future__ import annotations

DOCUMENTATION = r"""
module: k3s_node
short_description: Remove what a cluster knows of a machine
description:
  - Runs on a server that is up and asks its own API.
  - With a Node of a server k3s removes its member of etcd, and with any Node the password by which servers know the machine again.
  - Pods bound to the Node go too, without waiting for a machine that answers no more.
  - A Node whose machine runs is left alone, and the module fails; a machine that has just died counts as ready for its last 40 seconds.
options:
  name:
    description: Name of the node.
    type: str
    required: true
  state:
    description:
      - C(absent) removes the Node.
      - C(unbound) only removes the password, for a machine that was installed anew and still holds the data of its member of etcd.
      - C(readmitted) does so too and leaves the pods, for the same machine, whose password may be another one than in a restored datastore.
    type: str
    choices: [absent, unbound, readmitted]
    default: absent
  patience:
    description: Seconds in which the Node must have become not ready; 0 removes it as it is, for one whose k3s was stopped.
    type: int
    default: 60
  timeout:
    description: Seconds in which Node and member must be gone.
    type: int
    default: 120
author: [Slipway]
"""

EXAMPLES = r"""
- name: Let go of a server that is lost
  k3s_node:
    name: server-1
  delegate_to: server-2
"""

RETURN = r"""
found:
  description: Whether the cluster had such a Node.
  returned: success
  type: bool
"""

import time
from typing import TYPE_CHECKING

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import kubectl
from ansible.module_utils.slipway.k3s_members import Member, ask

if TYPE_CHECKING:
    from collections.abc import Callable

INTERVAL_S = 2.0


def find(name: str) -> Member | None:
    """The Node of that name. Raises SlipwayError."""
    return next((member for member in ask() if member.name == name), None)


def await_gone(
    name: str,
    patience: float,
    seen: Callable[[str], Member | None] = find,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Member | None:
    """The Node, once it is not ready any more; None where there is none.

    Raises SlipwayError when it still is after `patience` seconds, or the API does not answer for that long.
    """
    end = clock() + patience
    while True:
        over = clock() >= end
        try:
            node = seen(name)
        except SlipwayError:
            if over:
                raise
        else:
            if node is None or not node.ready or patience <= 0:
                return node
            if over:
                raise SlipwayError(
                    f"a node of the name {name} is running. If two machines have this name, rename one of them; if the running one is to go or "
                    "to be replaced, switch it off first, or remove it with playbooks/remove_node.yml."
                )
        sleep(INTERVAL_S)


def forget(name: str, state: str, timeout: int) -> None:
    """Remove the Node, or only the machine's password, and the pods bound to it unless it is the same machine. Raises SlipwayError."""
    words = ["node", name]
    if state != "absent":
        words = ["secret", f"{name}.node-password.k3s", "--namespace=kube-system"]
    kubectl("delete", *words, "--ignore-not-found", f"--timeout={timeout}s", timeout=timeout + 10)
    if state == "readmitted":
        return
    # Pods bound to the name would start on a new machine as they were, with addresses of the old one's network.
    kubectl(
        "delete",
        "pods",
        "--all-namespaces",
        f"--field-selector=spec.nodeName={name}",
        "--force",
        "--grace-period=0",
        "--wait=false",
        timeout=timeout,
    )


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["absent", "unbound", "readmitted"], "default": "absent"},
            "patience": {"type": "int", "default": 60},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    params = module.params
    # Kubernetes registers nodes in lower case.
    name = params["name"].lower()
    try:
        node = await_gone(name, params["patience"])
        if node is not None and not module.check_mode:
            forget(name, params["state"], params["timeout"])
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=node is not None, found=node is not None)


if __name__ == "__main__":
    main()

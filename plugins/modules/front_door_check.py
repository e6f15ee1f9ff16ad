#!/usr/bin/python
"""Module: what must be right before the front door is made."""

from __future__ import annotations

DOCUMENTATION = r"""
module: front_door_check
short_description: Judge the settings of the front door and the cluster that it is for
description:
  - Reads only, and fails with every problem that it finds.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of the front door.
    type: str
    default: front-door
  domain:
    description: Domain of the site.
    type: str
    required: true
  disabled:
    description: Packaged components that k3s is told to leave out.
    type: list
    elements: str
    default: []
  links:
    description: Links that users add to the start page.
    type: list
    elements: dict
    default: []
  names:
    description: DNS names that a given certificate must be valid for.
    type: list
    elements: str
    default: []
  certificate:
    description: File with the certificate that is given, if there is one.
    type: path
  key:
    description: File with its key.
    type: path
  auth_middleware:
    description: Middleware that asks people who they are, instead of the one that is made.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for Traefik, which k3s installs after it has started.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Only reads; does not wait.
author: Slipway
"""

EXAMPLES = r"""
- name: Judge the front door's settings
  front_door_check:
    kubeconfig: "{{ slipway_kubeconfig }}"
    domain: ml.example.org
"""

RETURN = r"""# """

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.certificates import Pair, utc_now
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.front_door import (
    CLASS,
    check_or_raise,
    cluster_problems,
    domain_problem,
    link_problems,
)
from ansible.module_utils.slipway.kube import Kube, KubeClient


def settings_problems(params: dict[str, Any], warn: Any) -> list[str]:
    """What is wrong with the settings alone."""
    found = [reason for reason in [domain_problem(params["domain"])] if reason]
    found += link_problems(params["links"])
    if CLASS in params["disabled"]:
        found.append(
            "k3s_disable has traefik, which is the front door: take traefik out of it (and servicelb, unless something else gives "
            "Services of type LoadBalancer their addresses), run playbooks/site.yml again; or take front_door out of slipway_components"
        )
    if params["certificate"]:
        try:
            pair = Pair.load(params["certificate"], params["key"])
            found += [f"front_door_certificate: {problem}" for problem in pair.problems(utc_now(), params["names"])]
            for warning in pair.soon(utc_now()):
                warn(f"front_door_certificate: {warning}")
        except SlipwayError as error:
            found.append(f"front_door_certificate: {error}")
    return found


def await_cluster(kube: Kube, params: dict[str, Any], timeout: float) -> list[str]:
    """What is in the way in the cluster, once Traefik has had its time."""
    end = time.monotonic() + timeout
    while True:
        found = cluster_problems(kube, params["namespace"], params["auth_middleware"])
        if not found or time.monotonic() >= end or "no Traefik" not in found[0]:
            return found
        time.sleep(1)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "front-door"},
            "domain": {"type": "str", "required": True},
            "disabled": {"type": "list", "elements": "str", "default": []},
            "links": {"type": "list", "elements": "dict", "default": []},
            "names": {"type": "list", "elements": "str", "default": []},
            "certificate": {"type": "path"},
            # The file's path, not the key.
            "key": {"type": "path", "no_log": False},
            "auth_middleware": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 120},
        },
        required_together=[("certificate", "key")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        found = settings_problems(params, module.warn)
        # Where k3s leaves Traefik out there is nothing to wait for.
        waits = not found and not module.check_mode
        if CLASS not in params["disabled"]:
            found += await_cluster(KubeClient(params["kubeconfig"]), params, params["timeout"] if waits else 0)
        check_or_raise(found)
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False)


if __name__ == "__main__":
    main()

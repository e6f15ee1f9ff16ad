#!/usr/bin/python
"""Module: a volume whose data outlives its claim."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kept_volume
short_description: Ensure a volume whose data outlives its claim and the namespace
description:
  - C(present) makes a claim. Where a volume was kept for a claim of that namespace and name before, the claim gets that one again, with
    all its data.
  - C(kept) waits until the claim is bound, has its volume outlive it (reclaim policy Retain) and marks it by the label C(slipway/volume).
    C(present) does so too where the claim is bound already. Most classes make a volume only for the first pod that uses it, hence two states.
  - C(absent) removes the claim and keeps the volume. The command in RV(remove) then deletes the data.
  - C(aside) removes the claim, keeps the volume, and has no claim find it again; it carries the label C(slipway/set-aside) then.
  - A volume grows where its class allows it. It never shrinks, and never changes its class; both are refused.
  - Where the data lies on a node that is not in the cluster any more, it fails and says what waits for what.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of the claim. It must exist, except in check mode.
    type: str
    required: true
  name:
    description: Name of the claim.
    type: str
    required: true
  state:
    description: What to see to.
    type: str
    choices: [present, kept, absent, aside]
    default: present
  size:
    description: Size of the volume, as a Kubernetes quantity. Required but for C(absent) and C(aside).
    type: str
  storage_class:
    description: Storage class; empty takes the cluster's default for a new volume and leaves that of an old one.
    type: str
    default: ""
  access_modes:
    description: How a new volume may be used.
    type: list
    elements: str
    default: [ReadWriteOnce]
  labels:
    description: Labels of a new claim.
    type: dict
    default: {}
  annotations:
    description: Annotations of a new claim.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait for a claim to be bound, or to be gone.
    type: int
    default: 60
  kubectl:
    description: How commands in messages call kubectl.
    type: path
    default: kubectl
attributes:
  check_mode:
    support: full
    description: Judges everything and reports what would be done, without waiting.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: The repository has a volume
  kept_volume:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: git
    name: git-data
    size: 10Gi

- name: It outlives the namespace
  kept_volume:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: git
    name: git-data
    size: 10Gi
    state: kept
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
volume:
  description: Name of the volume, empty where there is none yet.
  returned: success
  type: str
restored:
  description: Whether the claim was made on a volume that was kept for it.
  returned: success
  type: bool
kept:
  description: Whether the volume outlives its claim.
  returned: success
  type: bool
remove:
  description: The command that deletes the volume and its data, once no claim uses it.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.volumes import KeptVolume, Wanted, remove_command


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "kept", "absent", "aside"], "default": "present"},
            "size": {"type": "str"},
            "storage_class": {"type": "str", "default": ""},
            "access_modes": {"type": "list", "elements": "str", "default": ["ReadWriteOnce"]},
            "labels": {"type": "dict", "default": {}},
            "annotations": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 60},
            "kubectl": {"type": "path", "default": "kubectl"},
        },
        required_if=[("state", "present", ["size"]), ("state", "kept", ["size"])],
        supports_check_mode=True,
    )
    params = module.params
    kubectl = f"{params['kubectl']} --kubeconfig {params['kubeconfig']}"
    try:
        wanted = Wanted(
            params["namespace"],
            params["name"],
            params["size"] or "0",
            params["storage_class"],
            tuple(params["access_modes"]),
            *({key: str(value) for key, value in params[name].items()} for name in ("labels", "annotations")),
        )
        volume = KeptVolume(KubeClient(params["kubeconfig"]), wanted, module.check_mode, params["timeout"], kubectl)
        outcome = getattr(volume, params["state"])()
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    for warning in outcome.warnings:
        module.warn(warning)
    module.exit_json(
        changed=bool(outcome.changes),
        changes=outcome.changes,
        volume=outcome.volume,
        restored=outcome.restored,
        kept=outcome.kept,
        remove=remove_command(kubectl, outcome.volume) if outcome.volume else "",
    )


if __name__ == "__main__":
    main()

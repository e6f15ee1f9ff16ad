#!/usr/bin/python
"""Module: a Kubernetes Secret that follows another one."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_mirror
short_description: Keep keys of a Kubernetes Secret in step with those of another
description:
  - For a program that wants a credential under a name, in a namespace or beside fixed values of its own. Makes the Secret if it is missing.
  - No value is ever returned, shown in a diff or logged.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of the Secret; it must exist.
    type: str
    required: true
  name:
    description: Name of the Secret.
    type: str
    required: true
  source:
    description: The Secret that is followed. It must exist, but in check mode.
    type: dict
    required: true
    suboptions:
      namespace:
        description: Its namespace.
        type: str
        required: true
      name:
        description: Its name.
        type: str
        required: true
  keys:
    description: Which of its keys are taken over; names in the Secret, each with the name in the source.
    type: dict
    required: true
  values:
    description: Keys with fixed values that are no secrets, such as an address.
    type: dict
    default: {}
  labels:
    description: Labels that the Secret must have; others are left alone.
    type: dict
    default: {}
  exclusive:
    description: Whether keys that are not named are removed.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Reports what would be set and removed.
  diff_mode:
    support: full
    description: Shows names of keys and labels, no values.
author: Slipway
"""

EXAMPLES = r"""
- name: Argo CD knows the webhooks' key
  secret_mirror:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: argocd
    name: argocd-secret
    source: {namespace: git, name: git-webhook}
    keys: {webhook.github.secret: secret}
"""

RETURN = r"""
set:
  description: Keys that were set; in check mode, that would be.
  returned: success
  type: list
  elements: str
removed:
  description: Keys that were removed; in check mode, that would be.
  returned: success
  type: list
  elements: str
fingerprint:
  description: >-
    Changes with the values taken over, so that what reads them only when it starts can be restarted. Do not show that of a password
    that a person has chosen.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.mirror import Mirror, mirror


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "source": {
                "type": "dict",
                "required": True,
                "options": {
                    "namespace": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            # Names only.
            "keys": {"type": "dict", "required": True, "no_log": False},
            "values": {"type": "dict", "default": {}},
            "labels": {"type": "dict", "default": {}},
            "exclusive": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    wanted = Mirror(
        namespace=params["namespace"],
        name=params["name"],
        source_namespace=params["source"]["namespace"],
        source_name=params["source"]["name"],
        keys=params["keys"],
        values={key: str(value) for key, value in params["values"].items()},
        labels={label: str(value) for label, value in params["labels"].items()},
        exclusive=params["exclusive"],
    )
    try:
        outcome = mirror(KubeClient(params["kubeconfig"]), wanted, check=module.check_mode)
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=outcome.changed,
        set=outcome.set,
        removed=outcome.removed,
        fingerprint=outcome.fingerprint,
        diff={
            "before": {},
            "after": {"keys_set": outcome.set, "keys_removed": outcome.removed, "labels_set": outcome.labels}
            if outcome.changed
            else {},
        },
    )


if __name__ == "__main__":
    main()

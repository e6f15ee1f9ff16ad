#!/usr/bin/python
"""Module: a Kubernetes Secret whose missing keys are generated."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_secret
short_description: Ensure that a Kubernetes Secret exists and has certain keys
description:
  - Makes the Secret on first use and afterwards only adds keys that are missing.
  - A key that exists is never changed, and no value is ever returned, shown in a diff or logged.
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
  keys:
    description: The keys that must be there.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the key.
        type: str
        required: true
      value:
        description: Secret value for the key if it is missing; without it and I(public) the value is random.
        type: str
      public:
        description: Value for the key if it is missing that is no secret, such as a user's name.
        type: str
      length:
        description: Number of random characters, 16 to 256.
        type: int
        default: 32
      alphabet:
        description: Which characters a random value is made of.
        type: str
        default: alphanumeric
        choices: [alphanumeric, lowercase, hex, digits]
  type:
    description: Type of the Secret when it is made; that of an existing one cannot change.
    type: str
    default: Opaque
  labels:
    description: Labels that the Secret must have; others are left alone.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: Reports what would be added.
  diff_mode:
    support: full
    description: Shows names of keys and labels, no values.
author: Slipway
"""

EXAMPLES = r"""
- name: MinIO has root credentials
  cluster_secret:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: minio
    name: minio-root
    keys:
      - {name: rootUser, public: slipway-root}
      - {name: rootPassword, length: 40}
"""

RETURN = r"""
existing:
  description: Keys that were there before.
  returned: success
  type: list
  elements: str
added:
  description: Keys that were added; in check mode, that would be.
  returned: success
  type: list
  elements: str
fingerprint:
  description: >-
    Changes with the values of the keys named, so that what reads them only when it starts can be restarted. Empty where check mode does
    not know them yet. Do not show that of a password that a person has chosen.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.secrets import ALPHABETS, Key, ensure

MIN_LENGTH = 16
MAX_LENGTH = 256


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "keys": {
                "type": "list",
                "elements": "dict",
                "required": True,
                # The values inside are hidden; the names must stay readable.
                "no_log": False,
                "options": {
                    "name": {"type": "str", "required": True},
                    "value": {"type": "str", "no_log": True},
                    "public": {"type": "str"},
                    "length": {"type": "int", "default": 32},
                    "alphabet": {"type": "str", "default": "alphanumeric", "choices": list(ALPHABETS)},
                },
                "mutually_exclusive": [("value", "public")],
            },
            "type": {"type": "str", "default": "Opaque"},
            "labels": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    params = module.params
    keys = [
        Key(key["name"], key["length"], key["alphabet"], key["public"] if key["value"] is None else key["value"])
        for key in params["keys"]
    ]
    for key in keys:
        if key.value is None and not MIN_LENGTH <= key.length <= MAX_LENGTH:
            module.fail_json(msg=f"key {key.name}: length {key.length} is not within {MIN_LENGTH}..{MAX_LENGTH}")
    try:
        outcome = ensure(
            KubeClient(params["kubeconfig"]),
            params["namespace"],
            params["name"],
            keys,
            {label: str(value) for label, value in params["labels"].items()},
            kind=params["type"],
            check=module.check_mode,
        )
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=outcome.changed,
        existing=outcome.existing,
        added=outcome.added,
        fingerprint=outcome.fingerprint,
        diff={
            "before": {"keys": outcome.existing},
            "after": {"keys": sorted(outcome.existing + outcome.added), "labels_set": outcome.labels}
            if outcome.changed
            else {"keys": outcome.existing},
        },
    )


if __name__ == "__main__":
    main()

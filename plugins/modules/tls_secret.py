#!/usr/bin/python
"""Module: a TLS Secret from files on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tls_secret
short_description: Ensure that a Secret holds the certificate and the key in two files
description:
  - Judges the files first; nothing is written where they do not exist, do not fit each other, have expired or are for other names.
  - The key is read here and goes to the API only; it is never returned, shown in a diff or logged.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of the Secret.
    type: str
    required: true
  name:
    description: Name of the Secret, of type kubernetes.io/tls.
    type: str
    required: true
  certificate:
    description: File with the certificate, followed by those that lead to its root, in PEM form.
    type: path
    required: true
  key:
    description: File with its key, in PEM form and not encrypted.
    type: path
    required: true
  names:
    description: DNS names that the certificate must be valid for.
    type: list
    elements: str
    default: []
  authority:
    description: Whether the certificate must be able to issue others, and the file must end with the root.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Judges the files and reports whether the Secret would change.
  diff_mode:
    support: full
    description: Shows fingerprints only.
author: Slipway
"""

EXAMPLES = r"""
- name: The front door has the certificate of our company
  tls_secret:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: front-door
    name: front-door-given
    certificate: /secure/front-door.crt
    key: /secure/front-door.key
    names: [ml.example.org]
"""

RETURN = r"""
fingerprint:
  description: SHA-256 of the certificate.
  returned: success
  type: str
"""

import base64
import binascii

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.certificates import Pair, fingerprint, parse_chain, utc_now
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeClient, ObjectKube
from ansible.module_utils.slipway.objects import FIELD_MANAGER, MANAGED_BY


def secret(namespace: str, name: str, pair: Pair) -> Json:
    """The Secret."""
    data = {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(MANAGED_BY)},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def shown(found: Json | None) -> str:
    """What a diff says of the Secret that is there."""
    try:
        pem = base64.b64decode((found or {})["data"]["tls.crt"]).decode()
        return f"certificate SHA-256 {fingerprint(parse_chain(pem, 'tls.crt')[0])}\n"
    except (KeyError, TypeError, binascii.Error, UnicodeDecodeError, SlipwayError):
        return "" if found is None else "no certificate\n"


def ensure(kube: ObjectKube, namespace: str, name: str, pair: Pair, check: bool) -> tuple[bool, str]:
    """Write the Secret unless it holds the pair; return whether that was (or is) needed, and what a diff says of it before."""
    path = secrets.path(namespace, name)
    wanted = secret(namespace, name, pair)
    found = kube.get(path)
    labels = ((found or {}).get("metadata") or {}).get("labels") or {}
    if found and found.get("data") == wanted["data"] and wanted["metadata"]["labels"].items() <= labels.items():
        return False, shown(found)
    if not check:
        kube.apply(path, wanted, FIELD_MANAGER)
    return True, shown(found)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "certificate": {"type": "path", "required": True},
            # The file's path, not the key.
            "key": {"type": "path", "required": True, "no_log": False},
            "names": {"type": "list", "elements": "str", "default": []},
            "authority": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        pair = Pair.load(params["certificate"], params["key"])
        if problems := pair.problems(utc_now(), params["names"], params["authority"]):
            raise SlipwayError("; ".join(problems))
        for warning in pair.soon(utc_now()):
            module.warn(warning)
        changed, before = ensure(
            KubeClient(params["kubeconfig"]), params["namespace"], params["name"], pair, module.check_mode
        )
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    after = fingerprint(pair.chain[0])
    module.exit_json(
        changed=changed,
        fingerprint=after,
        diff={"before": before, "after": f"certificate SHA-256 {after}\n"},
    )


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: what a command in a pod prints or reads, as an encrypted file of an archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pod_archive
short_description: Bring what a command in a pod prints into a site's archive, and back into a pod
description:
  - C(saved) encrypts what the command prints, as it comes, to a file of the archive that M(site_archive) has begun.
  - C(noted) keeps what the command prints, a JSON object that is not secret, in the archive's manifest.
  - C(restored) gives the command the content of a file as its input.
  - Nothing of it is on the controller unencrypted, nor in memory but for a piece.
  - Runs on the controller.
extends_documentation_fragment: [kube, kube.kubectl]
options:
  namespace:
    description: Namespace of the pod.
    type: str
    required: true
  target:
    description: The pod, or what has it, such as C(deployment/mysql).
    type: str
    required: true
  container:
    description: The container in it. It must have C(sh).
    type: str
    required: true
  command:
    description: The command and its arguments, nothing secret among them.
    type: list
    elements: str
    required: true
  state:
    description: Which way.
    type: str
    choices: [saved, noted, restored]
    required: true
  path:
    description: The archive.
    type: path
    required: true
  part:
    description: What the content is of, such as the component's name.
    type: str
    required: true
  file:
    description: The content's name in the archive, but for C(noted).
    type: str
  recipients:
    description: Public keys to encrypt for, with C(saved).
    type: list
    elements: str
    default: []
  identity_file:
    description: File with a secret key, with C(restored).
    type: path
attributes:
  check_mode:
    support: full
    description: Predicts a change and makes none.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Save a database
  pod_archive:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    namespace: shop
    target: deployment/mysql
    container: mysql
    command: [mysqldump, --all-databases]
    state: saved
    path: "{{ backup_archive }}"
    part: shop
    file: shop.sql
    recipients: "{{ backup_recipients }}"
"""

RETURN = r"""
bytes:
  description: Length of the content.
  returned: with C(saved), but for check mode
  type: int
"""

import io
import json
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.age import decrypt, encrypt, read_identities, read_recipients
from ansible.module_utils.slipway.backup import SUFFIX, add_part, draft
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.pod_exec import Place, pod_input, pod_output


def _facts(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise SlipwayError(f"the command printed no JSON object but {said[:200]!r}")
    return found


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "container": {"type": "str", "required": True},
            "command": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["saved", "noted", "restored"], "required": True},
            "path": {"type": "path", "required": True},
            "part": {"type": "str", "required": True},
            "file": {"type": "str"},
            "recipients": {"type": "list", "elements": "str", "default": []},
            "identity_file": {"type": "path"},
        },
        required_if=[("state", "saved", ["file", "recipients"]), ("state", "restored", ["file", "identity_file"])],
        supports_check_mode=True,
    )
    params = module.params
    if module.check_mode:
        module.exit_json(changed=True)
    place = Place(*(params[key] for key in ("kubectl", "kubeconfig", "namespace", "target", "container")))
    command = params["command"]
    archive, name = Path(params["path"]), f"{params['file']}{SUFFIX}"
    try:
        if params["state"] == "restored":
            identities = read_identities(Path(params["identity_file"]))
            decrypt(archive / name, identities, lambda source: pod_input(place, command, source))
            module.exit_json(changed=True)
        if params["state"] == "noted":
            said = io.BytesIO()
            pod_output(place, command, said)
            add_part(archive, params["part"], {}, _facts(said.getvalue()))
            module.exit_json(changed=True)
        digest, total = encrypt(
            draft(archive) / name,
            read_recipients(params["recipients"]),
            lambda sink: pod_output(place, command, sink),
        )
        add_part(archive, params["part"], {params["file"]: digest}, {"bytes": total})
    except (SlipwayError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=True, bytes=total)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: other logins for consumers of PostgreSQL."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_rotation
short_description: Give consumers of a PostgreSQL in the cluster other logins while their clients go on
description:
  - C(begun) makes the consumer's second login, a role with a password of its own that acts as the first one, connects as it, and has the
    Secret C(postgresql-<consumer>) name it.
  - C(ended), once clients have what the Secret says, waits until nobody uses the former login, and takes its password away. Whoever is still
    there fails it; both logins then stay.
  - What was begun is noted at the Secret, so that the same calls go on after an interruption.
  - Runs on the controller.
extends_documentation_fragment: [kube, kube.kubectl]
options:
  state:
    description: How far to go.
    type: str
    choices: [begun, ended]
    required: true
  namespace:
    description: Namespace of PostgreSQL and of the Secrets.
    type: str
    default: postgresql
  pod:
    description: The server's pod.
    type: str
    default: postgresql-0
  container:
    description: The server's container in it.
    type: str
    default: postgresql
  consumers:
    description: Whose logins.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      namespaces:
        description: Where its pods run; those that are about to end are awaited.
        type: list
        elements: str
        required: true
  cared_for:
    description: Names of consumers whose pods have been started anew. Of the others C(ended) wants to see one that uses the new login.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds within which nobody may use a former login any more.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Reports which logins would be made and locked.
  diff_mode:
    support: full
    description: Lists the changes; never a password.
author: Slipway
"""

EXAMPLES = r"""
- name: Airflow gets a second login
  postgresql_rotation:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    state: begun
    consumers: [{name: airflow, namespaces: [airflow]}]
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

from collections.abc import Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.port_forward import port_forward
from ansible.module_utils.slipway.postgresql import sql_in_pod
from ansible.module_utils.slipway.postgresql_rotation import Holder, Rotation

# Seconds for what takes a moment.
QUICK = 60


def run(module: AnsibleModule) -> list[str]:
    # Imported here, as nobody else needs the client library.
    from ansible.module_utils.slipway.postgresql_external import answer_faults

    params = module.params
    place = (params["kubectl"], params["kubeconfig"])

    def faults(values: Mapping[str, str]) -> list[str]:
        return answer_faults(
            values, lambda space, name, port: port_forward(*place, space, f"service/{name}", port, QUICK), QUICK
        )

    rotation = Rotation(
        KubeClient(params["kubeconfig"]),
        sql_in_pod(*place, params["namespace"], params["pod"], params["container"], QUICK),
        params["namespace"],
        faults,
        module.check_mode,
        passwords=module.no_log_values,
    )
    for item in params["consumers"]:
        if params["state"] == "begun":
            rotation.begin(item["name"])
        else:
            holder = Holder(item["name"], tuple(item["namespaces"]), item["name"] in params["cared_for"])
            rotation.end(holder, params["timeout"])
    return rotation.changes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["begun", "ended"], "required": True},
            "namespace": {"type": "str", "default": "postgresql"},
            "pod": {"type": "str", "default": "postgresql-0"},
            "container": {"type": "str", "default": "postgresql"},
            "consumers": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "namespaces": {"type": "list", "elements": "str", "required": True},
                },
            },
            "cared_for": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    end_with_changes(module, lambda: run(module))


if __name__ == "__main__":
    main()

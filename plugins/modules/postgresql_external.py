#!/usr/bin/python
"""Module: whether a PostgreSQL that somebody else runs can be used."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_external
short_description: Judge the Secrets of PostgreSQL's consumers, and the server that they lead to
description:
  - Each Secret C(postgresql-<consumer>) needs the keys C(host), C(port), C(database), C(username), C(password), C(uri) and C(ca.crt).
  - Connects as each consumer does, with TLS and the server's name checked, and fails with everything that is wrong and what to do about it.
  - Changes nothing. Runs on the controller; Services of the cluster (C(<name>.<namespace>.svc)) are reached by C(kubectl port-forward).
extends_documentation_fragment: [kube, kube.kubectl]
options:
  namespace:
    description: Namespace of the Secrets.
    type: str
    default: postgresql
  consumers:
    description: Names of the consumers.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds until a server must answer.
    type: int
    default: 10
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: The company's server lets Airflow in
  postgresql_external:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    consumers: [airflow]
"""

RETURN = r"""
faults:
  description: What is wrong, where it fails.
  returned: failure
  type: list
  elements: str
"""

import base64

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import postgresql, secrets
from ansible.module_utils.slipway.changes import end_with_faults
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.port_forward import port_forward
from ansible.module_utils.slipway.postgresql_secrets import secret_name


def run(module: AnsibleModule) -> list[str]:
    # Imported here, as nobody else needs the client library.
    from ansible.module_utils.slipway.postgresql_external import answer_faults, secret_faults

    params = module.params
    names, namespace = params["consumers"], params["namespace"]
    faults = postgresql.problems(names)
    kube = KubeClient(params["kubeconfig"])
    for name in [] if faults else names:
        where = f"Secret {namespace}/{secret_name(name)}"
        secret = kube.get(secrets.path(namespace, secret_name(name)))
        if secret is None:
            faults.append(f"{where} is not there")
            continue
        try:
            values = {
                key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items() if value
            }
        except ValueError:
            faults.append(f"{where}: not all of it is text")
            continue
        module.no_log_values.update(value for key in ("password", "uri") if (value := values.get(key)))
        found = secret_faults(values) or answer_faults(
            values,
            lambda space, service, port: port_forward(
                params["kubectl"], params["kubeconfig"], space, f"service/{service}", port, params["timeout"]
            ),
            params["timeout"],
        )
        faults += [f"{where}: {fault}" for fault in found]
    return faults


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "postgresql"},
            "consumers": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    end_with_faults(module, lambda: run(module), "The external PostgreSQL cannot be used; nothing was changed:")


if __name__ == "__main__":
    main()

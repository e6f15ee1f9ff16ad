#!/usr/bin/python
"""Module: databases and roles of PostgreSQL."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_databases
short_description: Ensure a database and a role for each consumer of a PostgreSQL in the cluster
description:
  - Makes for each consumer a role that may log in and nothing else, and a database that belongs to it and that nobody else may use. Both have
    the consumer's name, with C(_) for C(-).
  - Passwords are those of the Secrets C(postgresql-<consumer>). The server gets verifiers of them (SCRAM), never the passwords; a role whose
    verifier is not that of its Secret gets another.
  - Where the Secret's C(username) is the consumer's second login, C(<name>.2), that one is made too and acts as the first, which then has no
    password, unless M(postgresql_rotation) is under way.
  - A role that is no consumer any more cannot connect. Databases and roles are never removed, as they hold data.
  - Runs on the controller. SQL goes to C(psql) in the server's own container over the Kubernetes API, where the superuser is known by the
    operating system's user; the superuser has no password.
extends_documentation_fragment: [kube, kube.kubectl]
options:
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
    description: Names of the consumers.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds for one call.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Reports what is missing or differs; counts everything as missing where the server's pod is not there.
  diff_mode:
    support: full
    description: Lists the changes; neither passwords nor verifiers.
author: Slipway
"""

EXAMPLES = r"""
- name: Airflow has a database
  postgresql_databases:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    consumers: [airflow]
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

import base64

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import postgresql, secrets
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Kube, KubeClient
from ansible.module_utils.slipway.postgresql import Consumer, login_of
from ansible.module_utils.slipway.postgresql_secrets import former, secret_name


def _consumer(kube: Kube, namespace: str, name: str, check: bool) -> Consumer | None:
    """A consumer with the password of its Secret; None where there is none, which only check mode allows."""
    values = secrets.read(kube, namespace, secret_name(name), ["password"])
    secret = kube.get(secrets.path(namespace, secret_name(name)))
    if values is None or secret is None:
        if check:
            return None
        raise SlipwayError(f"there is no Secret {namespace}/{secret_name(name)}")
    try:
        postgresql.verifier(values["password"], b"salt", 1)
    except SlipwayError as error:
        raise SlipwayError(f"Secret {namespace}/{secret_name(name)}: {error}") from error
    username = base64.b64decode(secret["data"].get("username") or "").decode()
    return Consumer(name, values["password"], login_of(name, username), rotating=bool(former(secret)))


def run(module: AnsibleModule) -> list[str]:
    params = module.params
    names, namespace = params["consumers"], params["namespace"]
    if faults := postgresql.problems(names):
        raise SlipwayError("PostgreSQL is unchanged; fix the consumers first: " + "; ".join(faults))
    kube = KubeClient(params["kubeconfig"])
    found = [_consumer(kube, namespace, name, module.check_mode) for name in names]
    module.no_log_values.update(each.password for each in found if each)
    # Of one without a Secret everything is new, so any password will do to tell.
    consumers = [each or Consumer(name, "unknown") for name, each in zip(names, found, strict=True)]
    if module.check_mode and kube.get(f"/api/v1/namespaces/{namespace}/pods/{params['pod']}") is None:
        return [change.text for change in postgresql.plan(postgresql.NOTHING, consumers)]

    place = (params["kubectl"], params["kubeconfig"], namespace, params["pod"], params["container"])
    sql = postgresql.sql_in_pod(*place, params["timeout"])
    changes = postgresql.plan(postgresql.read_state(sql), consumers)
    if not module.check_mode:
        postgresql.apply(sql, changes)
    return [change.text for change in changes]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "postgresql"},
            "pod": {"type": "str", "default": "postgresql-0"},
            "container": {"type": "str", "default": "postgresql"},
            "consumers": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    end_with_changes(module, lambda: run(module))


if __name__ == "__main__":
    main()

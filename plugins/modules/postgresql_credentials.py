#!/usr/bin/python
"""Module: where the consumers of PostgreSQL find their credentials."""

from __future__ import annotations

DOCUMENTATION = r"""
module: postgresql_credentials
short_description: Ensure the Secrets of PostgreSQL's consumers
description:
  - Keeps a Secret C(postgresql-<consumer>) for each consumer, keys C(host), C(port), C(database), C(username), C(password), C(uri) and
    C(ca.crt). The password is generated once; a changed one stays, and C(uri) follows it.
  - Secrets of consumers that are not listed any more are removed.
  - Does not need PostgreSQL to run; M(postgresql_databases) makes databases and roles.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of PostgreSQL and of the Secrets; it must exist.
    type: str
    required: true
  host:
    description: Name under which consumers reach the server, one of its certificate's.
    type: str
    required: true
  port:
    description: Port of the server.
    type: int
    default: 5432
  authority:
    description: Secret in I(namespace) whose key C(ca.crt) holds the certificate of who signed the server's.
    type: str
    required: true
  consumers:
    description: Names of the consumers.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    description: Reports what is missing or differs.
  diff_mode:
    support: full
    description: Names Secrets and keys; never a value.
author: Slipway
"""

EXAMPLES = r"""
- name: Airflow has credentials for its database
  postgresql_credentials:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: postgresql
    host: postgresql.postgresql.svc
    authority: postgresql-tls
    consumers: [airflow]
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import postgresql
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.postgresql_secrets import Credentials


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "host": {"type": "str", "required": True},
            "port": {"type": "int", "default": 5432},
            "authority": {"type": "str", "required": True},
            "consumers": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params

    def work() -> list[str]:
        if faults := postgresql.problems(params["consumers"]):
            raise SlipwayError("nothing is changed; fix the consumers first: " + "; ".join(faults))
        kube = KubeClient(params["kubeconfig"])
        made = Credentials(
            kube, params["namespace"], params["host"], params["port"], params["authority"], module.check_mode
        )
        return made.apply(params["consumers"])

    end_with_changes(module, work)


if __name__ == "__main__":
    main()

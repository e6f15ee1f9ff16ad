#!/usr/bin/python
"""Module: where the tenants of MinIO find their credentials."""

from __future__ import annotations

DOCUMENTATION = r"""
module: minio_tenants
short_description: Ensure the namespaces and Secrets of MinIO's tenants, and copies of these Secrets
description:
  - Generates each tenant's credentials in the Secret named, keys C(accessKey), C(secretKey) and C(endpoint). Existing keys stay; C(endpoint)
    follows I(endpoint).
  - Keeps copies of it in other namespaces, under the same name. Copies that are not listed any more are removed.
  - Does not need MinIO to run; M(minio_access) makes the users.
  - Runs on the controller.
extends_documentation_fragment: [kube, minio_tenants]
options:
  endpoint:
    description: Where tenants reach MinIO, as C(host:port).
    type: str
    required: true
  owned:
    description:
      - Namespaces that others look after. They are made where they are missing, and stay as they are.
      - Other namespaces of Secrets get the Pod Security level restricted. Those of copies are only made, too, and are not marked as
        Slipway's own, so that Argo CD may take them over.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    support: full
    description: Reports what is missing or differs.
  diff_mode:
    support: full
    description: Lists the changes; never a credential.
author: Slipway
"""

EXAMPLES = r"""
- name: The model service may read models
  minio_tenants:
    kubeconfig: "{{ slipway_kubeconfig }}"
    endpoint: minio.minio.svc:9000
    tenants:
      - name: epos-serving
        read: [epos-models]
        secret: {namespace: epos, name: minio-epos-serving}
        copies: [epos-dev, epos-prod]
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.minio_access import TENANT_OPTIONS
from ansible.module_utils.slipway.minio_tenants import Credential, Tenants


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "endpoint": {"type": "str", "required": True},
            "owned": {"type": "list", "elements": "str", "default": []},
            "tenants": {"type": "list", "elements": "dict", "required": True, "options": TENANT_OPTIONS},
        },
        supports_check_mode=True,
    )
    params = module.params
    credentials = [
        Credential(item["name"], item["secret"]["namespace"], item["secret"]["name"], tuple(item["copies"]))
        for item in params["tenants"]
    ]

    def work() -> list[str]:
        kube = KubeClient(params["kubeconfig"])
        return Tenants(kube, params["endpoint"], frozenset(params["owned"]), module.check_mode).apply(credentials)

    end_with_changes(module, work)


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: whether an object store that somebody else runs can be used."""

from __future__ import annotations

DOCUMENTATION = r"""
module: minio_external
short_description: Judge the Secrets for an object store of somebody else, and what that store answers
description:
  - With I(root_secret), signs in as the administrator who is to make buckets and users. Without it, signs in as each tenant by the keys
    C(accessKey) and C(secretKey) of its Secret, and lists its buckets.
  - Fails with everything that is wrong and what to do about it. Changes nothing.
  - Runs on the controller; Services of the cluster (C(<name>.<namespace>.svc)) are reached by C(kubectl port-forward).
extends_documentation_fragment: [kube, kube.kubectl, minio_tenants]
options:
  endpoint:
    description: Where the store is, as C(host:port).
    type: str
    required: true
  root_secret:
    description: Secret with the keys C(rootUser) and C(rootPassword) of an administrator.
    type: dict
    suboptions:
      namespace:
        description: Namespace of the Secret.
        type: str
        required: true
      name:
        description: Name of the Secret.
        type: str
        required: true
  timeout:
    description: Seconds until the store must answer.
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
- name: The company's store lets every tenant in
  minio_external:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    endpoint: store.example.com:9000
    tenants:
      - name: epos
        buckets: [epos-data]
        secret: {namespace: epos, name: minio-epos}
"""

RETURN = r"""
faults:
  description: What is wrong, where it fails.
  returned: failure
  type: list
  elements: str
"""

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.changes import end_with_faults
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Kube, KubeClient
from ansible.module_utils.slipway.minio_access import TENANT_OPTIONS, Login, read_tenant
from ansible.module_utils.slipway.port_forward import way_to


def _judge(
    kube: Kube, namespace: str, name: str, keys: tuple[str, str], look: Callable[[Login], list[str]]
) -> list[str]:
    where = f"Secret {namespace}/{name}"
    try:
        values = secrets.read(kube, namespace, name, keys)
    except SlipwayError as error:
        return [str(error)]
    if values is None:
        return [
            f"{where} is not there. Make it: kubectl -n {namespace} create secret generic {name} "
            + " ".join(f"--from-file={key}=<file>" for key in keys)
        ]
    faults = [
        f"{where}: {key} ends in a line break; make it from a file without one (printf %s ... > file)"
        for key, value in values.items()
        if value != value.strip()
    ]
    return faults or [f"{where}: {fault}" for fault in look(Login(values[keys[0]], values[keys[1]]))]


def run(module: AnsibleModule) -> list[str]:
    # Imported here, as only a real server needs the SDK.
    from ansible.module_utils.slipway.minio_external import administrator_faults, store_faults

    params = module.params
    endpoint, timeout, root = params["endpoint"], params["timeout"], params["root_secret"]
    kube = KubeClient(params["kubeconfig"])
    with way_to(params["kubectl"], params["kubeconfig"], endpoint, timeout) as address:
        if root:

            def administrator(login: Login) -> list[str]:
                module.no_log_values.add(login.secret_key)
                return administrator_faults(endpoint, address, login, timeout)

            return _judge(kube, root["namespace"], root["name"], ("rootUser", "rootPassword"), administrator)
        faults: list[str] = []
        for item in params["tenants"]:
            tenant = read_tenant(item)

            def look(login: Login, buckets: tuple[str, ...] = (*tenant.buckets, *tenant.read)) -> list[str]:
                module.no_log_values.add(login.secret_key)
                return store_faults(endpoint, address, login, buckets, timeout)

            faults += _judge(kube, tenant.secret_namespace, tenant.secret_name, ("accessKey", "secretKey"), look)
        return faults


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "endpoint": {"type": "str", "required": True},
            # Names of Secrets, not their contents.
            "root_secret": {
                "type": "dict",
                "no_log": False,
                "options": {"namespace": {"type": "str", "required": True}, "name": {"type": "str", "required": True}},
            },
            "tenants": {"type": "list", "elements": "dict", "required": True, "options": TENANT_OPTIONS},
            "timeout": {"type": "int", "default": 10},
        },
        supports_check_mode=True,
    )
    end_with_faults(module, lambda: run(module), "The external store cannot be used; nothing was changed:")


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: buckets, users and policies of MinIO."""

from __future__ import annotations

DOCUMENTATION = r"""
module: minio_access
short_description: Ensure buckets, users and policies of a MinIO in the cluster
description:
  - Makes each tenant's buckets, a policy that allows exactly these and to read those named, and a user with that policy only.
  - Sets what expires in a bucket; rules that others have made for it stay. Versioning and quotas are set where they are named, and stay
    as they are elsewhere.
  - Refuses a bucket that is there and was nobody's of the tenants, before it changes anything.
  - All credentials are read from Secrets in the cluster.
  - A user whose secret key differs from its Secret gets that of the Secret.
  - Buckets, policies and users that are not listed are left alone, but for the former key of a tenant that is not rotating.
  - Runs on the controller and reaches MinIO by C(kubectl port-forward), which ends with the task.
extends_documentation_fragment: [kube, kube.kubectl, minio_tenants]
options:
  namespace:
    description: Namespace of MinIO.
    type: str
    default: minio
  service:
    description: Name of MinIO's S3 Service.
    type: str
    default: minio
  port:
    description: Port of the Service.
    type: int
    default: 9000
  endpoint:
    description: Where a MinIO of somebody else is, as C(host:port), in place of I(service); its administrator is that of I(root_secret).
    type: str
    default: ""
  adopt:
    description: Buckets that are there, and may become those of the tenants that list them.
    type: list
    elements: str
    default: []
  root_secret:
    description: Secret in I(namespace) with the root credentials, under the keys C(rootUser) and C(rootPassword).
    type: str
    default: minio-root
  timeout:
    description: Seconds to wait until MinIO answers.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Reports what is missing or differs; counts everything as missing where MinIO is not there yet.
  diff_mode:
    support: full
    description: Lists the changes; never a credential.
author: Slipway
"""

EXAMPLES = r"""
- name: The training pipeline has its buckets and user
  minio_access:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    tenants:
      - name: epos
        buckets: [datasets, models]
        secret: {namespace: pipelines, name: minio-epos}
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import minio_access, minio_rotation, secrets
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Kube, KubeClient
from ansible.module_utils.slipway.minio_access import TENANT_OPTIONS, Login, Tenant
from ansible.module_utils.slipway.port_forward import way_to


def _login(kube: Kube, namespace: str, name: str, keys: tuple[str, str], check: bool) -> Login | None:
    """Credentials from a Secret; None where it is missing, which only check mode allows."""
    values = secrets.read(kube, namespace, name, keys)
    if values is None and not check:
        raise SlipwayError(f"there is no Secret {namespace}/{name}")
    return Login(values[keys[0]], values[keys[1]]) if values else None


def _is_rotating(kube: Kube, tenant: Tenant) -> bool:
    secret = kube.get(secrets.path(tenant.secret_namespace, tenant.secret_name))
    return secret is not None and bool(minio_rotation.state(secret))


def run(module: AnsibleModule) -> list[str]:
    params = module.params
    tenants = [minio_access.read_tenant(item) for item in params["tenants"]]
    minio_access.check_or_raise(minio_access.problems(tenants))
    check: bool = module.check_mode
    kube = KubeClient(params["kubeconfig"])
    root = _login(kube, params["namespace"], params["root_secret"], ("rootUser", "rootPassword"), check)
    found = {
        tenant.name: _login(kube, tenant.secret_namespace, tenant.secret_name, ("accessKey", "secretKey"), check)
        for tenant in tenants
    }
    logins = {name: login for name, login in found.items() if login}
    rotating = {tenant.name for tenant in tenants if _is_rotating(kube, tenant)}
    absent = not params["endpoint"] and (
        kube.get(f"/api/v1/namespaces/{params['namespace']}/services/{params['service']}") is None
    )
    if root is None or (check and absent):
        return [change.text for change in minio_access.plan(minio_access.Nothing(), tenants, logins)]
    module.no_log_values.update(login.secret_key for login in (root, *logins.values()))
    minio_access.check_or_raise(minio_access.login_problems(logins, root))

    # Imported here, as only a real server needs the SDK.
    from ansible.module_utils.slipway.minio_client import MinioStore

    endpoint = params["endpoint"] or f"{params['service']}.{params['namespace']}.svc:{params['port']}"
    with way_to(params["kubectl"], params["kubeconfig"], endpoint, params["timeout"]) as address:
        store = MinioStore(address, root)
        store.await_ready(params["timeout"])
        with store.errors():
            if not store.accepts(root):
                raise SlipwayError(
                    f"MinIO refuses the credentials of Secret {params['namespace']}/{params['root_secret']}; "
                    "was the Secret changed without a restart of MinIO's pods?"
                )
            minio_access.check_or_raise(minio_access.foreign_buckets(store, tenants, logins, params["adopt"]))
            changes = minio_access.plan(store, tenants, logins, rotating)
            for change in [] if check else changes:
                change.do(store)
    return [change.text for change in changes]


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "minio"},
            "service": {"type": "str", "default": "minio"},
            "port": {"type": "int", "default": 9000},
            "endpoint": {"type": "str", "default": ""},
            "adopt": {"type": "list", "elements": "str", "default": []},
            # Names of Secrets, not their contents.
            "root_secret": {"type": "str", "default": "minio-root", "no_log": False},
            "tenants": {"type": "list", "elements": "dict", "required": True, "options": TENANT_OPTIONS},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    end_with_changes(module, lambda: run(module))


if __name__ == "__main__":
    main()

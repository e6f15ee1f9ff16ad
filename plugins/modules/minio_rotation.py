#!/usr/bin/python
"""Module: other keys for tenants of MinIO."""

from __future__ import annotations

DOCUMENTATION = r"""
module: minio_rotation
short_description: Give tenants of a MinIO other keys while their clients go on
description:
  - C(begun) makes a second user for each tenant, with the same policy, and has its Secret name that one.
  - C(handed_over), once copies of the Secret have it, restarts Deployments, StatefulSets and DaemonSets that take the Secret into their
    environment, and notes which pods may have the former key.
  - C(ended) waits until these pods are gone, and removes the former user. Pods that are still there fail it; both keys then stay valid.
  - What was begun is noted at the Secret, so that the same calls go on after an interruption.
  - Runs on the controller.
extends_documentation_fragment: [kube, kube.kubectl, minio_tenants]
options:
  state:
    description: How far to go.
    type: str
    choices: [begun, handed_over, ended]
    required: true
  endpoint:
    description: Where MinIO is, as C(host:port); a Service of the cluster is reached by C(kubectl port-forward).
    type: str
    default: minio.minio.svc:9000
  namespace:
    description: Namespace of I(root_secret).
    type: str
    default: minio
  root_secret:
    description: Secret with the root credentials, under the keys C(rootUser) and C(rootPassword).
    type: str
    default: minio-root
  owned:
    description: Namespaces whose workloads others restart.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait until MinIO answers, and until pods with the former key are gone.
    type: int
    default: 60
attributes:
  check_mode:
    support: partial
    description: Reports which keys would be made and removed, not which workloads would restart.
  diff_mode:
    support: full
    description: Lists the changes; never a credential.
author: Slipway
"""

EXAMPLES = r"""
- name: The training gets a second key
  minio_rotation:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    state: begun
    tenants:
      - name: epos
        secret: {namespace: epos, name: minio-epos}
        copies: [airflow]
"""

RETURN = r"""
changes:
  description: One line for each change made; in check mode, for each that is due.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.changes import end_with_changes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.minio_access import TENANT_OPTIONS, Login
from ansible.module_utils.slipway.minio_rotation import Holder, Rotation
from ansible.module_utils.slipway.port_forward import way_to


def run(module: AnsibleModule) -> list[str]:
    # Imported here, as only a real server needs the SDK.
    from ansible.module_utils.slipway.minio_client import MinioStore

    params = module.params
    holders = [
        Holder(item["name"], item["secret"]["name"], (item["secret"]["namespace"], *item["copies"]))
        for item in params["tenants"]
    ]
    kube = KubeClient(params["kubeconfig"])
    values = secrets.read(kube, params["namespace"], params["root_secret"], ("rootUser", "rootPassword"))
    if values is None:
        raise SlipwayError(f"there is no Secret {params['namespace']}/{params['root_secret']}; run site.yml first")
    root = Login(values["rootUser"], values["rootPassword"])
    module.no_log_values.add(root.secret_key)
    with way_to(params["kubectl"], params["kubeconfig"], params["endpoint"], params["timeout"]) as address:
        store = MinioStore(address, root)
        store.await_ready(params["timeout"])
        rotation = Rotation(kube, store, module.check_mode, secret_keys=module.no_log_values)
        with store.errors():
            for holder in holders:
                match params["state"]:
                    case "begun":
                        rotation.begin(holder)
                    case "handed_over":
                        rotation.hand_over(holder, params["owned"])
                    case _:
                        rotation.end(holder, params["timeout"])
    return rotation.changes


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["begun", "handed_over", "ended"], "required": True},
            "endpoint": {"type": "str", "default": "minio.minio.svc:9000"},
            "namespace": {"type": "str", "default": "minio"},
            # Names of Secrets, not their contents.
            "root_secret": {"type": "str", "default": "minio-root", "no_log": False},
            "tenants": {"type": "list", "elements": "dict", "required": True, "options": TENANT_OPTIONS},
            "owned": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    end_with_changes(module, lambda: run(module))


if __name__ == "__main__":
    main()

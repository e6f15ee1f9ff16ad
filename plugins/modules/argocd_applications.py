#!/usr/bin/python
"""Module: Applications and ApplicationSets of Argo CD."""

from __future__ import annotations

DOCUMENTATION = r"""
module: argocd_applications
short_description: See that Argo CD follows its repository, or take its Applications away
description:
  - C(ready) waits until the ApplicationSets make their Applications and the Applications are in step with Git, and fails with evidence
    when they are not. Where Argo CD works and only the content of the repository is wrong, it warns.
  - C(absent) removes every ApplicationSet and Application of the namespace. What they have deployed stays.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  namespace:
    description: Namespace of Argo CD.
    type: str
    required: true
  state:
    description: What to see to.
    type: str
    choices: [ready, absent]
    default: ready
  application_sets:
    description: Names of the ApplicationSets that C(ready) waits for.
    type: list
    elements: str
    default: []
  applications:
    description: Names of the Applications that C(ready) waits for.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 120
  kubectl:
    description: How the command for the next step calls kubectl.
    type: path
    default: kubectl
attributes:
  check_mode:
    support: full
    description: C(ready) looks once and reports in RV(waiting), without waiting or failing. C(absent) reports what would be removed.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Wait until Argo CD follows the repository
  argocd_applications:
    kubeconfig: "{{ slipway_kubeconfig }}"
    namespace: argocd
    application_sets: [dev, prod]
    applications: [platform]
"""

RETURN = r"""
waiting:
  description: What is not as it should be; empty but in check mode, and where only the content of the repository is wrong.
  returned: C(ready)
  type: list
  elements: str
removed:
  description: What was removed; in check mode, what would be.
  returned: C(absent)
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.argocd import await_accepted, evidence, remove_all
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "namespace": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["ready", "absent"], "default": "ready"},
            "application_sets": {"type": "list", "elements": "str", "default": []},
            "applications": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 120},
            "kubectl": {"type": "path", "default": "kubectl"},
        },
        supports_check_mode=True,
    )
    params, check = module.params, module.check_mode
    namespace = params["namespace"]
    try:
        kube = KubeClient(params["kubeconfig"])
        if params["state"] == "absent":
            removed = remove_all(kube, namespace, params["timeout"], check)
            module.exit_json(changed=bool(removed), removed=removed)
        found = await_accepted(
            kube, namespace, params["application_sets"], params["applications"], 0 if check else params["timeout"]
        )
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    kubectl = f"{params['kubectl']} --kubeconfig {params['kubeconfig']}"
    if not check and not all(finding.accepted for finding in found):
        module.fail_json(msg=evidence(found, namespace, kubectl))
    for finding in found:
        module.warn(str(finding))
    module.exit_json(changed=False, waiting=[str(finding) for finding in found])


if __name__ == "__main__":
    main()

#!/usr/bin/python
"""Module: what is to be done about a Helm release."""

from __future__ import annotations

DOCUMENTATION = r"""
module: helm_state
short_description: Tell what is to be done about a Helm release
description:
  - Compares the newest record of a release with a chart and values, and the objects of its manifest with those in the cluster.
  - Changes nothing; its secrets stay in the module. Runs on the controller.
extends_documentation_fragment: [kube]
options:
  release:
    description: Name of the release.
    type: str
    required: true
  namespace:
    description: Namespace of the release.
    type: str
    required: true
  chart:
    description: Path of the packed chart.
    type: path
    required: true
  values:
    description: The chart's values.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
author: Slipway
"""

EXAMPLES = r"""
- name: Look at MinIO's release
  helm_state:
    kubeconfig: "{{ slipway_kubeconfig }}"
    release: minio
    namespace: minio
    chart: "{{ slipway_bundle_dir }}/charts/minio-5.4.0.tgz"
  register: minio_release
"""

RETURN = r"""
install:
  description: Whether the release is missing or its chart, its values or its last operation are not what they should be.
  returned: success
  type: bool
unfinished:
  description: Name of the Secret that records an operation which never ended or failed; empty if there is none.
  returned: success
  type: str
drifted:
  description: Objects of a release that is otherwise as it should be, which are missing or were changed by hand, as Helm creates them.
  returned: success
  type: list
  elements: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.helm import drifted, read_chart, read_record, same_values
from ansible.module_utils.slipway.kube import KubeClient


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "release": {"type": "str", "required": True},
            "namespace": {"type": "str", "required": True},
            "chart": {"type": "path", "required": True},
            "values": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    release, namespace = module.params["release"], module.params["namespace"]
    try:
        kube = KubeClient(module.params["kubeconfig"])
        chart = read_chart(Path(module.params["chart"]))
        record = read_record(kube, release, namespace)
        ended = record is not None and record.status == "deployed"
        same = record is not None and record.chart == chart and same_values(module.params["values"], record.values)
        changed = (
            [wanted for _, wanted in drifted(kube, record, release, namespace)] if record and ended and same else []
        )
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=False,
        install=not (ended and same),
        unfinished=record.secret if record and not ended else "",
        drifted=changed,
    )


if __name__ == "__main__":
    main()

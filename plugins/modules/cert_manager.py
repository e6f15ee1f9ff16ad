#!/usr/bin/python
"""Module: what cert-manager must have done before others can rely on it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cert_manager
short_description: See that cert-manager answers and issues, and that people keep trusting what it issues
description:
  - C(judged) compares the authority in the cluster, or the one in I(certificate), with the one that was exported earlier to I(export),
    and fails where another one would sign from now on; people trust the exported one. A renewed one with the same name and key is the same.
  - C(answering) waits until the webhook judges what it is asked for.
  - C(issuing) waits until the ClusterIssuer I(issuer) issues, exports the authority's certificate, and has certificates that an earlier
    authority signed issued anew. Without I(secret) there is no authority to export.
  - C(issued) waits until the Certificates I(certificates) are there, signed by the authority that I(issuer) has now.
  - Runs on the controller.
extends_documentation_fragment: [kube]
options:
  state:
    description: What to see to.
    type: str
    required: true
    choices: [judged, answering, issuing, issued]
  namespace:
    description: Namespace of cert-manager.
    type: str
    default: cert-manager
  issuer:
    description: Name of the ClusterIssuer.
    type: str
    default: slipway
  secret:
    description: Name of the Secret that holds the authority; empty where the issuer has none of its own.
    type: str
    default: ""
  export:
    description: File on the controller that holds the certificate that people trust.
    type: path
  certificate:
    description: File with the certificate of an own authority.
    type: path
  key:
    description: File with the key of I(certificate); judged with it.
    type: path
  accept:
    description: Whether another authority than the exported one is accepted.
    type: bool
    default: false
  certificates:
    description: Certificates to wait for.
    type: list
    elements: dict
    default: []
    suboptions:
      namespace:
        description: Namespace of the Certificate.
        type: str
        required: true
      name:
        description: Its name.
        type: str
        required: true
  timeout:
    description: Seconds to wait at most.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    description: Looks once and reports in RV(waiting) what is not ready, without waiting or failing.
  diff_mode:
    support: full
    description: Shows the exported certificate before and after.
author: Slipway
"""

EXAMPLES = r"""
- name: Wait until cert-manager's webhook answers
  cert_manager:
    kubeconfig: "{{ slipway_kubeconfig }}"
    state: answering
"""

RETURN = r"""
waiting:
  description: Why each thing is not ready; empty but in check mode.
  returned: success
  type: dict
renewed:
  description: Certificates that are issued anew; in check mode, that would be.
  returned: C(issuing) and C(issued)
  type: list
  elements: str
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import cert_manager
from ansible.module_utils.slipway.cert_manager import Authority
from ansible.module_utils.slipway.certificates import Pair, describe, utc_now
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeClient


class Run:
    """One run of the module; its methods are the states, raise SlipwayError, and return what the module returns."""

    def __init__(self, kube: Kube, params: dict[str, Any], check: bool) -> None:
        self.kube = kube
        self.params = params
        self.check = check
        self.timeout: float = 0 if check else params["timeout"]

    @property
    def authority(self) -> Authority:
        """The authority that the parameters name."""
        return Authority(self.params["namespace"], self.params["secret"], Path(self.params["export"]))

    def judged(self) -> Json:
        """Compare the authority with the exported one."""
        given: tuple[Any, ...] = ()
        if self.params["certificate"]:
            pair = Pair.load(self.params["certificate"], self.params["key"])
            if problems := pair.problems(utc_now(), authority=True):
                raise SlipwayError("; ".join(problems))
            given = pair.chain
        self.authority.judge(self.authority.chain(self.kube), given, self.params["accept"])
        return {}

    def answering(self) -> Json:
        """Wait for the webhook."""
        namespace = self.params["namespace"]
        return {"waiting": self._wait(lambda: {"cert-manager's webhook": cert_manager.answers(self.kube, namespace)})}

    def issuing(self) -> Json:
        """Wait for the issuer, export the authority, renew what an earlier one has signed."""
        issuer = self.params["issuer"]
        waiting = self._wait(lambda: {f"ClusterIssuer {issuer}": cert_manager.unready_issuer(self.kube, issuer)})
        if not self.params["secret"]:
            return {"waiting": waiting}
        authority = self.authority
        # The issuer is ready as soon as it has read the Secret.
        chain = authority.chain(self.kube)
        if not chain:
            if self.check:
                return {"changed": True, "waiting": waiting, "renewed": []}
            raise SlipwayError(f"{authority.where} holds no certificate although ClusterIssuer {issuer} is ready")
        before = authority.export(chain, self.check)
        renewed, still = self._renew(chain[0], lambda _: True)
        waiting |= still
        result: Json = {"changed": before is not None or bool(renewed), "waiting": waiting, "renewed": renewed}
        if before is not None:
            path = str(authority.exported)
            after = describe(chain[-1]) + "\n"
            result["diff"] = {"before_header": path, "after_header": path, "before": before, "after": after}
        return result

    def issued(self) -> Json:
        """Wait for Certificates, and renew those that an earlier authority has signed."""
        names = [f"{item['namespace']}/{item['name']}" for item in self.params["certificates"]]
        waiting = self._wait(
            lambda: {
                f"Certificate {name}": cert_manager.unready_certificate(self.kube, *name.split("/")) for name in names
            }
        )
        signer = cert_manager.signer(self.kube, self.params["issuer"], self.params["namespace"])
        if signer is None:
            return {"waiting": waiting, "renewed": []}
        renewed, still = self._renew(signer, lambda name: name in names)
        return {"changed": bool(renewed), "waiting": waiting | still, "renewed": renewed}

    def _renew(self, signer: Any, chosen: Callable[[str], bool]) -> tuple[list[str], dict[str, str]]:
        """Have what another one than `signer` has signed issued anew; return what that is and what is still waited for."""

        def old() -> list[Json]:
            found = cert_manager.outdated(self.kube, self.params["issuer"], signer)
            return [item for item in found if chosen(cert_manager.label(item))]

        def look() -> dict[str, str]:
            reason = "it is still the one that the earlier authority has signed"
            return {f"Certificate {cert_manager.label(item)}": reason for item in old()}

        renewed = old()
        for item in [] if self.check else renewed:
            cert_manager.renew(self.kube, item, utc_now())
        return [cert_manager.label(item) for item in renewed], self._wait(look) if renewed else {}

    def _wait(self, look: Any) -> dict[str, str]:
        waiting = cert_manager.wait(look, self.timeout)
        if waiting and not self.check:
            reasons = "; ".join(f"{what}: {why}" for what, why in waiting.items())
            raise SlipwayError(
                f"Not ready after {self.timeout:.0f} s: {reasons}. "
                f"Look at: kubectl -n {self.params['namespace']} logs deployment/cert-manager"
            )
        return waiting


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "state": {"type": "str", "required": True, "choices": ["judged", "answering", "issuing", "issued"]},
            "namespace": {"type": "str", "default": "cert-manager"},
            "issuer": {"type": "str", "default": "slipway"},
            # The Secret's name, not its content.
            "secret": {"type": "str", "default": "", "no_log": False},
            "export": {"type": "path"},
            "certificate": {"type": "path"},
            # The file's path, not the key.
            "key": {"type": "path", "no_log": False},
            "accept": {"type": "bool", "default": False},
            "certificates": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "namespace": {"type": "str", "required": True},
                    "name": {"type": "str", "required": True},
                },
            },
            "timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "judged", ["secret", "export"])],
        required_together=[("certificate", "key")],
        supports_check_mode=True,
    )
    try:
        run = Run(KubeClient(module.params["kubeconfig"]), module.params, module.check_mode)
        result = getattr(run, module.params["state"])()
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**{"changed": False, "waiting": {}, **result})


if __name__ == "__main__":
    main()

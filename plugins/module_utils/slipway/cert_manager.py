"""What cert-manager has issued: the site's authority, who trusts it, and certificates that must be renewed."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.certificates import describe, is_issued_by, parse_chain, same_authority
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, items
from cryptography import x509
from cryptography.hazmat.primitives import serialization

API = "/apis/cert-manager.io/v1"
ACME = "/apis/acme.cert-manager.io/v1"
ACCEPT = "-e cert_manager_accept_new_ca=true"


@dataclass(frozen=True)
class Authority:
    """Who signs: the Secret with the chain, whose last certificate is what people trust."""

    namespace: str
    secret: str
    # What people were given: the file on the controller.
    exported: Path

    @property
    def where(self) -> str:
        """The Secret in words."""
        return f"Secret {self.namespace}/{self.secret}"

    def chain(self, kube: Kube) -> list[x509.Certificate]:
        """The certificates in the cluster, empty where there are none. Raises SlipwayError where they are no certificates."""
        found = kube.get(secrets.path(self.namespace, self.secret))
        return _certificates(found, "tls.crt", self.where)

    def trusted(self) -> x509.Certificate | None:
        """The root that people were given, None where none was exported. Raises SlipwayError."""
        try:
            return parse_chain(self.exported.read_text(), str(self.exported))[-1]
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SlipwayError(f"{self.exported}: {error}") from error

    def judge(self, found: list[x509.Certificate], given: Iterable[x509.Certificate], accept: bool) -> None:
        """Refuse to change what people trust without a word.

        Args:
            found: the chain in the cluster.
            given: the chain in the files of an own authority, if there is one.
            accept: whether people are going to trust another one.

        Raises:
            SlipwayError: the authority that signs from now on is not the one that was exported; says how to go on.
        """
        trusted = self.trusted()
        wanted = list(given) or found
        if trusted is None or accept or (wanted and same_authority(trusted, wanted[-1])):
            return
        lost = f"People trust the site by {self.exported}: {describe(trusted)}."
        if not wanted:
            raise SlipwayError(
                f"The site's certificate authority is lost: {self.where} is gone, and its key is nowhere else. {lost} Nothing was changed. "
                f"Restore that Secret from a backup (kubectl apply) and run again. Where there is none, run again with {ACCEPT}: a new authority "
                "is made and exported, and everybody who trusted the old one must be given the new one."
            )
        source = "that is given" if list(given) else f"in {self.where}"
        raise SlipwayError(
            f"The certificate authority {source} is another one: {describe(wanted[-1])}. {lost} Nothing was changed. "
            f"Put back the old one (that Secret from a backup by kubectl apply, or its files), or run again with {ACCEPT}: the other one is exported, "
            "and everybody who trusted the old one must be given it."
        )

    def export(self, chain: list[x509.Certificate], check: bool) -> str | None:
        """Write the root for people; return what was there before if it was (or is) to be written, else None."""
        root = chain[-1].public_bytes(serialization.Encoding.PEM).decode()
        before = self.exported.read_text() if self.exported.is_file() else ""
        if before == root:
            return None
        if not check:
            write_atomically(self.exported, root)
        return before


def answers(kube: Kube, namespace: str) -> str:
    """Why cert-manager's webhook does not judge what it is asked for, empty if it does. Asks by a dry run."""
    issuer = {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Issuer",
        "metadata": {"name": "slipway-dry-run", "namespace": namespace},
        "spec": {"selfSigned": {}},
    }
    try:
        kube.create(f"{API}/namespaces/{namespace}/issuers?dryRun=All", issuer)
    except KubeError as error:
        return str(error)
    return ""


def unready_issuer(kube: Kube, name: str) -> str:
    """Why a ClusterIssuer does not issue, empty if it does."""
    return _unready(kube.get(f"{API}/clusterissuers/{name}"))


def unready_certificate(kube: Kube, namespace: str, name: str) -> str:
    """Why a Certificate is not there, with what its requests say; empty if it is."""
    found = kube.get(f"{API}/namespaces/{namespace}/certificates/{name}")
    reason = _unready(found)
    if found is None or not reason:
        return reason
    said = [reason]
    requests = items(kube, f"{API}/namespaces/{namespace}/certificaterequests")
    own = [item for item in requests if _annotation(item, "cert-manager.io/certificate-name") == name]
    for request in sorted(own, key=lambda item: str(item["metadata"].get("creationTimestamp")))[-1:]:
        said += [
            f"CertificateRequest: {item['message']}"
            for item in _conditions(request)
            if item["status"] != "True" and item.get("message")
        ]
    for challenge in items(kube, f"{ACME}/namespaces/{namespace}/challenges"):
        if why := (challenge.get("status") or {}).get("reason"):
            said.append(f"Challenge for {challenge['spec'].get('dnsName')}: {why}")
    return "; ".join(dict.fromkeys(said))


def signer(kube: Kube, issuer: str, namespace: str) -> x509.Certificate | None:
    """The certificate with whose key a ClusterIssuer signs; None where it has none, as with ACME.

    `namespace` is where cert-manager keeps Secrets of ClusterIssuers.
    """
    found = kube.get(f"{API}/clusterissuers/{issuer}") or {}
    secret = ((found.get("spec") or {}).get("ca") or {}).get("secretName")
    chain = (
        _certificates(kube.get(secrets.path(namespace, secret)), "tls.crt", f"Secret {namespace}/{secret}")
        if secret
        else []
    )
    return chain[0] if chain else None


def outdated(kube: Kube, issuer: str, authority: x509.Certificate) -> list[Json]:
    """The Certificates of a ClusterIssuer that another authority has signed: cert-manager lets them be until they expire."""
    found = []
    for item in items(kube, f"{API}/certificates"):
        reference = item["spec"]["issuerRef"]
        if reference["name"] != issuer or reference.get("kind") != "ClusterIssuer":
            continue
        namespace, secret = item["metadata"]["namespace"], item["spec"]["secretName"]
        try:
            chain = _certificates(kube.get(secrets.path(namespace, secret)), "tls.crt", f"Secret {namespace}/{secret}")
        except SlipwayError:
            # No certificate at all: cert-manager replaces it by itself.
            continue
        if chain and not is_issued_by(chain[0], authority):
            found.append(item)
    return found


def renew(kube: Kube, certificate: Json, now: datetime) -> None:
    """Have cert-manager issue a Certificate anew; the old one serves until then. As `cmctl renew` does it."""
    metadata = certificate["metadata"]
    issuing = {
        "type": "Issuing",
        "status": "True",
        "reason": "ManuallyTriggered",
        "message": "Signed by an authority that was replaced",
        "lastTransitionTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "observedGeneration": metadata.get("generation", 1),
    }
    others = [item for item in _conditions(certificate) if item["type"] != "Issuing"]
    kube.merge_patch(
        f"{API}/namespaces/{metadata['namespace']}/certificates/{metadata['name']}/status",
        {
            "metadata": {"resourceVersion": metadata["resourceVersion"]},
            "status": {"conditions": [*others, issuing]},
        },
    )


def label(item: Json) -> str:
    """`namespace/name` of an object."""
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def wait(
    look: Callable[[], Mapping[str, str]],
    timeout: float,
    interval: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Look until nothing is waited for; return why each thing is still waited for when the time is over."""
    end = clock() + timeout
    while True:
        waiting = {what: why for what, why in look().items() if why}
        if not waiting or clock() >= end:
            return waiting
        time.sleep(interval)


def _conditions(item: Json) -> list[Json]:
    conditions: list[Json] = (item.get("status") or {}).get("conditions") or []
    return conditions


def _annotation(item: Json, name: str) -> Any:
    return (item["metadata"].get("annotations") or {}).get(name)


def _unready(item: Json | None) -> str:
    if item is None:
        return "it does not exist"
    for condition in _conditions(item):
        if condition["type"] == "Ready":
            stale = condition.get("observedGeneration", 0) < item["metadata"].get("generation", 0)
            if condition["status"] == "True":
                return "cert-manager has not looked at its last change yet" if stale else ""
            return str(condition.get("message") or condition.get("reason") or "it is not ready")
    return "cert-manager has not looked at it yet"


def _certificates(secret: Json | None, key: str, source: str) -> list[x509.Certificate]:
    encoded = ((secret or {}).get("data") or {}).get(key)
    if not encoded:
        return []
    try:
        return parse_chain(base64.b64decode(encoded).decode(), f"{source}, key {key},")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise SlipwayError(f"{source}, key {key}, holds no certificate: {error}") from error

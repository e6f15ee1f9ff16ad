"""X.509 certificates and keys in files: read, and judged before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

# Time that people need to get another one.
SOON = timedelta(days=14)


def parse_chain(text: str, source: str) -> list[x509.Certificate]:
    """The certificates in PEM `text`, the first one first. Raises SlipwayError that names `source`."""
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        raise SlipwayError(f"{source} holds no certificate in PEM form") from None


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as browsers and openssl show it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def describe(certificate: x509.Certificate) -> str:
    """A certificate in words: whose, until when, fingerprint."""
    until = certificate.not_valid_after_utc.date()
    return f"{_name(certificate)} (valid until {until}, SHA-256 {fingerprint(certificate)})"


def same_authority(one: x509.Certificate, other: x509.Certificate) -> bool:
    """Whether who trusts one of two CA certificates trusts what the other has issued: same name, same key (a renewed one)."""
    return one.subject == other.subject and _public(one.public_key()) == _public(other.public_key())


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def covers(certificate: x509.Certificate, name: str) -> bool:
    """Whether a certificate is valid for a DNS name; a wildcard stands for one label, also when `name` itself is one."""
    names = [each.lower() for each in _dns_names(certificate)]
    return name in names or f"*.{name.partition('.')[2]}" in names


@dataclass(frozen=True)
class Pair:
    """A certificate with those that lead to its root, and its key, as in the files."""

    chain: tuple[x509.Certificate, ...]
    certificate_pem: str
    key_pem: str = field(repr=False)
    certificate_path: str = ""
    key_path: str = ""

    @classmethod
    def load(cls, certificate: str, key: str) -> Pair:
        """Read both files. Raises SlipwayError with every reason why they are no pair; never shows a key."""
        wrong: list[str] = []
        texts = []
        for path in (certificate, key):
            try:
                texts.append(Path(path).read_text())
            except (OSError, UnicodeDecodeError) as error:
                wrong.append(f"{path}: {getattr(error, 'strerror', None) or 'is no text'}")
        if wrong:
            raise SlipwayError("; ".join(wrong))
        chain = parse_chain(texts[0], certificate)
        private = _parse_key(texts[1], key)
        if _public(chain[0].public_key()) != _public(private.public_key()):
            raise SlipwayError(f"{key} is not the key of the first certificate in {certificate} ({_name(chain[0])})")
        for lower, upper in pairwise(chain):
            if not is_issued_by(lower, upper):
                raise SlipwayError(
                    f"{certificate}: {_name(lower)} is not issued by the certificate that follows it, {_name(upper)}"
                )
        return cls(tuple(chain), texts[0], texts[1], certificate, key)

    def problems(self, now: datetime, names: Sequence[str] = (), authority: bool = False) -> list[str]:
        """Why the certificate does not do.

        Args:
            now: the time, with its zone.
            names: DNS names that it must be valid for.
            authority: whether it must be able to issue certificates.
        """
        found = []
        for each in self.chain:
            if each.not_valid_after_utc <= now:
                found.append(f"{_name(each)} expired on {each.not_valid_after_utc.date()}")
            if each.not_valid_before_utc > now:
                found.append(f"{_name(each)} is valid only from {each.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on")
        if missing := [name for name in names if not covers(self.chain[0], name)]:
            found.append(
                f"it is for {', '.join(_dns_names(self.chain[0])) or 'no DNS name'}, not for {', '.join(missing)}"
            )
        if authority:
            if not _may_issue(self.chain[0]):
                found.append(f"{_name(self.chain[0])} may not issue certificates (CA:TRUE, keyCertSign)")
            if not is_issued_by(self.chain[-1], self.chain[-1]):
                found.append(
                    f"the last certificate, {_name(self.chain[-1])}, is no root: append those up to the root, which people trust"
                )
        return [f"{self.certificate_path}: {reason}" for reason in found]

    def soon(self, now: datetime) -> list[str]:
        """Which certificates end before long."""
        ends = [each for each in self.chain if now < each.not_valid_after_utc <= now + SOON]
        return [f"{self.certificate_path}: {_name(each)} expires on {each.not_valid_after_utc.date()}" for each in ends]


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def _parse_key(text: str, source: str) -> Any:
    try:
        return serialization.load_pem_private_key(text.encode(), password=None)
    except TypeError:
        raise SlipwayError(f"{source} is encrypted; give the key without a passphrase (openssl pkey)") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SlipwayError(f"{source} holds no private key in PEM form") from None


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or (_dns_names(certificate) or ["a certificate without a name"])[0]


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _may_issue(certificate: x509.Certificate) -> bool:
    extensions = certificate.extensions
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound as missing:
        # Without a KeyUsage the key may do everything; without BasicConstraints nothing of this.
        return missing.oid == x509.KeyUsage.oid

"""Certificates and keys for tests, made in memory."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NOW = datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True)
class Made:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key_as(serialization.NoEncryption())

    def key_as(self, encryption: Any) -> str:
        text: bytes = self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        return text.decode()


def make(
    name: str,
    by: Made | None = None,
    names: tuple[str, ...] = (),
    authority: bool = False,
    days: tuple[int, int] = (-1, 100),
    key: Any = None,
) -> Made:
    """A certificate for `name`, signed by `by` or by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
    return Made(builder.sign(by.key if by else key, hashes.SHA256()), key)


def write(folder: Path, stem: str, *chain: Made) -> tuple[str, str]:
    """Write a chain and the key of its first certificate; return both paths."""
    certificate, key = folder / f"{stem}.crt", folder / f"{stem}.key"
    certificate.write_text("".join(each.pem for each in chain))
    key.write_text(chain[0].key_pem)
    return str(certificate), str(key)

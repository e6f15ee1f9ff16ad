"""Archives of a cluster that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from ansible.module_utils.slipway.backup import SUFFIX, write_archive
from ansible.parsing.vault import VaultLib, VaultSecret

SITE, K3S, TIME = "site", "v1.35.8+k3s1", "20261127T120000Z"
PASSWORD = "open-sesame"
SECRETS = {"agent-token": "agents-secret", "snapshot.zip": "snapshot-of-secrets", "token": "servers-secret"}


def write_password(folder: Path, password: str = PASSWORD) -> Path:
    """A password file."""
    path = folder / "password"
    path.write_text(password + "\n")
    return path


def make_archive(folder: Path, k3s: str = K3S, site: str = SITE, time: str = TIME) -> Path:
    """An archive in `folder`, encrypted with PASSWORD."""
    vault = VaultLib([("x", VaultSecret(PASSWORD.encode()))])
    files = {name: vault.encrypt(text.encode()).decode() for name, text in SECRETS.items()}
    return write_archive(folder, site, k3s, time, ("b", "a"), files)


def damage(path: Path, name: str) -> SimpleNamespace:
    """Change one byte of a file; return what undoes it."""
    file = path / f"{name}{SUFFIX}"
    before = file.read_bytes()
    file.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    return SimpleNamespace(undo=lambda: file.write_bytes(before))

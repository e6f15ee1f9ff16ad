"""Archives of a site that is none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyrage
from ansible.module_utils.slipway.age import encrypt_bytes
from ansible.module_utils.slipway.backup import CLUSTER, SUFFIX, add_part, begin_archive, draft, finish_archive

SITE, K3S, TIME = "site", "v1.35.8+k3s1", "20261127T120000Z"
KEY = pyrage.x25519.Identity.generate()
RECIPIENT = str(KEY.to_public())
SECRETS = {"agent-token": "agents-secret", "snapshot.zip": "snapshot-of-secrets", "token": "servers-secret"}


def write_key(folder: Path, key: pyrage.x25519.Identity = KEY) -> Path:
    """A file as age-keygen writes it."""
    path = folder / "key"
    path.write_text(f"# created: today\n# public key: {key.to_public()}\n{key}\n")
    return path


def make_archive(
    folder: Path,
    k3s: str = K3S,
    site: str = SITE,
    time: str = TIME,
    parts: dict[str, tuple[dict[str, str], dict[str, Any]]] | None = None,
) -> Path:
    """An archive in `folder`, encrypted for KEY: the cluster and further `parts`, each with the texts of its files and its facts."""
    archive = folder / time
    begin_archive(archive, site, k3s, ("b", "a"))
    for part, (texts, facts) in {CLUSTER: (SECRETS, {}), **(parts or {})}.items():
        digests = {}
        for name, text in texts.items():
            place = draft(archive) / f"{name}{SUFFIX}"
            digests[name] = encrypt_bytes(place, [KEY.to_public()], text.encode())
        add_part(archive, part, digests, facts)
    finish_archive(archive)
    return archive


def damage(path: Path, name: str) -> SimpleNamespace:
    """Change one byte of a file; return what undoes it."""
    file = path / f"{name}{SUFFIX}"
    before = file.read_bytes()
    file.write_bytes(before[:-3] + bytes([before[-3] ^ 1]) + before[-2:])
    return SimpleNamespace(undo=lambda: file.write_bytes(before))

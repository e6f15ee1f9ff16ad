"""Archives of a site on the controller: a folder with encrypted files and a manifest that holds nothing secret.

How the files are encrypted is the business of who writes and reads them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import file_sha256, write_atomically

MANIFEST = "manifest.json"
# The part that each archive has, and its files under the names that they have before they are encrypted.
CLUSTER = "cluster"
CONTENTS = ("agent-token", "snapshot.zip", "token")
SUFFIX = ".age"
TIME = "%Y%m%dT%H%M%SZ"

_NAME = re.compile(r"\d{8}T\d{6}Z")
# An archive that is being written.
_DRAFT = ".draft-"


@dataclass(frozen=True)
class Part:
    """What an archive has of the cluster or of one component: SHA-256 of each file as it lies there, and what else its restoration asks for."""

    files: Mapping[str, str]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself: site, version of k3s, UTC time (TIME), names of the nodes, its parts by their names."""

    site: str
    k3s: str
    time: str
    nodes: tuple[str, ...]
    parts: Mapping[str, Part]


def draft(archive: Path) -> Path:
    """Where an archive is as long as it is not complete."""
    return archive.with_name(f"{_DRAFT}{archive.name}")


def begin_archive(archive: Path, site: str, k3s: str, nodes: Iterable[str]) -> None:
    """Make an archive without parts; those that others have left half-written go. Raises SlipwayError, OSError."""
    if archive.exists():
        raise SlipwayError(f"{archive} exists: another backup was taken in this second. Run it again.")
    archive.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in archive.parent.glob(f"{_DRAFT}*"):
        shutil.rmtree(left)
    draft(archive).mkdir(mode=0o700)
    _write_manifest(draft(archive), Manifest(site, k3s, archive.name, tuple(sorted(nodes)), {}))


def add_part(archive: Path, name: str, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Have the manifest of a draft name a part: `files` lie there already, by their names before they were encrypted, with their SHA-256."""
    manifest = _read_manifest(draft(archive))
    part = Part({f"{file}{SUFFIX}": digest for file, digest in sorted(files.items())}, facts)
    _write_manifest(draft(archive), Manifest(**{**vars(manifest), "parts": {**manifest.parts, name: part}}))


def finish_archive(archive: Path) -> None:
    """Give an archive its name, as it is complete. Raises SlipwayError, OSError."""
    _require_cluster(draft(archive), _read_manifest(draft(archive)))
    # Its files are on the disk before its name is.
    for folder in (draft(archive), archive.parent):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    draft(archive).rename(archive)


def forget_archives(folder: Path, keep: int) -> list[str]:
    """Remove all archives in `folder` but the newest `keep`; return their names."""
    found = sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file())
    old = found[:-keep]
    for path in old:
        shutil.rmtree(path)
    return [path.name for path in old]


def read_archive(path: Path) -> Manifest:
    """The manifest of an archive that is complete and as it was written. Raises SlipwayError with what is wrong."""
    if not path.is_dir():
        raise SlipwayError(f"{path} is no folder: name an archive of playbooks/backup.yml")
    manifest = _read_manifest(path)
    _require_cluster(path, manifest)
    for part in manifest.parts.values():
        for name, digest in part.files.items():
            if not (path / name).is_file():
                raise SlipwayError(f"{path / name} is missing: the archive is not complete")
            if file_sha256(path / name) != digest:
                raise SlipwayError(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def _require_cluster(path: Path, manifest: Manifest) -> None:
    expected = {f"{name}{SUFFIX}" for name in CONTENTS}
    if CLUSTER not in manifest.parts or set(manifest.parts[CLUSTER].files) != expected:
        raise SlipwayError(f"{path / MANIFEST} is damaged: it should name {', '.join(sorted(expected))}")


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n", 0o600)


def _read_manifest(path: Path) -> Manifest:
    try:
        content = json.loads((path / MANIFEST).read_text())
        parts = {name: Part(dict(part["files"]), dict(part["facts"])) for name, part in content["parts"].items()}
        return Manifest(**{**content, "nodes": tuple(content["nodes"]), "parts": parts})
    except FileNotFoundError:
        raise SlipwayError(f"{path} has no {MANIFEST}, so it is no archive, or not a whole one") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SlipwayError(f"{path / MANIFEST} is damaged: {error!r}") from error


def require_fit(manifest: Manifest, site: str, k3s: str) -> None:
    """Raise SlipwayError unless an archive can be restored on this site with a bundle of this version of k3s; empty takes any."""
    if manifest.site != site:
        raise SlipwayError(
            f"The archive is one of the site {manifest.site}, not of {site}: another cluster's data would take the place of this one's."
        )
    if k3s and manifest.k3s != k3s:
        raise SlipwayError(
            f"The archive is one of k3s {manifest.k3s}, the bundle brings {k3s}, which may not read its data. Give the bundle of that version "
            "(-e slipway_bundle_dir=<folder>); upgrade.yml goes on from there."
        )

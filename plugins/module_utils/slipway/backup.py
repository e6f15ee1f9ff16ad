"""Archives of a cluster on the controller: a folder with encrypted files and a manifest that holds nothing secret.

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

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import file_sha256

MANIFEST = "manifest.json"
# What each archive holds, under the names that it has before it is encrypted.
CONTENTS = ("agent-token", "snapshot.zip", "token")
SUFFIX = ".vault"
TIME = "%Y%m%dT%H%M%SZ"

_NAME = re.compile(r"\d{8}T\d{6}Z")
# An archive that is being written.
_DRAFT = ".draft-"


@dataclass(frozen=True)
class Manifest:
    """What an archive says of itself: site, version of k3s, UTC time (TIME), names of the nodes, SHA-256 of each file as it lies there."""

    site: str
    k3s: str
    time: str
    nodes: tuple[str, ...]
    files: Mapping[str, str]


def write_archive(folder: Path, site: str, k3s: str, time: str, nodes: Iterable[str], files: Mapping[str, str]) -> Path:
    """Write encrypted `files` (by name before they were that) as an archive in `folder`, readable for its owner only; return its path.

    It has its name once it is complete. Raises SlipwayError, OSError.
    """
    archive = folder / time
    if archive.exists():
        raise SlipwayError(f"{archive} exists: another backup was taken in this second. Run it again.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in folder.glob(f"{_DRAFT}*"):
        shutil.rmtree(left)
    draft = folder / f"{_DRAFT}{time}"
    draft.mkdir(mode=0o700)
    for name, text in files.items():
        _write(draft / f"{name}{SUFFIX}", text)
    hashes = {f"{name}{SUFFIX}": file_sha256(draft / f"{name}{SUFFIX}") for name in sorted(files)}
    manifest = Manifest(site, k3s, time, tuple(sorted(nodes)), hashes)
    _write(draft / MANIFEST, json.dumps(asdict(manifest), indent=2) + "\n")
    draft.rename(archive)
    return archive


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


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
    try:
        content = json.loads((path / MANIFEST).read_text())
        manifest = Manifest(**{**content, "nodes": tuple(content["nodes"]), "files": dict(content["files"])})
    except FileNotFoundError:
        raise SlipwayError(f"{path} has no {MANIFEST}, so it is no archive, or not a whole one") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SlipwayError(f"{path / MANIFEST} is damaged: {error!r}") from error
    expected = {f"{name}{SUFFIX}" for name in CONTENTS}
    if set(manifest.files) != expected:
        raise SlipwayError(f"{path / MANIFEST} is damaged: it should name {', '.join(sorted(expected))}")
    for name, digest in sorted(manifest.files.items()):
        if not (path / name).is_file():
            raise SlipwayError(f"{path / name} is missing: the archive is not complete")
        if file_sha256(path / name) != digest:
            raise SlipwayError(f"{path / name} is damaged: its SHA-256 is not the one in {MANIFEST}")
    return manifest


def require_fit(manifest: Manifest, site: str, k3s: str) -> None:
    """Raise SlipwayError unless an archive can be restored on this site with a bundle of this version of k3s."""
    if manifest.site != site:
        raise SlipwayError(
            f"The archive is one of the site {manifest.site}, not of {site}: another cluster's data would take the place of this one's."
        )
    if manifest.k3s != k3s:
        raise SlipwayError(
            f"The archive is one of k3s {manifest.k3s}, the bundle brings {k3s}, which may not read its data. Give the bundle of that version "
            "(-e slipway_bundle_dir=<folder>); upgrade.yml goes on from there."
        )

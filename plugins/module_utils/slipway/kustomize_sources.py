"""Manifests that are published only as kustomizations in source archives, rendered without a look at the network."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.kustomize import build

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
# Keys of a kustomization that name other kustomizations.
_REFERENCES = ("resources", "components", "bases")


@dataclass(frozen=True)
class Source:
    """Folders of an archive, whose files have the hash `hash`. Where `remote` is named in a kustomization at `ref`, they are meant."""

    url: str
    hash: str
    folders: tuple[str, ...]
    remote: str = ""
    ref: str = ""

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Source:
        """From a mapping with these keys."""
        return cls(item["url"], item["hash"], tuple(item["folders"]), item.get("remote", ""), item.get("ref", ""))

    def faults(self) -> list[str]:
        """What is wrong with it, each naming the key."""
        found = []
        try:
            whole = self.hash.startswith("h1:") and len(base64.b64decode(self.hash[3:], validate=True)) == 32
        except ValueError:
            whole = False
        if not whole:
            found.append(f"sources: hash of {self.url}: {self.hash!r} is no h1:<base64 of a SHA-256>")
        if not self.folders:
            found.append(f"sources: folders of {self.url}: none is named")
        if bool(self.remote) != bool(self.ref):
            found.append(f"sources: {self.url}: remote and ref come together")
        return found


def tree_hash(files: Mapping[str, bytes]) -> str:
    """The hash of files by their names, as Go's dirhash (Hash1): equal however they were packed."""
    lines = [f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)]
    return "h1:" + base64.b64encode(hashlib.sha256("".join(lines).encode()).digest()).decode()


def files_of(archive: Path, folders: Sequence[str]) -> dict[str, bytes]:
    """The files of `folders`, by their names without the archive's outermost folder.

    Raises:
        SlipwayError: it cannot be read, or has none of these, or something else than files in them.
    """
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = str(PurePosixPath(*PurePosixPath(member.name).parts[1:]))
                if member.isdir() or not any(name.startswith(f"{folder}/") for folder in folders):
                    continue
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None or ".." in PurePosixPath(name).parts:
                    raise SlipwayError(f"{name} in the archive is no regular file")
                found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SlipwayError(f"the archive cannot be read: {error}") from error
    if missing := [folder for folder in folders if not any(name.startswith(f"{folder}/") for name in found)]:
        raise SlipwayError(f"the archive has no {', '.join(missing)}")
    return found


@dataclass
class Workshop:
    """A folder in which sources are unpacked and rendered."""

    folder: Path
    places: dict[Source, Path] = field(default_factory=dict)

    def unpack(self, source: Source, archive: Path) -> None:
        """Unpack what is needed of an archive. Raises SlipwayError where it does not have the hash."""
        files = files_of(archive, source.folders)
        if (actual := tree_hash(files)) != source.hash:
            raise SlipwayError(
                f"{source.url}: the files of {', '.join(source.folders)} have the hash {actual}, not {source.hash}"
            )
        place = self.folder / str(len(self.places))
        for name, content in files.items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.places[source] = place

    def render(self, kubectl: str, roots: Sequence[str]) -> str:
        """The manifests of `roots`, folders of the first source. Raises SlipwayError."""
        first = next(iter(self.places.values()))
        for root in roots:
            self._localize(first / root, set())
        resources = [os.path.relpath(first / root, self.folder) for root in roots]
        (self.folder / NAMES[0]).write_text(yaml.safe_dump({"resources": resources}))
        return build(kubectl, str(self.folder), ", ".join(roots))

    def _localize(self, folder: Path, seen: set[Path]) -> None:
        """Have a kustomization, and all that it refers to, name unpacked folders instead of addresses."""
        folder = folder.resolve()
        if folder in seen:
            return
        seen.add(folder)
        file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
        if file is None:
            raise SlipwayError(f"{folder.relative_to(self.folder.resolve())}: no kustomization is there")
        content: Json = yaml.safe_load(file.read_text()) or {}
        for key in _REFERENCES:
            if key in content:
                content[key] = [self._local(str(item), folder) for item in content[key]]
                for item in content[key]:
                    if (folder / item).is_dir():
                        self._localize(folder / item, seen)
        file.write_text(yaml.safe_dump(content, sort_keys=False))

    def _local(self, reference: str, folder: Path) -> str:
        if "://" not in reference and not reference.startswith(("github.com/", "git@")):
            return reference
        address, _, query = reference.partition("?")
        refs = [word.partition("=")[2] for word in query.split("&") if word.startswith("ref=")]
        for source, place in self.places.items():
            if source.remote and address.startswith(f"{source.remote}/") and refs == [source.ref]:
                return os.path.relpath(place / address.removeprefix(f"{source.remote}/"), folder)
        raise SlipwayError(f"a kustomization refers to {reference}, which is in no source of the release")

"""Fills a bundle from the official releases that a release file lists."""

from __future__ import annotations

import os
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.slipway.bundle import MANIFEST, SCHEMA, Stamp, is_inside, read_manifest
from ansible.module_utils.slipway.download import Transfer, published_sha256
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.kustomize_sources import Source, Workshop

# Runs a command and returns its exit status and its output: replaced in tests.
Runner = Callable[[Sequence[str]], tuple[int, str]]
# Servers of releases limit how much one address may ask for at once.
_AT_ONCE = 4


def run_command(command: Sequence[str]) -> tuple[int, str]:
    """The real `Runner`."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return 127, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle and where it comes from.

    That is `url`; for kind `image` the reference `image` at `digest`; for kind `kustomize` the folders `roots` of the first of `sources`.
    """

    path: str
    kind: str
    name: str
    version: str = ""
    url: str = ""
    sha256: str = ""
    checksum_url: str = ""
    checksum_name: str = ""
    member: str = ""
    image: str = ""
    digest: str = ""
    images: tuple[str, ...] = field(default=())
    component: str = ""
    roots: tuple[str, ...] = field(default=())
    sources: tuple[Source, ...] = field(default=())

    @property
    def source(self) -> str:
        """Text that is equal for artifacts that are made from the same thing in the same way."""
        if self.kind == "image":
            return f"{self.image}@{self.digest}"
        if self.kind == "kustomize":
            return " ".join([*self.roots, *(f"{each.url} {each.hash} {each.ref}" for each in self.sources)])
        return " ".join((self.url, self.sha256, self.checksum_url, self.checksum_name, self.member)).rstrip()

    def faults(self) -> list[str]:
        """What is wrong with the entry, each naming the key."""
        found = [] if is_inside(self.path) else [f"path {self.path!r} leads out of the bundle"]
        if self.kind == "image":
            if not self.image:
                found.append("image is missing")
            if not self.digest.startswith("sha256:") or len(self.digest) != 71:
                found.append("digest must be sha256:<64 hex digits>; a tag alone can change")
        elif self.kind == "kustomize":
            found += [f"{key} is missing" for key in ("roots", "sources") if not getattr(self, key)]
            found += [fault for each in self.sources for fault in each.faults()]
        else:
            if not self.url:
                found.append("url is missing")
            if bool(self.sha256) == bool(self.checksum_url):
                found.append("exactly one of sha256 and checksum_url is needed")
            if self.sha256 and len(self.sha256) != 64:
                found.append("sha256 must have 64 hex digits")
        return [f"artifact {self.path}: {fault}" for fault in found]


@dataclass
class Filler:
    """Brings artifacts into the directory `bundle`; `arch` is that of images."""

    bundle: Path
    stamp: Stamp
    transfer: Transfer
    arch: str = "amd64"
    skopeo: str = "skopeo"
    run: Runner = run_command

    def is_there(self, artifact: Artifact) -> bool:
        """Whether the file needs no fetching: it is what an earlier run made from the same source, or has the hash."""
        file = self.bundle / artifact.path
        if self.stamp.made_from(file, artifact.source):
            return True
        whole = artifact.sha256 and not artifact.member
        if whole and file.is_file() and self.stamp.sha256(file) == artifact.sha256:
            self.stamp.learn(file, artifact.source)
            return True
        return False

    def fill(self, artifacts: Sequence[Artifact], check: bool = False) -> list[str]:
        """Fetch what is not there and return the paths fetched (with `check`: to be fetched).

        Goes on after a failure, so that one run fetches all that can be had. Raises SlipwayError with every failure.
        """
        if faults := [fault for artifact in artifacts for fault in artifact.faults()]:
            raise SlipwayError("; ".join(faults))
        due = [artifact for artifact in artifacts if not self.is_there(artifact)]
        if check or not due:
            return [artifact.path for artifact in due]

        def attempt(artifact: Artifact) -> str:
            try:
                self._fetch(artifact)
            except (SlipwayError, OSError) as error:
                return f"{artifact.path}: {error}"
            return ""

        failures: list[str] = []
        # What is rendered needs the bundle's own kubectl, so it comes last.
        for rendered in (False, True):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                now = [artifact for artifact in due if (artifact.kind == "kustomize") == rendered]
                failures += [line for line in pool.map(attempt, now) if line]
        self.stamp.save()
        if failures:
            raise SlipwayError("not fetched (run it again to resume):\n" + "\n".join(failures))
        return [artifact.path for artifact in due]

    def _fetch(self, artifact: Artifact) -> None:
        file = self.bundle / artifact.path
        file.parent.mkdir(parents=True, exist_ok=True)
        if artifact.kind == "image":
            self._copy_image(artifact, file)
        elif artifact.kind == "kustomize":
            self._render(artifact, file)
        else:
            name = artifact.checksum_name or artifact.url.rsplit("/", 1)[-1]
            sha256 = artifact.sha256 or published_sha256(
                self.transfer.text(artifact.checksum_url), name, artifact.checksum_url
            )
            if artifact.member:
                archive = file.with_name(f".{file.name}.archive")
                self.transfer.file(artifact.url, archive, sha256)
                extract(archive, artifact.member, file)
                archive.unlink()
            else:
                self.transfer.file(artifact.url, file, sha256)
        file.chmod(0o755 if artifact.kind == "binary" else 0o644)
        self.stamp.learn(file, artifact.source)

    def _copy_image(self, artifact: Artifact, file: Path) -> None:
        """Have skopeo write the image to a docker-archive; it verifies every layer against the digest."""
        part = file.with_name(f".{file.name}.part")
        # skopeo refuses to write to an archive that exists.
        part.unlink(missing_ok=True)
        repository = repository_of(artifact.image)
        command = [self.skopeo, "copy", "--override-os", "linux", "--override-arch", self.arch, "--retry-times", "3"]
        command += [f"docker://{repository}@{artifact.digest}", f"docker-archive:{part}:{artifact.image}"]
        status, output = self.run(command)
        if status or not part.is_file():
            part.unlink(missing_ok=True)
            raise SlipwayError(f"{artifact.image}: skopeo ended with {status}: {output.strip()[-500:]}")
        part.replace(file)

    def _render(self, artifact: Artifact, file: Path) -> None:
        """Render kustomizations of source archives, which are fetched for this only."""
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as name:
            folder = Path(name)
            workshop = Workshop(folder / "work")
            for number, source in enumerate(artifact.sources):
                archive = folder / f"{number}.tar.gz"
                self.transfer.unverified(source.url, archive)
                workshop.unpack(source, archive)
            write_atomically(file, workshop.render(str(self.bundle / "bin/kubectl"), artifact.roots))

    def manifest(self, release: Mapping[str, Any], artifacts: Sequence[Artifact], origin: str) -> dict[str, Any]:
        """The manifest of a filled bundle; hashes and sizes are those of the files as they lie there."""
        entries: list[dict[str, Any]] = []
        for artifact in artifacts:
            file = self.bundle / artifact.path
            entry: dict[str, Any] = {"path": artifact.path, "kind": artifact.kind, "name": artifact.name}
            if artifact.version:
                entry["version"] = artifact.version
            if artifact.kind == "image":
                # Whoever imports archives need not know how they came here.
                entry |= {"kind": "images", "images": [artifact.image], "digest": artifact.digest}
            elif artifact.kind == "kustomize":
                entry["kind"] = "manifest"
            elif artifact.images:
                entry["images"] = list(artifact.images)
            entries.append(entry | {"sha256": self.stamp.sha256(file), "size": file.stat().st_size})
        # What was built here instead of downloaded is in no release; it stays.
        before = read_manifest(self.bundle) if (self.bundle / MANIFEST).is_file() else {}
        built = [entry for entry in before.get("artifacts", []) if entry.get("built")]
        images = {entry["name"]: entry["images"][0] for entry in built}
        return {
            "schema": SCHEMA,
            "release": release["name"],
            "origin": origin,
            "arch": release["arch"],
            "versions": dict(release.get("versions") or {}),
            "images": dict(release.get("images") or {}) | images,
            "artifacts": entries + built,
        }


def write_manifest(bundle: Path, manifest: Mapping[str, Any]) -> bool:
    """Write bundle.yml if it differs; whether it did. It comes last: a bundle without it is not complete."""
    text = yaml.safe_dump(dict(manifest), sort_keys=False, width=160)
    path = bundle / MANIFEST
    if path.is_file() and path.read_text() == text:
        return False
    write_atomically(path, text)
    return True


def repository_of(image: str) -> str:
    """An image reference without tag and digest."""
    name = image.split("@", 1)[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.split(":", 1)[0]


def extract(archive: Path, member: str, target: Path) -> None:
    """Take one regular file out of a tar archive, atomically. Raises SlipwayError."""
    try:
        with tarfile.open(archive) as tar:
            stream = tar.extractfile(member)
            if stream is None:
                raise SlipwayError(f"{member} in the archive is no regular file")
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
            try:
                with os.fdopen(handle, "wb") as out:
                    while chunk := stream.read(1 << 20):
                        out.write(chunk)
                Path(temporary).replace(target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
    except KeyError:
        raise SlipwayError(f"the archive has no member {member}") from None
    except tarfile.TarError as error:
        raise SlipwayError(f"the archive cannot be read: {error}") from error

"""The lab's bundle with another version of k3s: the same stand-in, linked with another version string."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import yaml

from tests.lab import bundle, gobuild
from tests.lab.cache import Cache, hash_inputs
from tests.lab.process import LabError

# Its own copies of the manifest and of what is linked anew; everything else is the same files.
PROGRAMS = ("bin/k3s", "bin/kubectl")


def check_version(text: str) -> str:
    """The version, if it is one of k3s. Raises LabError."""
    if not re.fullmatch(r"v\d+\.\d+\.\d+(-rc\d+)?\+k3s\d+", text):
        raise LabError(f"--k3s-version: {text!r} must be a version of k3s, such as v1.35.9+k3s1")
    return text


def build(cache: Cache, version: str) -> Path:
    """The folder of a bundle that differs from the lab's own in the version of k3s only.

    The packages are compiled already where Go's caches are kept ($SLIPWAY_GO_CACHE): only linking is left then.

    Raises:
        LabError: `version` is none, or a build failed.
    """
    check_version(version)
    base = bundle.build(cache)
    standin = gobuild.Standin(bundle.Plan().standin.images, version)

    def make(draft: Path) -> None:
        assemble(base, standin.build(cache), version, draft)
        gobuild.prune_caches(cache)

    return cache.entry("bundle", "k3s-version", hash_inputs(base.name, standin.key), make)


def assemble(base: Path, program: Path, version: str, draft: Path) -> None:
    """Make the bundle `draft` of `base`, with another program as k3s and kubectl."""
    shutil.copytree(
        base, draft, copy_function=os.link, ignore=lambda folder, names: _left_out(base, Path(folder), names)
    )
    bundle.place(dict.fromkeys(PROGRAMS, program), draft)
    manifest = yaml.safe_load((base / "bundle.yml").read_text())
    manifest["versions"]["k3s"] = version
    changed = {
        entry["path"]: entry
        for entry in bundle.describe(draft, [item for item in manifest["artifacts"] if item["path"] in PROGRAMS])
    }
    # The images stay: it is the same Kubernetes.
    manifest["artifacts"] = [
        {**changed[item["path"]], "version": version} if item["path"] in changed else item
        for item in manifest["artifacts"]
    ]
    (draft / "bundle.yml").write_text(yaml.safe_dump(manifest, sort_keys=False, width=120))


def _left_out(base: Path, folder: Path, names: list[str]) -> list[str]:
    place = folder.relative_to(base)
    return [name for name in names if str(place / name) in (*PROGRAMS, "bundle.yml")]

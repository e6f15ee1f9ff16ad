"""A bundle of the lab with another version of k3s: the same stand-in with another version string."""

from __future__ import annotations

import os
import re
import shutil
from functools import partial
from pathlib import Path

import yaml

from tests.lab import bundle
from tests.lab.cache import Cache, hash_inputs
from tests.lab.process import LabError

# The same program under both names; everything else but the manifest is the same files.
PROGRAMS = ("bin/k3s", "bin/kubectl")


def build(cache: Cache, base: Path, version: str) -> Path:
    """The folder of a bundle that differs from the one in `base` in the version of k3s only.

    Raises:
        LabError: it cannot be that version.
    """
    key = hash_inputs(version, (base / "bundle.yml").read_text(), files=[Path(__file__)])
    return cache.entry("bundle", "k3s-version", key, lambda draft: assemble(base, version, draft))


def relabel(program: bytes, old: str, new: str) -> bytes:
    """The program as the linker would have made it with `-X ...gitVersion=<new>`: it writes these bytes and nothing else.

    Linking it indeed would need everything compiled again, as Go's caches are pruned after each build.

    Raises:
        LabError: `new` is no version of k3s in the same minor and of the same length, or the program does not hold `old`.
    """
    if (
        not re.fullmatch(r"v\d+\.\d+\.\d+\+k3s\d+", new)
        or len(new) != len(old)
        or new.split(".")[:2] != old.split(".")[:2]
    ):
        raise LabError(f"{new!r} must be a version of k3s as long as {old}, and of the same minor")
    if old.encode() not in program:
        raise LabError(f"the k3s stand-in does not hold its version {old}")
    return program.replace(old.encode(), new.encode())


def assemble(base: Path, version: str, draft: Path) -> None:
    """Make the bundle `draft` of `base`, with k3s and kubectl as another version. Raises LabError."""
    manifest = yaml.safe_load((base / "bundle.yml").read_text())
    program = relabel((base / PROGRAMS[0]).read_bytes(), manifest["versions"]["k3s"], version)
    shutil.copytree(base, draft, copy_function=os.link, ignore=partial(_left_out, base))
    (draft / PROGRAMS[0]).write_bytes(program)
    (draft / PROGRAMS[0]).chmod(0o755)
    for name in PROGRAMS[1:]:
        os.link(draft / PROGRAMS[0], draft / name)
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
    (draft / "bundle.yml").write_text(bundle.as_text(manifest))


def _left_out(base: Path, folder: str, names: list[str]) -> list[str]:
    place = Path(folder).relative_to(base)
    return [name for name in names if str(place / name) in (*PROGRAMS, "bundle.yml")]

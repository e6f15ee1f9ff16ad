"""Argo CD: its image, and the manifests that upstream publishes with each release."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import gobuild, images, pages
from tests.lab.cache import Cache, hash_inputs

MODULE = "github.com/argoproj/argo-cd/v3"
FOLDER = gobuild.MODULES / "argocd"
RECIPE = images.RECIPES / "argocd/Containerfile"
# Argo CD calls gpg and git through scripts of its own.
SCRIPTS = ("entrypoint.sh", "hack/gpg-wrapper.sh", "hack/git-verify-wrapper.sh")


def program() -> gobuild.Program:
    """Argo CD, all its parts in one program, with its pages: the module has their sources, not what is made of them."""
    release = gobuild.module_version(FOLDER, MODULE)
    version = f"{MODULE}/common"
    # Without a commit it would call itself v99.99.99+unknown.
    variables = {
        f"{version}.gitTag": "{version}",
        f"{version}.gitCommit": "module",
        f"{version}.gitTreeState": "clean",
    }
    embedded = gobuild.Embedded("ui/dist/app", pages.key(release), lambda cache: pages.build(cache, release, source))
    return gobuild.Program("argocd", MODULE, variables, embedded)


def source(cache: Cache) -> Path:
    """The files of Argo CD's module."""
    return gobuild.source(cache, FOLDER, MODULE)


def programs(helm: gobuild.Program) -> tuple[gobuild.Program, ...]:
    """Argo CD and the tools that it calls."""
    kustomize = gobuild.Program(
        "kustomize",
        "sigs.k8s.io/kustomize/kustomize/v5",
        {"sigs.k8s.io/kustomize/api/provenance.version": "{version}"},
    )
    return (program(), helm, kustomize)


def image(helm: gobuild.Program) -> images.Built:
    """The image of Argo CD with its tools and its Redis."""
    made_from = programs(helm)
    key = hash_inputs(*SCRIPTS, *(each.key for each in made_from), files=[RECIPE, Path(__file__)])
    return images.derived(
        "argocd", images.base(), key, RECIPE, lambda cache, context: prepare(cache, context, made_from)
    )


def prepare(cache: Cache, context: Path, made_from: tuple[gobuild.Program, ...]) -> None:
    """Fill the build context: programs, and the scripts of Argo CD's module."""
    for each in made_from:
        shutil.copy(each.build(cache), context / each.name)
    module = source(cache)
    for script in SCRIPTS:
        shutil.copy(module / script, context)
    for path in context.iterdir():
        path.chmod(0o755)


def manifests(cache: Cache) -> Path:
    """The file that upstream publishes as manifests/install.yaml, in a folder of its own."""
    version = gobuild.module_version(FOLDER, MODULE)

    def make(draft: Path) -> None:
        draft.mkdir()
        shutil.copy(source(cache) / "manifests/install.yaml", draft / f"argocd-{version}.yaml")

    return next(cache.entry("chart", "argocd", hash_inputs("manifests", version), make).iterdir())

"""The stand-in for Kubeflow Pipelines: its images, MariaDB in the place of MySQL, and upstream's manifests."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab import images, wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs
from tests.lab.kfp import base

SOURCE = Path(__file__).parent / "kfp/kfp_server"
RECIPE = images.RECIPES / "kfp/Containerfile"
PART_RECIPE = images.RECIPES / "kfp-part/Containerfile"
DATABASE = images.RECIPES / "mariadb"
LOCK = PROJECT / "requirements/kfp-server.txt"
# The part of the stand-in that takes the place of each of upstream's images, by the names of these in the bundle. Each part has an
# image of its own: upstream's manifests name images, not commands.
PARTS = {
    "kfp_api_server": "api",
    "kfp_frontend": "ui",
    "kfp_persistence_agent": "idle",
    "kfp_scheduled_workflow": "idle",
    "kfp_metadata_envoy": "idle",
    "kfp_metadata_grpc": "idle",
    "kfp_workflow_controller": "idle",
    "kfp_argoexec": "io",
    "kfp_driver": "io",
    "kfp_launcher": "io",
}


def program() -> images.Derived:
    """The image that the parts' own are made from."""
    key = hash_inputs(
        wheels.PYTHON_VERSION, *wheels.PLATFORMS, files=[LOCK, RECIPE, SOURCE, Path(__file__), Path(wheels.__file__)]
    )
    return images.derived("kfp", images.python(), key, RECIPE, prepare)


def prepare(cache: Cache, context: Path) -> None:
    """Fill the build context: the locked packages in `site-packages`, the program in `kfp_server`."""
    wheels.place(cache, LOCK, context / "site-packages")
    shutil.copytree(SOURCE, context / "kfp_server", ignore=shutil.ignore_patterns("__pycache__"))


def part(name: str) -> images.Derived:
    """The image of one part."""
    key = hash_inputs(files=[PART_RECIPE])
    return images.derived(f"kfp-{name}", program(), key, PART_RECIPE, lambda *_: None, {"PART": name})


def database() -> images.Derived:
    """MariaDB, started by a program in Python."""

    def copy(_: Cache, context: Path) -> None:
        shutil.copytree(DATABASE, context, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))

    return images.derived("mariadb", images.python(), hash_inputs(files=[DATABASE]), DATABASE / "Containerfile", copy)


def members() -> list[images.Derived]:
    """All images of the component."""
    return [*(part(name) for name in sorted(set(PARTS.values()))), database()]


def references() -> dict[str, str]:
    """The images by their names in the bundle."""
    return {**{name: part(of).reference for name, of in PARTS.items()}, "kfp_mysql": database().reference}


def archive(cache: Cache) -> Path:
    """All images of the component in one archive, which has the layers they share once."""
    return images.together(cache, "kubeflow-pipelines", images.python(), members())


def manifests(cache: Cache) -> Path:
    """What stands for upstream's manifests, in a folder of its own."""

    def make(draft: Path) -> None:
        draft.mkdir()
        (draft / f"kubeflow-pipelines-{base.version()}.yaml").write_text(base.text())

    return next(cache.entry("chart", "kubeflow-pipelines", hash_inputs("manifests", base.text()), make).iterdir())

"""Container images: built from the recipes in tests/lab/images, kept as archives in the cache.

Podman's own store is used only in passing: what a build puts there is removed afterwards.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import debian
from tests.lab.cache import Cache, hash_inputs
from tests.lab.process import LabError, run

RECIPES = Path(__file__).parent / "images"
REGISTRY = "localhost/slipway-lab"
# What debootstrap leaves and no container needs; dpkg.cfg keeps later installations from adding to it.
WASTE = (
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache/apt",
    "var/lib/apt/lists",
)


def reference(name: str, tag: str) -> str:
    """The name under which the lab's image is known to podman and to Kubernetes."""
    return f"{REGISTRY}/{name}:{tag}"


def build(recipe: Path, context: Path, image: str, arguments: Mapping[str, str] | None = None) -> None:
    """Build the Containerfile `recipe` with the folder `context` and store the result in podman as `image`."""
    options = [f"--build-arg={key}={value}" for key, value in (arguments or {}).items()]
    run(["buildah", "bud", "--isolation=chroot", "--layers=false", "--tag", image, "--file", recipe, *options, context])


def save(images: Sequence[str], archive: Path) -> None:
    """Write images of podman's store to one uncompressed docker-archive."""
    run(["podman", "save", "--quiet", "--multi-image-archive", "--format=docker-archive", "--output", archive, *images])


def load(archive: Path, image: str) -> None:
    """Bring `image` from its archive into podman's store, unless it is there."""
    if run(["podman", "image", "exists", image], check=False).returncode == 0:
        return
    run(["podman", "load", "--quiet", "--input", archive])
    if run(["podman", "image", "exists", image], check=False).returncode != 0:
        raise LabError(f"{archive} does not contain the image {image}; remove the file and try again")


def forget(images: Sequence[str]) -> None:
    """Remove images from podman's store; those that a container still uses stay."""
    for image in images:
        run(["podman", "image", "rm", image], check=False)


@contextlib.contextmanager
def passing(*images: str) -> Iterator[None]:
    """Forget these images at the end, whether the block succeeded or not, and before it what a killed run left."""
    forget(images)
    try:
        yield
    finally:
        forget(images)


@dataclass(frozen=True)
class Built:
    """An image of one archive: its name, the hash of all its inputs, and how to make the archive."""

    name: str
    key: str
    make: Callable[[Cache, str, Path], None]

    @property
    def reference(self) -> str:
        """Its name for podman and Kubernetes; other content has another name."""
        return reference(self.name, self.key[:12])

    def archive(self, cache: Cache) -> Path:
        """Path of the archive, built if need be."""
        return cache.entry("image", self.name, self.key, lambda draft: self.make(cache, self.reference, draft))


def base() -> Built:
    """Minimal Debian."""

    def make(cache: Cache, image: str, draft: Path) -> None:
        with cache.workdir() as work:
            rootfs = work / "rootfs"
            debian.bootstrap(rootfs)
            shutil.copy(RECIPES / "base/dpkg.cfg", rootfs / "etc/dpkg/dpkg.cfg.d/lab")
            for waste in WASTE:
                for path in (rootfs / waste).iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            tar = ["tar", "--create", "--numeric-owner", "--exclude=./dev/*", f"--directory={rootfs}"]
            run([*tar, f"--file={work / 'rootfs.tar'}", "."])
            shutil.rmtree(rootfs)
            with cache.lock("podman"), passing(image):
                build(RECIPES / "base/Containerfile", work, image)
                save([image], draft)

    key = hash_inputs("base", debian.SUITE, *WASTE, files=[RECIPES / "base", Path(debian.__file__)])
    return Built("base", key, make)


@dataclass(frozen=True)
class Derived(Built):
    """An image whose recipe starts with `FROM ${BASE}`."""

    parent: Built
    recipe: Path
    prepare: Callable[[Cache, Path], None]
    arguments: Mapping[str, str]

    def build(self, context: Path) -> None:
        """Build it from its prepared context into podman's store, where its parent is already."""
        build(self.recipe, context, self.reference, {"BASE": self.parent.reference, **self.arguments})


def derived(
    name: str,
    parent: Built,
    key: str,
    recipe: Path,
    prepare: Callable[[Cache, Path], None],
    arguments: Mapping[str, str] | None = None,
) -> Derived:
    """An image whose recipe starts with `FROM ${BASE}`.

    Args:
        parent: what stands for BASE.
        key: hash of its inputs, the parent aside.
        prepare: fills the build context, an empty folder, from the cache; called only when the image must be built.
        arguments: further build arguments of the recipe.
    """

    def make(cache: Cache, _: str, draft: Path) -> None:
        _build(cache, parent, [made], [made], draft)

    made = Derived(name, hash_inputs(name, key, parent.key), make, parent, recipe, prepare, arguments or {})
    return made


def together(cache: Cache, name: str, start: Built, members: Sequence[Derived]) -> Path:
    """One archive with all `members`, which share layers: they come from `start`, some through images that are not in it."""
    steps: list[Derived] = []

    def add(image: Built) -> None:
        if image.reference == start.reference or image.reference in [step.reference for step in steps]:
            return
        if not isinstance(image, Derived):
            raise LabError(f"image {image.name} does not come from {start.name}")
        add(image.parent)
        steps.append(image)

    for member in members:
        add(member)
    key = hash_inputs(name, *(member.key for member in members))
    return cache.entry("image", name, key, lambda draft: _build(cache, start, steps, members, draft))


def _build(cache: Cache, start: Built, steps: Sequence[Derived], saved: Sequence[Derived], draft: Path) -> None:
    """Build `steps`, each from `start` or from one before it, and write those to be `saved` to one archive."""
    beginning = start.archive(cache)
    references = [step.reference for step in steps]
    with cache.workdir() as work:
        for number, step in enumerate(steps):
            (work / str(number)).mkdir()
            step.prepare(cache, work / str(number))
        with cache.lock("podman"), passing(*references, start.reference):
            load(beginning, start.reference)
            for number, step in enumerate(steps):
                step.build(work / str(number))
            save([image.reference for image in saved], draft)


def _own(name: str, parent: Built) -> Built:
    """An image whose recipe and build context is a folder of the lab."""
    folder = RECIPES / name

    def prepare(_: Cache, context: Path) -> None:
        shutil.copytree(folder, context, dirs_exist_ok=True)

    return derived(name, parent, hash_inputs(files=[folder]), folder / "Containerfile", prepare)


def node() -> Built:
    """The lab's node: a bare machine with systemd and sshd."""
    return _own("node", base())


def python() -> Built:
    """Debian with Python."""
    return _own("python", base())

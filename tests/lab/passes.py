"""Checks that are not run again on what they have passed on before.

A check runs in a copy of the files that it declares, with only the environment variables set here and an empty home and cache.
What it does not declare none of its processes finds, so what it declares is all that a pass depends on.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from xml.etree import ElementTree

from tests.lab import bundle
from tests.lab.cache import PROJECT, Cache, hash_file, say
from tests.lab.process import LabError, run

# Where Debian has programs: what a user has elsewhere is no part of a pass.
DEBIAN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of every tier of pytest: its settings, and what makes packages of the folders.
PYTEST = ("pyproject.toml", "tests/__init__.py", "tests/unit/__init__.py")


@dataclass(frozen=True)
class Check:
    """A command and all that it depends on."""

    command: tuple[str, ...]
    # In .venv; the command is one of the first.
    environments: tuple[str, ...] = ("lab",)
    # Patterns of names in the repository, in which * stands for / as well.
    files: tuple[str, ...] = ("*",)
    without: tuple[str, ...] = ()
    # A key of BUNDLES: it runs a lab on that bundle, and finds the cache.
    bundle: str = ""


BUNDLES = {"all": bundle.build, "cluster": bundle.cluster}


def pytest(*words: str) -> tuple[str, ...]:
    """The command of a tier; its report tells of skipped tests."""
    return ("python", "-m", "pytest", "--junit-xml=.cache/report.xml", *words)


# Labs tell what takes long.
LAB = ("--durations=0", "--durations-min=5")

# What programs are made of is in the bundle's hashes.
NOT_OF_SITES = (
    *("*.md", ".ci/*", "docs/*", "tests/bench/*", "tests/unit/*"),
    *("tests/lab/argocd_ui/*", "tests/lab/charts/*", "tests/lab/gpu_operator/*", "tests/lab/k3s/*"),
)
NOT_OF_A_BARE_CLUSTER = (
    *NOT_OF_SITES,
    *("molecule/*", "pipelines/*", "services/*", "roles/airflow/*", "roles/argocd/*"),
    *("roles/cert_manager/*", "roles/front_door/*", "roles/git/*", "roles/kubeflow_pipelines/*", "roles/minio/*"),
    *("roles/postgresql/*", "tests/contract/kfp/*", "tests/contract/test_kfp_*", "tests/contract/test_postgresql_*"),
    "tests/lifecycle/test_site.py",
)
# What clusters without components are held to.
BARE = ("contract", "gpus", "rotate", "upgrade")

CHECKS = {
    # It looks at all but what .ansible-lint excludes.
    "ansible-lint": Check(
        ("ansible-lint", "--strict"),
        without=(
            "requirements/*",
            "pipelines/*",
            "tests/lab/*",
            "tests/contract/kfp/*",
            "tests/unit/lab/kfp/*",
        ),
    ),
    "mypy": Check(("mypy",), files=("*.py", "*.pyi", "*.toml", "plugins/typing/*")),
    # What is for Airflow, beside what it is made with. Not the DAG: its functions take what tasks will have returned.
    "mypy-dataops": Check(
        (
            *("env", "MYPYPATH=pipelines/dataops/src:pipelines/epos/src", "mypy"),
            *("--python-executable", ".venv/airflow/bin/python", "--follow-imports", "silent"),
            *("--untyped-calls-exclude", "airflow", "pipelines/dataops/src/slipway_dataops"),
        ),
        environments=("lab", "airflow"),
        files=("pyproject.toml", "pipelines/*"),
    ),
    "epos": Check(
        pytest("tests/unit/epos"),
        ("pipelines",),
        # tests/unit/services starts the Git service, with whose hooks commits are tried.
        (*PYTEST, "pipelines/*", "services/*", "tests/unit/epos/*", "tests/unit/services/*"),
    ),
    "pipelines": Check(pytest("tests/unit/pipelines"), ("kfp",), (*PYTEST, "pipelines/*", "tests/unit/pipelines/*")),
    "dataops": Check(
        pytest("tests/unit/dataops"),
        ("airflow",),
        (*PYTEST, "pipelines/*", "roles/airflow/files/*", "tests/lab/*", "tests/unit/dataops/*", "tests/unit/lab/*"),
    ),
    # It gives the bundle its place first.
    "molecule": Check(
        ("sh", "-c", "make bundle && molecule test --all"),
        without=(*NOT_OF_SITES, "tests/contract/*", "tests/lifecycle/*"),
        bundle="all",
    ),
    "cluster": Check(
        pytest("-x", *LAB, *(f"tests/lifecycle/test_{name}.py" for name in BARE)),
        without=(
            *(*NOT_OF_A_BARE_CLUSTER, "tests/e2e/*"),
            *("tests/lifecycle/test_ha.py", "tests/lifecycle/test_recovery.py"),
        ),
        bundle="cluster",
    ),
    "servers": Check(
        pytest("-x", *LAB, "tests/lifecycle/test_ha.py"),
        without=(
            *(*NOT_OF_A_BARE_CLUSTER, "roles/component/*"),
            *("tests/lifecycle/test_gpus.py", "tests/lifecycle/test_recovery.py"),
        ),
        bundle="cluster",
    ),
    "recovery": Check(
        pytest("-x", *LAB, "tests/lifecycle/test_recovery.py"),
        without=(
            *(*NOT_OF_A_BARE_CLUSTER, "roles/component/*", "tests/contract/*", "tests/e2e/*"),
            *("tests/lifecycle/test_gpus.py", "tests/lifecycle/test_ha.py"),
        ),
        bundle="cluster",
    ),
    # To the end, whatever fails: it takes long, and what comes later tells more.
    "site": Check(
        pytest(*LAB, "tests/lifecycle/test_site.py"),
        without=(
            *(*NOT_OF_SITES, "molecule/*", "tests/contract/test_k3s_*", "tests/contract/test_[gp]*"),
            *(f"tests/lifecycle/test_{name}.py" for name in (*BARE, "ha", "recovery")),
        ),
        bundle="all",
    ),
}


def passes(name: str, check: Check, cache: Cache) -> bool:
    """Whether a check passes, now or on the same before. A pass in which a test was skipped is not kept."""
    with cache.lock(f"passed-{name}"), cache.workdir() as work:
        folder = work / "copy"
        _copy(_names(check), folder)
        path = BUNDLES[check.bundle](cache) if check.bundle else None
        place = cache.path("passed", name, _key(check, folder, path))
        if place.exists():
            os.utime(place)
            say(
                f"{name}: not run, as it passed {place.read_text()} on the same files, environment and Debian packages; "
                f"to run it anyway: SLIPWAY_CACHE=<another folder>, or {' '.join(check.command)}"
            )
            return True
        status = subprocess.run(
            check.command, cwd=folder, env=_variables(check, work, cache, path), check=False
        ).returncode
        report = folder / ".cache/report.xml"
        skipped = ElementTree.parse(report).findall(".//skipped") if report.exists() else []
        if skipped:
            say(f"{name}: it will run again, as tests were skipped: {len(skipped)}")
        elif status == 0:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = work / "entry"
            draft.write_text(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
            draft.rename(place)
        return status == 0


def _names(check: Check) -> list[str]:
    """The tracked and the new files that a check declares, sorted; links too."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=PROJECT).stdout
    return sorted(
        name
        for name in set(listed.split("\0")) - {""}
        if os.path.lexists(PROJECT / name) and _matches(name, check.files) and not _matches(name, check.without)
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _copy(names: Iterable[str], folder: Path) -> None:
    """Copy files of the repository into a repository of their own: some checks ask Git which files there are."""
    run(["git", "init", "--quiet", folder])
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name, follow_symlinks=False)


def _environment(name: str) -> Path:
    """Where a locked environment lies; its name there has the hash of its lock file and of Python's version."""
    found = (PROJECT / ".venv" / name).resolve()
    if not found.exists():
        raise LabError(f".venv/{name} is missing: run bin/environment {name}")
    return found


def _key(check: Check, folder: Path, bundle_path: Path | None) -> str:
    """Hash of all that a check depends on; the files are those of the copy, so that what passes is what was hashed."""
    manifest = (bundle_path / "bundle.yml").read_text() if bundle_path else ""
    debian = run(["dpkg-query", "--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\n"]).stdout
    environments = [_environment(name).name for name in check.environments]
    digest = hashlib.sha256(repr((check, environments, debian, platform.machine(), os.geteuid(), manifest)).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file()):
        if path.is_relative_to(folder / ".git"):
            continue
        content = str(path.readlink()) if path.is_symlink() else hash_file(path)
        digest.update(repr((str(path.relative_to(folder)), path.lstat().st_mode & 0o100, content)).encode())
    return digest.hexdigest()


def _variables(check: Check, work: Path, cache: Cache, bundle_path: Path | None) -> dict[str, str]:
    """All that a check's processes find in their environment. Python environments are linked into the copy."""
    links = work / "copy/.venv"
    links.mkdir()
    for name in check.environments:
        (links / name).symlink_to(_environment(name))
    (work / "home").mkdir()
    return {
        "HOME": str(work / "home"),
        "LC_ALL": "C.UTF-8",
        # What mypy has found out about each content of a module.
        "MYPY_CACHE_DIR": str(cache.root / "mypy"),
        "PATH": f"{links / check.environments[0] / 'bin'}:{DEBIAN_PATH}",
        # Entries of the cache are named by what they are made of: with an image of nodes there, they are the same nodes.
        "SLIPWAY_CACHE": str(cache.root if bundle_path else work / "cache"),
        **({"BUNDLE": str(bundle_path)} if bundle_path else {}),
    }

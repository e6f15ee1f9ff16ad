"""What holds for the repository as a whole."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    """Return every tracked or new file that is not ignored."""
    listed = subprocess.check_output(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, text=True
    ).splitlines()
    return [PROJECT / name for name in listed if (PROJECT / name).is_file()]


def pins(name: str) -> dict[str, str]:
    """Return package and version of each line of a lock file."""
    text = (PROJECT / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["control", "devices"])
def test_lab_contains(name: str) -> None:
    """The tests run on the versions that a site's controller and the stand-in's image run on."""
    lab, part = pins("lab"), pins(name)
    assert part
    assert {package: version for package, version in part.items() if lab.get(package) != version} == {}


@pytest.mark.parametrize("name", sorted(path.stem for path in (PROJECT / "requirements").glob("*.txt")))
def test_locks_have_hashes_and_no_addresses(name: str) -> None:
    """Each pinned package carries hashes; where it comes from is the machine's own setting."""
    text = (PROJECT / "requirements" / f"{name}.txt").read_text()
    assert text.count("\n    --hash=sha256:") >= len(pins(name)) > 0
    assert "://" not in text
    assert "--index-url" not in text


def test_no_binaries() -> None:
    """No file is large or binary."""
    assert [str(path) for path in tracked() if path.stat().st_size > 400_000 or b"\0" in path.read_bytes()[:8000]] == []


def test_no_password_is_written_down() -> None:
    """No file assigns a literal to something called password or secret key."""
    pattern = re.compile(
        r"(?i)^\s*[\w-]*(password|secret_?key|root_?password)\s*:\s*['\"]?[A-Za-z0-9]{6,}['\"]?\s*$", re.MULTILINE
    )
    # A compiled pipeline says which key of a Secret becomes which variable.
    name = re.compile(r"envVar: \w+\n *secretKey: \w+")
    found = [
        str(path)
        for path in tracked()
        if path.suffix in (".yml", ".yaml", ".j2") and pattern.search(name.sub("", path.read_text()))
    ]
    assert found == []


def test_the_table_of_faults_names_tests_that_exist() -> None:
    """A promise in docs/faults.md has the test that it names."""
    named = set(re.findall(r"`(test_\w+)`", (PROJECT / "docs/faults.md").read_text()))
    sources = [path for folder in ("tests", "molecule") for path in (PROJECT / folder).rglob("test_*.py")]
    there = {name for path in sources for name in re.findall(r"def (test_\w+)\(", path.read_text())}
    assert len(named) > 20
    assert named - there == set()

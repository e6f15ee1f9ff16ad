"""Every role documents exactly what it can be given."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path for path in (Path(__file__).parents[3] / "roles").iterdir() if path.is_dir())


def load(path: Path) -> dict[str, Any]:
    """Return the mapping in `path`, empty when there is none."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.fixture(params=ROLES, ids=lambda path: path.name)
def role(request: pytest.FixtureRequest) -> Path:
    """Each role's directory."""
    path: Path = request.param
    return path


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Return the role's options over all its entry points."""
    found: dict[str, dict[str, Any]] = {}
    for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
        found |= entry.get("options", {})
    return found


def test_defaults_are_those_documented(role: Path) -> None:
    """A key is in defaults/ with the value that argument_specs names, unless it must be given."""
    defaults = load(role / "defaults/main.yml")
    documented = options(role)
    assert set(defaults) == set(documented)
    required = {name for name, option in documented.items() if option.get("required")}
    assert {name: value for name, value in defaults.items() if name not in required} == {
        name: option["default"] for name, option in documented.items() if name not in required
    }


def test_names_carry_the_role(role: Path) -> None:
    """Public variables start with the role's name, internal ones with an underscore before it."""
    assert [name for name in load(role / "defaults/main.yml") if not name.startswith(f"{role.name}_")] == []
    assert [name for name in load(role / "vars/main.yml") if not name.startswith(f"_{role.name}_")] == []


def test_every_option_is_explained(role: Path) -> None:
    """Type and description are there."""
    assert [
        name for name, option in options(role).items() if not option.get("type") or not option.get("description")
    ] == []


def test_every_option_is_used(role: Path) -> None:
    """An option that no task, template or variable reads is a lie."""
    text = "".join(
        path.read_text()
        for folder in ("tasks", "templates", "vars")
        for path in (role / folder).rglob("*")
        if path.is_file()
    )
    assert [name for name in options(role) if name not in text] == []


def test_the_reference_is_current() -> None:
    """docs/roles.md is what docs/reference.py writes."""
    project = ROLES[0].parents[1]
    answer = subprocess.run(
        [sys.executable, "-c", "import reference; print(reference.reference(), end='')"],
        cwd=project / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert (project / "docs/roles.md").read_text() == answer.stdout, "run: python docs/reference.py"

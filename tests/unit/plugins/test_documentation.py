"""Every module's documentation has exactly the options that it takes."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[3]
MODULES = sorted(path.stem for path in (PROJECT / "plugins/modules").glob("*.py"))


class Asked(Exception):
    """Ends a module where it says what it takes."""


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    command = ["ansible-doc", "--json", "--type", "module", *MODULES]
    return dict(json.loads(subprocess.check_output(command, cwd=PROJECT, text=True)))


def taken(name: str, patch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    """Return the argument_spec of a module; None where an action plugin of its name does all."""
    module = importlib.import_module(f"modules.{name}")
    if not hasattr(module, "main"):
        return None
    found: dict[str, Any] = {}

    def ask(argument_spec: dict[str, Any], **_: object) -> None:
        found.update(argument_spec)
        raise Asked

    patch.setattr(module, "AnsibleModule", ask)
    with pytest.raises(Asked):
        module.main()
    return found


def described(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what the documentation says of each option, and of those in it, as an argument_spec says it."""
    for name, option in options.items():
        said = {key: option[key] for key in ("type", "elements", "required", "default", "choices") if key in option}
        yield name, said
        for inner, values in described(option.get("suboptions", {})):
            yield f"{name}.{inner}", values


def declared(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in spec.items():
        said = {key: option[key] for key in ("type", "elements", "required", "default", "choices") if key in option}
        yield name, {"type": "str", **said}
        for inner, values in declared(option.get("options", {})):
            yield f"{name}.{inner}", values


@pytest.mark.parametrize("name", MODULES)
def test_options_are_those_taken(name: str, documented: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, types, defaults and choices; an option of an option too."""
    doc = documented[name]["doc"]
    assert doc["short_description"]
    spec = taken(name, monkeypatch)
    if spec is not None:
        assert dict(described(doc.get("options", {}))) == dict(declared(spec))

"""Writes docs/roles.md from the roles' argument_specs. Run it after a change there; a test compares the two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[1]


def plain(text: str | list[str]) -> str:
    """Return a description as one line of Markdown."""
    joined = " ".join(text) if isinstance(text, list) else text
    return " ".join(re.sub(r"\b[CVOP]\(([^)]*)\)", r"`\1`", joined).split())


def default(option: dict[str, Any]) -> str:
    """Return the default of an option as YAML in one line, or that it is required."""
    return "required" if option.get("required") else f"`{json.dumps(option['default'], ensure_ascii=False)}`"


def reference() -> str:
    """Return the whole page."""
    lines = ["# Roles", "", "Generated from each role's `meta/argument_specs.yml` by `python docs/reference.py`.", ""]
    for path in sorted((PROJECT / "roles").glob("*/meta/argument_specs.yml")):
        lines += [f"## {path.parts[-3]}", ""]
        for entry, spec in yaml.safe_load(path.read_text())["argument_specs"].items():
            title = spec["short_description"]
            lines += [title + "." if entry == "main" else f"`tasks_from: {entry}`: {title}.", ""]
            for sentence in spec.get("description", []):
                lines += [plain(sentence), ""]
            if not spec.get("options"):
                continue
            lines += ["| option | type | default | meaning |", "|---|---|---|---|"]
            for name, option in spec["options"].items():
                kind = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
                choices = f" One of: {', '.join(f'`{c}`' for c in option['choices'])}." if "choices" in option else ""
                lines.append(f"| `{name}` | {kind} | {default(option)} | {plain(option['description'])}{choices} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    (PROJECT / "docs/roles.md").write_text(reference())

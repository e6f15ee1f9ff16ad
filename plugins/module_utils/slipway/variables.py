"""Finds variables of a site that no role knows, which are silently without effect otherwise, and values of a wrong form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.preflight import CONTROLLER, Problem

# How alike a name must be to be suggested, and to be suspected although it has no role's prefix.
_SUGGEST, _SUSPECT = 0.6, 0.87
# Prefix of what all roles share; its variables are defined beside the playbooks.
_SHARED = "slipway"


@dataclass(frozen=True)
class Known:
    """Every variable that means something and its specification, by the role (or `slipway`) that it belongs to."""

    by_role: Mapping[str, Mapping[str, Mapping[str, Any]]]

    @property
    def specs(self) -> dict[str, Mapping[str, Any]]:
        """Specification of each variable."""
        return {name: spec for options in self.by_role.values() for name, spec in options.items()}

    def owner(self, variable: str) -> str:
        """The role whose prefix a variable has; the longest one wins. Empty where there is none."""
        return max((role for role in self.by_role if variable.startswith(role + "_")), key=len, default="")


def load_known(roles: Path, site_defaults: Path) -> Known:
    """Read every role's argument_specs and the variables beside the playbooks. Raises SlipwayError."""
    by_role: dict[str, dict[str, Mapping[str, Any]]] = {}
    for file in sorted(roles.glob("*/meta/argument_specs.yml")):
        entries = (_mapping(file).get("argument_specs") or {}).values()
        by_role[file.parent.parent.name] = {
            name: spec for entry in entries for name, spec in (entry.get("options") or {}).items()
        }
    shared = [name for file in sorted(site_defaults.rglob("*.yml")) for name in _mapping(file)]
    # They have no specification; any value will do.
    by_role[_SHARED] = {name: {"type": "raw"} for name in shared if name.startswith(_SHARED + "_")}
    return Known(by_role)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SlipwayError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise SlipwayError(f"{path} is no mapping")
    return content


def judge_variables(used: Mapping[str, Iterable[str]], known: Known, sources: Sequence[Path]) -> list[Problem]:
    """A problem for each variable (`used`: by host) that no role has, with its place and the nearest real name.

    Names that begin with an underscore are internal, and a name without any role's prefix is the user's own business
    unless it is nearly that of a role.
    """
    hosts: dict[str, list[str]] = {}
    for host, names in used.items():
        for name in names:
            hosts.setdefault(name, []).append(host)
    real = sorted(known.specs)
    problems: list[Problem] = []
    for name in sorted(hosts):
        if name.startswith(("_", "ansible_")) or name in real:
            continue
        role = known.owner(name)
        likely = get_close_matches(name, real, n=1, cutoff=_SUGGEST if role else _SUSPECT)
        if not role and not likely:
            continue
        place = locate(name, sources)
        found = f"{name}{f' in {place}' if place else ''}"
        remedy = f"did you mean {likely[0]}?" if likely else f"see roles/{role}/meta/argument_specs.yml"
        wanted = f"a variable of the role {role}" if role and role != _SHARED else "a variable that some role knows"
        node = hosts[name][0] if len(hosts[name]) == 1 and len(used) > 1 else CONTROLLER
        problems.append(Problem("error" if role else "warning", node, "variable", found, wanted, remedy))
    return problems


def judge_values(values: Mapping[str, Mapping[str, Any]], known: Known, sources: Sequence[Path]) -> list[Problem]:
    """A problem for each value (`values`: by host, by variable) that its role's argument_specs do not allow.

    Roles check their own, but one after the other and after earlier ones have changed something.
    """
    specs = known.specs
    found: dict[tuple[str, str], list[str]] = {}
    for host, variables in values.items():
        for name in sorted(set(variables) & set(specs)):
            # Its value would be in the message.
            if specs[name].get("no_log"):
                continue
            result = ArgumentSpecValidator({name: {**specs[name], "required": False}}).validate({name: variables[name]})
            for message in result.error_messages:
                found.setdefault((name, message), []).append(host)
    return [
        Problem(
            "error",
            hosts[0] if len(hosts) == 1 and len(values) > 1 else CONTROLLER,
            "variable",
            f"{message} ({locate(name, sources) or name})",
            "a value that the role accepts",
            f"see {name} in roles/{known.owner(name)}/meta/argument_specs.yml",
        )
        for (name, message), hosts in found.items()
    ]


def locate(name: str, sources: Sequence[Path]) -> str:
    """`file:line` of the first definition of a variable below the given files and directories; empty if none."""
    pattern = re.compile(rf"^\s*(?:- )?[\"']?{re.escape(name)}[\"']?\s*[:=]|[{{,\s]{re.escape(name)}\s*[:=]")
    for source in sources:
        files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
        for file in files:
            try:
                lines = file.read_text().splitlines()
            except (OSError, UnicodeDecodeError):
                continue
            for number, line in enumerate(lines, 1):
                if pattern.search(line) and not line.lstrip().startswith("#"):
                    return f"{file}:{number}"
    return ""

"""Filters with which roles say what their pods ask of the nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleFilterError

# As Ansible does for what it packs for a node.
_SHARED = str(Path(__file__).parents[1] / "module_utils")
if _SHARED not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_SHARED)
from ansible.module_utils.slipway import needs  # noqa: E402
from ansible.module_utils.slipway.errors import SlipwayError  # noqa: E402


def _filter(function: Callable[..., list[needs.Json]]) -> Callable[..., list[needs.Json]]:
    """The function with errors as Ansible shows them."""

    def run(*arguments: Any) -> list[needs.Json]:
        try:
            return function(*arguments)
        except SlipwayError as error:
            raise AnsibleFilterError(str(error)) from error

    return run


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {name: _filter(getattr(needs, name)) for name in ("object_needs", "values_needs", "part_needs")}

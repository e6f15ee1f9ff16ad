"""Filter for playbooks that go over components."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def with_tasks(components: Sequence[str], verb: str, roles: str) -> list[str]:
    """Those components, in their order, whose roles in the folder `roles` know what to do for a verb: have tasks/VERB.yml."""
    return [name for name in components if (Path(roles) / name / "tasks" / f"{verb}.yml").is_file()]


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"with_tasks": with_tasks}

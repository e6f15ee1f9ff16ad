"""Action part of doctor_probe: that of preflight_probe, for another module."""

from __future__ import annotations

from typing import Any

from ansible.plugins.loader import action_loader

Probe: Any = action_loader.get("preflight_probe", class_only=True)


class ActionModule(Probe):  # type: ignore[misc]
    """Runs the task's own module; what keeps it from running is a finding like any other."""

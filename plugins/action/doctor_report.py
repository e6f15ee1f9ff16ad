"""Action part of doctor_report: what that of preflight_report does, for the probes of the doctor."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader

Report: Any = action_loader.get("preflight_report", class_only=True)


class ActionModule(Report):  # type: ignore[misc]
    """Runs the module on the controller with the hosts of the play, prints the table, fails after it."""

    # Under this name the role registers the result of doctor_probe.
    probe = "_doctor_probe"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = ActionBase.run(self, tmp, task_vars)
        assert task_vars is not None
        arguments = {**self._task.args, "nodes": self._nodes(task_vars)}
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        shown: dict[str, Any] = self._show(result)
        return shown

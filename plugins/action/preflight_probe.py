"""Action part of preflight_probe: never fails, and measures the node's clock over the connection that is open by then."""

from __future__ import annotations

import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

_TRIES = 3


class ActionModule(ActionBase):
    """Runs the module. What keeps it from running is a finding like any other, so it is returned, not raised."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = {**super().run(tmp, task_vars), "changed": False, "reachable": True, "failure": ""}
        try:
            answer = self._execute_module(task_vars=task_vars)
        except AnsibleConnectionFailure as error:
            return {**result, "reachable": False, "failure": str(error)}
        except AnsibleError as error:
            return {**result, "failure": str(error)}
        if answer.get("unreachable") or "probe" not in answer:
            said = (str(answer.get(key) or "") for key in ("msg", "module_stderr", "module_stdout"))
            return {**result, "reachable": not answer.get("unreachable"), "failure": " ".join(said).strip()}
        return {**result, "probe": answer["probe"], "clock": self._best_clock()}

    def _best_clock(self) -> dict[str, float]:
        """The quickest of a few answers is the most exact one; empty where the node tells no time."""
        clocks = [clock for clock in (self._clock() for _ in range(_TRIES)) if clock]
        return min(clocks, key=lambda clock: clock["error"], default={})

    def _clock(self) -> dict[str, float]:
        asked = time.time()
        answer = self._low_level_execute_command("date +%s.%N", sudoable=False)
        answered = time.time()
        try:
            # The node read its clock somewhere between the two moments.
            return {"offset": float(answer["stdout"]) - (asked + answered) / 2, "error": (answered - asked) / 2}
        except (KeyError, ValueError):
            return {}

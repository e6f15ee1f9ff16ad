"""Action: run a test suite on the controller and show its output while it runs."""

from __future__ import annotations

import subprocess
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

display = Display()
# Lines kept for the message of a failed run.
TAIL = 60


class ActionModule(ActionBase):
    """Runs `argv` (list of str) in `chdir` (path) and fails when it does."""

    _requires_connection = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"argv", "chdir"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return `rc` and, on failure, the last lines; never `changed`, because a suite looks and does not install."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        argv = [str(part) for part in self._task.args["argv"]]
        if self._task.check_mode:
            return {**result, "skipped": True, "msg": "a suite is not run in check mode"}
        lines: list[str] = []
        with subprocess.Popen(
            argv,
            cwd=self._task.args.get("chdir"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                display.display("  " + line.rstrip())
                lines = [*lines[-TAIL:], line.rstrip()]
        result.update(changed=False, rc=process.returncode)
        if process.returncode:
            result.update(failed=True, msg="\n".join(lines))
        return result

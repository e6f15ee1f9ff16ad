"""Action: send the files of the bundle that a node lacks, then let the module verify and place them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Asks the node what is missing, sends only that, and has it placed."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the module's result; `changed` when anything was sent, or would be in check mode."""
        super().run(tmp, task_vars)
        files: list[dict[str, Any]] = self._task.args["files"]
        arguments = dict(self._task.args)
        result: dict[str, Any] = self._execute_module("bundle_files", module_args=arguments, task_vars=task_vars)
        if result.get("failed") or not result["missing"]:
            return result
        result["diff"] = [{"before": "", "after": f"{dest}\n", "after_header": dest} for dest in result["missing"]]
        if self._task.check_mode:
            return {**result, "changed": True}
        folder = self._make_tmp_path()
        try:
            received = {}
            for number, file in enumerate(files):
                if file["dest"] not in result["missing"]:
                    continue
                if not Path(file["src"]).is_file():
                    return {**result, "failed": True, "msg": f"{file['src']}: no such file in the bundle"}
                received[file["dest"]] = self._transfer_file(
                    file["src"], self._connection._shell.join_path(folder, str(number))
                )
            placed = self._execute_module(
                "bundle_files", module_args={**arguments, "received": received}, task_vars=task_vars
            )
        finally:
            self._remove_tmp_path(folder)
        return {**placed, "diff": result["diff"]}

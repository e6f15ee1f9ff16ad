"""Action: an archive of a site on the controller, and in it the cluster's snapshot and tokens."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.plugins.action import ActionBase

# As Ansible does for what it packs for a node.
ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "module_utils"))

from ansible.module_utils.slipway.age import (  # noqa: E402
    Identity,
    decrypt,
    encrypt_bytes,
    read_identities,
    read_recipients,
    require_opens,
)
from ansible.module_utils.slipway.backup import (  # noqa: E402
    CLUSTER,
    SUFFIX,
    TIME,
    add_part,
    begin_archive,
    draft,
    finish_archive,
    forget_archives,
    read_archive,
    require_fit,
)
from ansible.module_utils.slipway.errors import SlipwayError  # noqa: E402


class ActionModule(ActionBase):
    """Begins, fills, ends, checks or places an archive."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset(
        {"state", "path", "recipients", "identity_file", "files", "site", "k3s", "nodes", "keep", "parts"}
    )

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the archive's path and what became of it; `msg` says what is wrong with it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        path = Path(self._task.args["path"])
        work = {
            "begun": self._begin,
            "saved": self._save,
            "completed": self._complete,
            "checked": self._check,
            "placed": self._place,
        }
        try:
            return {**result, **work[self._task.args["state"]](path, task_vars)}
        except (SlipwayError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}

    def _begin(self, folder: Path, task_vars: Any) -> dict[str, Any]:
        read_recipients(self._task.args["recipients"])
        return {"changed": False, "path": str(folder / datetime.now(UTC).strftime(TIME))}

    def _save(self, path: Path, task_vars: Any) -> dict[str, Any]:
        arguments = self._task.args
        if self._task.check_mode:
            return {"changed": True, "path": str(path)}
        recipients = read_recipients(arguments["recipients"])
        begin_archive(path, arguments["site"], arguments["k3s"], arguments["nodes"])
        digests = {}
        for name, source in arguments["files"].items():
            content = self._read(source, task_vars)
            digests[name] = encrypt_bytes(draft(path) / f"{name}{SUFFIX}", recipients, content)
        add_part(path, CLUSTER, digests, {})
        return {"changed": True, "path": str(path)}

    def _read(self, source: str, task_vars: Any) -> bytes:
        # The answer holds the file; the task's own no_log would hide what is wrong as well.
        self._play_context.no_log = True
        try:
            answer = self._execute_module("ansible.legacy.slurp", module_args={"src": source}, task_vars=task_vars)
        finally:
            self._play_context.no_log = bool(self._task.no_log)
        if answer.get("failed"):
            raise SlipwayError(f"{source}: {answer.get('msg')}")
        return base64.b64decode(answer["content"])

    def _complete(self, path: Path, task_vars: Any) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": True, "path": str(path), "removed": []}
        finish_archive(path)
        removed = forget_archives(path.parent, int(self._task.args["keep"]))
        return {"changed": True, "path": str(path), "removed": removed}

    def _check(self, path: Path, task_vars: Any) -> dict[str, Any]:
        arguments = self._task.args
        identities = read_identities(Path(arguments["identity_file"]))
        manifest = read_archive(path)
        require_fit(manifest, arguments["site"], arguments.get("k3s", ""))
        if missing := sorted(set(arguments.get("parts", ())) - set(manifest.parts)):
            raise SlipwayError(
                f"{path} has nothing of {', '.join(missing)}; it has {', '.join(sorted(manifest.parts))}"
            )
        for part in manifest.parts.values():
            for name in part.files:
                require_opens(path / name, identities)
        return {"changed": False, "path": str(path), "manifest": asdict(manifest)}

    def _place(self, path: Path, task_vars: Any) -> dict[str, Any]:
        if self._task.check_mode:
            return {"changed": True, "path": str(path)}
        identities = read_identities(Path(self._task.args["identity_file"]))
        changed = False
        folder = self._make_tmp_path()
        try:
            for name, dest in self._task.args["files"].items():
                received = self._connection._shell.join_path(folder, name)
                self._transfer_data(received, self._open(path / f"{name}{SUFFIX}", identities))
                arguments = {"src": received, "dest": dest, "remote_src": True, "mode": "0600"}
                answer = self._execute_module("ansible.legacy.copy", module_args=arguments, task_vars=task_vars)
                if answer.get("failed"):
                    raise SlipwayError(f"{dest}: {answer.get('msg')}")
                changed |= answer["changed"]
        finally:
            self._remove_tmp_path(folder)
        return {"changed": changed, "path": str(path)}

    @staticmethod
    def _open(path: Path, identities: Sequence[Identity]) -> bytes:
        return decrypt(path, identities, lambda stream: stream.read())

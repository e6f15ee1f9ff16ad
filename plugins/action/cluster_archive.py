"""Action: a cluster's snapshot and tokens in an archive on the controller, encrypted as Ansible's vault does it."""

from __future__ import annotations

import base64
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ansible.module_utils
from ansible.errors import AnsibleError
from ansible.parsing.vault import VaultLib, get_file_vault_secret
from ansible.plugins.action import ActionBase

# As Ansible does for what it packs for a node.
ansible.module_utils.__path__.append(str(Path(__file__).parents[1] / "module_utils"))

from ansible.module_utils.slipway.backup import (  # noqa: E402
    CONTENTS,
    SUFFIX,
    TIME,
    forget_archives,
    read_archive,
    require_fit,
    write_archive,
)
from ansible.module_utils.slipway.errors import SlipwayError  # noqa: E402


class ActionModule(ActionBase):
    """Saves, checks or places an archive."""

    _supports_check_mode = True
    _VALID_ARGS = frozenset({"state", "path", "password_file", "files", "site", "k3s", "nodes", "keep"})

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the archive's path and what became of it; `msg` says what is wrong with it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        path = Path(arguments["path"])
        try:
            vault = self._vault(arguments["password_file"])
            if arguments["state"] == "saved":
                return {**result, **self._save(path, vault, task_vars)}
            manifest = read_archive(path)
            if arguments["state"] == "placed":
                return {**result, "path": str(path), "changed": self._place(path, vault, task_vars)}
            require_fit(manifest, arguments["site"], arguments["k3s"])
            for name in CONTENTS:
                self._open(path, name, vault)
            return {**result, "changed": False, "path": str(path), "manifest": asdict(manifest)}
        except (SlipwayError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}

    def _vault(self, file: str) -> VaultLib:
        try:
            secret = get_file_vault_secret(filename=file, loader=self._loader)
            secret.load()
        except AnsibleError as error:
            raise SlipwayError(f"backup_vault_password_file: {error}") from error
        return VaultLib([("backup", secret)])

    def _open(self, path: Path, name: str, vault: VaultLib) -> bytes:
        try:
            content: bytes = vault.decrypt((path / f"{name}{SUFFIX}").read_bytes())
        except AnsibleError:
            # Its own words name neither the option nor the archive. What lies there is what was written: hashes were compared before.
            raise SlipwayError(
                f"The password in backup_vault_password_file is not the one that {path} was encrypted with."
            ) from None
        return content

    def _save(self, folder: Path, vault: VaultLib, task_vars: Any) -> dict[str, Any]:
        arguments = self._task.args
        time = datetime.now(UTC).strftime(TIME)
        if self._task.check_mode:
            return {"changed": True, "path": str(folder / time), "removed": []}
        files = {}
        for name, source in arguments["files"].items():
            files[name] = vault.encrypt(self._read(source, task_vars)).decode()
        archive = write_archive(folder, arguments["site"], arguments["k3s"], time, arguments["nodes"], files)
        return {"changed": True, "path": str(archive), "removed": forget_archives(folder, int(arguments["keep"]))}

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

    def _place(self, path: Path, vault: VaultLib, task_vars: Any) -> bool:
        if self._task.check_mode:
            return True
        changed = False
        folder = self._make_tmp_path()
        try:
            for name, dest in self._task.args["files"].items():
                received = self._connection._shell.join_path(folder, name)
                self._transfer_data(received, self._open(path, name, vault))
                arguments = {"src": received, "dest": dest, "remote_src": True, "mode": "0600"}
                answer = self._execute_module("ansible.legacy.copy", module_args=arguments, task_vars=task_vars)
                if answer.get("failed"):
                    raise SlipwayError(f"{dest}: {answer.get('msg')}")
                changed |= answer["changed"]
        finally:
            self._remove_tmp_path(folder)
        return changed

"""Action: modules that have no action of their own, as Ansible's own of this name; those of this project run on the controller without
an interpreter of their own.

Ansible starts an interpreter for each module, which unpacks and compiles what the module imports: 0.4 s of CPU time for each task. Here the
module runs in a fork of the worker, which has all of it in memory (plugins/callback/preload.py). Module and result are the same; the idea
is that of `import_modules` in ansible.netcommon.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import ansible.module_utils
import ansible.module_utils._internal as internal
from ansible.module_utils import basic
from ansible.module_utils._internal._ansiballz._loader import _handle_exception
from ansible.module_utils.common.json import Direction, get_module_encoder
from ansible.plugins import action

MODULES = Path(__file__).parents[1] / "modules"
# As Ansible does for what it packs for a node.
ansible.module_utils.__path__.append(str(MODULES.with_name("module_utils")))
# How arguments and result are serialized, for every module that does not ask for something else.
PROFILE = "legacy"
PACKAGE = "slipway_modules"
# What modules import where they use it.
LATE = ("kubernetes.utils", "minio", "urllib3", "yaml")


def load(path: Path, package: str) -> Any:
    """The Python module in a file; once it is loaded, the same again."""
    name = f"{package}.{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def preload() -> None:
    """Load every module and what they need, before the workers are forked."""
    for path in sorted(MODULES.glob("*.py")):
        load(path, PACKAGE)
    for name in LATE:
        importlib.import_module(name)


# Under its own name Ansible finds this file.
Normal = load(Path(action.__file__).with_name("normal.py"), "ansible_core_action").ActionModule


class ActionModule(Normal):  # type: ignore[misc,valid-type]
    """Decides where a module runs."""

    def _execute_module(
        self,
        module_name: str | None = None,
        module_args: dict[str, Any] | None = None,
        tmp: str | None = None,
        task_vars: dict[str, Any] | None = None,
        wrap_async: bool = False,
        **options: Any,
    ) -> dict[str, Any]:
        """Run the task's module, return its result."""
        name = self._task.action
        path = Path(self._shared_loader_obj.module_loader.find_plugin(name) or "")
        local = self._connection.transport == "local" and not self._task.become and not wrap_async
        if module_name or path.parent != MODULES or not local:
            result: dict[str, Any] = super()._execute_module(
                module_name, module_args, tmp, task_vars, wrap_async=wrap_async, **options
            )
            return result
        arguments = dict(self._task.args if module_args is None else module_args)
        self._update_module_args(name, arguments, task_vars)
        payload = json.dumps(
            {"ANSIBLE_MODULE_ARGS": arguments}, cls=get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
        )
        environment: dict[str, Any] = {}
        self._compute_environment_string(environment)
        result = self._parse_returned_data(run(path, payload.encode(), environment), PROFILE)
        return result


def run(path: Path, payload: bytes, environment: dict[str, Any]) -> dict[str, Any]:
    """Run a module's `main` in a fork: whatever it does to its process ends with it; return exit status and output as of a command."""
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            status = 1
            # What the parent tidies up when it ends is none of the child's business.
            atexit._clear()
            try:
                for stream, number in ((out, 1), (err, 2)):
                    os.dup2(stream.fileno(), number)
                # What they were may be buffered by somebody else.
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.update({key: str(value) for key, value in environment.items()})
                # Warnings go into the result, as a node's do.
                internal.is_controller = False
                vars(basic).update(_ANSIBLE_ARGS=payload, _ANSIBLE_PROFILE=PROFILE)
                try:
                    load(path, PACKAGE).main()
                except Exception as error:
                    _handle_exception(error, PROFILE)
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                atexit._run_exitfuncs()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return {"rc": os.waitstatus_to_exitcode(ended), "stdout": texts[0], "stderr": texts[1]}

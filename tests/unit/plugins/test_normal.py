"""Modules on the controller: in a fork of Ansible's worker they behave as with an interpreter of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import PLUGINS

PROJECT = Path(PLUGINS).parent
MODULE = """
import os, sys
from ansible.module_utils.basic import AnsibleModule

def main():
    module = AnsibleModule({"way": {"type": "str"}, "hidden": {"type": "str", "no_log": True}}, supports_check_mode=True)
    way = module.params["way"]
    print("no JSON")
    os.environ["LEFT"] = "behind"
    module.warn("take care")
    if way == "crash":
        raise ValueError("it broke")
    if way == "exit":
        sys.exit(3)
    if way == "fail":
        module.fail_json(msg="on purpose: " + module.params["hidden"])
    module.exit_json(changed=True, check=module.check_mode, place=os.environ.get("PLACE"), told=module.params["hidden"],
                     left=os.environ.get("LEFT"), room=os.path.isdir(module.tmpdir))

if __name__ == "__main__":
    main()
"""
# Prints what each task gave, as Ansible has it.
CALLBACK = """
import json
from ansible.plugins.callback import CallbackBase

class CallbackModule(CallbackBase):
    CALLBACK_VERSION, CALLBACK_TYPE, CALLBACK_NAME = 2.0, "stdout", "results"

    def v2_runner_on_ok(self, result):
        print("RESULT " + json.dumps(result._result, default=str))

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self.v2_runner_on_ok(result)
"""


def results(folder: Path, *arguments: str, here: bool = True) -> list[dict[str, Any]]:
    """What a playbook's tasks with the module above give, run as this project does, or with an interpreter each."""
    plugins = folder / "plugins"
    for kind in ("action", "callback", "modules", "module_utils"):
        (plugins / kind).mkdir(parents=True, exist_ok=True)
    (plugins / "modules/probe_me.py").write_text(MODULE)
    (plugins / "callback/results.py").write_text(CALLBACK)
    if here:
        for name in ("action/normal.py", "callback/preload.py"):
            (plugins / name).write_text((Path(PLUGINS) / name).read_text())
    tasks: list[dict[str, Any]] = [
        {
            "probe_me": {"way": way, "hidden": "s3cr3t-value"},
            "ignore_errors": True,
            "environment": {"PLACE": "somewhere"},
        }
        for way in ("well", "fail", "crash", "exit")
    ]
    tasks.append({"probe_me": {"way": "well", "unknown": 1}, "ignore_errors": True})
    tasks.append({"probe_me": {"way": "well"}, "loop": [1, 2]})
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (folder / "tmp").mkdir(mode=0o700)
    (folder / "ansible.cfg").touch()
    (folder / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            "localhost,",
            "-c",
            "local",
            "play.yml",
            *arguments,
        ],
        cwd=folder,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
            "ANSIBLE_LIBRARY": str(plugins / "modules"),
            "ANSIBLE_ACTION_PLUGINS": str(plugins / "action"),
            "ANSIBLE_CALLBACK_PLUGINS": str(plugins / "callback"),
            **({"ANSIBLE_CALLBACKS_ENABLED": "preload"} if here else {}),
            "ANSIBLE_STDOUT_CALLBACK": "results",
            "ANSIBLE_REMOTE_TMP": str(folder / "tmp"),
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(tasks), done.stdout + done.stderr
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("arguments", [(), ("--check",)])
def test_results_are_those_of_a_process(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Success, failure, warnings, hidden values, environment, check mode, bad arguments and loops; nothing is left behind."""
    found = results(tmp_path / "here", *arguments)
    there = results(tmp_path / "there", *arguments, here=False)
    assert found == there
    assert found[0]["changed"] and found[0]["place"] == "somewhere" and found[0]["check"] is bool(arguments)
    assert found[0]["warnings"] and "s3cr3t-value" not in json.dumps(found)
    assert [name for name, each in zip(("fail", "crash", "exit"), found[1:], strict=False) if each["changed"]] == []
    assert "on purpose" in found[1]["msg"] and "it broke" in found[2]["msg"] and found[3]["rc"] == 3
    assert "LEFT" not in os.environ and not list((tmp_path / "here/tmp").glob("*"))

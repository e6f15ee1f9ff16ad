"""playbooks/uninstall.yml touches nothing before it was told what to remove, and from which site."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PLUGINS

PROJECT = PLUGINS.parent


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], 'uninstall_component is ""; those that can be removed alone: gpu_operator.'),
        (["uninstall_component=k3s"], 'uninstall_component is "k3s"; those that can be removed alone: gpu_operator.'),
        (["uninstall_component=gpu_operator"], "run it again with -e uninstall_confirm=example"),
        (
            ["uninstall_component=gpu_operator", "uninstall_confirm=lab"],
            "run it again with -e uninstall_confirm=example",
        ),
    ],
)
def test_it_asks_first(tmp_path: Path, options: list[str], said: str) -> None:
    command = ["ansible-playbook", "-i", str(PROJECT / "inventories/example"), str(PROJECT / "playbooks/uninstall.yml")]
    for option in options:
        command += ["-e", option]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert said in " ".join(done.stdout.split()), done.stdout
    assert "changed=0" in done.stdout and "192.0.2" not in done.stdout

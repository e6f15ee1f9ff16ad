"""registries.yaml as the role's own task writes and removes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).parents[3]
(TASK,) = (
    each
    for each in yaml.safe_load((PROJECT / "roles/k3s/tasks/run.yml").read_text())
    if each["name"] == "Say where images come from"
)
PASSWORD = "not-to-be-printed"
DECLARED = {
    "mirrors": {"*": {"endpoint": ["https://mirror.example:5000"]}},
    "configs": {"mirror.example:5000": {"auth": {"username": "puller", "password": PASSWORD}}},
}


def write(folder: Path, registries: dict[str, Any]) -> bool:
    """Run the task; return whether it changed anything."""
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {"k3s_registries": registries, "_k3s_config_dir": str(folder)},
        # The role's own variables, but for where its files are.
        "vars_files": [str(PROJECT / "roles/k3s/vars/main.yml")],
        "tasks": [TASK],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-v", "--diff", "-e", f"_k3s_config_dir={folder}", str(folder / "play.yml")],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert PASSWORD not in answer.stdout + answer.stderr
    return "changed=1" in answer.stdout


def test_mirrors_are_written_once_for_root_alone_and_go_when_nothing_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "registries.yaml"
    assert write(tmp_path, DECLARED)
    assert yaml.safe_load(path.read_text()) == DECLARED and path.stat().st_mode & 0o777 == 0o600
    assert not write(tmp_path, DECLARED)
    assert write(tmp_path, {}) and not path.exists()
    path.write_text("mirrors: {}\n")
    assert not write(tmp_path, {}) and path.read_text() == "mirrors: {}\n"

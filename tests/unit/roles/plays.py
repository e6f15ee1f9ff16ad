"""Runs a play that writes what a role makes of its variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[3]


def outcome(folder: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What play.yml in `folder` writes to out.json there, with these extra variables; a play that fails fails with all it printed."""
    answer = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", str(folder / "play.yml"), "-e", json.dumps(variables)],
        env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    made: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return made

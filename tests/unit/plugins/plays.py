"""Running ansible-playbook in a folder of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[3]


def run_playbook(directory: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `ansible-playbook WORDS...` in `directory` with this project's settings; return its end and its output."""
    return subprocess.run(
        ["ansible-playbook", *words],
        cwd=directory,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )

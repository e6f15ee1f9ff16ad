"""Commands that are measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).parents[2]
LOG = PROJECT / ".slipway/bench.log"
ANSIBLE = str(Path(sys.executable).with_name("ansible-playbook"))


def seconds(words: Sequence[str | Path], cwd: Path = PROJECT, **variables: str) -> float:
    """Run a command with its output in the log; return the seconds it took.

    Args:
        variables: of its environment, beside ours.

    Raises:
        SystemExit: it failed; the message names the log.
    """
    start = time.monotonic()
    with LOG.open("a") as stream:
        status = subprocess.run(
            words,
            cwd=cwd,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if status:
        sys.exit(f"{' '.join(map(str, words))} failed; see {LOG}")
    return time.monotonic() - start

"""Running programs, and the one exception that the lab shows to its user without a traceback."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class LabError(Exception):
    """A problem that the user can act on; the message names the file, key, node or command concerned."""


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program and capture what it prints.

    Args:
        env: the whole environment; None hands on ours.
        stdin: text to feed; None gives it an empty input.
        check: raise when the exit status is not 0.

    Raises:
        LabError: the program is missing or failed; carries the end of its output.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=cwd, env=env, input=stdin or "", text=True, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise LabError(
            f"{error.filename}: no such program or folder; tests/lab/packages.txt lists what the lab needs"
        ) from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-25:]
        raise LabError(f"{' '.join(words[:6])} failed with status {done.returncode}:\n  " + "\n  ".join(said))
    return done


def mounts() -> list[Path]:
    """Mount points of this machine in the order of mounting; bind mounts within a file system count."""
    return [Path(line.split()[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]

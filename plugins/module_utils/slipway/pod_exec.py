"""A command inside a container of the cluster, with its input from here or its output to here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from ansible.module_utils.slipway.errors import SlipwayError

# What the output of a command ends with that came whole. kubectl may end with 0 although a connection was cut.
_END = b"\n-- slipway: this was all\n"
_PIECE = 1 << 20


def pod_exec(
    kubectl: str,
    kubeconfig: str,
    namespace: str,
    target: str,
    container: str,
    command: Sequence[str],
    stdin: str = "",
    timeout: float = 60,
) -> str:
    """Run `command` in `container` of `target` (such as `pod/x-0`) and return what it printed.

    What is secret belongs into `stdin`: it is in nobody's arguments. `timeout` is in seconds. Raises SlipwayError with the command's
    own words when it fails.
    """
    words = [kubectl, "--kubeconfig", kubeconfig, "--namespace", namespace, "exec", "--stdin", target]
    words += ["--container", container, "--", *command]
    where = f"{command[0]} in {namespace}/{target}"
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except OSError as error:
        raise SlipwayError(f"{kubectl} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise SlipwayError(f"{where} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise SlipwayError(f"{where} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Place:
    """A container of the cluster: `target` is such as `pod/x-0` or `deployment/x`."""

    kubectl: str
    kubeconfig: str
    namespace: str
    target: str
    container: str

    def words(self, *command: str) -> list[str]:
        """The command line that runs `command` there."""
        words = [self.kubectl, "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, "exec", "--stdin"]
        return [*words, self.target, "--container", self.container, "--", *command]


def pod_output(place: Place, command: Sequence[str], sink: IO[bytes]) -> int:
    """Write what `command` prints to `sink`, of any length; return how many bytes. Raises SlipwayError unless it ended well and all came."""
    words = place.words("sh", "-c", '"$@" && printf %s "$0"', _END.decode(), *command)
    total, held = 0, b""
    with _running(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as (process, said):
        assert process.stdout
        while data := process.stdout.read1(_PIECE):  # type: ignore[attr-defined]
            held += data
            ready = held[: -len(_END)]
            sink.write(ready)
            total += len(ready)
            held = held[len(ready) :]
        _require_success(process, said, place, command)
    if held != _END:
        raise SlipwayError(f"{command[0]} in {place.namespace}/{place.target}: the connection was cut before its end")
    return total


def pod_input(place: Place, command: Sequence[str], source: IO[bytes]) -> None:
    """Run `command` with all of `source`, of any length, as its input. Raises SlipwayError when it fails, with its own words."""
    with _running(place.words(*command), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as (process, said):
        assert process.stdin
        try:
            shutil.copyfileobj(source, process.stdin, _PIECE)
            process.stdin.close()
        except BrokenPipeError:
            # It has ended, and says why.
            pass
        _require_success(process, said, place, command)


@contextmanager
def _running(words: Sequence[str], stdin: int, stdout: int) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process and a file with what it says on stderr; it is killed where the block fails."""
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=said)
        except OSError as error:
            raise SlipwayError(f"{words[0]} cannot be run: {error}") from error
        with process:
            try:
                yield process, said
            except BaseException:
                process.kill()
                raise


def _require_success(process: subprocess.Popen[bytes], said: IO[bytes], place: Place, command: Sequence[str]) -> None:
    if status := process.wait():
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
        raise SlipwayError(f"{command[0]} in {place.namespace}/{place.target} ended with {status}: {words}")

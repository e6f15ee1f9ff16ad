"""Which of several processes that train together this one is, and a watch over it. Imports nothing of JAX."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epos.errors import PeerError, UsageError

_SET_PARENT_DEATH_SIGNAL = 1  # Of prctl(2).
# How JAX says that it aborts a process because of the others, and the request that fails when they did not come.
_ABORTED, _NOT_JOINED = "JAX distributed service detected fatal errors", "CoordinationService/RegisterTask"


@dataclass(frozen=True)
class Peers:
    """Which of the processes that train together this one is.

    Attributes:
        count: number of processes; 1 for a training on its own.
        index: 0 is the leader, which alone writes: checkpoints, the model, its judgement.
        coordinator: host:port where the leader listens.
    """

    count: int = 1
    index: int = 0
    coordinator: str = ""

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes."""
        return self.index == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Peers:
        """Reads JAX_NUM_PROCESSES, JAX_PROCESS_ID or an Indexed Job's JOB_COMPLETION_INDEX, JAX_COORDINATOR_ADDRESS.

        Raises:
            UsageError: a variable is missing or wrong.
        """

        def number(name: str, least: int, text: str) -> int:
            if not text.isdecimal() or int(text) < least:
                raise UsageError(f"environment: {name}: {text!r} is not a number from {least}")
            return int(text)

        count = number("JAX_NUM_PROCESSES", 1, environment.get("JAX_NUM_PROCESSES") or "1")
        if count == 1:
            return cls()
        name = "JAX_PROCESS_ID" if "JAX_PROCESS_ID" in environment else "JOB_COMPLETION_INDEX"
        index = number(name, 0, environment.get(name, ""))
        if index >= count:
            raise UsageError(f"environment: {name}: {index} is not below JAX_NUM_PROCESSES, {count}")
        coordinator = environment.get("JAX_COORDINATOR_ADDRESS", "")
        if not re.fullmatch(r".+:\d+", coordinator):
            raise UsageError(f"environment: JAX_COORDINATOR_ADDRESS: {coordinator!r} is not of the form host:port")
        return cls(count, index, coordinator)

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


ALONE = Peers()


def watch(peers: Peers, work: Callable[[], int]) -> int:
    """Does the work in a child process and says in one line why it ended.

    JAX aborts a process as soon as another one is lost or did not come in time: only somebody else can still tell.
    Nothing that has threads may have been imported before.

    Args:
        peers: for the message.
        work: returns the exit status.

    Returns:
        the exit status: of the work, that of PeerError when JAX aborted it, or 128 + the number of a signal.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        os.dup2(writing, sys.stderr.fileno())
        os.close(reading)
        os.close(writing)
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # An orderly exit would wait for the others, who may be gone.
            os._exit(status)
    os.close(writing)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to the child as well.
    last: deque[str] = deque(maxlen=100)
    with os.fdopen(reading, errors="replace") as lines:
        for line in lines:
            sys.stderr.write(line)
            sys.stderr.flush()
            last.append(line)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = "".join(last)
    if status == -signal.SIGABRT and _ABORTED in text:
        reason = "the others did not come in time" if _NOT_JOINED in text else "another process was lost"
        status = PeerError.exit_code
    elif status < 0:
        reason, status = f"ended by {signal.Signals(-status).name}", 128 - status
    else:
        # JAX's threads may still have complained after the work said why it ends: its reason is the last line all the same.
        said = [line for line in last if line.startswith("epos: ")]
        if status and said and said[-1] != last[-1]:
            print(said[-1], end="", file=sys.stderr, flush=True)
        return status
    print(f"epos: {peers}: {reason}", file=sys.stderr, flush=True)
    return status

"""Processes that train together, by JAX's distributed runtime: each computes its part of every batch."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from epos import device
from epos.errors import EposError, PeerError, UsageError
from epos.peers import ALONE, Peers
from epos.progress import say

T = TypeVar("T")
# What a computation fails with when a process that takes part in it is gone.
_LOST = re.compile(r"Gloo|remote process|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED")
# What NCCL says when processes compute on one GPU.
_SHARED = "Duplicate GPU detected"
_NOTE_BYTES = 4096


class Group:
    """All devices of all processes that train together; most often one device of one process.

    Args:
        peers: which process this is.
        join_timeout: how long to wait for the others, s.
        peer_timeout: silence after which a process counts as lost, s.
    """

    def __init__(self, peers: Peers = ALONE, join_timeout: int = 300, peer_timeout: int = 30) -> None:
        self.peers = peers
        self.join_timeout, self.peer_timeout = join_timeout, peer_timeout
        # How arrays lie on several devices: the same on each, and divided along the first axis.
        self.whole: NamedSharding | None = None
        self._divided: NamedSharding | None = None

    def join(self) -> None:
        """Waits for the other processes; nothing may have been computed with JAX before.

        Raises:
            EposError: JAX cannot use the device that was chosen.
            PeerError: another process was lost meanwhile.
        """
        if self.peers.count > 1:
            say(f"{self.peers}: waiting up to {self.join_timeout} s for all at {self.peers.coordinator}")
            # SIGTERM is ours, and Python cannot catch it while JAX waits.
            jax.config.update("jax_enable_preemption_service", False)
            before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
            jax.distributed.initialize(
                self.peers.coordinator,
                self.peers.count,
                self.peers.index,
                cluster_detection_method="deactivate",
                initialization_timeout=self.join_timeout,
                heartbeat_timeout_seconds=self.peer_timeout,
            )
            signal.signal(signal.SIGTERM, before)
            say(f"{self.peers}: all are there")
        try:
            with self.errors():
                count = jax.device_count()
        except RuntimeError as error:
            raise device.unusable(error) from error
        if count > 1:
            mesh = Mesh(np.array(jax.devices()), ("batch",))
            self.whole = NamedSharding(mesh, PartitionSpec())
            self._divided = NamedSharding(mesh, PartitionSpec("batch"))

    def leave(self) -> None:
        """Waits until all processes are done with each other; from then on this one computes alone."""
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Says so when a computation failed because another process is gone, or computes on the same GPU.

        Raises:
            PeerError, EposError: in place of JAX's error.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if self.peers.count > 1 and _SHARED in str(error):
                reason = "another process was given the same GPU, and each needs one of its own"
                raise EposError(f"{self.peers}: {reason} (given here: {', '.join(device.given())})") from error
            if self.peers.count > 1 and _LOST.search(str(error)):
                raise PeerError(f"{self.peers}: another process was lost: {str(error).splitlines()[0]}") from error
            raise

    def part(self, size: int) -> slice:
        """Which samples of a batch this process has to load.

        Raises:
            UsageError: the batch cannot be divided evenly among the devices.
        """
        if self._divided is None:
            return slice(None)
        each, rest = divmod(size, jax.device_count())
        if rest:
            raise UsageError(f"--batch-size: {size} is not a multiple of the {jax.device_count()} devices that train")
        mine = [i for i, found in enumerate(jax.devices()) if found.process_index == jax.process_index()]
        return slice(mine[0] * each, (mine[-1] + 1) * each)

    def divide(self, arrays: tuple[Any, ...], size: int) -> tuple[Any, ...]:
        """Puts the parts of a batch that the processes loaded together to one of `size` samples."""
        if self._divided is None:
            return arrays
        return tuple(jax.make_array_from_process_local_data(self._divided, a, (size, *a.shape[1:])) for a in arrays)

    def share(self, tree: T) -> T:
        """Gives every device of every process the leader's arrays; all must hold arrays of the same shapes."""
        if self.whole is None:
            return tree
        with self.errors():
            tree = multihost_utils.broadcast_one_to_all(tree)
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(self.whole, np.asarray(a)), tree)

    def own(self, tree: T) -> T:
        """Arrays of this process alone, from some that all devices hold."""
        return tree if self.whole is None else jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), tree)

    def collect(self, note: str) -> list[str]:
        """The note of every process, by index."""
        if self.peers.count == 1:
            return [note]
        data = np.frombuffer(note.encode().ljust(_NOTE_BYTES), np.uint8)
        with self.errors():
            notes = multihost_utils.process_allgather(data)
        return [bytes(row).decode().rstrip() for row in notes]

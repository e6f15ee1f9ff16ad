"""A way from the controller to a Service inside the cluster, open for as long as a `with` block runs."""

from __future__ import annotations

import ctypes
import os
import queue
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from ansible.module_utils.slipway.errors import SlipwayError

_PR_SET_PDEATHSIG = 1
_OUTPUT_BYTES = 4096


def _end_with_parent() -> None:
    """Have the kernel end the child when this process dies, even by SIGKILL (prctl(2), Linux)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def service_of(host: str) -> tuple[str, str] | None:
    """Namespace and name of the Service that a host is; None for a host outside of the cluster."""
    match = re.fullmatch(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc(\.cluster\.local\.?)?", host)
    return (match[2], match[1]) if match else None


@contextmanager
def way_to(kubectl: str, kubeconfig: str, endpoint: str, timeout: float) -> Iterator[str]:
    """Yield where `endpoint` (host:port) is reached from here: a Service of the cluster by a `port_forward`, all else as it is."""
    host, _, port = endpoint.rpartition(":")
    if not (service := service_of(host)):
        yield endpoint
        return
    with port_forward(kubectl, kubeconfig, service[0], f"service/{service[1]}", int(port), timeout) as address:
        yield address


@contextmanager
def port_forward(
    kubectl: str, kubeconfig: str, namespace: str, target: str, port: int, timeout: float = 30
) -> Iterator[str]:
    """Yield `127.0.0.1:<free port>` that leads to `port` of `target` (such as `service/minio`).

    `timeout` is in seconds until kubectl listens. Raises SlipwayError with kubectl's own words when it does not.
    """
    with _kubectl(kubectl, kubeconfig, namespace, target, f":{port}", timeout) as (address, _):
        yield address


@contextmanager
def standing_port_forward(
    kubectl: str, kubeconfig: str, namespace: str, target: str, port: int, timeout: float = 30
) -> Iterator[str]:
    """Yield an address like `port_forward`, which stays the same while pods behind `target` go and others come.

    kubectl leads to one pod and ends with it; it is then started again on the same port. In between connections are
    refused or cut, and whoever made them tries again.
    """
    over = threading.Event()
    opened: queue.SimpleQueue[str | SlipwayError] = queue.SimpleQueue()

    def keep() -> None:
        local = ""
        while not over.is_set():
            try:
                with _kubectl(kubectl, kubeconfig, namespace, target, f"{local}:{port}", timeout) as (address, process):
                    if not local:
                        local = address.rpartition(":")[2]
                        opened.put(address)
                    while process.poll() is None and not over.wait(0.1):
                        pass
            except SlipwayError as error:
                if not local:
                    opened.put(error)
                    return
                over.wait(0.3)

    thread = threading.Thread(target=keep, daemon=True)
    thread.start()
    try:
        found = opened.get()
        if isinstance(found, SlipwayError):
            raise found
        yield found
    finally:
        over.set()
        thread.join()


@contextmanager
def _kubectl(
    kubectl: str, kubeconfig: str, namespace: str, target: str, ports: str, timeout: float
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `kubectl port-forward`; yield the address where it listens, and its process."""
    # Without a number before the colon kubectl takes a free port itself, so nobody can snatch it in between.
    command = [kubectl, "--kubeconfig", kubeconfig, "--namespace", namespace, "port-forward"]
    command += ["--address", "127.0.0.1", target, ports]
    # A file, as kubectl writes a line for each connection and would block on a pipe that nobody reads.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent,
            )
        except OSError as error:
            raise SlipwayError(f"{kubectl} cannot be run: {error}") from error
        try:
            yield _address(process, output, f"{namespace}/{target}", timeout), process
        finally:
            process.terminate()
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], output: IO[bytes], what: str, timeout: float) -> str:
    """Wait until kubectl's output names the address that it listens on."""
    deadline = time.monotonic() + timeout
    while True:
        ended = process.poll() is not None
        # pread: the child writes at the position that it shares with this file object.
        said = os.pread(output.fileno(), _OUTPUT_BYTES, 0)
        if match := re.search(rb"Forwarding from (127\.0\.0\.1:\d+)", said):
            return match[1].decode()
        if ended or time.monotonic() >= deadline:
            reason = said.decode(errors="replace").strip() or f"no answer within {timeout:.0f} s"
            raise SlipwayError(f"no way to {what}: {reason}")
        time.sleep(0.05)

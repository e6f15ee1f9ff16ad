"""Runs inside the test's pods: listens on ports, and tries connections. Needs nothing but Python."""

from __future__ import annotations

import errno
import json
import selectors
import socket
import sys
import threading
import time
from typing import Any

# Seconds: for one attempt; until a connection must have been let through, or been refused.
ATTEMPT = 2.0
ALLOWED = 12.0
REFUSED = 6.0
# A question for kubernetes.default.svc.cluster.local: a name server answers, and a probe echoes it.
QUESTION = (
    b"\x51\x57\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"
    b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"
)


def listen(ports: list[str]) -> None:
    """Accept connections on PORT/TCP and echo datagrams on PORT/UDP, for ever. Whatever holds a port already answers there itself."""
    ready = selectors.DefaultSelector()
    for number, protocol in (port.split("/") for port in ports):
        kind = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}[protocol]
        server = socket.socket(socket.AF_INET, kind)
        if protocol == "TCP":
            # For datagrams it would mean to share the port with whom it belongs to.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("0.0.0.0", int(number)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        if protocol == "TCP":
            server.listen(64)
        ready.register(server, selectors.EVENT_READ, protocol)
    print("listening", flush=True)
    while True:
        for key, _ in ready.select(timeout=3600):
            server = key.fileobj  # type: ignore[assignment]
            try:
                if key.data == "TCP":
                    server.accept()[0].close()
                else:
                    server.sendto(*server.recvfrom(512))
            except OSError as error:
                print(error, flush=True)


def attempt(address: str, port: int, protocol: str) -> str:
    """Connect once; return "" if somebody answered, else what happened."""
    kind = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}[protocol]
    with socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(ATTEMPT)
        try:
            client.connect((address, port))
            if protocol == "UDP":
                client.send(QUESTION)
                client.recv(512)
        except TimeoutError:
            return "no answer"
        except OSError as error:
            return error.strerror or str(error)
    return ""


def check(wanted: dict[str, Any]) -> dict[str, Any]:
    """Try until the outcome is the one that is wanted, or for too long; return it, with the seconds that it took.

    A pod that just started counts after a moment, to those who let it through and to those who refuse it. A refusal
    that comes late has to come twice.
    """
    start = time.monotonic()
    end = start + (ALLOWED if wanted["allowed"] else REFUSED)
    refusals, needed = 0, 1
    while True:
        answers = [attempt(*way) for way in wanted["ways"]]
        answered = "" in answers
        refusals, needed = (0, 2) if answered else (refusals + 1, needed)
        if (answered if wanted["allowed"] else refusals >= needed) or time.monotonic() > end:
            seconds = round(time.monotonic() - start, 1)
            return {"id": wanted["id"], "answered": answered, "answers": answers, "seconds": seconds}
        time.sleep(0.3)


def check_all(wanted: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Try all connections at once."""
    found: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda one=one: found.append(check(one))) for one in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


if __name__ == "__main__":
    if sys.argv[1] == "listen":
        listen(sys.argv[2:])
    print(json.dumps(check_all(json.load(sys.stdin))))

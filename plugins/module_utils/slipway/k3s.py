"""What k3s is called on a node, which version it is, and what it answers. Runs on nodes: standard library only, Python 3.8 or newer."""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass

from ansible.module_utils.slipway.errors import SlipwayError

# By role of the node.
UNITS = {"server": "k3s.service", "agent": "k3s-agent.service"}
BINARY = "/usr/local/bin/k3s"
# Beside the binary, so that each takes its place by a rename: the next one before the node is drained, the previous one until the next
# has proven itself.
NEXT = "/usr/local/bin/.k3s.next"
PREVIOUS = "/usr/local/bin/.k3s.previous"
# What a start of ours leaves on the node.
MARKER = "/etc/rancher/k3s/slipway.json"

_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)(?:-rc(\d+))?\+k3s(\d+)")
# A candidate comes before what it is a candidate for.
_RELEASED = 1_000_000


@dataclass(frozen=True, order=True)
class K3sVersion:
    """A version of k3s, in the order of their releases within one line; `candidate` is that of a release candidate."""

    major: int
    minor: int
    patch: int
    candidate: int
    build: int

    @property
    def line(self) -> tuple[int, int]:
        """Major and minor: what Kubernetes has one API and one datastore format for."""
        return self.major, self.minor


def parse_version(text: str) -> K3sVersion:
    """Read `v1.35.8+k3s1` or `v1.36.0-rc2+k3s1`. Raises SlipwayError."""
    match = _VERSION.fullmatch(text)
    if not match:
        raise SlipwayError(f"{text!r} is no version of k3s, such as v1.35.8+k3s1")
    major, minor, patch, candidate, build = (int(part) if part else _RELEASED for part in match.groups())
    return K3sVersion(major, minor, patch, candidate, build)


def binary_version(path: str = BINARY) -> str:
    """The version that a k3s program reports, such as `v1.35.8+k3s1`; empty where there is none, or none that answers."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # k3s version v1.35.8+k3s1 (0123abcd)
    words = answer.stdout.split()
    return words[2] if words[:2] == ["k3s", "version"] and len(words) > 2 else ""


def kubectl(*words: str, timeout: float = 15) -> str:
    """What `k3s kubectl WORDS...` prints, asked of the server that runs on this machine, as its administrator.

    Nodes have no client library of the API. `timeout` is in seconds. Raises SlipwayError with what kubectl says.
    """
    # Its cache would stay on the node.
    environment = {**os.environ, "KUBECACHEDIR": "/run/k3s/kubectl-cache"}
    try:
        answer = subprocess.run(
            [BINARY, "kubectl", *words], env=environment, capture_output=True, text=True, check=False, timeout=timeout
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlipwayError(f"k3s kubectl {words[0]}: {error}") from error
    if answer.returncode:
        raise SlipwayError(" ".join(answer.stderr.split()) or f"k3s kubectl {words[0]} ended with {answer.returncode}")
    return answer.stdout


def command(*words: str, timeout: float = 120) -> str:
    """What `k3s WORDS...` prints. `timeout` is in seconds. Raises SlipwayError with what k3s says."""
    try:
        answer = subprocess.run([BINARY, *words], capture_output=True, text=True, check=False, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SlipwayError(f"k3s {' '.join(words)}: {error}") from error
    if answer.returncode:
        said = " ".join((answer.stderr or answer.stdout).split())
        raise SlipwayError(f"k3s {' '.join(words)} ended with {answer.returncode}: {said}")
    return answer.stdout


def epoch(monotonic: str) -> float:
    """One of systemd's monotonic timestamps (microseconds since the machine's start) in seconds since 1970; 0 for what has not happened."""
    return time.time() - time.monotonic() + int(monotonic) / 1e6 if monotonic.isdigit() and int(monotonic) else 0.0


def may_go_back(role: str, old: str, new: str, came_up: bool) -> bool:
    """Whether the old program may take the new one's place again.

    An agent holds nothing. A server may have written to the datastore in the new version's format: going back is safe only when it
    never became ready, and within one minor, where datastore and stored objects have one format.
    """
    if role == "agent":
        return True
    try:
        return not came_up and parse_version(old).line == parse_version(new).line
    except SlipwayError:
        return False

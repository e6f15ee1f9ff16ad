"""What runs in the pods that show the flows: it listens, and tells whether somebody answers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import probe

PROGRAM = Path(probe.__file__).read_text()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which the program listens, TCP and UDP."""
    number = free_port()
    words = [sys.executable, "-c", PROGRAM, "listen", f"{number}/TCP", f"{number}/UDP"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        yield number
        process.kill()


def run(*wanted: object) -> dict[int, tuple[bool, list[str]]]:
    words = [sys.executable, "-c", PROGRAM, "check"]
    answer = subprocess.run(words, input=json.dumps(wanted), capture_output=True, text=True, check=True, timeout=60)
    return {each["id"]: (each["answered"], each["answers"]) for each in json.loads(answer.stdout)}


def test_outcomes(port: int) -> None:
    here, nobody = "127.0.0.1", free_port()
    found = run(
        {"id": 0, "allowed": True, "ways": [[here, port, "TCP"]]},
        {"id": 1, "allowed": True, "ways": [[here, port, "UDP"]]},
        {"id": 2, "allowed": False, "ways": [[here, nobody, "TCP"]]},
        {"id": 3, "allowed": False, "ways": [[here, nobody, "UDP"]]},
        {"id": 4, "allowed": True, "ways": [[here, nobody, "TCP"], [here, port, "TCP"]]},
    )
    refused = (False, ["Connection refused"])
    assert found == {0: (True, [""]), 1: (True, [""]), 2: refused, 3: refused, 4: (True, ["Connection refused", ""])}


def test_what_stays_wrong_is_told(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "ALLOWED", 0.5)
    monkeypatch.setattr(probe, "REFUSED", 0.5)
    here = "127.0.0.1"
    assert probe.check({"id": 0, "allowed": False, "ways": [[here, port, "TCP"]]})["answered"] is True
    assert probe.check({"id": 0, "allowed": True, "ways": [[here, free_port(), "TCP"]]})["answered"] is False


def test_late_outcomes_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*texts: str) -> None:
        left = list(texts)
        monkeypatch.setattr(probe, "attempt", lambda *_: left.pop(0))

    monkeypatch.setattr("time.sleep", lambda _: None)
    answers("refused", "refused", "")
    assert probe.check({"id": 0, "allowed": True, "ways": [["x", 1, "TCP"]]})["answered"] is True
    # One refusal may be an accident, once there was an answer.
    answers("", "refused", "", "refused", "refused")
    assert probe.check({"id": 0, "allowed": False, "ways": [["x", 1, "TCP"]]})["answered"] is False
    answers("refused")
    assert probe.check({"id": 0, "allowed": False, "ways": [["x", 1, "TCP"]]})["answered"] is False


def test_ports_of_others_are_theirs(port: int) -> None:
    words = [sys.executable, "-c", PROGRAM, "listen", f"{port}/TCP"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "listening\n"
        process.kill()

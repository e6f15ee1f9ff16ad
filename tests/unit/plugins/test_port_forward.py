"""A port forward yields an address, ends with its block, and says why it failed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.port_forward import port_forward, standing_port_forward

from .conftest import PLUGINS


def kubectl(tmp_path: Path, body: str) -> str:
    """A program in place of kubectl; it leaves its arguments and process id in files beside it."""
    program = tmp_path / "kubectl"
    program.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/args\necho $$ > {tmp_path}/pid\n{body}\n')
    program.chmod(0o755)
    return str(program)


def alive(tmp_path: Path) -> bool:
    try:
        os.kill(int((tmp_path / "pid").read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_address_and_end(tmp_path: Path) -> None:
    program = kubectl(tmp_path, 'echo "Forwarding from 127.0.0.1:40123 -> 9000"; exec sleep 60')
    with port_forward(program, "/k", "minio", "service/minio", 9000) as address:
        assert address == "127.0.0.1:40123"
        assert alive(tmp_path)
    assert not alive(tmp_path)
    arguments = "--kubeconfig /k --namespace minio port-forward --address 127.0.0.1 service/minio :9000"
    assert (tmp_path / "args").read_text().strip() == arguments


def test_ends_when_the_block_raises_and_when_deaf_to_sigterm(tmp_path: Path) -> None:
    program = kubectl(tmp_path, "trap '' TERM; echo 'Forwarding from 127.0.0.1:1 -> 2'; while :; do sleep 0.1; done")
    with pytest.raises(ValueError, match="inside"), port_forward(program, "/k", "n", "service/s", 1):
        raise ValueError("inside")
    assert not alive(tmp_path)


def test_own_words_of_kubectl_are_in_the_error(tmp_path: Path) -> None:
    program = kubectl(tmp_path, "echo 'error: pod is not running' >&2; exit 1")
    with (
        pytest.raises(SlipwayError, match="no way to n/service/s: error: pod is not running"),
        port_forward(program, "/k", "n", "service/s", 1),
    ):
        pass


def test_silence_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    program = kubectl(tmp_path, "exec sleep 60")
    with (
        pytest.raises(SlipwayError, match="no answer within 0 s"),
        port_forward(program, "/k", "n", "service/s", 1, timeout=0.3),
    ):
        pass
    assert not alive(tmp_path)


def test_missing_program(tmp_path: Path) -> None:
    with (
        pytest.raises(SlipwayError, match="cannot be run"),
        port_forward(str(tmp_path / "none"), "/k", "n", "s", 1),
    ):
        pass


def test_kubectl_dies_with_a_killed_module(tmp_path: Path) -> None:
    program = kubectl(tmp_path, "echo 'Forwarding from 127.0.0.1:1 -> 2'; exec sleep 60")
    script = textwrap.dedent(f"""
        import ansible.module_utils, time
        ansible.module_utils.__path__.append({str(PLUGINS / "module_utils")!r})
        from ansible.module_utils.slipway.port_forward import port_forward
        with port_forward({program!r}, "/k", "n", "s", 1):
            print("open", flush=True)
            time.sleep(60)
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"open\n"
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while alive(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(tmp_path)


def test_a_standing_forward_comes_back_on_its_port(tmp_path: Path) -> None:
    # It refuses once, as kubectl does while there is no other pod yet.
    body = f"""
n=$(cat {tmp_path}/count 2>/dev/null || echo 0); echo $((n + 1)) > {tmp_path}/count
[ $n != 1 ] || {{ echo 'error: pod is not running'; exit 1; }}
echo "Forwarding from 127.0.0.1:40123 -> 8888"; exec sleep 60"""
    with standing_port_forward(kubectl(tmp_path, body), "/k", "kfp", "service/x", 8888) as address:
        assert address == "127.0.0.1:40123"
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (tmp_path / "count").read_text() != "3\n":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert (tmp_path / "args").read_text().endswith("service/x 40123:8888\n")
        assert alive(tmp_path)
    assert not alive(tmp_path)


def test_a_standing_forward_that_never_stood_is_an_error(tmp_path: Path) -> None:
    program = kubectl(tmp_path, "echo 'error: services \"x\" not found' >&2; exit 1")
    with (
        pytest.raises(SlipwayError, match="no way to n/service/x: error: services"),
        standing_port_forward(program, "/k", "n", "service/x", 1),
    ):
        pass

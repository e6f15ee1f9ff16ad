"""Streams to encrypted files and back: what fails on either side fails the whole, and leaves no file."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO

import pyrage
import pytest
from ansible.module_utils.slipway.age import (
    decrypt,
    encrypt,
    encrypt_bytes,
    read_identities,
    read_recipients,
    require_opens,
)
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import file_sha256

KEY = pyrage.x25519.Identity.generate()
TO = [KEY.to_public()]
PIECE = bytes(range(256)) * 4096
real = os.open


def fill(stream: IO[bytes]) -> int:
    """5 MiB, more than any buffer on the way."""
    return sum(stream.write(PIECE) for _ in range(5))


def test_a_stream_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.age"
    digest, written = encrypt(path, TO, fill)
    assert written == 5 * len(PIECE)
    assert digest == file_sha256(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert decrypt(path, [KEY], lambda stream: stream.read()) == PIECE * 5
    # What is not read is judged all the same.
    assert decrypt(path, [KEY], lambda stream: stream.read(3)) == PIECE[:3]
    require_opens(path, [KEY])


def test_a_failure_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    def broken(stream: IO[bytes]) -> None:
        fill(stream)
        raise SlipwayError("the pod is gone")

    with pytest.raises(SlipwayError, match="the pod is gone"):
        encrypt(tmp_path / "x.age", TO, broken)
    assert not list(tmp_path.iterdir())
    encrypt_bytes(tmp_path / "x.age", TO, b"mine")
    with pytest.raises(FileExistsError):
        encrypt_bytes(tmp_path / "x.age", TO, b"other")
    assert decrypt(tmp_path / "x.age", [KEY], lambda stream: stream.read()) == b"mine"


@pytest.mark.parametrize("content", [b"short", PIECE * 5])
def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Also where only the last piece did not fit."""
    monkeypatch.setattr("ansible.module_utils.slipway.age.os.open", lambda *_: real("/dev/full", os.O_WRONLY))
    with pytest.raises(OSError, match="No space left"):
        encrypt_bytes(tmp_path / "x.age", TO, content)


def test_what_is_cut_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.age"
    encrypt(path, TO, fill)
    whole = path.read_bytes()
    for content in (whole[:-20], whole[: -len(PIECE)], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(content)
        with pytest.raises(SlipwayError, match=r"x\.age cannot be decrypted"):
            decrypt(path, [KEY], lambda stream: stream.read(10))


def test_what_stops_the_reader_is_said(tmp_path: Path) -> None:
    def full(stream: IO[bytes]) -> None:
        raise SlipwayError("the store is full")

    encrypt(tmp_path / "x.age", TO, fill)
    with pytest.raises(SlipwayError, match="the store is full"):
        decrypt(tmp_path / "x.age", [KEY], full)


def test_keys_of_ssh_do_as_well(tmp_path: Path) -> None:
    for name, phrase in (("open", ""), ("locked", "phrase")):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    recipients = read_recipients([(tmp_path / "open.pub").read_text(), str(KEY.to_public())])
    encrypt_bytes(tmp_path / "x.age", recipients, b"text")
    for identities in (read_identities(tmp_path / "open"), [KEY]):
        assert decrypt(tmp_path / "x.age", identities, lambda stream: stream.read()) == b"text"
    with pytest.raises(SlipwayError, match="without a passphrase"):
        read_identities(tmp_path / "locked")
    with pytest.raises(SlipwayError, match="it was encrypted for others"):
        require_opens(tmp_path / "x.age", [pyrage.x25519.Identity.generate()])


# The last one is another one each time, and a test's name must not be.
@pytest.mark.parametrize(
    "text",
    ["", "age1nonsense", "ssh-ed25519 AAAA", pytest.param(str(KEY), id="secret")],
)
def test_no_key_is_shown_in_what_is_refused(text: str) -> None:
    with pytest.raises(SlipwayError, match="number 2 is no public key") as refused:
        read_recipients([str(KEY.to_public()), text])
    assert not text or text not in str(refused.value)
    with pytest.raises(SlipwayError, match="is empty"):
        read_recipients([])

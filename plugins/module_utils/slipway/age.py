"""Files encrypted as age does it (https://age-encryption.org/v1): streams, of which only a piece is in memory. For the controller."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import pyrage
from ansible.module_utils.slipway.errors import SlipwayError

Recipient = pyrage.x25519.Recipient | pyrage.ssh.Recipient
Identity = pyrage.x25519.Identity | pyrage.ssh.Identity
_PIECE = 1 << 20
T = TypeVar("T")


def read_recipients(texts: Sequence[str]) -> list[Recipient]:
    """Public keys of age or SSH. Raises SlipwayError that names none of them: somebody may have given a secret one."""
    found: list[Recipient] = []
    for number, text in enumerate(texts, 1):
        kind = pyrage.x25519.Recipient if str(text).startswith("age1") else pyrage.ssh.Recipient
        try:
            found.append(kind.from_str(str(text).strip()))
        except pyrage.RecipientError:
            raise SlipwayError(
                f"backup_recipients: number {number} is no public key of age (age1...) or SSH (ssh-ed25519 ..., ssh-rsa ...)"
            ) from None
    if not found:
        raise SlipwayError("backup_recipients is empty: there is no public key to encrypt for")
    return found


def read_identities(path: Path) -> list[Identity]:
    """The secret keys in a file of age-keygen, or the one in a file of ssh-keygen. Raises SlipwayError."""
    wrong = f"backup_identity_file: {path} holds no secret key of age (age-keygen) or SSH (without a passphrase)"
    try:
        content = path.read_bytes()
        if b"-----BEGIN" in content:
            return [pyrage.ssh.Identity.from_buffer(content)]
        lines = [line.strip() for line in content.decode().splitlines()]
        found: list[Identity] = [
            pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")
        ]
    except OSError as error:
        raise SlipwayError(f"backup_identity_file: {error}") from error
    except (pyrage.IdentityError, UnicodeDecodeError):
        raise SlipwayError(wrong) from None
    if not found:
        raise SlipwayError(wrong)
    return found


class _Sink:
    """Where what is encrypted goes. pyrage does not pass on what goes wrong with the last piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.fault: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.fault = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def encrypt(path: Path, recipients: Sequence[Recipient], write: Callable[[IO[bytes]], T]) -> tuple[str, T]:
    """Have `write` fill a stream that is encrypted to the new file `path`, which only its owner may read.

    Returns the file's SHA-256 and what `write` returned. Where anything fails there is no such file. Raises SlipwayError, OSError.
    """
    file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    try:
        with file:
            sink = _Sink(file)

            def work(source: IO[bytes]) -> None:
                try:
                    pyrage.encrypt_io(source, sink, recipients)
                except pyrage.EncryptError as error:
                    raise sink.fault or error from None
                if sink.fault:
                    raise sink.fault

            try:
                answer = _piped(work, write)
            except pyrage.EncryptError as error:
                raise SlipwayError(f"{path} cannot be encrypted: {error}") from error
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return sink.digest.hexdigest(), answer


def _piped(work: Callable[[IO[bytes]], None], write: Callable[[IO[bytes]], T]) -> T:
    """Run `work` in a thread on what `write` writes; what stops `work` comes before what that does to `write`."""
    source, target = os.pipe()
    faults: list[Exception] = []

    def run() -> None:
        try:
            with os.fdopen(source, "rb") as stream:
                work(stream)
        except Exception as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        try:
            with os.fdopen(target, "wb") as stream:
                answer = write(stream)
        finally:
            thread.join()
    except Exception:
        if faults:
            raise faults[0] from None
        raise
    if faults:
        raise faults[0]
    return answer


def encrypt_bytes(path: Path, recipients: Sequence[Recipient], content: bytes) -> str:
    """Encrypt a short content to the new file `path`; return the file's SHA-256. Raises SlipwayError, OSError."""
    return encrypt(path, recipients, lambda stream: stream.write(content))[0]


def decrypt(path: Path, identities: Sequence[Identity], read: Callable[[IO[bytes]], T]) -> T:
    """Return what `read` makes of the decrypted stream. Raises SlipwayError, OSError."""
    source, target = os.pipe()
    faults: list[SlipwayError] = []

    def run() -> None:
        try:
            with os.fdopen(target, "wb") as sink:
                _decrypt(path, identities, sink)
        except BrokenPipeError:
            # `read` has had enough, and says why.
            pass
        except SlipwayError as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        try:
            with os.fdopen(source, "rb") as stream:
                answer = read(stream)
                # To the end, where age says whether anything was cut off.
                while stream.read(_PIECE):
                    pass
        finally:
            thread.join()
    except Exception:
        if faults:
            raise faults[0] from None
        raise
    if faults:
        raise faults[0]
    return answer


def require_opens(path: Path, identities: Sequence[Identity]) -> None:
    """Raise SlipwayError unless one of the keys opens the file; only its beginning is read."""
    with contextlib.suppress(_OpenedError):
        _decrypt(path, identities, _First())


def _decrypt(path: Path, identities: Sequence[Identity], sink: IO[bytes] | _First) -> None:
    try:
        with path.open("rb") as file:
            pyrage.decrypt_io(file, sink, identities)
    except pyrage.DecryptError as error:
        raise SlipwayError(f"No key in backup_identity_file opens {path}: it was encrypted for others") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise SlipwayError(f"{path} cannot be decrypted: {error}") from error


class _OpenedError(Exception):
    """It is open."""


class _First:
    """Ends the work with the first piece."""

    def write(self, data: bytes) -> int:
        raise _OpenedError

    def flush(self) -> None:
        pass

"""Deployment by commits: Argo CD brings the cluster to what the repository says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from epos.application import FOLDER, KEPT, Application, render, serving_file, serving_path
from epos.errors import EposError
from epos.progress import say
from epos.repository import Moved, Repository, Snapshot, Unreachable
from epos.versions import Share

__all__ = ["Application", "Repository", "Share", "deploy", "release_message", "serve"]

_ATTEMPTS = 8


def release_message(version: str, run_id: str, data_hash: str, recall: float) -> str:
    """The message of a commit that brings a model."""
    return (
        f"epos: model {version}, recall {recall:.4f}\n\n"
        f"version: {version}\nrun: {run_id}\ndata: {data_hash}\nrecall: {recall:.6f}\n"
    )


def deploy(
    repository: str, username: str, password: str, application: Application, message: str, ca_file: str | None = None
) -> str:
    """Brings the application into the repository: it runs in dev at once, in prod when the commit is approved.

    Args:
        repository: http(s) address.
        username, password: of a user who may write.
        application: what to bring.
        message: of the commit.
        ca_file: PEM file of the authority that signed the server's certificate.

    Returns:
        the commit; where everything is there already, the one that brought it.

    Raises:
        EposError: login or push refused, or the server stays away.
    """
    files = {path: text.encode() for path, text in render(application).items()}

    def wanted(seen: Snapshot) -> Mapping[str, bytes]:
        return {
            path: data
            for path, data in files.items()
            if not (path.endswith(f"/{KEPT}") and seen.read(path) is not None)
        }

    return _change(Repository(repository, username, password, ca_file), wanted, message)


def serve(
    repository: str,
    username: str,
    password: str,
    environment: str,
    shares: Sequence[Share],
    reason: str = "",
    ca_file: str | None = None,
) -> str:
    """Changes which versions answer in an environment, and their shares of the requests; all else stays.

    Args:
        repository: http(s) address.
        username, password: of a user who may write.
        environment: dev or prod.
        shares: versions that shall answer.
        reason: more text for the commit's message.
        ca_file: PEM file of the authority that signed the server's certificate.

    Returns:
        the commit; where they answer already, the one that last changed the application.

    Raises:
        EposError: the application is not there, login or push refused, or the server stays away.
    """
    path, data = serving_path(environment), serving_file(shares).encode()

    def wanted(seen: Snapshot) -> Mapping[str, bytes]:
        if seen.read(path) is None:
            raise EposError(f"{repository}: {path}: there is no such file; the pipeline brings the application first")
        return {path: data}

    message = f"epos: {environment} serves {', '.join(map(str, shares))}\n\n{reason}"
    return _change(Repository(repository, username, password, ca_file), wanted, message)


def _change(repository: Repository, wanted: Callable[[Snapshot], Mapping[str, bytes]], message: str) -> str:
    """Commits what is not as wanted; again and again when others push at the same time or the server is away."""
    attempt = 1
    while True:
        try:
            seen = repository.fetch()
            changed = {path: data for path, data in wanted(seen).items() if seen.read(path) != data}
            if not changed:
                return repository.last_change(FOLDER)
            return repository.push(seen, changed, message)
        except (Moved, Unreachable) as error:
            if attempt == _ATTEMPTS:
                raise EposError(f"{error} (given up after {_ATTEMPTS} attempts)") from error
            say(f"{error}; trying again")
            # Those who push at the same time shall not meet again.
            time.sleep(random.uniform(0.5, 1) * min(8.0, 0.25 * 2**attempt))
            attempt += 1

"""A branch of a Git repository over http(s), without a working tree and without a Git program."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import urllib3
from dulwich.client import HttpGitClient, HTTPUnauthorized
from dulwich.errors import GitProtocolError, NotGitRepository, NotTreeError
from dulwich.object_store import BaseObjectStore, commit_tree_changes, tree_lookup_path
from dulwich.objects import Blob, Commit
from dulwich.pack import pack_objects_to_data
from dulwich.repo import MemoryRepo

from epos.errors import EposError, UsageError

_PLAIN_FILE = 0o100644
# Without a user in it: it is part of messages.
_ADDRESS = re.compile(r"https?://[^/@\s]+(/[^/@\s]+)+/?")


class Unreachable(EposError):
    """The server did not answer, or broke off; whether a push has arrived is then unknown."""


class Moved(EposError):
    """Somebody else has pushed meanwhile."""


@dataclass(frozen=True)
class Snapshot:
    """A commit with its files.

    Attributes:
        commit: its name.
        store: holds its objects.
    """

    commit: bytes
    store: BaseObjectStore

    @property
    def tree(self) -> bytes:
        """Name of its root folder."""
        commit = self.store[self.commit]
        assert isinstance(commit, Commit)
        return commit.tree

    def read(self, path: str) -> bytes | None:
        """Content of a plain file; None where there is no such file."""
        try:
            mode, name = tree_lookup_path(self.store.__getitem__, self.tree, path.encode())
        except (KeyError, NotTreeError):
            return None
        found = self.store[name]
        return found.data if mode == _PLAIN_FILE and isinstance(found, Blob) else None


class Repository:
    """One branch of a repository, as one user.

    Args:
        url: http(s) address.
        username, password: of the user.
        ca_file: PEM file of the authority that signed the server's certificate; by default those that the system trusts.
        branch: the branch.
    """

    def __init__(
        self, url: str, username: str, password: str, ca_file: str | None = None, branch: str = "main"
    ) -> None:
        if not _ADDRESS.fullmatch(url):
            raise UsageError("the repository's address must be http(s)://host/path, without user and password in it")
        self.url, self.username, self.branch = url, username, branch
        self._ref = f"refs/heads/{branch}".encode()
        tls = {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_file} if ca_file else {}
        pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=10, read=60),
            # What has not begun may be tried again; a push may have arrived although its answer has not.
            retries=urllib3.Retry(total=3, connect=3, read=0, status=0, other=0, redirect=3, backoff_factor=0.3),
            **tls,
        )
        base, _, self._path = url.rstrip("/").rpartition("/")
        self._client = HttpGitClient(f"{base}/", pool_manager=pool, username=username, password=password, quiet=True)

    def fetch(self) -> Snapshot:
        """The newest commit, without those before it."""
        return self._fetch(depth=1)

    def last_change(self, folder: str) -> str:
        """The newest commit that changed something in a folder."""
        seen = self._fetch(depth=None)
        repo = MemoryRepo()
        repo.object_store = seen.store
        for entry in repo.get_walker(include=[seen.commit], paths=[folder.encode()], max_entries=1):
            return entry.commit.id.decode()
        raise EposError(f"{self.url}: no commit of {self.branch} has {folder}")

    def push(self, seen: Snapshot, files: Mapping[str, bytes], message: str) -> str:
        """Commits files on top of a snapshot and pushes the commit.

        Returns:
            the commit.

        Raises:
            Moved: the branch is not at the snapshot any more.
            Unreachable: no answer.
            EposError: login or push refused; the text is the server's.
        """
        before = set(seen.store)
        changes = []
        for path, content in files.items():
            blob = Blob.from_string(content)
            seen.store.add_object(blob)
            changes.append((path.encode(), _PLAIN_FILE, blob.id))
        commit = Commit()
        commit.tree = commit_tree_changes(seen.store, seen.tree, changes)
        commit.parents = [seen.commit]
        commit.author = commit.committer = f"{self.username} <{self.username}@localhost>".encode()
        commit.author_time = commit.commit_time = int(time.time())
        commit.author_timezone = commit.commit_timezone = 0
        commit.message = f"{message.strip()}\n".encode()
        seen.store.add_object(commit)
        new = [seen.store[name] for name in set(seen.store) - before]

        def update(refs: dict[bytes, bytes]) -> dict[bytes, bytes]:
            # Dulwich would replace whatever is there now.
            if refs.get(self._ref) != seen.commit:
                raise Moved(f"{self.url}: {self.branch} has moved")
            return {self._ref: commit.id}

        said = io.BytesIO()
        with self._errors():
            result = self._client.send_pack(
                self._path, update, lambda have, want, **_: pack_objects_to_data(new), progress=said.write
            )
        fault = (result.ref_status or {}).get(self._ref)
        if fault is None:
            return commit.id.decode()
        # A hook says no to the content; everything else, such as a lock, is another's push at the same time.
        if "declined" not in fault:
            raise Moved(f"{self.url}: {self.branch}: {fault}")
        text = said.getvalue().decode(errors="replace").strip()
        raise EposError(f"{self.url}: the push of {self.username} was refused: {text or fault}")

    def _fetch(self, depth: int | None) -> Snapshot:
        repo = MemoryRepo()
        with self._errors():
            found = self._client.fetch(
                self._path, repo, lambda refs, **_: [refs[self._ref]] if self._ref in refs else [], depth=depth,
                ref_prefix=[self._ref],
            )  # fmt: skip
        commit = found.refs.get(self._ref)
        if commit is None:
            raise EposError(f"{self.url}: has no branch {self.branch}")
        return Snapshot(commit, repo.object_store)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Says what failed in a line."""
        try:
            yield
        except HTTPUnauthorized as error:
            raise EposError(
                f"{self.url}: login refused: user {self.username} or the password is wrong, or the user may not write"
            ) from error
        except NotGitRepository as error:
            raise EposError(f"{self.url}: there is no such repository") from error
        except (GitProtocolError, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise Unreachable(f"{self.url}: {error}") from error

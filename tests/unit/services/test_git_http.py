"""The Git service, with real Git clients."""

from __future__ import annotations

import http.client
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SOURCE = Path(__file__).parents[3] / "services/git_http.py"


def load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("git_http", SOURCE)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Dataclasses look their module up by its name.
    sys.modules["git_http"] = module
    specification.loader.exec_module(module)
    return module


git_http = load()


class Service:
    """A running server and what it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users = folder / "users"
        self.users.mkdir()
        (self.users / "argocd.read").write_text("r-password\n")
        (self.users / "team.write").write_text("w-password")
        (folder / "root").mkdir()
        self.options = git_http.Options(folder / "root", self.users, folder / "hooks")
        git_http.create(self.options, "platform")
        self.server = git_http.Server(0, self.options)
        self.port = self.server.server_address[1]

    def url(self, user: str = "team:w-password", repository: str = "platform") -> str:
        return f"http://{user}@127.0.0.1:{self.port}/{repository}.git"

    def git(self, *words: str, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        }
        command = ["git", "-c", "init.defaultBranch=main", *words]
        return subprocess.run(
            command, cwd=cwd or self.folder, env=environment, check=check, capture_output=True, text=True
        )

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def commit(self, name: str, content: bytes) -> Path:
        """A clone with one more commit."""
        clone = self.folder / "clone"
        if not clone.exists():
            self.git("clone", "-q", self.url(), str(clone))
        (clone / name).write_bytes(content)
        self.git("add", ".", cwd=clone)
        self.git("commit", "-q", "-m", name, cwd=clone)
        return clone


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path)
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


def test_a_pushed_commit_arrives_at_a_reader(service: Service) -> None:
    # Larger than one piece and than Git's buffer, so that the body is sent in chunks; not compressible.
    content = os.urandom(3 << 20)
    service.git("push", "-q", "origin", "main", cwd=service.commit("model.bin", content))
    service.git("clone", "-q", service.url("argocd:r-password"), "reader")
    assert (service.folder / "reader/model.bin").read_bytes() == content


@pytest.mark.parametrize("user", ["team:wrong", "team:", "nobody:w-password", "..:x", "argocd:w-password"])
def test_wrong_users_are_refused(service: Service, user: str) -> None:
    result = service.git("ls-remote", service.url(user), check=False)
    assert result.returncode != 0
    assert "Authentication failed" in result.stderr


def test_no_user_is_refused(service: Service) -> None:
    status, text = service.request("GET", "/platform.git/info/refs?service=git-upload-pack")
    assert (status, text) == (401, b"wrong user or password\n")


def test_readers_cannot_write(service: Service) -> None:
    clone = service.commit("a", b"1")
    result = service.git("push", service.url("argocd:r-password"), "main", cwd=clone, check=False)
    assert result.returncode != 0
    assert service.git("ls-remote", service.url()).stdout == ""


def test_a_rotated_password_counts_at_once(service: Service) -> None:
    (service.users / "argocd.read").write_text("new")
    assert service.git("ls-remote", service.url("argocd:r-password"), check=False).returncode != 0
    assert service.git("ls-remote", service.url("argocd:new")).returncode == 0


def test_an_empty_password_opens_nothing(service: Service) -> None:
    (service.users / "empty.write").write_text("\n")
    assert service.git("ls-remote", service.url("empty:"), check=False).returncode != 0


def test_history_is_kept(service: Service) -> None:
    clone = service.commit("a", b"1")
    service.git("push", "-q", "origin", "main", cwd=clone)
    service.git("commit", "-q", "--amend", "-m", "other", cwd=clone)
    for words in (("--force", "origin", "main"), ("origin", ":main")):
        assert service.git("push", *words, cwd=clone, check=False).returncode != 0


def test_a_hook_may_refuse_a_push(service: Service) -> None:
    hook = service.folder / "hooks/pre-receive"
    hook.parent.mkdir()
    hook.write_text('#!/bin/sh\necho "not without approval, $REMOTE_USER" >&2\nexit 1\n')
    hook.chmod(0o755)
    result = service.git("push", "origin", "main", cwd=service.commit("a", b"1"), check=False)
    assert result.returncode != 0
    assert "not without approval, team" in result.stderr


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/platform.git/HEAD"),
        ("GET", "/platform.git/info/refs"),
        ("GET", "/platform.git/config"),
        ("GET", "/../platform.git/info/refs?service=git-upload-pack"),
        ("GET", "/platform.git/git-upload-pack"),
        ("POST", "/platform.git/info/refs?service=git-upload-pack"),
    ],
)
def test_other_requests_are_unknown(service: Service, method: str, path: str) -> None:
    assert service.request(method, path, b"x" if method == "POST" else None)[0] == 404


def test_an_unknown_repository_is_named_to_users_only(service: Service) -> None:
    result = service.git("ls-remote", service.url(repository="other"), check=False)
    assert "not found" in result.stderr
    assert service.request("GET", "/other.git/info/refs?service=git-upload-pack")[0] == 401


def test_health(service: Service) -> None:
    assert service.request("GET", "/healthz") == (200, b"ok\n")


def test_repositories_are_made_once(service: Service) -> None:
    service.git("push", "-q", "origin", "main", cwd=service.commit("a", b"1"))
    git_http.create(service.options, "platform")
    assert "refs/heads/main" in service.git("ls-remote", service.url()).stdout
    (service.options.root / ".second.part/left").mkdir(parents=True)
    git_http.create(service.options, "second")
    assert {path.name for path in service.options.root.iterdir()} == {"platform.git", "second.git"}


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "A"])
def test_bad_names_are_refused(service: Service, name: str) -> None:
    with pytest.raises(SystemExit, match="is no name for a repository"):
        git_http.create(service.options, name)


def test_clients_at_the_same_time(service: Service) -> None:
    service.git("push", "-q", "origin", "main", cwd=service.commit("a", os.urandom(1 << 18)))
    results: list[int] = []

    def clone(number: int) -> None:
        results.append(service.git("clone", "-q", service.url("argocd:r-password"), f"clone-{number}").returncode)

    threads = [threading.Thread(target=clone, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 12

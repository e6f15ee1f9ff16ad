"""The Git service, with real Git clients."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from .service import Service

import git_http  # isort: skip


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
    # A branch that was merged may go.
    service.git("push", "-q", "origin", "main:proposal", cwd=clone)
    service.git("push", "-q", "origin", ":proposal", cwd=clone)


def test_who_pushed_is_on_record(service: Service, capfd: pytest.CaptureFixture[str]) -> None:
    service.git("push", "-q", "origin", "main", cwd=service.commit("a", b"1"))
    assert " team <team@http." in (service.repository / "logs/refs/heads/main").read_text()
    assert " - team [" in capfd.readouterr().err


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


def content(folder: Path) -> Path:
    """Files as a mounted ConfigMap shows them."""
    (folder / "..1/apps").mkdir(parents=True)
    (folder / "..1/README.md").write_text("read me\n")
    (folder / "..1/apps/README.md").write_text("applications\n")
    (folder / "..data").symlink_to("..1")
    for name in ("README.md", "apps"):
        (folder / name).symlink_to(f"..data/{name}")
    return folder


def test_a_new_repository_begins_with_the_content(service: Service, tmp_path: Path) -> None:
    git_http.fill(service.options, "platform", content(tmp_path / "content"))
    listed = service.git("ls-tree", "-r", "--name-only", "main", cwd=service.repository).stdout
    assert listed.split() == ["README.md", "apps/README.md"]
    service.git("clone", "-q", service.url("argocd:r-password"), "reader")
    assert (tmp_path / "reader/apps/README.md").read_text() == "applications\n"
    service.git("fsck", "--strict", cwd=service.repository)


def test_what_is_there_is_never_filled(service: Service, tmp_path: Path) -> None:
    service.git("push", "-q", "origin", "main:other", cwd=service.commit("a", b"1"))
    git_http.fill(service.options, "platform", content(tmp_path / "content"))
    assert service.git("ls-remote", service.url()).stdout.count("refs/") == 1


def test_one_that_lost_its_commits_is_not_filled_again(service: Service, tmp_path: Path) -> None:
    """Argo CD would take a first commit for the removal of everything."""
    git_http.fill(service.options, "platform", content(tmp_path / "content"), filled=True)
    assert service.git("for-each-ref", cwd=service.repository).stdout == ""


def test_a_stop_waits_for_a_push(service: Service) -> None:
    assert service.server.slots.acquire(timeout=0)
    timer = threading.Timer(0.2, service.server.slots.release)
    timer.start()
    service.server.finish(10)
    timer.join()
    # All slots are taken, so nothing runs any more.
    assert not service.server.slots.acquire(timeout=0)


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

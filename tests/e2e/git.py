"""The site's Git service as people use it: clones and pushes from outside the cluster, by name and over TLS."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes.client.exceptions import ApiException

from .front_door import FrontDoor
from .site import Site

REPOSITORY = "platform"
# What the tests push. No environment is called so, therefore nothing of it is ever deployed.
ENVIRONMENT = "slipway-test"
APP = "slipway-test"
# Answers Git's questions from the environment: a password is in nobody's command line.
ASKPASS = """#!/bin/sh
case "$1" in Username*) echo "$SLIPWAY_TEST_USER" ;; *) echo "$SLIPWAY_TEST_PASSWORD" ;; esac
"""


class Git:
    """The service and its users."""

    def __init__(self, host: str, address: str, ca: Path, passwords: Callable[[], Mapping[str, str]]) -> None:
        """Remember where it is; nothing is asked yet.

        Args:
            host: its name, git.<domain>.
            address: where the front door listens, as nobody's DNS knows the name.
            ca: the exported authority; where there is no such file, what the system trusts counts.
            passwords: gives the values of the Secret git/git-users, as they are now.
        """
        self.url = f"https://{host}/{REPOSITORY}.git"
        self._passwords = passwords
        self._config = {
            "http.curloptResolve": f"{host}:443:{address}",
            "credential.helper": "",
            "user.name": "Slipway's tests",
            "user.email": "tests@localhost",
            **({"http.sslCAInfo": str(ca)} if ca.is_file() else {}),
        }

    def password(self, user: str) -> str:
        """A user's password; that of a user who is not there is wrong."""
        found = [value for key, value in self._passwords().items() if key.rpartition(".")[0] == user]
        return found[0] if found else "wrong"

    def run(self, user: str, *words: str, folder: Path | None = None, check: bool = True, **config: str) -> str:
        """Run Git as `user` and return all it says; what it says in failing too, unless `check`.

        Args:
            user: of the service.
            words: the command line.
            folder: where it runs.
            check: fail the test if Git fails; otherwise the answer ends in a line with its exit status.
            config: more settings of Git, `__` for the dot.
        """
        settings = {**self._config, **{key.replace("__", "."): value for key, value in config.items()}}
        with tempfile.TemporaryDirectory() as scratch:
            askpass = Path(scratch) / "askpass"
            askpass.write_text(ASKPASS)
            askpass.chmod(0o700)
            environment = {
                **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
                "GIT_CONFIG_GLOBAL": "/dev/null",
                "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_TERMINAL_PROMPT": "0",
                "GIT_ASKPASS": str(askpass),
                "SLIPWAY_TEST_USER": user,
                "SLIPWAY_TEST_PASSWORD": self.password(user),
                "GIT_CONFIG_COUNT": str(len(settings)),
            }
            for number, (key, value) in enumerate(settings.items()):
                environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
            answer = subprocess.run(
                ["git", *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
            )
        if check:
            assert answer.returncode == 0, f"git {' '.join(words)} as {user}:\n{answer.stdout}"
            return answer.stdout
        return f"{answer.stdout}\nexit status {answer.returncode}"

    def main(self, user: str = "argocd") -> str:
        """The commit that main is at."""
        return self.run(user, "ls-remote", self.url, "refs/heads/main").split()[0]

    @contextmanager
    def clone(self, user: str) -> Iterator[Clone]:
        """A fresh clone of `user`, gone at the end."""
        with tempfile.TemporaryDirectory() as folder:
            self.run(user, "clone", "--quiet", self.url, folder)
            yield Clone(self, user, Path(folder))

    def await_answer(self, timeout: float = 60) -> None:
        """Wait until the service answers again."""
        end = time.monotonic() + timeout
        while not (said := self.run("argocd", "ls-remote", self.url, check=False)).endswith("status 0"):
            assert time.monotonic() < end, said
            time.sleep(0.5)


class Clone:
    """A clone that belongs to one user."""

    def __init__(self, git: Git, user: str, folder: Path) -> None:
        self.git = git
        self.user = user
        self.folder = folder

    def run(self, *words: str) -> str:
        """Run Git in the clone."""
        return self.git.run(self.user, *words, folder=self.folder)

    def commit(self, message: str, files: Mapping[str, str | None]) -> str:
        """Write files, or remove those without a content, and commit; return the commit."""
        for name, content in files.items():
            path = self.folder / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        self.run("add", "--all")
        self.run("commit", "--quiet", "--message", message)
        return self.head()

    def head(self) -> str:
        """The commit that the clone is at."""
        return self.run("rev-parse", "HEAD").strip()

    def push(self, target: str = "main") -> None:
        """Push what is there to a branch."""
        self.run("push", "--quiet", "origin", f"HEAD:refs/heads/{target}")

    def refused(self, target: str = "main", user: str = "") -> str:
        """Push in vain, as `user` if given; return what the user reads, without the marks of Git."""
        said = self.git.run(
            user or self.user, "push", "origin", f"HEAD:refs/heads/{target}", folder=self.folder, check=False
        )
        assert not said.endswith("status 0"), f"a push of {user or self.user} was not refused:\n{said}"
        return " ".join(said.replace("remote:", " ").split())

    def approval(self, revision: str, user: str) -> dict[str, str]:
        """The file that approves a commit of the tests' application."""
        text = f"revision: {revision}\napprovedBy: {user}\nreason: the tests of the site\n"
        return {f"approvals/{ENVIRONMENT}/{APP}.yml": text}


def clean(git: Git, approver: str) -> None:
    """Remove from main what the tests have pushed; the history keeps it."""
    with git.clone(approver) as clone:
        listed = clone.run("ls-files", f"apps/{APP}", f"approvals/{ENVIRONMENT}").split()
        if listed:
            clone.commit("The tests are over", dict.fromkeys(listed))
            clone.push()


def survives(git: Git, approver: str, disturb: Callable[[], object], timeout: float = 60) -> None:
    """Push a commit, let `disturb` do its worst and repair it, and see that the commit and all before it are there.

    Passwords may be others afterwards. For whoever can delete a namespace and run a playbook again.
    """
    with git.clone(approver) as clone:
        before = clone.commit("A commit that must stay", {f"apps/{APP}/note.md": f"{time.time()}\n"})
        clone.push()
    disturb()
    git.await_answer(timeout)
    assert git.main() == before
    with git.clone(approver) as clone:
        assert clone.head() == before
        clone.run("fsck", "--strict")
    clean(git, approver)


@pytest.fixture(scope="session")
def git(site: Site, front_door: FrontDoor) -> Git:
    """The site's own Git service; skips aloud where it has another."""
    try:
        site.apps.read_namespaced_deployment("git", "git")
    except ApiException as error:
        if error.status != 404:
            raise
        pytest.skip("the site's repository is on another Git host")
    return Git(front_door.host("git"), front_door.addresses[0], front_door.ca, lambda: site.secret("git", "git-users"))

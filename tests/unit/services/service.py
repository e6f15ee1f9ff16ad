"""A running Git service, and Git clients that use it."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from pathlib import Path

SERVICES = Path(__file__).parents[3] / "services"
# The programs lie in one folder of the image and import each other by name.
sys.path.insert(0, str(SERVICES))

import git_http  # noqa: E402


class Service:
    """A running server and what it serves."""

    def __init__(self, folder: Path, settings: Path | None = None) -> None:
        self.folder = folder
        self.users = folder / "users"
        self.users.mkdir()
        (self.users / "argocd.read").write_text("r-password\n")
        (self.users / "team.write").write_text("w-password")
        (folder / "root").mkdir()
        self.repository = folder / "root/platform.git"
        events = folder / "events" if settings else None
        self.options = git_http.Options(folder / "root", self.users, folder / "hooks", settings, events)
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

    def clone(self) -> Path:
        """The clone that commits are made in."""
        clone = self.folder / "clone"
        if not clone.exists():
            self.git("clone", "-q", self.url(), str(clone))
        return clone

    def commit(self, name: str, content: bytes) -> Path:
        """A clone with one more commit."""
        clone = self.clone()
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes(content)
        self.git("add", ".", cwd=clone)
        self.git("commit", "-q", "-m", name, cwd=clone)
        return clone

    def head(self) -> str:
        """The commit at the tip of the clone."""
        return self.git("rev-parse", "HEAD", cwd=self.clone()).stdout.strip()

"""Git repositories over smart HTTP: who may read, who may write, and Git's own http-backend behind it.

    git_http.py --root /repositories --users /etc/git/users --repository platform

Every request but /healthz needs a user. A user is a file in the folder of --users, called NAME.read or NAME.write, that
holds the password: a mounted Secret. It is read at each request, so a rotated password counts without a restart.

What may be pushed is the business of git_hooks.py, whom a push is told to that of git_webhooks.py.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hmac
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from git_webhooks import Notifier

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
# What a Git client of the smart protocol asks for; single objects and hooks are nobody's business.
REQUEST = re.compile(
    r"(?P<repository>/[a-z0-9][a-z0-9._-]*\.git)/(info/refs\?service=git-(?P<ask>upload|receive)-pack|git-(?P<do>upload|receive)-pack)"
)
CHUNK = 1 << 16
SETTINGS = {
    # A branch never loses a commit, and main is never deleted: Argo CD deploys what was, and a rollback is a revert.
    "receive.denyNonFastForwards": "true",
    "receive.denyDeleteCurrent": "refuse",
    "receive.fsckObjects": "true",
    # Who pushed what and when: Git writes the user's name here, while a commit says whatever its author liked.
    "core.logAllRefUpdates": "always",
    "gc.reflogExpire": "never",
    # A process that went its own way would stay a zombie: the first process of the container is this server.
    "gc.autoDetach": "false",
    # The volume's folder may belong to another user than the one who serves it.
    "safe.directory": "*",
}


@dataclass(frozen=True)
class Options:
    """What the server serves, and to whom."""

    root: Path
    users: Path
    hooks: Path | None = None
    settings: Path | None = None
    events: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Environment of Git and its hooks: their settings, and nothing of ours but the search path."""
        settings = {**SETTINGS, **({"core.hooksPath": str(self.hooks)} if self.hooks else {})}
        variables = {"PATH": os.environ["PATH"], "HOME": "/tmp", "GIT_CONFIG_COUNT": str(len(settings))}
        for variable, path in (("SLIPWAY_GIT_SETTINGS", self.settings), ("SLIPWAY_GIT_EVENTS", self.events)):
            if path:
                variables[variable] = str(path)
        for number, (name, value) in enumerate(settings.items()):
            variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
        return variables


def create(options: Options, name: str) -> None:
    """Make an empty repository with the branch main, unless there is one of that name."""
    if NAME.fullmatch(name) is None:
        raise SystemExit(f"git_http: {name!r} is no name for a repository")
    final = options.root / f"{name}.git"
    if final.exists():
        return
    # A start that was killed half-way must not leave a repository that looks complete.
    draft = options.root / f".{name}.part"
    shutil.rmtree(draft, ignore_errors=True)
    command = ["git", "init", "--quiet", "--bare", "--initial-branch=main", str(draft)]
    subprocess.run(command, check=True, env=options.environment)
    draft.rename(final)


def fill(options: Options, name: str, content: Path, filled: bool = False) -> None:
    """Make the files below `content` the first commit of a repository that has none; any other is left as it is.

    One that was `filled` before has lost its commits. It stays without any: a first one would look to Argo CD as if all was taken away.
    """
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "slipway"), ("EMAIL", "slipway@localhost"))
    }
    # A mounted ConfigMap is a folder of links; the files lie behind this one.
    files = (content / "..data" if (content / "..data").exists() else content).resolve()
    with tempfile.TemporaryDirectory() as folder:
        environment = {**options.environment, **author, "GIT_INDEX_FILE": f"{folder}/index"}

        def git(*words: str) -> str:
            command = ["git", f"--git-dir={options.root / name}.git", f"--work-tree={files}", *words]
            answer = subprocess.run(command, check=True, env=environment, cwd=files, stdout=subprocess.PIPE, text=True)
            return answer.stdout.strip()

        if git("for-each-ref", "--count=1"):
            return
        if filled:
            print(
                f"git_http: {name} had commits and has none: its volume is another one. Restore it (playbooks/restore.yml); or, for an empty "
                "one that begins anew, delete the ConfigMap git-filled and this pod",
                file=sys.stderr,
                flush=True,
            )
            return
        git("add", "--all", ".")
        commit = git("commit-tree", git("write-tree"), "-m", "The layout of this repository")
        # Only where there is no main; nobody is served yet, but a volume may be shared by mistake.
        git("update-ref", "refs/heads/main", commit, "0" * 40)


def may(options: Options, header: str, write: bool) -> str | None:
    """The user who sent this Authorization header, if the user exists and may write or only wants to read."""
    try:
        kind, _, encoded = header.partition(" ")
        user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    if kind.lower() != "basic" or not colon or NAME.fullmatch(user) is None:
        return None
    for right in ("write",) if write else ("write", "read"):
        try:
            known = (options.users / f"{user}.{right}").read_bytes().strip()
        except FileNotFoundError:
            continue
        if known and hmac.compare_digest(known, password.encode()):
            return user
    return None


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    timeout = 120
    server: Server
    user = "-"

    def do_GET(self) -> None:
        """Health, or the first request of a fetch or a push."""
        if self.path == "/healthz":
            self.answer(200, b"ok\n")
        else:
            self.git()

    def do_POST(self) -> None:
        """The second request."""
        self.git()

    def git(self) -> None:
        """Check the request, and let Git answer it."""
        found = REQUEST.fullmatch(self.path)
        if found is None or bool(found["do"]) != (self.command == "POST"):
            self.refuse(404, "no such thing here; clone http://<host>/<repository>.git")
            return
        write = "receive" in (found["ask"], found["do"])
        user = may(self.server.options, self.headers.get("Authorization", ""), write)
        if user is None:
            self.refuse(401, "wrong user or password, or no right to write" if write else "wrong user or password")
        elif not (self.server.options.root / found["repository"][1:]).is_dir():
            self.refuse(404, "no such repository")
        else:
            self.user = user
            with self.server.slots:
                self.run(user)
            if found["do"] == "receive":
                self.server.pushed()

    def run(self, user: str) -> None:
        """Run Git's CGI program; requests and answers of any length pass through."""
        path, _, query = self.path.partition("?")
        environment = {
            **self.server.options.environment,
            "GIT_PROJECT_ROOT": str(self.server.options.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "REMOTE_USER": user,
            "REMOTE_ADDR": self.client_address[0],
            "SERVER_PROTOCOL": self.request_version,
        }
        command = ["git", "http-backend"]
        with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as backend:
            assert backend.stdin is not None
            answer = cast(BufferedReader, backend.stdout)
            # Git may answer before it has read everything.
            feeder = threading.Thread(target=self.feed, args=(backend.stdin,), daemon=True)
            feeder.start()
            status, headers = head(answer)
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            while data := answer.read1(CHUNK):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            feeder.join()
        # Without the last chunk the client knows that something is missing.
        if backend.returncode == 0:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def feed(self, target: IO[bytes]) -> None:
        """Write the request's body to Git."""
        try:
            with target:
                for data in self.body():
                    target.write(data)
        except (BrokenPipeError, ConnectionError, TimeoutError, ValueError):
            self.close_connection = True

    def body(self) -> Iterator[bytes]:
        """The request's body in pieces."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline().split(b";")[0], 16):
                yield from self.pieces(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self.pieces(int(self.headers.get("Content-Length") or 0))

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes of the request."""
        while length:
            data = self.rfile.read(min(length, CHUNK))
            if not data:
                raise ConnectionError("the client went away")
            length -= len(data)
            yield data

    def refuse(self, status: int, text: str) -> None:
        """Answer without having read the body: the connection cannot be used again."""
        self.close_connection = True
        self.answer(status, f"{text}\n".encode())

    def answer(self, status: int, data: bytes) -> None:
        """Send a short text."""
        self.send_response(status)
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="git", charset="UTF-8"')
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """One line on stderr that names the user, without the probes of the kubelet."""
        if getattr(self, "path", "") != "/healthz":
            where, when = self.client_address[0], self.log_date_time_string()
            text = "".join(each if each.isprintable() else "?" for each in format % args)
            sys.stderr.write(f"{where} - {self.user} [{when}] {text}\n")
            sys.stderr.flush()


def head(answer: IO[bytes]) -> tuple[int, list[tuple[str, str]]]:
    """Status and headers of a CGI answer."""
    status, headers = 200, []
    while line := answer.readline().strip():
        name, _, value = line.decode().partition(": ")
        if name.lower() == "status":
            status = int(value.split()[0])
        else:
            headers.append((name, value))
    # A program that died has said nothing.
    return (status, headers) if headers or status != 200 else (500, headers)


class Server(ThreadingHTTPServer):
    """The server; each connection has its own thread."""

    daemon_threads = True

    def __init__(self, port: int, options: Options, at_once: int = 8, notifier: Notifier | None = None) -> None:
        """Listen.

        Args:
            at_once: how many Git programs may run at the same time.
            notifier: whom to wake after a push.
        """
        super().__init__(("", port), Handler)
        self.options = options
        self.at_once = at_once
        self.slots = threading.BoundedSemaphore(at_once)
        self.notifier = notifier

    def pushed(self) -> None:
        """A push has ended; what its hook left is told to those who wait for it."""
        if self.notifier:
            self.notifier.wake()

    def finish(self, seconds: float) -> None:
        """Wait until the Git programs that run have ended, at most `seconds` for all of them."""
        end = time.monotonic() + seconds
        for _ in range(self.at_once):
            self.slots.acquire(timeout=max(0.0, end - time.monotonic()))


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of the repositories")
    parser.add_argument("--users", type=Path, required=True, help="folder of the files NAME.read and NAME.write")
    parser.add_argument(
        "--hooks", type=Path, help="folder of hooks that apply to every repository, such as pre-receive"
    )
    parser.add_argument("--settings", type=Path, help="JSON file that the hooks read at each push")
    parser.add_argument("--events", type=Path, help="folder where a hook leaves what is to be told; made if missing")
    parser.add_argument("--webhook-secret", type=Path, help="file with the key that signs what is told")
    parser.add_argument("--repository", action="append", default=[], metavar="NAME", help="make it if it is missing")
    parser.add_argument("--content", type=Path, help="folder of files that a repository without any commit begins with")
    parser.add_argument("--filled", type=Path, help="file that is there when the repository once had commits")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    options = Options(arguments.root, arguments.users, arguments.hooks, arguments.settings, arguments.events)
    for name in arguments.repository:
        create(options, name)
        if arguments.content:
            fill(options, name, arguments.content, bool(arguments.filled and arguments.filled.exists()))
    notifier = None
    if options.events and options.settings and arguments.webhook_secret:
        notifier = Notifier(options.events, options.settings, arguments.webhook_secret)
        notifier.start()
    server = Server(arguments.port, options, notifier=notifier)
    # The first process of a container gets no default action for a signal.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"git_http: serves {arguments.root} on port {arguments.port}", file=sys.stderr, flush=True)
    server.serve_forever()
    server.finish(20)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What may be pushed to a repository that Argo CD deploys from, and who hears of a push.

Git calls this file by the names of the hooks, pre-receive and post-receive, through links in the folder of the hooks.
Settings are read from a file at each push (JSON; its path is in SLIPWAY_GIT_SETTINGS):

    approvers   names of the users who may change approvals/, platform/ and dags/ on main
    address     what the repository's address begins with in events, such as http://git.git
    webhooks    who is told; see git_webhooks.py

An approval, approvals/<environment>/<app>.yml, is YAML of which only the simplest form is taken: a line `key: value` for
each of revision, approvedBy and reason; comments and empty lines. A value that YAML might read in another way (one that
contains `: ` or ` #`, or begins with a special character) must be in quotes, so that this reads what Argo CD reads.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAIN = "refs/heads/main"
APPROVALS = "approvals"
# What is written in these folders deploys or runs whatever it likes, so it is approvers who write it.
GUARDED = (APPROVALS, "platform", "dags")
KEYS = ("revision", "approvedBy", "reason")
NONE = "0" * 40
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# The namespace <app>-<environment> is a label, too.
LABEL_LENGTH = 63
APPROVAL_BYTES = 1 << 14
PLAIN_FILES = ("100644", "100755")


class Refused(Exception):
    """The push is refused; the text says why, a line for each reason."""


@dataclass(frozen=True)
class Update:
    """A branch or tag that a push moves."""

    old: str
    new: str
    ref: str


@dataclass(frozen=True)
class Change:
    """A file that differs between two commits; `mode` and `blob` are those afterwards, `kind` is A, M, T or D."""

    kind: str
    mode: str
    blob: str
    path: str


def git(*words: str) -> bytes:
    """What Git prints. Raises CalledProcessError."""
    return subprocess.run(["git", *words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


def succeeds(*words: str) -> bool:
    """Whether a Git command ends well."""
    return subprocess.run(["git", *words], capture_output=True, check=False).returncode == 0


def changes(old: str, new: str, *paths: str) -> Iterator[Change]:
    """Files below `paths` that differ between two commits; a renamed file is one that went and one that came."""
    if old == NONE:
        old = git("hash-object", "-t", "tree", "/dev/null").decode().strip()
    options = ("-r", "-z", "--raw", "--no-renames", "--no-abbrev")
    fields = git("diff-tree", *options, old, new, "--", *paths).decode(errors="backslashreplace").split("\0")
    for description, path in zip(fields[0:-1:2], fields[1::2], strict=True):
        _, mode, _, blob, kind = description[1:].split()
        yield Change(kind, mode, blob, path)


def scalar(text: str) -> str:
    """The string that a YAML value of one line stands for. Raises ValueError where this could be doubtful."""
    if text.startswith('"'):
        value = json.loads(text)
        if isinstance(value, str):
            return value
    elif text.startswith("'"):
        if re.fullmatch(r"'([^']|'')*'", text):
            return text[1:-1].replace("''", "'")
    elif (
        text
        and text[0] not in "!&*?|>@`%{}[],#-:~"
        and ": " not in text
        and " #" not in text
        and not text.endswith(":")
        # A commit whose name happens to look like a number, which YAML would round.
        and not re.fullmatch(r"(?=.{40}$)[0-9]+(e[0-9]+)?", text)
    ):
        return text
    raise ValueError


def parse(text: str) -> tuple[dict[str, str], list[str]]:
    """The values of an approval, and what is wrong with its form."""
    values: dict[str, str] = {}
    faults = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.isprintable():
            faults.append(f"line {number} has a character that is not printable, such as a tab")
            continue
        if not line.strip(" ") or line.lstrip(" ").startswith("#") or (number == 1 and line == "---"):
            continue
        key, colon, rest = line.partition(":")
        if key not in KEYS or not colon or rest[:1] not in ("", " "):
            faults.append(f"line {number} is none of " + ", ".join(f"`{each}: ...`" for each in KEYS))
        elif key in values:
            faults.append(f"line {number}: {key} is there twice")
        else:
            try:
                values[key] = scalar(rest.strip(" "))
            except ValueError:
                faults.append(f"line {number}: put the value of {key} in quotes" if rest.strip() else f"{key} is empty")
                values[key] = ""
    faults += [f"{key} is missing" for key in KEYS if key not in values]
    return values, faults


def judge_approval(change: Change, update: Update, user: str) -> Iterator[str]:
    """What is wrong with a file below approvals/."""
    _, *folders, name = change.path.split("/")
    stem, dot, ending = name.rpartition(".")
    is_data = f"{dot}{ending}" in (".yml", ".yaml", ".json")
    if len(folders) > 1 or (is_data and (len(folders) != 1 or ending != "yml")):
        yield f"nothing reads it; an approval is {APPROVALS}/<environment>/<app>.yml"
        return
    if not is_data:
        return
    (environment,) = folders
    if not (LABEL.fullmatch(stem) and LABEL.fullmatch(environment)) or len(stem + environment) >= LABEL_LENGTH:
        yield f"{stem}-{environment} is no name for a namespace"
        return
    # A rollback: what was approved before comes back, whoever approved it then.
    history = git("log", "--format=", "--raw", "--no-renames", "--no-abbrev", update.old, "--", change.path)
    if update.old != NONE and change.blob.encode() in history.split():
        return
    if int(git("cat-file", "-s", change.blob)) > APPROVAL_BYTES:
        yield f"it is larger than {APPROVAL_BYTES} bytes"
        return
    try:
        values, faults = parse(git("cat-file", "blob", change.blob).decode())
    except UnicodeDecodeError:
        yield "it is not UTF-8"
        return
    yield from faults
    if revision := values.get("revision"):
        yield from judge_revision(revision, f"apps/{stem}/{environment}", update.new)
    if values.get("approvedBy", user) not in (user, ""):
        yield f"approvedBy is {values['approvedBy']!a}, but you push as {user}: who approves puts their own name there"


def judge_revision(revision: str, folder: str, main: str) -> Iterator[str]:
    """What is wrong with an approved revision."""
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        yield f"revision {revision!a} is not the full name of a commit, 40 hexadecimal digits (git rev-parse main)"
    elif not (succeeds("cat-file", "commit", revision) and succeeds("merge-base", "--is-ancestor", revision, main)):
        yield f"revision {revision} is not a commit of main"
    elif not succeeds("cat-file", "tree", f"{revision}:{folder}"):
        yield f"revision {revision} has no folder {folder}"


def judge(update: Update, user: str, approvers: Sequence[str]) -> Iterator[str]:
    """Why a branch or tag may not move."""
    if update.ref == MAIN and update.new != NONE:
        found = list(changes(update.old, update.new, *GUARDED))
        if found and user not in approvers:
            folders = sorted({change.path.split("/")[0] for change in found})
            who = ", ".join(approvers) or "nobody: git_users names no approver"
            yield (
                f"{' and '.join(f'{folder}/' for folder in folders)}: only approvers may change this on main ({who}), "
                f"and you push as {user}. Push a branch and ask one of them to merge it."
            )
            return
        for change in found:
            # printable: a name may hold anything, and this goes to a terminal.
            path = change.path if change.path.isprintable() else ascii(change.path)
            if change.kind == "D":
                continue
            if change.mode not in PLAIN_FILES:
                yield f"{path}: only plain files may be here; a link would let others change what it leads to"
            elif change.path.startswith(f"{APPROVALS}/"):
                yield from (f"{path}: {fault}" for fault in judge_approval(change, update, user))
    elif not update.ref.startswith(("refs/heads/", "refs/tags/")) or update.ref == "refs/tags/main":
        yield f"{update.ref}: only branches, and tags of another name than main, can be pushed"


def pre_receive(updates: Iterable[Update], user: str, settings: dict[str, Any]) -> None:
    """Raise Refused if one of the updates is not allowed: a push arrives as a whole or not at all."""
    faults = [fault for update in updates for fault in judge(update, user, settings["approvers"])]
    if faults:
        raise Refused("\n".join(faults))


def event(update: Update, user: str, address: str) -> dict[str, Any]:
    """What GitHub would say of it, as far as Argo CD reads it; all commits of the push count as one."""
    files: dict[str, list[str]] = {"added": [], "modified": [], "removed": []}
    for change in changes(update.old, update.new):
        files[{"A": "added", "D": "removed"}.get(change.kind, "modified")].append(change.path)
    name = Path.cwd().name.removesuffix(".git")
    return {
        "ref": update.ref,
        "before": update.old,
        "after": update.new,
        "created": update.old == NONE,
        "commits": [{"id": update.new, **files}],
        "repository": {"name": name, "html_url": f"{address}/{name}", "default_branch": "main"},
        "pusher": {"name": user},
    }


def post_receive(updates: Iterable[Update], user: str, settings: dict[str, Any], events: Path) -> None:
    """Leave an event for each branch or tag that has moved; the service sends them when the push has ended."""
    for update in updates:
        if update.new == NONE:
            continue
        path = events / f"{time.time_ns()}-{os.getpid()}.json"
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(event(update, user, settings["address"])))
        draft.rename(path)


def main() -> int:
    """Be the hook by whose name this was called; what is printed on stderr is shown to who pushes."""
    hook = Path(sys.argv[0]).name
    updates = [Update(*line.split(" ", 2)) for line in sys.stdin.read().splitlines()]
    user = os.environ.get("REMOTE_USER", "")
    try:
        settings = json.loads(Path(os.environ["SLIPWAY_GIT_SETTINGS"]).read_bytes())
        if hook == "pre-receive":
            pre_receive(updates, user, settings)
        elif hook == "post-receive":
            if events := os.environ.get("SLIPWAY_GIT_EVENTS"):
                post_receive(updates, user, settings, Path(events))
        else:
            raise SystemExit(f"git_hooks: {hook} is no hook of this program")
    except Refused as refused:
        print(f"Refused, nothing has changed:\n{refused}", file=sys.stderr)
        return 1
    except (OSError, KeyError, ValueError, subprocess.CalledProcessError) as error:
        # What cannot be judged is not let in; what cannot be told is found by Argo CD later.
        print(f"The Git service cannot run {hook}: {type(error).__name__} {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Filters for the Git service's settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# As the service itself takes them.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_RIGHTS = ("read", "write")
_ADDRESS = re.compile(r"https://[^\s@/]+/\S+|ssh://\S+/\S+|[\w.-]+@[\w.-]+:\S+")
# Argo CD reads the repository as this user.
_READER = {"name": "argocd", "right": "read"}


def git_faults(users: Any, provider: Any, url: Any) -> list[str]:
    """What is wrong with `git_users`, `git_provider` and `git_url`, a line for each reason."""
    if provider not in ("embedded", "external"):
        return [f"git_provider is {provider!r}, not embedded or external"]
    if provider == "external":
        if not url:
            return ["git_provider is external, so git_url must be the repository's address"]
        if _ADDRESS.fullmatch(str(url)):
            return []
        return [
            f"git_url is {str(url)!r}; it must be https://<host>/<path>, ssh://<user>@<host>/<path> or <user>@<host>:<path>, "
            "without a password in it"
        ]
    faults = [f"git_url is {str(url)!r}, but git_provider is embedded: set git_provider to external"] if url else []
    if not isinstance(users, Sequence) or not all(isinstance(user, Mapping) for user in users):
        return [*faults, "git_users is no list of users"]
    seen: set[str] = set()
    for user in users:
        name, right = str(user.get("name", "")), user.get("right")
        if not _NAME.fullmatch(name):
            faults.append(f"git_users: {name!r} is no name; small letters, digits, '.', '_' and '-' in between")
        if name in seen:
            faults.append(f"git_users: {name} is there twice")
        seen.add(name)
        if right not in _RIGHTS:
            faults.append(f"git_users: the right of {name} is {right!r}, not {' or '.join(_RIGHTS)}")
        if user.get("approve", False) not in (True, False):
            faults.append(f"git_users: approve of {name} is {user['approve']!r}, not true or false")
        elif user.get("approve", False) and right != "write":
            faults.append(f"git_users: {name} approves, but has no right to write")
        if unknown := sorted(set(user) - {"name", "right", "approve"}):
            faults.append(f"git_users: {name} has {', '.join(unknown)}; known are name, right and approve")
    if not any({**_READER, **user} == {**user, **_READER} for user in users):
        faults.append("git_users: Argo CD needs {name: argocd, right: read}")
    return faults


def git_user_keys(users: Sequence[Mapping[str, Any]]) -> list[str]:
    """The key of each user's password in the users' Secret."""
    return [f"{user['name']}.{user['right']}" for user in users]


def each_as(values: Sequence[str], *names: str, **fixed: Any) -> list[dict[str, Any]]:
    """A mapping for each value: the value under every one of `names`, beside what is `fixed`."""
    return [{**dict.fromkeys(names, value), **fixed} for value in values]


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Any]:
        """Return names and functions."""
        return {"git_faults": git_faults, "git_user_keys": git_user_keys, "each_as": each_as}

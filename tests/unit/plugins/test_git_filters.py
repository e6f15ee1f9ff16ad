"""The Git service's settings are judged before anything changes."""

from __future__ import annotations

from typing import Any

import pytest

from filter.git import each_as, git_faults, git_user_keys

USERS: list[dict[str, Any]] = [
    {"name": "argocd", "right": "read"},
    {"name": "pipeline", "right": "write"},
    {"name": "admin", "right": "write", "approve": True},
]


def test_good_settings() -> None:
    assert git_faults(USERS, "embedded", "") == []
    assert git_faults([{"name": "argocd", "right": "read", "approve": False}], "embedded", "") == []
    for url in (
        "https://git.example.org/team/platform.git",
        "ssh://git@example.org:22/p.git",
        "git@example.org:team/p.git",
    ):
        assert git_faults(USERS, "external", url) == []


@pytest.mark.parametrize(
    ("provider", "url", "fault"),
    [
        ("none", "", "git_provider is 'none', not embedded or external"),
        (
            "embedded",
            "https://example.org/p.git",
            "git_url is 'https://example.org/p.git', but git_provider is embedded",
        ),
        ("external", "", "git_url must be the repository's address"),
        ("external", "https://user:word@example.org/p.git", "without a password in it"),
        ("external", "http://example.org/p.git", "it must be https://<host>/<path>"),
        ("external", "/srv/p.git", "it must be https://<host>/<path>"),
    ],
)
def test_faults_of_the_address(provider: str, url: str, fault: str) -> None:
    (found,) = git_faults(USERS, provider, url)
    assert fault in found


@pytest.mark.parametrize(
    ("user", "fault"),
    [
        ({"name": "Anna", "right": "read"}, "'Anna' is no name"),
        ({"name": "a/b", "right": "read"}, "'a/b' is no name"),
        ({"right": "read"}, "'' is no name"),
        ({"name": "admin", "right": "read"}, "admin is there twice"),
        ({"name": "anna", "right": "admin"}, "the right of anna is 'admin', not read or write"),
        ({"name": "anna"}, "the right of anna is None"),
        ({"name": "anna", "right": "read", "approve": True}, "anna approves, but has no right to write"),
        ({"name": "anna", "right": "write", "approve": "yes"}, "approve of anna is 'yes', not true or false"),
        ({"name": "anna", "right": "write", "aprove": True}, "anna has aprove; known are name, right and approve"),
    ],
)
def test_faults_of_users(user: dict[str, Any], fault: str) -> None:
    (found,) = git_faults([*USERS, user], "embedded", "")
    assert fault in found


def test_argo_cd_must_read() -> None:
    needs = ["git_users: Argo CD needs {name: argocd, right: read}"]
    assert git_faults(USERS[1:], "embedded", "") == needs
    assert git_faults([{"name": "argocd", "right": "write"}], "embedded", "") == needs
    assert git_faults("argocd", "embedded", "") == ["git_users is no list of users"]


def test_keys() -> None:
    keys = git_user_keys(USERS)
    assert keys == ["argocd.read", "pipeline.write", "admin.write"]
    assert each_as(keys[:1], "name", length=40) == [{"name": "argocd.read", "length": 40}]
    assert each_as(keys[:1], "key", "path") == [{"key": "argocd.read", "path": "argocd.read"}]

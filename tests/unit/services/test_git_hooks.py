"""What may be pushed, by real pushes through the service and its hooks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from .service import Service

import git_hooks  # isort: skip

APPROVAL = "revision: {revision}\napprovedBy: {user}\nreason: it was tested\n"


@pytest.fixture
def app(guarded: Service) -> str:
    """A commit on main with the application hello; its name."""
    for environment in ("dev", "prod"):
        guarded.commit(f"apps/hello/{environment}/kustomization.yaml", b"resources: []\n")
    guarded.git("push", "-q", "origin", "main", cwd=guarded.clone())
    return guarded.head()


def push(service: Service, user: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Push the clone, by default its main, as a user."""
    url = service.url(f"{user}:w-password")
    return service.git("push", url, *(words or ("main",)), cwd=service.clone(), check=False)


def approve(service: Service, text: str, name: str = "approvals/prod/hello.yml") -> None:
    """Commit an approval in the clone."""
    service.commit(name, text.encode())


def refused(result: subprocess.CompletedProcess[str], text: str) -> None:
    """The push was refused, and whoever pushed reads why."""
    assert result.returncode != 0
    assert text in " ".join(result.stderr.replace("remote:", " ").split()), result.stderr


def drop(service: Service) -> None:
    """Forget what was not pushed."""
    service.git("fetch", "-q", cwd=service.clone())
    service.git("reset", "-q", "--hard", "origin/main", cwd=service.clone())


def test_an_approver_approves(guarded: Service, app: str) -> None:
    approve(guarded, APPROVAL.format(revision=app, user="admin"))
    assert push(guarded, "admin").returncode == 0
    assert guarded.git("rev-parse", "main", cwd=guarded.repository).stdout.strip() == guarded.head()


def test_others_write_everything_else_but_approve_nothing(guarded: Service, app: str) -> None:
    guarded.commit("apps/hello/dev/more.yaml", b"{}\n")
    assert push(guarded, "team").returncode == 0
    approve(guarded, APPROVAL.format(revision=app, user="admin"))
    refused(
        push(guarded, "team"), "approvals/: only approvers may change this on main (admin, anna), and you push as team"
    )
    assert guarded.git("rev-parse", "main", cwd=guarded.repository).stdout.strip() != guarded.head()
    # A proposal for somebody who may.
    assert push(guarded, "team", "main:proposal").returncode == 0
    assert push(guarded, "admin").returncode == 0


@pytest.mark.parametrize("words", [("rm", "-q"), ("mv", "-k")])
def test_an_approval_cannot_be_taken_back_by_others(guarded: Service, app: str, words: tuple[str, str]) -> None:
    approve(guarded, APPROVAL.format(revision=app, user="admin"))
    assert push(guarded, "admin").returncode == 0
    target = ["approvals/prod/other.yml"] if words[0] == "mv" else []
    guarded.git(*words, "approvals/prod/hello.yml", *target, cwd=guarded.clone())
    guarded.git("commit", "-q", "-m", "away", cwd=guarded.clone())
    refused(push(guarded, "team"), "approvals/: only approvers")
    if not target:
        assert push(guarded, "anna").returncode == 0


def test_who_writes_to_platform_deploys_anything(guarded: Service, app: str) -> None:
    guarded.commit("platform/evil.yaml", b"kind: Application\n")
    refused(push(guarded, "team"), "platform/: only approvers")
    assert push(guarded, "admin").returncode == 0


def test_links_are_refused(guarded: Service, app: str) -> None:
    for name in ("approvals/prod/hello.yml", "approvals", "platform/x.yaml"):
        link = guarded.clone() / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("../../apps/hello/prod/kustomization.yaml")
        guarded.git("add", "--all", cwd=guarded.clone())
        guarded.git("commit", "-q", "-m", "link", cwd=guarded.clone())
        refused(push(guarded, "admin"), f"{name}: only plain files may be here")
        refused(push(guarded, "team"), "only approvers")
        drop(guarded)


def test_a_rollback_by_another_approver(guarded: Service, app: str) -> None:
    """The older approval comes back as it was, with the name of who gave it."""
    approve(guarded, APPROVAL.format(revision=app, user="admin"))
    assert push(guarded, "admin").returncode == 0
    approve(guarded, APPROVAL.format(revision=guarded.head(), user="anna"))
    assert push(guarded, "anna").returncode == 0
    guarded.git("revert", "--no-edit", "HEAD", cwd=guarded.clone())
    refused(push(guarded, "team"), "only approvers")
    assert push(guarded, "anna").returncode == 0
    approve(guarded, APPROVAL.format(revision=guarded.head(), user="admin"))
    refused(push(guarded, "anna"), "approvals/prod/hello.yml: approvedBy is 'admin', but you push as anna")


FAULTS = [
    ("revision: 1234\napprovedBy: admin\nreason: x\n", "revision '1234' is not the full name of a commit"),
    ("revision: main\napprovedBy: admin\nreason: x\n", "revision 'main' is not the full name of a commit"),
    (APPROVAL.format(revision="12ab" * 10, user="admin"), f"revision {'12ab' * 10} is not a commit of main"),
    ("approvedBy: admin\nreason: x\n", "revision is missing"),
    ("reason: x\n", "approvedBy is missing"),
    ("reason:\n", "reason is empty"),
    ("reason: x\nreason: y\n", "line 2: reason is there twice"),
    ("reason: a: b\n", "line 1: put the value of reason in quotes"),
    ("reason: a #b\n", "line 1: put the value of reason in quotes"),
    ("reason: [a]\n", "line 1: put the value of reason in quotes"),
    (f"revision: 1e{'5' * 38}\n", "line 1: put the value of revision in quotes"),
    ('reason: "a" b\n', "line 1: put the value of reason in quotes"),
    ("who: x\n", "line 1 is none of `revision: ...`, `approvedBy: ...`, `reason: ...`"),
    ("reason:x\n", "line 1 is none of"),
    (" reason: x\n", "line 1 is none of"),
    ("{reason: x}\n", "line 1 is none of"),
    ("reason: x\n---\nreason: y\n", "line 2 is none of"),
    ("reason: x\u2028revision: y\n", "line 1 has a character that is not printable"),
    ("\treason: x\n", "line 1 has a character that is not printable"),
]
PLACES = [
    ("approvals/hello.yml", "nothing reads it; an approval is approvals/<environment>/<app>.yml"),
    ("approvals/prod/hello.yaml", "nothing reads it; an approval is approvals/<environment>/<app>.yml"),
    ("approvals/prod/hello.json", "nothing reads it; an approval is approvals/<environment>/<app>.yml"),
    # Argo CD's pattern `approvals/prod/*.yml` finds this, too.
    ("approvals/prod/deeper/hello.yml", "nothing reads it; an approval is approvals/<environment>/<app>.yml"),
    ("approvals/prod/Hello.yml", "Hello-prod is no name for a namespace"),
    (f"approvals/prod/{'a' * 60}.yml", f"{'a' * 60}-prod is no name for a namespace"),
    ("approvals/prod/other.yml", "revision {revision} has no folder apps/other/prod"),
    ("approvals/prd/hello.yml", "revision {revision} has no folder apps/hello/prd"),
]


def test_faults_of_an_approval_are_named(guarded: Service, app: str) -> None:
    """All of all files at once, each with the name of its file."""
    for number, (text, _) in enumerate(FAULTS):
        path = guarded.clone() / f"approvals/prod/case-{number}.yml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    guarded.commit("approvals/prod/hello.yml", APPROVAL.format(revision=app, user="admin").encode())
    result = push(guarded, "admin")
    for number, (_, fault) in enumerate(FAULTS):
        refused(result, f"approvals/prod/case-{number}.yml: {fault}")
    assert "hello.yml" not in result.stderr


def test_faults_of_its_place_are_named(guarded: Service, app: str) -> None:
    for name, _ in PLACES:
        approve(guarded, APPROVAL.format(revision=app, user="admin"), name)
    result = push(guarded, "admin")
    for name, fault in PLACES:
        refused(result, f"{name}: {fault.format(revision=app)}")


def test_notes_beside_approvals(guarded: Service, app: str) -> None:
    guarded.commit("approvals/README.md", b"how\n")
    guarded.commit("approvals/prod/.gitkeep", b"")
    refused(push(guarded, "team"), "only approvers")
    assert push(guarded, "admin").returncode == 0


def test_a_commit_of_another_branch_is_none_of_main(guarded: Service, app: str) -> None:
    clone = guarded.clone()
    guarded.git("checkout", "-q", "-b", "side", cwd=clone)
    guarded.commit("apps/hello/prod/side.yaml", b"{}\n")
    side = guarded.head()
    assert push(guarded, "team", "side").returncode == 0
    guarded.git("checkout", "-q", "main", cwd=clone)
    approve(guarded, APPROVAL.format(revision=side, user="admin"))
    refused(push(guarded, "admin"), f"revision {side} is not a commit of main")
    tree = guarded.git("rev-parse", "HEAD^{tree}", cwd=clone).stdout.strip()
    approve(guarded, APPROVAL.format(revision=tree, user="admin"))
    refused(push(guarded, "admin"), f"revision {tree} is not a commit of main")


def test_a_push_is_taken_as_a_whole_or_not_at_all(guarded: Service, app: str) -> None:
    guarded.commit("platform/x.yaml", b"{}\n")
    refused(push(guarded, "team", "main", "main:fine"), "only approvers")
    assert "fine" not in guarded.git("ls-remote", guarded.url()).stdout


@pytest.mark.parametrize("target", ["refs/tags/main", "refs/main", "refs/remotes/main"])
def test_nothing_else_is_called_main(guarded: Service, app: str, target: str) -> None:
    refused(push(guarded, "admin", f"main:{target}"), f"{target}: only branches, and tags of another name than main")


def test_tags_and_branches_come_and_go(guarded: Service, app: str) -> None:
    assert push(guarded, "team", "main:refs/tags/v1", "main:refs/heads/side").returncode == 0
    assert push(guarded, "team", ":refs/tags/v1", ":side").returncode == 0
    assert push(guarded, "admin", ":main").returncode != 0


def test_approvers_are_read_at_each_push(guarded: Service, app: str) -> None:
    settings = guarded.options.settings
    assert settings is not None
    guarded.commit("platform/x.yaml", b"{}\n")
    settings.write_text(json.dumps({"approvers": [], "address": ""}))
    refused(push(guarded, "admin"), "(nobody: git_users names no approver)")
    settings.write_text("{")
    refused(push(guarded, "admin"), "The Git service cannot run pre-receive")
    settings.write_text(json.dumps({"approvers": ["team"], "address": ""}))
    assert push(guarded, "team").returncode == 0


def test_a_push_leaves_an_event(guarded: Service, app: str) -> None:
    events = guarded.folder / "events"
    for path in events.iterdir():
        path.unlink()
    guarded.commit("apps/new.yaml", b"1\n")
    guarded.commit("apps/hello/dev/kustomization.yaml", b"resources: [a]\n")
    (guarded.clone() / "apps/hello/prod/kustomization.yaml").unlink()
    guarded.commit("apps/ü.yaml", b"2\n")
    assert push(guarded, "team", "main", "main:side").returncode == 0
    found = {event["ref"]: event for event in (json.loads(path.read_bytes()) for path in events.iterdir())}
    assert set(found) == {"refs/heads/main", "refs/heads/side"}
    event = found["refs/heads/main"]
    assert (event["before"], event["after"]) == (app, guarded.head())
    assert event["repository"] == {
        "name": "platform",
        "html_url": "http://git.git/platform",
        "default_branch": "main",
    }
    assert event["commits"] == [
        {
            "id": guarded.head(),
            "added": ["apps/new.yaml", "apps/ü.yaml"],
            "modified": ["apps/hello/dev/kustomization.yaml"],
            "removed": ["apps/hello/prod/kustomization.yaml"],
        }
    ]
    assert event["pusher"] == {"name": "team"}


def test_an_event_that_cannot_be_left_stops_nobody(guarded: Service, app: str) -> None:
    for path in (guarded.folder / "events").iterdir():
        path.unlink()
    (guarded.folder / "events").rmdir()
    guarded.commit("apps/new.yaml", b"1\n")
    assert push(guarded, "team").returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "---\n# why\nrevision: 0a\n\napprovedBy: admin\r\nreason: it's (really) fine, see http://x/#1  \n",
        "revision: '0e1'\nreason: 'it''s: so'\napprovedBy: \"admin\"\n",
        'revision: "12"\nreason: "a: \\"b\\" #c \\u00fc"\napprovedBy: a.b-c_d\n',
    ],
)
def test_it_reads_what_yaml_reads(text: str) -> None:
    values, faults = git_hooks.parse(text)
    assert faults == []
    assert values == {key: str(value) for key, value in yaml.safe_load(text).items()}


def test_scalars_are_read_as_yaml_or_refused() -> None:
    """Each start, middle and end with a special character: refused, or the same string as YAML's."""
    specials = "!&*?|>@`%{}[],#-:'\"~ ."
    taken = 0
    for special in specials:
        for text in (f"{special}a", f"a{special}", f"a{special}b", f"a{special} b", f"a {special}b", special):
            try:
                ours = git_hooks.scalar(text.strip(" "))
            except ValueError:
                continue
            taken += 1
            assert ours == yaml.safe_load(f"reason: {text}")["reason"], text
    assert taken > 40


def test_hooks_are_programs() -> None:
    assert Path(git_hooks.__file__).stat().st_mode & 0o111 == 0o111

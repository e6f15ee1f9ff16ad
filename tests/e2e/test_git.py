"""The Git service lets in whom it should, keeps what prod follows in the hands of approvers, and keeps every commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .git import APP, ENVIRONMENT, Clone, Git, clean, survives
from .site import Site


@pytest.fixture(scope="module")
def approver(site: Site) -> str:
    """A user who approves."""
    settings = site.core.read_namespaced_config_map("git-settings", "git").data["settings.json"]
    approvers: list[str] = json.loads(settings)["approvers"]
    return approvers[0] if approvers else pytest.skip("git_users names no approver")


@pytest.fixture(scope="module")
def writer(site: Site, approver: str) -> str:
    """A user who writes and does not approve."""
    settings = site.core.read_namespaced_config_map("git-settings", "git").data["settings.json"]
    users = [key.rpartition(".") for key in site.secret("git", "git-users")]
    found = [name for name, _, right in users if right == "write" and name not in json.loads(settings)["approvers"]]
    return found[0] if found else pytest.skip("git_users names nobody who writes but does not approve")


@pytest.fixture
def clone(git: Git, writer: str) -> Iterator[Clone]:
    """The writer's clone."""
    with git.clone(writer) as clone:
        yield clone


@pytest.fixture
def cleaned(git: Git, approver: str) -> Iterator[None]:
    """What a test pushes is not there before and not afterwards."""
    clean(git, approver)
    yield
    clean(git, approver)


@pytest.mark.smoke
def test_a_reader_clones_and_finds_the_layout(git: Git) -> None:
    """Over TLS that is checked; the folders that Argo CD looks into are there."""
    with git.clone("argocd") as clone:
        for folder in ("apps", "approvals", "platform"):
            assert (clone.folder / folder).is_dir(), folder


@pytest.mark.smoke
def test_strangers_are_refused(git: Git, tmp_path: Path) -> None:
    """A wrong password, no user, and whoever would not trust the site's authority."""
    assert "Authentication failed" in git.run("nobody", "ls-remote", git.url, check=False)
    assert "Authentication failed" in git.run("", "ls-remote", git.url, check=False)
    other = tmp_path / "other.crt"
    other.write_text("")
    said = git.run("argocd", "ls-remote", git.url, check=False, http__sslCAInfo=str(other))
    assert "certificate" in said and not said.endswith("status 0")


@pytest.mark.smoke
def test_a_reader_cannot_push(git: Git, clone: Clone) -> None:
    """The user whose password Argo CD has changes nothing."""
    before = git.main()
    clone.commit("By a reader", {f"apps/{APP}/note.md": "x\n"})
    assert "Authentication failed" in clone.refused(user="argocd")
    assert git.main() == before


@pytest.mark.smoke
def test_only_approvers_approve(git: Git, clone: Clone, approver: str) -> None:
    """A writer reads why the push was refused; what stays out is the whole push."""
    before = git.main()
    clone.commit("An approval of my own", clone.approval(before, approver))
    said = clone.refused()
    assert "approvals/: only approvers may change this on main" in said
    assert f"you push as {clone.user}" in said
    clone.run("reset", "--quiet", "--hard", before)
    clone.commit("An Application of my own", {"platform/slipway-test.yaml": "kind: Application\n"})
    assert "platform/: only approvers may change this on main" in clone.refused()
    assert git.main() == before


@pytest.mark.smoke
def test_faults_of_an_approval_are_named(git: Git, approver: str) -> None:
    """An approver reads the file and what is wrong with it."""
    before = git.main()
    with git.clone(approver) as clone:
        text = f"revision: {'12ab' * 10}\napprovedBy: somebody\nreason: a: b\n"
        clone.commit("Wrong in three ways", {f"approvals/{ENVIRONMENT}/{APP}.yml": text})
        said = clone.refused()
    path = f"approvals/{ENVIRONMENT}/{APP}.yml"
    assert f"{path}: revision {'12ab' * 10} is not a commit of main" in said
    assert f"{path}: approvedBy is 'somebody', but you push as {approver}" in said
    assert f"{path}: line 3: put the value of reason in quotes" in said
    assert git.main() == before


@pytest.mark.fault
@pytest.mark.usefixtures("cleaned")
def test_from_a_commit_to_a_rollback(git: Git, clone: Clone, approver: str) -> None:
    """A writer brings a version, an approver approves it and a second one, takes that back, and takes everything back."""
    path = f"approvals/{ENVIRONMENT}/{APP}.yml"
    first = clone.commit("A version", {f"apps/{APP}/{ENVIRONMENT}/note.md": "1\n"})
    clone.push()
    with git.clone(approver) as theirs:
        theirs.commit("Approved", theirs.approval(first, approver))
        theirs.push()
        assert git.main() == theirs.head()

        # Neither a change nor a deletion nor a new name by somebody else.
        clone.run("pull", "--quiet", "--rebase")
        here = clone.head()
        for files in (
            {path: None},
            {path: None, f"approvals/{ENVIRONMENT}/other.yml": "x: y\n"},
            {path: (clone.folder / path).read_text() + "# more\n"},
        ):
            clone.commit("Not mine to change", files)
            assert "approvals/: only approvers" in clone.refused()
            clone.run("reset", "--quiet", "--hard", here)

        second = theirs.commit("Another version", {f"apps/{APP}/{ENVIRONMENT}/note.md": "2\n"})
        theirs.commit("Approved, too", theirs.approval(second, approver))
        theirs.push()
        theirs.run("revert", "--no-edit", "HEAD")
        theirs.push()
        assert first in (theirs.folder / path).read_text()
    with git.clone("argocd") as seen:
        assert first in (seen.folder / path).read_text()


@pytest.mark.fault
@pytest.mark.usefixtures("cleaned")
def test_history_is_kept(git: Git, clone: Clone) -> None:
    """Nobody rewrites or deletes main; other branches come and go."""
    before = git.main()
    clone.run("commit", "--quiet", "--amend", "--message", "It was otherwise")
    assert "rejected" in clone.refused()
    assert "rejected" in clone.git.run(
        clone.user, "push", "--force", "origin", "HEAD:main", folder=clone.folder, check=False
    )
    assert "refus" in clone.git.run(clone.user, "push", "origin", ":main", folder=clone.folder, check=False)
    clone.push("slipway-test")
    clone.run("push", "--quiet", "origin", ":slipway-test")
    assert git.main() == before


@pytest.mark.fault
@pytest.mark.usefixtures("cleaned")
def test_commits_survive_the_pod(git: Git, site: Site, approver: str) -> None:
    """Another pod serves what the one before has taken, and does not begin anew."""

    def disturb() -> None:
        command = [str(site.kubectl), "--kubeconfig", str(site.kubeconfig), "--namespace", "git"]
        subprocess.run([*command, "delete", "pod", "-l", "app.kubernetes.io/name=git", "--wait"], check=True)

    survives(git, approver, disturb)

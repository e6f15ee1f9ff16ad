"""Deployment by commits, against the project's own Git service with its hooks."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from epos import cli
from epos.errors import EposError, UsageError
from epos.gitops import Application, Repository, Share, deploy, release_message, serve
from epos.repository import Moved, Unreachable

from ..services.conftest import guarded  # noqa: F401  (a fixture)
from ..services.service import Service

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
PASSWORD = "p-word: with a colon"
BASE = ("kustomization.yaml", "deployment.yaml", "service.yaml", "network.yaml")


def application(version: str = NEW) -> Application:
    return Application(
        "registry.example:5000/slipway-epos:0.1.0",
        "site.example",
        "s3://epos-models/models",
        {"dev": [Share(version)], "prod": [Share("00aa", 90), Share(version, 10)]},
    )


@pytest.fixture
def platform(guarded: Service) -> Service:  # noqa: F811
    """A repository with a commit, and a user pipeline who writes and does not approve."""
    (guarded.users / "pipeline.write").write_text(PASSWORD)
    guarded.commit("README.md", b"read me\n")
    guarded.commit("apps/other/dev/it.yaml", b"a: 1\n")
    guarded.git("push", "-q", "origin", "main", cwd=guarded.clone())
    return guarded


def url(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}/platform.git"


def bring(service: Service, app: Application, message: str = "a model") -> str:
    return deploy(url(service), "pipeline", PASSWORD, app, message)


def main(service: Service) -> str:
    return service.git("rev-parse", "main", cwd=service.repository).stdout.strip()


def show(service: Service, path: str) -> str:
    return service.git("show", f"main:{path}", cwd=service.repository).stdout


def test_a_deployment_is_one_commit_of_the_user(platform: Service) -> None:
    before = main(platform)
    commit = bring(platform, application(), release_message(NEW, "run-7", "d" * 64, 0.7654321))
    assert main(platform) == commit
    fields = platform.git("log", "-1", "--format=%P%n%an%n%ae%n%B", commit, cwd=platform.repository).stdout
    parent, name, mail, subject, *body = fields.split("\n")
    assert (parent, name, mail) == (before, "pipeline", "pipeline@localhost")
    assert subject == f"epos: model {NEW}, recall 0.7654"
    assert body[1:5] == [f"version: {NEW}", "run: run-7", f"data: {'d' * 64}", "recall: 0.765432"]
    listed = platform.git("diff", "--name-only", before, commit, cwd=platform.repository).stdout.split()
    own = [f"{env}/{name}" for env in ("dev", "prod") for name in ("ingress.yaml", "kustomization.yaml", "patch.yaml")]
    own += ["dev/serving.yaml", "prod/serving.yaml", "dev/runs.yaml", *(f"base/{name}" for name in BASE)]
    assert sorted(listed) == sorted(f"apps/epos/{name}" for name in own)
    assert show(platform, "apps/other/dev/it.yaml") == "a: 1\n"
    assert "--serve=00aa=90}" in show(platform, "apps/epos/prod/serving.yaml")
    assert "host: epos-dev.site.example\n" in show(platform, "apps/epos/dev/ingress.yaml")
    platform.git("fsck", "--strict", cwd=platform.repository)


def test_the_same_again_makes_no_commit(platform: Service) -> None:
    commit = bring(platform, application())
    # Somebody else's commit does not count.
    platform.git("pull", "-q", "--rebase", "origin", "main", cwd=platform.clone())
    platform.git("push", "-q", "origin", "main", cwd=platform.commit("apps/other/dev/it.yaml", b"a: 2\n"))
    tip = main(platform)
    assert tip != commit
    assert bring(platform, application(), "another message") == commit
    assert main(platform) == tip


def test_what_the_site_has_patched_stays(platform: Service) -> None:
    bring(platform, application(OLD))
    platform.git("pull", "-q", "--rebase", "origin", "main", cwd=platform.clone())
    for path, text in (
        ("prod/patch.yaml", b"replicas: 5\n"),
        ("base/service.yaml", b"mine\n"),
        ("dev/own.yaml", b"x\n"),
    ):
        platform.commit(f"apps/epos/{path}", text)
    platform.git("push", "-q", "origin", "main", cwd=platform.clone())
    bring(platform, application())
    assert show(platform, "apps/epos/prod/patch.yaml") == "replicas: 5\n"
    assert show(platform, "apps/epos/dev/own.yaml") == "x\n"
    assert show(platform, "apps/epos/base/service.yaml") != "mine\n"


def test_deployments_at_the_same_time_all_arrive(platform: Service) -> None:
    bring(platform, application(OLD))
    commits: dict[str, str] = {}

    def work(name: str, do: Callable[[], str]) -> None:
        commits[name] = do()

    tasks = {
        "dev": lambda: serve(url(platform), "pipeline", PASSWORD, "dev", [Share(NEW, 1)]),
        "prod": lambda: serve(url(platform), "pipeline", PASSWORD, "prod", [Share(NEW, 2)]),
        "image": lambda: bring(platform, replace(application(OLD), image="registry.example/other:2")),
    }
    threads = [threading.Thread(target=work, args=item) for item in tasks.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(commits.values())) == 3
    history = platform.git("rev-list", "main", cwd=platform.repository).stdout.split()
    assert set(commits.values()) <= set(history) and len(history) == 6
    assert "image: registry.example/other:2\n" in show(platform, "apps/epos/base/deployment.yaml")


def test_a_push_between_look_and_push_is_not_lost(platform: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Repository.fetch
    pushed: list[str] = []

    def slow(self: Repository) -> object:
        seen = fetch(self)
        if not pushed:
            platform.git("push", "-q", "origin", "main", cwd=platform.commit("apps/other/dev/it.yaml", b"a: 2\n"))
            pushed.append(main(platform))
        return seen

    monkeypatch.setattr(Repository, "fetch", slow)
    commit = bring(platform, application())
    assert platform.git("rev-parse", "main^", cwd=platform.repository).stdout.strip() == pushed[0]
    assert main(platform) == commit and show(platform, "apps/other/dev/it.yaml") == "a: 2\n"


def test_an_old_snapshot_replaces_nothing(platform: Service) -> None:
    """Also when the server looks the same to both: it compares what is there with what was there."""
    one, other = (Repository(url(platform), "pipeline", PASSWORD) for _ in range(2))
    seen = one.fetch()
    first = other.push(other.fetch(), {"apps/epos/a": b"1"}, "first")
    with pytest.raises(Moved):
        one.push(seen, {"apps/epos/a": b"2"}, "second")
    assert main(platform) == first


def test_wrong_passwords_and_readers_are_told_so(platform: Service) -> None:
    before = main(platform)
    for user, password in (("pipeline", "other"), ("nobody", PASSWORD), ("argocd", "r-password")):
        with pytest.raises(EposError) as caught:
            deploy(url(platform), user, password, application(), "x")
        said = str(caught.value)
        assert f"login refused: user {user} or the password is wrong, or the user may not write" in said
        assert password not in said
    assert main(platform) == before


def test_what_the_hook_says_is_in_the_error(platform: Service) -> None:
    repository = Repository(url(platform), "pipeline", PASSWORD)
    before = main(platform)
    text = f"revision: {before}\napprovedBy: pipeline\nreason: I like it\n"
    with pytest.raises(EposError) as caught:
        repository.push(repository.fetch(), {"approvals/prod/epos.yml": text.encode()}, "approved by myself")
    said = str(caught.value)
    assert "the push of pipeline was refused: Refused, nothing has changed:" in said
    assert "approvals/: only approvers may change this on main (admin, anna), and you push as pipeline" in said
    assert main(platform) == before


def test_a_server_that_is_away_is_waited_for(platform: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    port = platform.port
    nowhere = "http://127.0.0.1:1/platform.git"
    with pytest.raises(EposError, match=r"127\.0\.0\.1:1/platform\.git: .*refused.*given up after 8 attempts"):
        deploy(nowhere, "pipeline", PASSWORD, application(), "x")
    assert sum(waits) > 10
    with pytest.raises(EposError, match="there is no such repository"):
        deploy(f"http://127.0.0.1:{port}/other.git", "pipeline", PASSWORD, application(), "x")


def test_a_push_whose_answer_is_lost_has_arrived_once(platform: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    push = Repository.push
    arrived: list[str] = []

    def cut(self: Repository, *words: object) -> str:
        arrived.append(push(self, *words))  # type: ignore[arg-type]
        raise Unreachable("the connection is gone")

    monkeypatch.setattr(Repository, "push", cut)
    before = main(platform)
    commit = bring(platform, application())
    assert arrived == [commit] and main(platform) == commit
    assert platform.git("rev-parse", "main^", cwd=platform.repository).stdout.strip() == before


def test_a_canary_changes_the_shares_only(platform: Service) -> None:
    with pytest.raises(EposError, match=r"apps/epos/dev/serving\.yaml: there is no such file"):
        serve(url(platform), "pipeline", PASSWORD, "dev", [Share(NEW)])
    before = bring(platform, application(OLD))
    commit = serve(url(platform), "pipeline", PASSWORD, "dev", [Share(OLD, 90), Share(NEW, 10)], "trying")
    changed = platform.git("diff", "--stat", "--name-only", before, commit, cwd=platform.repository).stdout.split()
    assert changed == ["apps/epos/dev/serving.yaml"]
    subject = platform.git("log", "-1", "--format=%s", cwd=platform.repository).stdout.strip()
    assert subject == f"epos: dev serves {OLD}=90, {NEW}=10"
    assert serve(url(platform), "pipeline", PASSWORD, "dev", [Share(OLD, 90), Share(NEW, 10)]) == commit
    with pytest.raises(UsageError, match="'stage' is none of the environments dev, prod"):
        serve(url(platform), "pipeline", PASSWORD, "stage", [Share(OLD)])


def test_a_person_deploys_by_the_command_line(
    platform: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(platform, application(OLD))
    monkeypatch.setenv("GIT_USERNAME", "pipeline")
    monkeypatch.setenv("GIT_PASSWORD", PASSWORD)
    words = ["deploy", "--repository", url(platform), "--serve", f"{OLD}=90", "--serve", f"{NEW}=10"]
    assert cli.main([*words, "--environment", "prod", "--reason", "Let us see."]) == 0
    assert json.loads(capsys.readouterr().out) == {"commit": main(platform)}
    assert f"--serve={NEW}=10}}" in show(platform, "apps/epos/prod/serving.yaml")
    body = platform.git("log", "-1", "--format=%b", cwd=platform.repository).stdout.strip()
    assert body == "Let us see."
    monkeypatch.setenv("GIT_PASSWORD", "other")
    assert cli.main([*words, "--environment", "dev"]) == 1
    assert "login refused: user pipeline" in capsys.readouterr().err


def test_an_empty_repository_is_named(guarded: Service) -> None:  # noqa: F811
    with pytest.raises(EposError, match="has no branch main"):
        deploy(url(guarded), "team", "w-password", application(), "x")


@pytest.mark.parametrize(
    "change",
    [
        {"image": "x\ny"},
        {"image": "a b"},
        {"domain": "Site.example"},
        {"domain": "-x"},
        {"models": "/models"},
        {"models": "s3://b/x --evil"},
        {"runs_namespace": "a: b"},
    ],
)
def test_values_that_would_break_the_manifests_are_refused(change: dict[str, str]) -> None:
    (name,) = change
    with pytest.raises(UsageError, match=f"^{name}: "):
        replace(application(), **change)  # type: ignore[arg-type]


def test_addresses_with_a_password_are_refused(tmp_path: Path) -> None:
    for address in ("http://me:secret@git.example/platform.git", "git@git.example:platform.git", "ssh://git/x.git"):
        with pytest.raises(EposError, match=r"must be http\(s\)://host/path") as caught:
            Repository(address, "me", "secret")
        assert "secret" not in str(caught.value)

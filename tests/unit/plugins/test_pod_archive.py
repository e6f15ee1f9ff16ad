"""What commands in pods print and read passes whole or not at all; what the roles run there, with Git itself and a MySQL that is none."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway.age import decrypt
from ansible.module_utils.slipway.backup import begin_archive, draft

from modules import pod_archive

from .archives import K3S, KEY, RECIPIENT, SITE, TIME, write_key
from .fakes import run_module
from .plays import PROJECT


class Pod:
    """A kubectl whose pod is this machine; its exec begins in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / TIME
        begin_archive(self.archive, SITE, K3S, ("a",))
        self.kubectl = folder / "kubectl"
        self.install('while [ "$1" != -- ]; do shift; done; shift; exec "$@"')

    def install(self, body: str) -> None:
        self.kubectl.write_text(f"#!/bin/sh\ncd {self.folder}\n{body}\n")
        self.kubectl.chmod(0o755)

    def run(self, state: str, *command: str, check: bool = False, **options: Any) -> dict[str, Any]:
        path = self.archive if state != "restored" else draft(self.archive)
        words = {
            **{"kubeconfig": "/k", "kubectl": str(self.kubectl), "namespace": "n", "target": "pod/x", "container": "c"},
            **{"part": "x", "file": "x.txt", "recipients": [RECIPIENT], "identity_file": str(write_key(self.folder))},
            **{"command": list(command), "state": state, "path": str(path), **options},
        }
        return run_module(pod_archive, words, check)

    def kept(self) -> bytes:
        return decrypt(draft(self.archive) / "x.txt.age", [KEY], lambda stream: stream.read())


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_what_a_command_prints_comes_back_to_another(pod: Pod) -> None:
    result = pod.run("saved", "sh", "-c", "seq 300000; printf end")
    assert (result["changed"], result["bytes"]) == (True, len(pod.kept()))
    assert pod.kept().endswith(b"300000\nend")
    assert pod.run("restored", "sh", "-c", "cat > got")["changed"]
    assert (pod.folder / "got").read_bytes() == pod.kept()
    assert pod.run("saved", "true", check=True)["changed"] is True


def test_what_is_noted_is_in_the_clear(pod: Pod) -> None:
    pod.run("noted", "echo", '{"timeline": 3}', part="postgresql")
    assert '"timeline": 3' in (draft(pod.archive) / "manifest.json").read_text()
    assert "no JSON object but b'three" in pod.run("noted", "echo", "three")["msg"]


def test_what_fails_leaves_no_file(pod: Pod) -> None:
    assert (
        "ended with 3: table is away"
        in pod.run("saved", "sh", "-c", "echo half; echo table is away >&2; exit 3")["msg"]
    )
    # Its connection was lost, and kubectl says nothing of it.
    pod.install("echo half")
    assert "the connection was cut before its end" in pod.run("saved", "dump")["msg"]
    assert not (draft(pod.archive) / "x.txt.age").exists()


def test_a_command_that_does_not_want_its_input_says_why(pod: Pod) -> None:
    pod.run("saved", "sh", "-c", "head -c 5000000 /dev/zero")
    assert "ended with 1: no room" in pod.run("restored", "sh", "-c", "echo no room >&2; exit 1")["msg"]


def scripts(role: str) -> dict[str, str]:
    """The variables of a role."""
    values: dict[str, str] = yaml.safe_load((PROJECT / f"roles/{role}/vars/main.yml").read_text())
    return values


def test_a_repository_comes_back_with_the_log_of_pushes(pod: Pod) -> None:
    """Also into a service that has made an empty one; what had commits is kept beside it."""
    found = scripts("git")
    save, load = (
        found[name].replace("{{ _git_repository }}", "platform").replace("/repositories", str(pod.folder / "r"))
        for name in ("_git_save", "_git_load")
    )
    repository = pod.folder / "r/platform.git"

    def git(*words: str) -> str:
        who = {f"GIT_{each}_{what}": "a@b" for each in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", "-c", "core.logAllRefUpdates=always", f"--git-dir={repository}", *words]
        environment = {**os.environ, **who}
        return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout.strip()

    def commit(text: str) -> None:
        tree = git("hash-object", "-t", "tree", "-w", "/dev/null")
        git("update-ref", "-m", text, "refs/heads/main", git("commit-tree", tree, "-m", text))

    def state() -> str:
        return git("for-each-ref") + git("reflog", "show", "main")

    (pod.folder / "r").mkdir()
    git("init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    commit("first")
    git("tag", "v1", "main")
    before = state()
    assert "first" in before
    assert pod.run("saved", "sh", "-c", save).get("msg") is None
    assert sorted(path.name for path in repository.parent.iterdir()) == ["platform.git"]

    commit("second")
    assert pod.run("restored", "sh", "-c", load).get("msg") is None
    assert state() == before
    assert git("symbolic-ref", "HEAD") == "refs/heads/main"
    former = repository.with_name(".before-restore")
    assert "second" in subprocess.check_output(["git", f"--git-dir={former}", "log", "main"], text=True)

    subprocess.run(["rm", "-rf", str(repository)], check=True)
    git("init", "--quiet", "--bare", "--initial-branch=main", str(repository))
    assert pod.run("restored", "sh", "-c", load).get("msg") is None
    assert state() == before


@pytest.mark.parametrize("client", ["mysql", "mariadb"])
def test_databases_are_dumped_without_the_servers_own(pod: Pod, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = scripts("kubeflow_pipelines")
    commands = pod.folder / "bin"
    commands.mkdir()
    for name, text in (
        (
            client,
            f'case "$*" in *SHOW*) printf "mlpipeline\\nmysql\\nmetadb\\nsys\\n" ;; *) cat > {pod.folder}/loaded ;; esac',
        ),
        ("mysqldump", 'echo "$MYSQL_PWD $*"'),
    ):
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    monkeypatch.setenv("MYSQL_ROOT_PASSWORD", "in-the-pod")
    assert pod.run("saved", "sh", "-c", found["_kubeflow_pipelines_dump"]).get("msg") is None
    said = pod.kept().decode().split()
    assert said[0] == "in-the-pod"
    assert said[-3:] == ["--databases", "mlpipeline", "metadb"]
    assert "--single-transaction" in said
    assert pod.run("restored", "sh", "-c", found["_kubeflow_pipelines_load"]).get("msg") is None
    assert (pod.folder / "loaded").read_bytes() == pod.kept()


def test_a_base_backup_keeps_its_connection_busy_and_ends_with_it(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    script = scripts("postgresql")["_postgresql_back_up"].replace("sleep 30", "sleep 0.2")
    (pod.folder / "python3").write_text('#!/bin/sh\nsleep 0.7\necho "{\\"words\\": \\"$*\\"}"\nexit $STATUS\n')
    (pod.folder / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", f"{pod.folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STATUS", "0")
    assert pod.run("noted", "sh", "-c", script, "slipway-x").get("msg") is None
    assert "/opt/postgres_pod.py backup slipway-x" in (draft(pod.archive) / "manifest.json").read_text()
    monkeypatch.setenv("STATUS", "1")
    assert "the base backup goes on" in pod.run("noted", "sh", "-c", script, "slipway-x")["msg"]

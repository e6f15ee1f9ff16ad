"""Archives of the cluster: written whole and private, opened whole or refused; playbooks/backup.yml with a k3s that is none."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from ansible.module_utils.slipway.backup import (
    CONTENTS,
    MANIFEST,
    SUFFIX,
    forget_archives,
    read_archive,
    require_fit,
    write_archive,
)
from ansible.module_utils.slipway.errors import SlipwayError

from .archives import K3S, PASSWORD, SECRETS, SITE, TIME, damage, make_archive, write_password
from .plays import run_playbook
from .stage import Stage, listed

OPEN = """
- hosts: localhost
  gather_facts: false
  tasks:
    - cluster_archive:
        {state: checked, path: "{{ path }}", password_file: "{{ password }}", site: "{{ site }}", k3s: "{{ k3s }}"}
    - cluster_archive:
        state: placed
        path: "{{ path }}"
        password_file: "{{ password }}"
        files: {token: "{{ placed }}/token", agent-token: "{{ placed }}/agent-token", snapshot.zip: "{{ placed }}/snapshot.zip"}
"""


def test_an_archive_is_private_and_says_what_it_is(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "backup")
    assert {file.name for file in path.iterdir()} == {MANIFEST, *(f"{name}{SUFFIX}" for name in CONTENTS)}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not [name for name in path.iterdir() for text in SECRETS.values() if text in name.read_text()]
    manifest = read_archive(path)
    assert (manifest.site, manifest.k3s, manifest.time, manifest.nodes) == (SITE, K3S, TIME, ("a", "b"))


def test_the_newest_stay(tmp_path: Path) -> None:
    for hour in range(4):
        make_archive(tmp_path, time=f"20261127T0{hour}0000Z")
    (tmp_path / "mine").mkdir()
    assert forget_archives(tmp_path, 2) == ["20261127T000000Z", "20261127T010000Z"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20261127T020000Z", "20261127T030000Z", "mine"]


def test_one_that_was_not_ended_has_no_name_and_goes_with_the_next(tmp_path: Path) -> None:
    (tmp_path / f".draft-{TIME}").mkdir()
    make_archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [TIME]
    with pytest.raises(SlipwayError, match="another backup was taken in this second"):
        write_archive(tmp_path, SITE, K3S, TIME, (), {})


def test_what_is_wrong_with_an_archive_is_named(tmp_path: Path) -> None:
    path = make_archive(tmp_path)
    damaged = damage(path, "snapshot.zip")
    with pytest.raises(SlipwayError, match=r"snapshot\.zip\.vault is damaged: its SHA-256 is not"):
        read_archive(path)
    damaged.undo()
    manifest = (path / MANIFEST).read_text()
    for text, said in (
        ("{", "is damaged"),
        ('{"files": {}}', "is damaged"),
        (manifest.replace("agent-token", "x"), "it should name"),
    ):
        (path / MANIFEST).write_text(text)
        with pytest.raises(SlipwayError, match=said):
            read_archive(path)
    (path / MANIFEST).write_text(manifest)
    (path / "token.vault").unlink()
    with pytest.raises(SlipwayError, match=r"token\.vault is missing: the archive is not complete"):
        read_archive(path)
    (path / MANIFEST).unlink()
    with pytest.raises(SlipwayError, match="it is no archive, or not a whole one"):
        read_archive(path)
    with pytest.raises(SlipwayError, match="is no folder"):
        read_archive(tmp_path / "nowhere")


def test_another_version_and_another_site_are_refused(tmp_path: Path) -> None:
    manifest = read_archive(make_archive(tmp_path))
    require_fit(manifest, SITE, K3S)
    with pytest.raises(SlipwayError, match=r"one of k3s v1\.35\.8\+k3s1, the bundle brings v1\.36\.0\+k3s1"):
        require_fit(manifest, SITE, "v1.36.0+k3s1")
    with pytest.raises(SlipwayError, match="of the site site, not of other"):
        require_fit(manifest, "other", K3S)


def test_it_is_opened_with_its_password_only(tmp_path: Path) -> None:
    """The files come out as they went in, for their owner only; nothing of them is shown, however verbose the run."""
    (tmp_path / "play.yml").write_text(OPEN)
    (tmp_path / "placed").mkdir()
    path = make_archive(tmp_path)
    words = {"path": str(path), "placed": str(tmp_path / "placed"), "site": SITE, "k3s": K3S}
    for password, said in (("wrong", "is not the one that"), ("", "backup_vault_password_file:")):
        words["password"] = str(write_password(tmp_path, password))
        refused = run_playbook(tmp_path, "play.yml", "-e", json.dumps(words))
        assert refused.returncode != 0
        assert said in " ".join(refused.stdout.split()), refused.stdout
    write_password(tmp_path)
    done = run_playbook(tmp_path, "play.yml", "-vvvv", "-e", json.dumps(words))
    assert done.returncode == 0, done.stdout
    assert {file.name: file.read_text() for file in (tmp_path / "placed").iterdir()} == SECRETS
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "placed").iterdir()} == {0o600}
    assert not [text for text in (*SECRETS.values(), PASSWORD) if text in done.stdout + done.stderr]


K3S_COMMAND = """#!/bin/sh
echo "$*" >>"%(calls)s"
[ -z "%(fails)s" ] || { echo datastore is away >&2; exit 1; }
while [ "$1" != --dir ]; do shift; done
printf %(content)s >"$2/slipway-backup-b-1795780800.zip"
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    stage = Stage(tmp_path)
    for name in ("token", "agent-token"):
        path = tmp_path / "etc" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SECRETS[name])
    (tmp_path / "data/server").mkdir(parents=True)
    stage.use("snapshot")
    (tmp_path / "bin").mkdir()
    write_command(tmp_path)
    return stage


def write_command(folder: Path, fails: str = "") -> None:
    """A k3s that saves snapshots."""
    text = K3S_COMMAND % {"calls": folder / "calls", "content": SECRETS["snapshot.zip"], "fails": fails}
    (folder / "bin/k3s").write_text(text)
    (folder / "bin/k3s").chmod(0o755)


LIVES = {"has_data": True, "active": True, "members": listed("a", "b", "c"), "version": K3S, "started": K3S}


def back_up(stage: Stage, states: dict[str, dict[str, object] | None], **more: object) -> str:
    """Run backup.yml with the password file; what was said unless all went well."""
    folder = stage.folder
    words = {
        "backup_vault_password_file": str(write_password(folder)),
        "_k3s_config_dir": str(folder / "etc"),
        "_k3s_data_dir": str(folder / "data"),
        **more,
    }
    return stage.run(states, playbook="backup", variables=words)[1]


def test_a_backup_is_taken_on_a_server_that_answers(stage: Stage) -> None:
    """One of three is dead and one does not answer: the third is asked. The archive opens with the password, and the node keeps nothing."""
    states: dict[str, dict[str, object] | None] = {"a": None, "b": LIVES, "c": {"has_data": True}}
    said = back_up(stage, states)
    assert not said, said[-3000:]
    (path,) = (stage.folder / "backup").iterdir()
    manifest = read_archive(path)
    assert (manifest.site, manifest.k3s, manifest.nodes) == (SITE, K3S, ("a", "b", "c"))
    assert not (stage.folder / "data/server/transfer").exists()
    assert "--snapshot-compress" in (stage.folder / "calls").read_text()
    assert not [text for text in SECRETS.values() if text in stage.output]

    (stage.folder / "play.yml").write_text(OPEN)
    (stage.folder / "placed").mkdir()
    words = {"path": str(path), "placed": str(stage.folder / "placed"), "site": SITE, "k3s": K3S}
    words["password"] = str(stage.folder / "password")
    done = run_playbook(stage.folder, "play.yml", "-e", json.dumps(words))
    assert done.returncode == 0, done.stdout
    assert {file.name: file.read_text() for file in (stage.folder / "placed").iterdir()} == SECRETS


def test_no_backup_is_kept_without_encryption_or_of_nothing(stage: Stage) -> None:
    lives: dict[str, dict[str, object] | None] = {"b": LIVES}
    assert "not kept without encryption" in back_up(stage, lives, backup_vault_password_file="")
    assert "not kept without encryption" in back_up(stage, lives, backup_keep=0)
    assert "No server of site answers" in back_up(stage, {"b": {"has_data": True}})
    assert not (stage.folder / "calls").exists()
    write_command(stage.folder, fails="yes")
    said = back_up(stage, lives)
    assert "datastore is away" in said and "Nothing was backed up" in said
    assert not (stage.folder / "backup").exists()
    assert not (stage.folder / "data/server/transfer").exists()

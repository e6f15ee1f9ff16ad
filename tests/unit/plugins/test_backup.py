"""Archives of a site: written whole and private, opened whole or refused; playbooks/backup.yml with a k3s that is none."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pyrage
import pytest
from ansible.module_utils.slipway.backup import (
    CONTENTS,
    MANIFEST,
    SUFFIX,
    add_part,
    begin_archive,
    draft,
    finish_archive,
    forget_archives,
    read_archive,
    require_fit,
)
from ansible.module_utils.slipway.errors import SlipwayError

from .archives import K3S, KEY, RECIPIENT, SECRETS, SITE, TIME, damage, make_archive, write_key
from .plays import run_playbook
from .stage import Stage, listed

OPEN = """
- hosts: localhost
  gather_facts: false
  tasks:
    - site_archive:
        {state: checked, path: "{{ path }}", identity_file: "{{ key }}", site: "{{ site }}", k3s: "{{ k3s }}"}
    - site_archive:
        state: placed
        path: "{{ path }}"
        identity_file: "{{ key }}"
        files: {token: "{{ placed }}/token", agent-token: "{{ placed }}/agent-token", snapshot.zip: "{{ placed }}/snapshot.zip"}
"""


def test_an_archive_is_private_and_says_what_it_is(tmp_path: Path) -> None:
    path = make_archive(tmp_path / "backup")
    assert {file.name for file in path.iterdir()} == {MANIFEST, *(f"{name}{SUFFIX}" for name in CONTENTS)}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not [name for name in path.iterdir() for text in SECRETS.values() if text.encode() in name.read_bytes()]
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
        begin_archive(tmp_path / TIME, SITE, K3S, ())


def test_one_without_the_cluster_does_not_get_a_name(tmp_path: Path) -> None:
    begin_archive(tmp_path / TIME, SITE, K3S, ())
    add_part(tmp_path / TIME, "minio", {}, {"objects": 3})
    with pytest.raises(SlipwayError, match="it should name agent-token"):
        finish_archive(tmp_path / TIME)
    assert [path.name for path in tmp_path.iterdir()] == [draft(tmp_path / TIME).name]


def test_components_have_parts(tmp_path: Path) -> None:
    parts = {"git": ({"git.tar": "commits"}, {"bytes": 7}), "postgresql": ({}, {"timeline": 2})}
    path = make_archive(tmp_path, parts=parts)
    manifest = read_archive(path)
    assert set(manifest.parts) == {"cluster", "git", "postgresql"}
    assert manifest.parts["postgresql"].facts == {"timeline": 2}
    assert list(manifest.parts["git"].files) == ["git.tar.age"]
    damage(path, "git.tar")
    with pytest.raises(SlipwayError, match=r"git\.tar\.age is damaged"):
        read_archive(path)


def test_what_is_wrong_with_an_archive_is_named(tmp_path: Path) -> None:
    path = make_archive(tmp_path)
    damaged = damage(path, "snapshot.zip")
    with pytest.raises(SlipwayError, match=r"snapshot\.zip\.age is damaged: its SHA-256 is not"):
        read_archive(path)
    damaged.undo()
    manifest = (path / MANIFEST).read_text()
    for text, said in (
        ("{", "is damaged"),
        ('{"parts": {}}', "is damaged"),
        ('{"parts": 3, "nodes": []}', "is damaged"),
        (manifest.replace("agent-token", "x"), "it should name"),
    ):
        (path / MANIFEST).write_text(text)
        with pytest.raises(SlipwayError, match=said):
            read_archive(path)
    (path / MANIFEST).write_text(manifest)
    (path / "token.age").unlink()
    with pytest.raises(SlipwayError, match=r"token\.age is missing: the archive is not complete"):
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


def test_it_is_opened_with_its_key_only(tmp_path: Path) -> None:
    """The files come out as they went in, for their owner only; nothing of them is shown, however verbose the run."""
    (tmp_path / "play.yml").write_text(OPEN)
    (tmp_path / "placed").mkdir()
    path = make_archive(tmp_path)
    words = {"path": str(path), "placed": str(tmp_path / "placed"), "site": SITE, "k3s": K3S}
    words["key"] = str(tmp_path / "key")
    for content, said in (
        (str(pyrage.x25519.Identity.generate()), "it was encrypted for others"),
        ("AGE-SECRET-KEY-1QQQ", "holds no secret key of age"),
        ("# nothing", "holds no secret key of age"),
    ):
        (tmp_path / "key").write_text(content)
        refused = run_playbook(tmp_path, "play.yml", "-e", json.dumps(words))
        assert refused.returncode != 0
        assert said in " ".join(refused.stdout.split()), refused.stdout
    write_key(tmp_path)
    done = run_playbook(tmp_path, "play.yml", "-vvvv", "-e", json.dumps(words))
    assert done.returncode == 0, done.stdout
    assert {file.name: file.read_text() for file in (tmp_path / "placed").iterdir()} == SECRETS
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "placed").iterdir()} == {0o600}
    assert not [text for text in (*SECRETS.values(), str(KEY)) if text in done.stdout + done.stderr]


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
    """Run backup.yml for the key; what was said unless all went well."""
    folder = stage.folder
    words = {
        "backup_recipients": [RECIPIENT],
        "slipway_components": [],
        "_k3s_config_dir": str(folder / "etc"),
        "_k3s_data_dir": str(folder / "data"),
        **more,
    }
    return stage.run(states, playbook="backup", variables=words)[1]


def test_a_backup_is_taken_on_a_server_that_answers(stage: Stage) -> None:
    """One of three is dead and one does not answer: the third is asked. The archive opens with the key, and the node keeps nothing."""
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
    words["key"] = str(write_key(stage.folder))
    done = run_playbook(stage.folder, "play.yml", "-e", json.dumps(words))
    assert done.returncode == 0, done.stdout
    assert {file.name: file.read_text() for file in (stage.folder / "placed").iterdir()} == SECRETS


def test_components_are_saved_after_the_cluster_and_buckets_last(stage: Stage) -> None:
    for name in ("minio", "git", "postgresql"):
        stage.component(name, "backup", " {{ backup_archive }}")
    stage.component("argocd", "install")
    words = {
        "slipway_components": ["minio", "git", "argocd", "postgresql"],
        "slipway_roles_dir": str(stage.folder / "roles"),
    }
    said = back_up(stage, {"b": LIVES}, **words)
    assert not said, said[-3000:]
    (path,) = (stage.folder / "backup").iterdir()
    asked = [line for line in stage.log.read_text().splitlines() if line.startswith("backup ")]
    assert asked == [f"backup {name} localhost {path}" for name in ("git", "postgresql", "minio")]
    assert "the cluster, minio, git, postgresql" in " ".join(stage.output.split())
    # Where one of them fails, there is no archive, and the ones before stay.
    (stage.folder / "roles/git/tasks/backup.yml").write_text('[{"ansible.builtin.fail": {"msg": "git is away"}}]')
    assert "git is away" in back_up(stage, {"b": LIVES}, backup_keep=1, **words)
    assert [each for each in (stage.folder / "backup").iterdir() if not each.name.startswith(".")] == [path]


def test_no_backup_is_kept_without_encryption_or_of_nothing(stage: Stage) -> None:
    lives: dict[str, dict[str, object] | None] = {"b": LIVES}
    for recipients in ("[]", '""', f'"{RECIPIENT}"'):
        assert "not kept without encryption" in back_up(stage, lives, backup_recipients=json.loads(recipients))
    said = back_up(stage, lives, backup_recipients=[RECIPIENT, str(KEY)])
    assert "number 2 is no public key of age" in said and str(KEY) not in said
    assert "not kept without encryption" in back_up(stage, lives, backup_keep=0)
    assert "No server of site answers" in back_up(stage, {"b": {"has_data": True}})
    assert not (stage.folder / "calls").exists()
    write_command(stage.folder, fails="yes")
    said = back_up(stage, lives)
    assert "datastore is away" in said and "Nothing was backed up" in said
    assert not (stage.folder / "backup").exists()
    assert not (stage.folder / "data/server/transfer").exists()

"""playbooks/restore.yml for the cluster, as Ansible runs it: what is refused before any change, and who is touched in which order."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pyrage
import pytest
import yaml

from .archives import K3S, SECRETS, damage, make_archive, write_key
from .stage import Stage, listed

# The machines as they are found, once they are stopped, with data in the first server, and with that one running again.
SURVEY = [
    {"ansible.builtin.ping": None},
    {
        "ansible.builtin.set_fact": {
            "_k3s_state": "{{ state | combine(stopped if 'k3s_aside' in log_text else {}, "
            "{'has_data': true} if 'k3s_reset' in log_text and inventory_hostname == hostvars.localhost._restore.server else {}, "
            "restored if 'run ' ~ inventory_hostname in log_text else {}) }}"
        },
        "vars": {"log_text": "{{ lookup('ansible.builtin.file', log) }}"},
    },
]
STOPPED = {"members": None, "active": False, "has_data": False, "server_url": "", "restoring": True}
LIVES = {"has_data": True, "has_password": True, "active": True, "members": listed("a", "b", "c"), "version": K3S}
LOST = {**LIVES, "members": None}
NEW = {"has_password": False, "version": ""}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    stage = Stage(tmp_path)
    (tmp_path / "roles/k3s/tasks/survey.yml").write_text(yaml.safe_dump(SURVEY))
    for name in ("etc", "data/server/transfer", "bundle", "volumes/empty", "volumes/full/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bundle/bundle.yml").touch()
    (tmp_path / "volumes/full").chmod(0o700)
    return stage


def restore(
    stage: Stage, states: dict[str, Any], absent: tuple[str, ...] = (), check: bool = False, **more: Any
) -> tuple[list[str], str]:
    """Run it with the confirmation; the log without the files that are written, and what was said unless all went well."""
    folder = stage.folder
    listing = [*listed("a", "b", "c", "old"), {**listed("agent-1")[0], "server": False}]
    words = {
        "restore_component": "cluster",
        "restore_confirm": "site",
        "slipway_components": [],
        "slipway_bundle_dir": str(folder / "bundle"),
        "_k3s_config_dir": str(folder / "etc"),
        "_k3s_data_dir": str(folder / "data"),
        "backup_identity_file": str(write_key(folder)),
        "stopped": STOPPED,
        "restored": {"members": listing, "has_data": True, "active": True, "restoring": False},
        **more,
    }
    log, said = stage.run(states, absent=absent, playbook="restore", variables=words, check=check)
    return [line for line in log if not line.startswith("node_files")], said


def test_it_goes_back_to_an_archive(stage: Stage) -> None:
    """All nodes are stopped and their data aside before one server begins anew; the others join it one by one, then the agents."""
    archive = make_archive(stage.folder / "backup")
    log, said = restore(stage, dict.fromkeys(("c", "b", "a"), LIVES), restore_from=str(archive))
    assert not said, said[-4000:]
    stopped, log = log[:8], log[8:]
    assert sorted(stopped[:4]) == ["stop a", "stop agent-1", "stop b", "stop c"]
    assert stopped[4:] == ["k3s_aside false"] * 4
    snapshot = stage.folder / "data/server/transfer/snapshot.zip"
    assert log == [
        f'k3s_reset "{snapshot}"',
        "run a -",
        # Its password is right already. The agent's machine is new in this stage, and one is not the site's.
        'k3s_node "b"',
        'k3s_node "c"',
        'k3s_node "old"',
        'k3s_node "agent-1"',
        "run b a",
        "run c a",
        "run a b",
        'k3s_node "agent-1"',
        "run agent-1 a",
        "kubeconfig a",
        'workloads_ready ["c", "b", "a", "agent-1"]',
        f'volume_folders "{stage.folder}/kubeconfig"',
        "workloads_ready null",
    ]
    assert not snapshot.exists()
    # Only what has nothing in it is opened to its users.
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (stage.folder / "volumes").iterdir()}
    assert modes == {"missing": 0o777, "empty": 0o777, "full": 0o700}
    assert {path.name: path.read_text() for path in (stage.folder / "etc").iterdir()} == {
        name: SECRETS[name] for name in ("token", "agent-token")
    }
    assert not [text for text in SECRETS.values() if text in stage.output]
    assert "Volumes on the disks of new machines are empty" in " ".join(stage.output.split())


def test_the_whole_site_goes_back(stage: Stage) -> None:
    """After the cluster what its components held, buckets first and each with the archive; PostgreSQL to its point, which is in the bucket."""
    point = "{{ [postgresql_restore_source, postgresql_restore_timeline, postgresql_restore_target_name] | join(' ') }}"
    for name in ("git", "kubeflow_pipelines", "minio", "mine", "later"):
        stage.component(name, "restore", " {{ backup_archive }}")
    stage.component("postgresql", "restore", f" {point}")
    facts = {"source": "77", "timeline": 2, "target_name": "slipway-x", "target_time": "2026-11-27T12:00:00+00:00"}
    parts: dict[str, Any] = {name: ({f"{name}.x": name}, {}) for name in ("git", "kubeflow_pipelines", "mine", "minio")}
    archive = make_archive(stage.folder / "backup", parts={**parts, "postgresql": ({}, facts)})
    components = ["git", "later", "mine", "minio", "argocd", "postgresql", "kubeflow_pipelines"]
    log, said = restore(
        stage,
        dict.fromkeys(("a", "b", "c"), NEW),
        restore_component="site",
        restore_from=str(archive),
        slipway_components=components,
        slipway_component_namespaces=[],
        slipway_roles_dir=str(stage.folder / "roles"),
    )
    assert not said, said[-4000:]
    begun = log.index(f'volume_folders "{stage.folder}/kubeconfig"')
    assert log[begun + 1 :] == [
        f"restore minio localhost {archive}",
        "restore postgresql localhost 77 2 slipway-x",
        *(f"restore {name} localhost {archive}" for name in ("kubeflow_pipelines", "git", "mine")),
        "workloads_ready null",
    ]
    assert "These hold what they held then: minio, postgresql, kubeflow_pipelines, git, mine." in " ".join(
        stage.output.split()
    )


def test_it_goes_back_on_new_machines(stage: Stage) -> None:
    """The Nodes of that time go, and the first server's pods; a server may be named to begin on."""
    archive = make_archive(stage.folder / "backup")
    log, said = restore(stage, dict.fromkeys(("a", "b", "c"), NEW), restore_from=str(archive), restore_server="b")
    assert not said, said[-4000:]
    begun = log.index("run b -")
    assert log[begun + 1 : begun + 6] == [f'k3s_node "{name}"' for name in ("a", "b", "c", "old", "agent-1")]
    assert [line for line in log if line.startswith("run ")] == [
        "run b -",
        "run a b",
        "run c a",
        "run b a",
        "run agent-1 a",
    ]


def test_a_lost_quorum_is_mended_from_one_servers_data(stage: Stage) -> None:
    """No snapshot is used, its data stay where they are, and the lost servers are out of the cluster."""
    stopped = {**STOPPED, "has_data": True}
    states = {"a": LOST, "b": None, "c": None}
    log, said = restore(stage, states, ("b", "c"), restore_server="a", stopped=stopped)
    assert not said, said[-4000:]
    assert sorted(log[:4]) == ["k3s_aside false", "k3s_aside true", "stop a", "stop agent-1"]
    assert log[4:6] == ['k3s_reset ""', "run a -"]
    assert log[6:10] == [f'k3s_node "{name}"' for name in ("b", "c", "old", "agent-1")]


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (dict.fromkeys(("a", "b", "c"), LIVES), "a, b, c answers, so the quorum is not lost"),
        ({"a": {}, "b": LOST, "c": LOST}, "a holds no data of a cluster, so there is nothing to begin from"),
        ({"a": {**LOST, "started": "v1.36.0+k3s1"}}, "a runs k3s v1.36.0+k3s1, the bundle brings v1.35.8+k3s1"),
        ({"a": LOST, "b": None}, "unreachable=1"),
    ],
)
def test_a_quorum_that_cannot_be_mended_so_is_left_alone(stage: Stage, states: dict[str, Any], said: str) -> None:
    log, output = restore(stage, states, restore_server="a")
    assert log == []
    assert said in output


def test_bad_input_is_refused_before_any_change(stage: Stage) -> None:
    states = dict.fromkeys(("a", "b", "c"), LIVES)
    archive = make_archive(stage.folder / "backup")
    words: dict[str, Any] = {"restore_from": str(archive)}
    wrong = stage.folder / "wrong"
    wrong.write_text(str(pyrage.x25519.Identity.generate()))
    refusals: list[tuple[dict[str, Any], str]] = [
        ({**words, "restore_confirm": "other"}, "run it again with -e restore_confirm=site"),
        ({}, "The cluster begins from an archive"),
        ({**words, "restore_server": "agent-1"}, "it can be one of a, b, c"),
        ({**words, "slipway_bundle_dir": "/nowhere"}, "There is no bundle in /nowhere"),
        ({**words, "backup_identity_file": ""}, "must be the file with a secret key"),
        ({**words, "backup_identity_file": str(wrong)}, "it was encrypted for others"),
        ({"restore_component": "site"}, "site comes back from an archive of backup.yml"),
        ({"restore_component": "git", "slipway_components": ["git"]}, "git comes back from an archive of backup.yml"),
        ({**words, "restore_component": "git", "slipway_components": ["git"]}, "has nothing of git; it has cluster"),
        ({"restore_from": "/nowhere"}, "/nowhere is no folder"),
        ({"restore_from": str(make_archive(stage.folder / "new", k3s="v1.36.0+k3s1"))}, "one of k3s v1.36.0+k3s1"),
        ({"restore_from": str(make_archive(stage.folder / "other", site="other"))}, "of the site other, not of site"),
    ]
    for more, said in refusals:
        log, output = restore(stage, states, **more)
        assert log == []
        assert said in output, output[-3000:]
    damage(archive, "token")
    log, output = restore(stage, states, **words)
    assert log == [] and "token.age is damaged" in output
    (archive / "snapshot.zip.age").unlink()
    log, output = restore(stage, states, **words)
    assert log == [] and "is missing: the archive is not complete" in output


def test_check_mode_opens_the_archive_and_touches_nothing(stage: Stage) -> None:
    states = dict.fromkeys(("a", "b", "c"), LIVES)
    log, said = restore(stage, states, check=True, restore_from=str(make_archive(stage.folder / "backup")))
    assert (log, said) == ([], "")
    assert "begins anew on a, from" in " ".join(stage.output.split())

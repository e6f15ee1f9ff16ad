"""playbooks/cluster.yml as Ansible runs it: who is touched, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from .stage import Stage, listed


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    return Stage(tmp_path)


NODES = ("c", "b", "a")


def test_servers_of_a_new_cluster_join_one_another(stage: Stage) -> None:
    """By name, whatever the inventory's order; each joins one that lives."""
    log, said = stage.run({name: {} for name in NODES})
    assert not said, said[-3000:]
    assert log == [
        "run a -",
        'k3s_node "b"',
        "run b a",
        'k3s_node "c"',
        "run c a",
        # It is no new machine any more.
        "run a b",
        'k3s_node "agent-1"',
        "run agent-1 a",
        "kubeconfig a",
        'workloads_ready ["c", "b", "a", "agent-1"]',
    ]


def test_the_first_server_is_lost_and_replaced(stage: Stage) -> None:
    """Declared absent it is not asked for anything, its node goes before another one joins, and those that run come last."""
    lives = {"has_data": True, "has_password": True, "active": True, "members": listed("a", "b", "c")}
    log, said = stage.run({"a": None, "d": {}, "c": lives, "b": lives}, absent=("a",))
    assert not said, said[-3000:]
    assert log == [
        'k3s_node "a"',
        'k3s_node "d"',
        "run d b",
        "run b c",
        "run c b",
        'k3s_node "agent-1"',
        "run agent-1 b",
        "kubeconfig b",
        'workloads_ready ["d", "c", "b", "agent-1"]',
    ]


def test_a_server_that_does_not_vote_is_awaited_first(stage: Stage) -> None:
    lives = {"has_data": True, "has_password": True, "active": True, "members": listed("a", "b", votes=False)}
    log, _ = stage.run({"b": lives, "a": lives})
    assert log[:2] == ['k3s_voters ["a", "b"]', "run a b"]


def test_servers_that_are_all_stopped_are_started_together(stage: Stage) -> None:
    woken = {"has_data": True, "active": True, "members": listed("a", "b", "c"), "has_password": True, "server_url": ""}
    log, said = stage.run({name: {"has_data": True, "woken": woken} for name in NODES})
    assert not said, said[-3000:]
    assert sorted(log[:3]) == ["wake a", "wake b", "wake c"]
    assert log[3:6] == ["run a b", "run b a", "run c a"]


def test_a_lost_quorum_stops_the_run_before_any_change(stage: Stage) -> None:
    log, said = stage.run({"a": None, "b": None, "c": {"has_data": True}}, absent=("a", "b"))
    # What holds data was given a chance.
    assert log == ["wake c"]
    assert (
        "No server answers, although c holds the data of a cluster (1 of the site's 3 servers; declared absent: a, b)"
        in said
    )
    assert "restore_component=cluster -e restore_server=<name>" in said


def test_an_undeclared_dead_server_stops_the_run_before_any_change(stage: Stage) -> None:
    lives = {"has_data": True, "has_password": True, "active": True, "members": listed("a", "b", "c")}
    log, said = stage.run({"b": lives, "c": lives, "a": None})
    assert "a : ok=0 changed=0 unreachable=1" in said
    assert log == []


def test_no_cluster_is_begun_in_the_place_of_one_that_is_being_restored(stage: Stage) -> None:
    log, said = stage.run({name: {"restoring": True, "has_password": True} for name in NODES})
    assert log == []
    assert "A restore has put the data of a, b, c aside and has not ended: run playbooks/restore.yml again" in said

"""playbooks/remove_node.yml as Ansible runs it, for a node that answers and for one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .stage import Stage, listed


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    return Stage(tmp_path)


def remove(stage: Stage, states: dict[str, dict[str, Any] | None], name: str) -> tuple[list[str], str]:
    """Run it with the confirmation."""
    return stage.run(states, playbook="remove_node", variables={"remove_node": name, "remove_node_confirm": "site"})


def lives(*names: str) -> dict[str, Any]:
    """The state of a server of a cluster of these."""
    return {"has_data": True, "active": True, "role": "server", "members": listed(*names)}


def test_it_asks_first(stage: Stage) -> None:
    states: dict[str, dict[str, Any] | None] = dict.fromkeys(("a", "b", "c"), lives("a", "b", "c"))
    for words, answer in (
        ({"remove_node": "b"}, "run it again with -e remove_node=b -e remove_node_confirm=site"),
        ({"remove_node": "x", "remove_node_confirm": "site"}, 'remove_node is "x"; it can be one of a, b, c, agent-1.'),
        ({}, "it can be one of a, b, c, agent-1."),
    ):
        log, said = stage.run(states, playbook="remove_node", variables=words)
        assert answer in said
        assert log == []


def test_a_server_is_removed_in_order(stage: Stage) -> None:
    """Drained, stopped, out of the cluster, the votes of the others awaited, and only then its machine is cleaned."""
    states: dict[str, dict[str, Any] | None] = dict.fromkeys(("a", "b", "c"), lives("a", "b", "c"))
    log, said = remove(stage, states, "a")
    assert not said, said[-3000:]
    assert log == [
        "kubeconfig b",
        'node_drain "drained"',
        "stop a",
        'k3s_node "a"',
        'k3s_voters ["b", "c"]',
        "uninstall a",
    ]
    assert "2 servers remain, which survive no more losses than 1 would" in " ".join(stage.output.split())


def test_a_dead_server_is_removed_without_it(stage: Stage) -> None:
    dead = listed("a", "b", "c")
    dead[0] |= {"ready": False, "votes": False}
    state = {**lives(), "members": dead}
    log, said = remove(stage, {"a": None, "b": state, "c": state}, "a")
    assert not said, said[-3000:]
    assert log == ["kubeconfig b", 'k3s_node "a"', 'k3s_voters ["b", "c"]']
    assert "wipe it before it is switched on again" in " ".join(stage.output.split())


def test_what_would_cost_the_majority_is_refused(stage: Stage) -> None:
    sick = listed("a", "b", "c")
    sick[2] |= {"votes": False}
    state = {**lives(), "members": sick}
    log, said = remove(stage, dict.fromkeys(("a", "b", "c"), state), "a")
    assert log == []
    assert "Without a the datastore would have 2 members, and c cannot be counted on" in said
    log, said = remove(stage, {"a": lives("a")}, "a")
    assert log == [] and "No server but a answers" in said


def test_an_agent_is_removed(stage: Stage) -> None:
    member = {"name": "agent-1", "server": False, "ready": True, "votes": False, "reason": ""}
    log, said = remove(stage, {"a": {**lives(), "members": [*listed("a"), member]}}, "agent-1")
    assert not said, said[-3000:]
    assert log == ["kubeconfig a", 'node_drain "drained"', "stop agent-1", 'k3s_node "agent-1"', "uninstall agent-1"]


def test_none_is_removed_while_a_rotation_is_under_way(stage: Stage) -> None:
    """Whichever server has its record; a node that does not answer has none."""
    state = lives("a", "b", "c")
    rotating = {**state, "rotation": {"server-token": {"begun": 5.0}}}
    log, said = remove(stage, {"a": None, "b": state, "c": rotating}, "a")
    assert log == []
    assert "A rotation of server-token was interrupted; c has its record." in said

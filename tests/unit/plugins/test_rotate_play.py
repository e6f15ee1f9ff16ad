"""playbooks/rotate.yml as Ansible runs it: what it asks, and who is restarted in which order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .stage import Stage, listed, note


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("ANSIBLE_ROLES_PATH", str(tmp_path / "roles"))
    return Stage(tmp_path)


LIVES = {"has_data": True, "active": True, "role": "server", "members": listed("a", "b")}
VOTES = 'k3s_voters ["a", "b"]'


def rotate(stage: Stage, kinds: str, **states: dict[str, Any]) -> tuple[list[str], str]:
    """Run it with the confirmation, on two servers and an agent."""
    words = {"rotate": kinds, "rotate_confirm": "site", "log": str(stage.log)}
    return stage.run({"b": LIVES, "a": LIVES, **states}, playbook="rotate", variables=words, agent={"active": True})


@pytest.fixture
def components(stage: Stage) -> Stage:
    """With roles that say when they are called."""
    for name in ("minio", "postgresql"):
        folder = stage.folder / f"roles/{name}/tasks"
        folder.mkdir(parents=True)
        for verb in ("rotate_check", "rotate"):
            (folder / f"{verb}.yml").write_text(yaml.safe_dump([note(f"{verb} {name}")]))
    return stage


def test_components_alone_touch_no_node(components: Stage) -> None:
    """Nobody asks a server that would not answer. All are judged before the first one changes."""
    words = {"rotate": ["postgresql", "minio"], "rotate_confirm": "site", "log": str(components.log)}
    log, said = components.run({"a": None}, playbook="rotate", variables=words)
    assert not said, said[-3000:]
    verbs = [f"{verb} {name} localhost" for verb in ("rotate_check", "rotate") for name in ("minio", "postgresql")]
    assert log == verbs
    printed = " ".join(components.output.split())
    assert "New on site, in this order: minio, postgresql. No node is touched." in printed


def test_components_come_after_the_cluster(components: Stage) -> None:
    log, said = rotate(components, "minio,kubeconfig")
    assert not said, said[-3000:]
    assert log[0] == "rotate_check minio localhost"
    assert log[-2:] == ['k3s_rotation ["kubeconfig"]', "rotate minio localhost"]


def started(name: str, since: str = "0") -> list[str]:
    """The lines of a restart."""
    return [f"start {name} {since}", *([VOTES] if name in "ab" else []), f'workloads_ready ["{name}"]']


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            {},
            "it can be one or more of server-token, agent-token, encryption-keys, certificates, kubeconfig, minio, postgresql.",
        ),
        ({"rotate": "certificates,token", "rotate_confirm": "site"}, 'rotate is ["certificates", "token"]'),
        ({"rotate": "certificates"}, "run it again with -e rotate=certificates -e rotate_confirm=site"),
    ],
)
def test_it_asks_first(stage: Stage, words: dict[str, str], answer: str) -> None:
    log, said = stage.run({"a": LIVES}, playbook="rotate", variables=words, agent={"active": True})
    assert answer in said and "restarts k3s on one node after the other" in said
    assert log == []


def test_a_servers_token_goes_to_all_servers_before_one_is_restarted(stage: Stage) -> None:
    log, said = rotate(stage, "server-token")
    assert not said, said[-3000:]
    assert log == [
        "snapshot b slipway-before-rotation",
        "k3s_rotation null",
        'k3s_token "server"',
        "tokens a b",
        *started("a"),
        *started("b"),
        'k3s_rotation ["server-token"]',
    ]


def test_an_agents_token_is_saved_with_a_new_one_of_servers(stage: Stage) -> None:
    log, said = rotate(stage, "agent-token")
    assert not said, said[-3000:]
    assert log[2:] == [
        'k3s_token "agent"',
        *started("b"),
        'k3s_token "server"',
        "tokens a b",
        *started("a"),
        *started("b"),
        "tokens agent-1 b",
        *started("agent-1"),
        'k3s_rotation ["agent-token"]',
    ]


def test_the_server_that_made_a_key_is_restarted_first(stage: Stage) -> None:
    log, said = rotate(stage, "encryption-keys")
    assert not said, said[-3000:]
    assert log[2:] == [
        'k3s_encryption "rotated"',
        *started("b", "7.0"),
        *started("a", "7.0"),
        'k3s_encryption "settled"',
        'k3s_rotation ["encryption-keys"]',
    ]


def test_certificates_go_from_node_to_node_and_the_kubeconfig_follows(stage: Stage) -> None:
    log, said = rotate(stage, "kubeconfig,certificates")
    assert not said, said[-3000:]
    rotated = [line for name in ("a", "b", "agent-1") for line in ('k3s_certificates ""', *started(name, "5.0"))]
    assert log[2:] == [*rotated, "kubeconfig a", 'k3s_rotation ["certificates", "kubeconfig"]']
    assert "Earlier kubeconfigs of the administrator stay valid" in " ".join(stage.output.split())


def test_the_administrator_alone_costs_one_restart(stage: Stage) -> None:
    log, said = rotate(stage, "kubeconfig")
    assert not said, said[-3000:]
    assert log[2:] == ['k3s_certificates "admin"', *started("a", "5.0"), "kubeconfig a", 'k3s_rotation ["kubeconfig"]']


def test_an_interrupted_one_goes_on_under_its_leader(stage: Stage) -> None:
    """What it has left stopped is started before anything else, and no second snapshot is taken; what is asked for besides is done too."""
    stopped = {**LIVES, "active": False, "members": None, "rotation": {"certificates": {"begun": 5.0}}}
    log, said = rotate(stage, "certificates", a=stopped)
    assert not said, said[-3000:]
    assert log[:4] == [*started("a"), "k3s_rotation null"]
    assert "An interrupted rotation goes on: certificates." in " ".join(stage.output.split())
    log, said = rotate(stage, "kubeconfig", a=stopped)
    assert log[3] == "snapshot a slipway-before-rotation"
    assert log[-1] == 'k3s_rotation ["certificates", "kubeconfig"]'


def test_a_node_that_is_not_well_is_named_before_anything_changes(stage: Stage) -> None:
    log, said = rotate(stage, "certificates", a={**LIVES, "members": None})
    assert log == []
    assert "a: its API does not answer. Nothing was changed." in said


def test_an_unfinished_one_is_left_to_its_playbook(stage: Stage) -> None:
    log, said = stage.run({"a": {**LIVES, "rotation": {"server-token": {"begun": 5.0}}}})
    assert log == []
    assert "A rotation of server-token was interrupted; a has its record." in said
    assert "playbooks/rotate.yml -e rotate=server-token -e rotate_confirm=site" in said

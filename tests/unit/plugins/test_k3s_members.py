"""What a run makes of what servers say: order, gates, who is gone; and the modules around it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway import k3s
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s_members import (
    Member,
    Removal,
    Server,
    lagging,
    make_cluster_plan,
    plan_removal,
    read_members,
)

from modules import cluster_plan, k3s_node, k3s_state, k3s_voters

from .fakes import Clock


def node(name: str, server: bool = True, ready: str = "True", voter: str = "True") -> dict[str, Any]:
    """A Node as the API lists it."""
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]
    if server:
        conditions.append({"type": "EtcdIsVoter", "status": voter, "reason": "R", "message": f"voter {voter}"})
    labels = {"node-role.kubernetes.io/etcd": "true"} if server else {}
    return {"metadata": {"name": name, "labels": labels}, "status": {"conditions": conditions}}


def members(*names: str) -> tuple[Member, ...]:
    """Servers that vote."""
    return tuple(read_members([node(name) for name in names]))


def running(name: str, *names: str) -> Server:
    """A server that lists these."""
    return Server(name, True, members(*names))


def test_nodes_are_read() -> None:
    found = read_members(
        [node("a"), node("b", ready="Unknown", voter="False"), node("c", server=False), {"metadata": {"name": "d"}}]
    )
    assert found == [
        Member("a", True, True, True, "voter True"),
        Member("b", True, False, False, "voter False"),
        Member("c", False, True, False),
        Member("d", False, False, False),
    ]


def test_who_cannot_be_counted_on() -> None:
    listed = read_members([node("a"), node("b", ready="False"), node("c", voter="False"), node("e", server=False)])
    assert lagging(listed, ["a", "B", "c", "d", "e"]) == {
        "B": "its node is not Ready",
        "c": "its member of etcd does not vote: voter False",
        "d": "it has not joined",
        "e": "its member of etcd does not vote",
    }


def test_a_new_cluster_begins_with_the_first_by_name() -> None:
    plan = make_cluster_plan([Server("c", False), Server("a", False), Server("b", False)])
    # It is told of another one as soon as there is one.
    assert (plan.asked, plan.first, plan.then) == ("", ("a", "b", "c"), ("a",))
    assert make_cluster_plan([Server("a", False)]).then == ()


def test_what_joins_or_comes_up_again_is_before_what_runs() -> None:
    """Whatever order the inventory has."""
    servers = [running("c", "a", "b", "c"), Server("d", False), Server("a", True), running("b", "a", "b", "c")]
    for order in (servers, servers[::-1]):
        plan = make_cluster_plan(order)
        assert (plan.asked, plan.first, plan.then) == ("b", ("a", "d"), ("b", "c"))
        assert plan.leaving == plan.unsettled == ()


def test_declared_absent_nodes_leave() -> None:
    listed = ("server-1", "server-2", "server-3")
    plan = make_cluster_plan(
        [running("server-2", *listed), running("server-3", *listed), Server("server-4", False)],
        ["Server-1", "agent-9"],
        ["Server-1"],
    )
    assert (plan.asked, plan.leaving) == ("server-2", ("server-1",))
    assert (plan.first, plan.then) == (("server-4",), ("server-2", "server-3"))


def test_servers_without_a_vote_are_waited_for() -> None:
    listed = tuple(read_members([node("a"), node("b", voter="False")]))
    assert make_cluster_plan([Server("a", True, listed), Server("b", True, listed)]).unsettled == ("b",)


def test_two_clusters_are_refused() -> None:
    with pytest.raises(SlipwayError, match="a and b, c run different clusters: neither lists the other"):
        make_cluster_plan([running("a", "a"), running("b", "b", "c"), running("c", "b", "c")])
    # One that has just joined is known by one side at least.
    assert make_cluster_plan([running("a", "a", "b"), running("b", "b")]).then == ("a", "b")


def test_a_lost_quorum_is_refused_with_the_next_step() -> None:
    with pytest.raises(SlipwayError) as caught:
        make_cluster_plan([Server("c", True), Server("d", False)], ["a", "b", "agent-1"], ["a", "b"])
    text = str(caught.value)
    assert (
        "No server answers, although c holds the data of a cluster (1 of the site's 4 servers; declared absent: a, b)"
        in text
    )
    assert (
        "restore_component=cluster -e restore_server=<name>" in text
        and "Quorum lost" in text
        and "Nothing was changed" in text
    )
    # A server that is alone needs no other's vote: the run repairs it.
    assert make_cluster_plan([Server("a", True)], ["agent-1"]).first == ("a",)


def of(name: str, *nodes: dict[str, Any]) -> Server:
    """A server that lists these Nodes."""
    return Server(name, True, tuple(read_members(nodes)))


def test_how_a_node_is_removed() -> None:
    everyone = [node(name) for name in ("a", "b", "c")]
    agent = node("x", server=False)
    plan = plan_removal("A", [of("c", *everyone, agent), of("b", *everyone, agent), Server("d", False)])
    assert plan == Removal("b", ("b", "c"), known=True, alive=True, even=2)
    assert plan_removal("x", [of("a", *everyone, agent)]) == Removal("a", (), known=True, alive=True)
    # What was interrupted after its Node had gone, and what never joined.
    assert plan_removal("x", [of("a", *everyone)]) == Removal("a")
    dead = node("a", ready="Unknown", voter="False")
    assert not plan_removal("a", [of("b", dead, *everyone[1:])]).alive


def test_a_removal_leaves_a_majority() -> None:
    dead = [node(name, ready="False", voter="False") for name in ("d", "e")]
    everyone = [node(name) for name in ("a", "b", "c")] + dead
    # Of five members three are enough for the four that remain, two are not.
    assert plan_removal("d", [of("a", *everyone)]).voters == ("a", "b", "c")
    with pytest.raises(
        SlipwayError, match="Without a the datastore would have 4 members, and d, e cannot be counted on"
    ):
        plan_removal("a", [of("b", *everyone)])
    with pytest.raises(SlipwayError, match="No server but a answers"):
        plan_removal("a", [Server("b", True)])


def test_the_plan_of_states() -> None:
    listed = [{"name": "a", "server": True, "ready": True, "votes": True, "reason": ""}]
    states = {"a": {"has_data": True, "members": listed, "version": "x"}, "b": {"has_data": False, "members": None}}
    plan = cluster_plan.plan({"servers": ["a", "b"], "absent": [], "absent_servers": [], "states": states})
    assert (plan.first, plan.then) == (("b",), ("a",))


def test_votes_are_awaited() -> None:
    clock, answers = Clock(), [["b: it has not joined"], ["b: its node is not Ready"], []]
    assert k3s_voters.await_votes(["a", "b"], 10, lambda _: answers.pop(0), clock, clock.sleep) == []
    assert k3s_voters.await_votes(["a"], 3, lambda _: ["a: it does not vote"], clock, clock.sleep) == [
        "a: it does not vote"
    ]
    assert clock.now == 5


def test_a_running_node_is_never_removed() -> None:
    """One that has just died is waited for, as it counts as ready for a while."""
    clock = Clock()
    alive, dead = Member("a", True, True, True), Member("a", True, False, False)
    answers = [alive, alive, dead]
    assert k3s_node.await_gone("a", 60, lambda _: answers.pop(0), clock, clock.sleep) == dead
    with pytest.raises(SlipwayError, match="a node of the name a is running"):
        k3s_node.await_gone("a", 60, lambda _: alive, clock, clock.sleep)
    assert k3s_node.await_gone("a", 60, lambda _: None, clock, clock.sleep) is None
    # Its k3s was stopped on purpose.
    assert k3s_node.await_gone("a", 0, lambda _: alive, clock, clock.sleep) == alive


def test_an_api_that_answers_late_is_waited_for() -> None:
    clock = Clock()
    dead, answers = Member("a", False, False, False), [0, 0, 1]

    def seen(name: str) -> Member | None:
        if not answers.pop(0):
            raise SlipwayError("connection refused")
        return dead

    assert k3s_node.await_gone("a", 10, seen, clock, clock.sleep) == dead
    with pytest.raises(SlipwayError, match="refused"):
        answers[:] = [0] * 20
        k3s_node.await_gone("a", 10, seen, clock, clock.sleep)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A k3s that notes how it is called and prints what lies in the file `answer`; the note is the file `calls`."""
    path = tmp_path / "k3s"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys\nfrom pathlib import Path\nhere = Path(__file__).parent\n"
        "with (here / 'calls').open('a') as log:\n    log.write(' '.join(sys.argv[1:]) + '\\n')\n"
        "assert os.environ['KUBECACHEDIR'].startswith('/run/')\n"
        "answer = here / 'answer'\nprint(answer.read_text() if answer.exists() else '')\n"
        "sys.exit('the connection was refused' if (here / 'broken').exists() else 0)\n"
    )
    path.chmod(0o755)
    monkeypatch.setattr(k3s, "BINARY", str(path))
    return tmp_path


def test_a_machine_is_forgotten(program: Path) -> None:
    k3s_node.forget("a", "absent", 60)
    k3s_node.forget("a", "unbound", 60)
    calls = (program / "calls").read_text().splitlines()
    pods = "kubectl delete pods --all-namespaces --field-selector=spec.nodeName=a --force --grace-period=0 --wait=false"
    assert calls == [
        "kubectl delete node a --ignore-not-found --timeout=60s",
        pods,
        "kubectl delete secret a.node-password.k3s --namespace=kube-system --ignore-not-found --timeout=60s",
        pods,
    ]


def test_a_server_is_asked(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k3s_state, "is_active", lambda role: True)
    (program / "answer").write_text(json.dumps({"items": [node("a")]}))
    found = k3s_state.read_life("server", 0)
    assert found == {
        "active": True,
        "members": [{"name": "a", "server": True, "ready": True, "votes": True, "reason": "voter True"}],
    }
    assert k3s_voters.look(["a", "b"]) == ["b: it has not joined"]
    (program / "broken").touch()
    assert k3s_state.read_life("server", 0) == {"active": True, "members": None}
    assert k3s_voters.look(["a"]) == ["this server's API does not answer: the connection was refused"]
    # Agents are not asked, and what is not installed neither.
    assert k3s_state.read_life("agent", 9) == {"active": True, "members": None}
    assert k3s_state.read_life("", 9) == {"active": False, "members": None}

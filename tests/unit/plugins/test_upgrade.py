"""Upgrades of k3s: which version may follow which, which nodes are due, what blocks a drain, and the node's programs."""

from __future__ import annotations

import copy
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway.drain import (
    BUDGETS,
    MARK,
    PODS,
    NodeDrain,
    Rules,
    held_by,
    is_cordoned,
    is_ours,
    obstacles,
    read_cluster,
)
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.k3s import binary_version, may_go_back, parse_version
from ansible.module_utils.slipway.k3s_upgrade import NodeState, judge_versions, make_plan
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.workloads import NODES, Wanted, unready

from modules import k3s_binary, k3s_images, upgrade_plan

from .fakes import Clock, FakeKube, run_module

OLD, NEW = "v1.35.4+k3s1", "v1.35.8+k3s1"


class TestVersions:
    """What may follow what."""

    def test_order(self) -> None:
        texts = ["v1.35.4+k3s1", "v1.35.4+k3s2", "v1.35.10+k3s1", "v1.36.0-rc2+k3s1", "v1.36.0+k3s1"]
        assert sorted([*texts[3:], *texts[:3]], key=parse_version) == texts

    @pytest.mark.parametrize("text", ["", "1.35.4+k3s1", "v1.35.4", "v1.35.4+rke2r1", "v1.35.4+k3s1 "])
    def test_what_is_none_is_named(self, text: str) -> None:
        with pytest.raises(SlipwayError, match="is no version of k3s"):
            parse_version(text)

    @staticmethod
    def found(nodes: list[NodeState], target: str = NEW, **dates: str) -> list[tuple[str, str, str]]:
        return [(each.severity, each.node, each.check) for each in judge_versions(nodes, target, **dates)]

    def state(self, name: str = "a", role: str = "server", kubelet: str = OLD, **more: Any) -> NodeState:
        return NodeState(name, role, binary=kubelet, kubelet=kubelet, **more)

    def test_a_patch_and_the_same_are_fine(self) -> None:
        assert self.found([self.state(), self.state("b", "agent", NEW)]) == []

    def test_downgrade(self) -> None:
        (problem,) = judge_versions([self.state(kubelet="v1.35.9+k3s1")], NEW)
        assert (problem.severity, problem.check) == ("error", "downgrade")
        assert "v1.35.9+k3s1 or newer" in problem.remedy

    def test_skipped_minor_names_the_way(self) -> None:
        problems = judge_versions([self.state(kubelet="v1.33.1+k3s1")], NEW, "2026-08-27", "2026-08-01T00:00:00Z")
        assert [each.check for each in problems] == ["skipped minor"]
        assert "a bundle of v1.34 first" in problems[0].remedy

    def test_agents_newer_than_servers_are_mended(self) -> None:
        nodes = [self.state(kubelet="v1.34.1+k3s1"), self.state("b", "agent", "v1.35.1+k3s1")]
        dates = {"released": "2026-08-27", "built": "2026-08-01T00:00:00Z"}
        assert self.found(nodes, **dates) == [("warning", "b", "skew")]

    def test_servers_two_minors_apart(self) -> None:
        nodes = [self.state(kubelet="v1.33.1+k3s1"), self.state("b", kubelet=NEW)]
        assert ("error", "a", "skew") in self.found(nodes)

    @pytest.mark.parametrize(
        ("released", "built", "severities"),
        [
            ("2026-08-27", "2026-08-20T10:00:00Z", []),
            ("2026-08-27", "2026-08-27T10:00:00Z", []),
            ("2026-08-27", "2026-09-20T10:00:00Z", ["error"]),
            ("", "2026-09-20T10:00:00Z", ["warning"]),
            ("2026-08-27", "", ["warning"]),
        ],
    )
    def test_a_newer_minor_must_not_be_an_older_release(self, released: str, built: str, severities: list[str]) -> None:
        problems = judge_versions([self.state(kubelet="v1.34.1+k3s1")], NEW, released, built)
        assert [each.severity for each in problems] == severities

    def test_dates_say_nothing_within_one_minor(self) -> None:
        assert self.found([self.state()], built="2026-09-20T10:00:00Z", released="2026-08-27") == []

    def test_a_node_that_is_not_ready_stops_the_run_unless_we_left_it_so(self) -> None:
        assert self.found([self.state(unready="not Ready: x")]) == [("error", "a", "node")]
        assert self.found([self.state(unready="not Ready: x", ours=True)]) == []

    def test_nodes_that_are_not_in_the_cluster(self) -> None:
        lost, new = NodeState("a", "agent", True, OLD), NodeState("b", "agent", False)
        assert self.found([lost, new]) == [("error", "a", "node"), ("warning", "b", "node")]

    def test_foreign_versions_are_left_alone(self) -> None:
        assert self.found([self.state(kubelet="v1.35.4")]) == [("error", "a", "version")]


class TestPlan:
    """Which nodes, in which order."""

    def test_servers_then_agents_by_name(self) -> None:
        nodes = [NodeState(n, r, True, OLD, OLD, OLD) for n, r in (("z", "agent"), ("b", "server"), ("a", "server"))]
        plan = make_plan(nodes, NEW)
        assert (plan.servers, plan.agents, plan.snapshot) == (("a", "b"), ("z",), "a")

    def test_nothing_is_left_when_all_run_it(self) -> None:
        nodes = [NodeState("a", "server", True, NEW, NEW, NEW), NodeState("b", "agent", True, NEW, "", NEW)]
        plan = make_plan(nodes, NEW)
        assert plan.nodes == () and plan.snapshot == ""

    @pytest.mark.parametrize(
        "state",
        [
            # Placed and not restarted, restarted by systemd meanwhile, not uncordoned yet.
            {"binary": NEW, "started": OLD, "kubelet": OLD},
            {"binary": NEW, "started": OLD, "kubelet": NEW},
            {"binary": NEW, "started": NEW, "kubelet": NEW, "ours": True},
        ],
    )
    def test_every_way_to_be_interrupted_is_taken_up(self, state: dict[str, Any]) -> None:
        assert make_plan([NodeState("a", "agent", True, **state)], NEW).agents == ("a",)

    def test_what_was_begun_comes_first_and_needs_no_second_snapshot(self) -> None:
        nodes = [
            NodeState("a", "server", True, OLD, OLD, OLD),
            NodeState("b", "server", True, NEW, OLD, OLD, "not Ready: x", True),
            NodeState("c", "server", True, NEW, NEW, NEW),
        ]
        plan = make_plan(nodes, NEW)
        assert (plan.servers, plan.snapshot) == (("b", "a"), "")

    def test_the_snapshot_is_taken_where_somebody_answers(self) -> None:
        nodes = [
            NodeState("a", "server", True, OLD, OLD, OLD, "not Ready: x", True),
            NodeState("b", "server", True, OLD, OLD, OLD),
        ]
        assert make_plan(nodes, NEW).snapshot == "b"

    def test_who_has_not_joined_is_left_to_site(self) -> None:
        assert make_plan([NodeState("a", "agent", False)], NEW).nodes == ()


@pytest.mark.parametrize(
    ("role", "old", "came_up", "wanted"),
    [
        ("agent", "v1.34.1+k3s1", True, True),
        ("server", OLD, False, True),
        ("server", OLD, True, False),
        ("server", "v1.34.1+k3s1", False, False),
        ("server", "", False, False),
    ],
)
def test_going_back(role: str, old: str, came_up: bool, wanted: bool) -> None:
    assert may_go_back(role, old, NEW, came_up) is wanted


def make_node(name: str, ready: str = "True", version: str = OLD, **spec: Any) -> Json:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}, "resourceVersion": "1"},
        "spec": spec,
        "status": {"conditions": [{"type": "Ready", "status": ready}], "nodeInfo": {"kubeletVersion": version}},
    }


def make_pod(name: str, node: str = "a", owner: str = "ReplicaSet", phase: str = "Running", **volume: Any) -> Json:
    owners = [{"kind": owner, "name": "x", "controller": True}] if owner else []
    return {
        "metadata": {
            "name": name,
            "namespace": "n",
            "uid": f"uid-{name}",
            "labels": {"app": name.partition("-")[0]},
            "ownerReferences": owners,
        },
        "spec": {"nodeName": node, "volumes": [volume] if volume else []},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": "True"}]},
    }


def make_budget(app: str, allowed: int, healthy: int = 1, needed: int = 1, **spec: Any) -> Json:
    return {
        "metadata": {"name": f"keep-{app}", "namespace": "n"},
        "spec": {"selector": {"matchLabels": {"app": app}}, **spec},
        "status": {"disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": needed},
    }


class DrainKube(FakeKube):
    """An API with two nodes, pods, and evictions: refused as budgets say, otherwise the pod goes at once."""

    def __init__(self, *pods: Json, budgets: list[Json] | None = None, nodes: list[Json] | None = None) -> None:
        super().__init__({"/version": {"buildDate": "2026-08-01T00:00:00Z"}})
        self.nodes = nodes or [make_node("a"), make_node("b")]
        for node in self.nodes:
            self.objects[f"{NODES}/{node['metadata']['name']}"] = node
        self.objects[PODS] = {"items": list(pods)}
        self.objects[BUDGETS] = {"items": budgets or []}
        self.evictions: list[Json] = []
        self.stuck = False

    def get(self, path: str, **query: str) -> Json | None:
        if path == NODES:
            return {"items": copy.deepcopy(self.nodes)}
        return super().get(path, **query)

    def create(self, path: str, body: Json) -> Json:
        assert path == f"/api/v1/namespaces/n/pods/{body['metadata']['name']}/eviction"
        pods: list[Json] = self.objects[PODS]["items"]
        pod = next(each for each in pods if each["metadata"]["name"] == body["metadata"]["name"])
        if held_by(self.objects[BUDGETS]["items"], pod):
            raise KubeError(f"POST {path}: 429 Cannot evict pod", 429)
        self.evictions.append(body)
        if self.stuck:
            pod["metadata"]["deletionTimestamp"] = "now"
        else:
            pods.remove(pod)
        return {}


def drain(kube: DrainKube, check: bool = False) -> NodeDrain:
    """A drain of node a, with a clock that goes on by a second with every look."""
    clock = Clock()
    return NodeDrain(kube, "a", check, 1, clock, clock.sleep)


class TestObstacles:
    """What is listed before anything changes."""

    def texts(self, kube: DrainKube, rules: Rules | None = None) -> list[tuple[str, bool]]:
        return [(each.text, each.blocks) for each in obstacles(read_cluster(kube), "a", rules or Rules())]

    def test_what_has_a_controller_goes_quietly(self) -> None:
        ended = make_pod("done", owner="", phase="Succeeded")
        static = make_pod("static", owner="")
        static["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
        kube = DrainKube(make_pod("web"), make_pod("agent", owner="DaemonSet"), make_pod("x", "b", ""), ended, static)
        assert self.texts(kube) == []

    def test_pods_that_nobody_makes_anew(self) -> None:
        kube = DrainKube(make_pod("lone", owner=""))
        assert self.texts(kube) == [("no controller makes them anew: n/lone", True)]
        assert self.texts(kube, Rules(unmanaged=True))[0][1] is False

    def test_scratch_data(self) -> None:
        kube = DrainKube(make_pod("web", emptyDir={}))
        assert self.texts(kube) == [("an emptyDir of theirs is lost: n/web", False)]
        assert self.texts(kube, Rules(empty_dirs=False))[0][1] is True

    def test_volumes_of_this_node(self) -> None:
        kube = DrainKube(make_pod("db", persistentVolumeClaim={"claimName": "data"}))
        rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}
        terms = {"required": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}
        kube.objects["/api/v1/persistentvolumeclaims"] = {
            "items": [{"metadata": {"name": "data", "namespace": "n"}, "spec": {"volumeName": "pv"}}]
        }
        volume: Json = {"metadata": {"name": "pv"}, "spec": {"nodeAffinity": terms}}
        kube.objects["/api/v1/persistentvolumes"] = {"items": [volume]}
        ((text, blocks),) = self.texts(kube)
        assert "n/db (data)" in text and not blocks
        # Where a person keeps others away it could not come back.
        kube.nodes[0]["spec"]["unschedulable"] = True
        assert read_cluster(kube).leaving("a") == []
        kube.nodes[0]["spec"].clear()
        volume["spec"].clear()
        assert self.texts(kube) == []

    @pytest.mark.parametrize(
        ("budgets", "wanted"),
        [
            ([make_budget("web", 1)], ""),
            ([make_budget("other", 0)], ""),
            ([make_budget("web", 0)], "PodDisruptionBudget n/keep-web allows no disruption: 1 healthy pods, 1 needed"),
            ([make_budget("web", 1), make_budget("web", 1)], "several PodDisruptionBudgets"),
        ],
    )
    def test_budgets(self, budgets: list[Json], wanted: str) -> None:
        found = self.texts(DrainKube(make_pod("web"), budgets=budgets))
        assert [blocks for _, blocks in found] == ([True] if wanted else [])
        assert wanted in "".join(text for text, _ in found)

    def test_budgets_let_unwell_pods_go_as_they_say(self) -> None:
        pod = make_pod("web")
        pod["status"]["conditions"] = []
        assert held_by([make_budget("web", 0, healthy=0)], pod)
        assert not held_by([make_budget("web", 0, healthy=1)], pod)
        assert not held_by([make_budget("web", 0, healthy=0, unhealthyPodEvictionPolicy="AlwaysAllow")], pod)

    def test_budgets_select_as_kubernetes_does(self) -> None:
        pod = make_pod("web")
        for selector, selected in (
            ({}, True),
            (None, False),
            ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}, True),
            ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
            ({"matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
            ({"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}, True),
        ):
            assert bool(held_by([make_budget("web", 0, selector=selector)], pod)) is selected, selector

    def test_pods_that_go_one_after_the_other(self) -> None:
        found = self.texts(DrainKube(make_pod("web-1"), make_pod("web-2"), budgets=[make_budget("web", 1, 2, 1)]))
        assert [blocks for _, blocks in found] == [False]
        assert "lets 1 of 2 pods go at a time" in found[0][0]

    @pytest.mark.parametrize("other", [make_node("b", "False"), make_node("b", unschedulable=True)])
    def test_pods_stay_where_no_other_node_takes_them(self, other: Json) -> None:
        kube = DrainKube(make_pod("lone", owner=""), nodes=[make_node("a"), other])
        assert self.texts(kube) == []


class TestDrain:
    """The node is taken out of use, and given back to whom it belongs."""

    def test_cordons_marks_and_evicts_by_the_eviction_api(self) -> None:
        kube = DrainKube(make_pod("web"), make_pod("agent", owner="DaemonSet"), make_pod("far", "b"))
        done = drain(kube)
        done.drain(Rules(), 10)
        assert (done.changed, done.evicted) == (True, ["n/web"])
        assert kube.evictions[0]["kind"] == "Eviction"
        assert kube.evictions[0]["deleteOptions"] == {"preconditions": {"uid": "uid-web"}}
        assert is_cordoned(kube.nodes[0]) and is_ours(kube.nodes[0])
        again = drain(kube)
        again.drain(Rules(), 10)
        assert not again.changed

        done = drain(kube)
        done.release(10)
        assert done.changed
        assert not is_cordoned(kube.nodes[0]) and MARK not in kube.nodes[0]["metadata"]["annotations"]
        again = drain(kube)
        again.release(10)
        assert not again.changed

    def test_a_node_that_a_person_has_cordoned_stays_so(self) -> None:
        kube = DrainKube(make_pod("web"), nodes=[make_node("a", unschedulable=True), make_node("b")])
        drain(kube).drain(Rules(), 10)
        done = drain(kube)
        done.release(10)
        assert not done.changed and is_cordoned(kube.nodes[0])
        assert kube.objects[PODS]["items"] == []

    def test_a_budget_is_waited_for_and_then_named(self) -> None:
        kube = DrainKube(make_pod("web"), make_pod("free"), budgets=[make_budget("web", 0)])
        with pytest.raises(SlipwayError) as failure:
            drain(kube).drain(Rules(), 10)
        assert "a was not drained within 10 s" in str(failure.value)
        assert "pod n/web: PodDisruptionBudget n/keep-web allows no disruption" in str(failure.value)
        assert "n/free" not in str(failure.value)

    def test_a_pod_that_does_not_end_is_named(self) -> None:
        kube = DrainKube(make_pod("web"))
        kube.stuck = True
        with pytest.raises(SlipwayError, match="pod n/web: it has not ended yet"):
            drain(kube).drain(Rules(), 3)
        assert len(kube.evictions) == 1

    def test_what_would_be_lost_is_named_before_the_node_is_touched(self) -> None:
        kube = DrainKube(make_pod("lone", owner=""))
        with pytest.raises(SlipwayError, match="a cannot be drained: no controller makes them anew: n/lone"):
            drain(kube).drain(Rules(), 3)
        assert not is_cordoned(kube.nodes[0])

    def test_check_mode_predicts_and_writes_nothing(self) -> None:
        kube = DrainKube(make_pod("web"))
        done = drain(kube, check=True)
        done.drain(Rules(), 10)
        assert (done.changed, done.evicted, kube.writes, kube.evictions) == (True, ["n/web"], [], [])

    def test_an_unknown_node_is_named(self) -> None:
        with pytest.raises(SlipwayError, match="a is not in the cluster"):
            drain(DrainKube(nodes=[make_node("b")])).drain(Rules(), 1)

    def test_an_api_that_comes_back_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kube = DrainKube(nodes=[make_node("a", unschedulable=True)])
        kube.nodes[0]["metadata"]["annotations"] = {MARK: "upgrade"}
        answers = [KubeError("refused"), KubeError("starting", 503)]
        real = kube.get

        def get(path: str, **query: str) -> Json | None:
            if answers:
                raise answers.pop()
            return real(path, **query)

        monkeypatch.setattr(kube, "get", get)
        drain(kube).release(10)
        assert not is_cordoned(kube.nodes[0])


class TestUpgradePlan:
    """upgrade_plan."""

    state = {"has_data": True, "has_password": True, "version": OLD, "started": OLD}  # noqa: RUF012

    def run(self, kube: DrainKube, **more: Any) -> Json:
        params = {
            "servers": ["a"], "agents": ["b"], "states": {"a": self.state, "b": self.state}, "version": NEW, "released": "",
            "namespaces": ["n", "none"], "unmanaged_pods": "refuse", "empty_dirs": "delete", "timeout": 0, **more,
        }  # fmt: skip
        return upgrade_plan.run(kube, params)

    def test_plan(self) -> None:
        result = self.run(DrainKube(make_pod("web")))
        assert (result["servers"], result["agents"], result["snapshot"], result["errors"]) == (["a"], ["b"], "a", 0)
        assert f"a  server  {OLD} -> {NEW}" in result["table"]
        assert result["table"].endswith("upgrade: 0 errors, 0 warnings")

    def test_nothing_to_do(self) -> None:
        done = {**self.state, "version": NEW, "started": NEW}
        kube = DrainKube(make_pod("lone", owner=""), nodes=[make_node("a", version=NEW), make_node("b", version=NEW)])
        result = self.run(kube, states={"a": done, "b": done})
        assert (result["servers"], result["agents"], result["snapshot"], result["errors"]) == ([], [], "", 0)

    def test_what_blocks_any_drain_is_an_error_at_once(self) -> None:
        kube = DrainKube(make_pod("lone", owner=""), make_pod("web", "b"), budgets=[make_budget("web", 0)])
        result = self.run(kube)
        assert result["errors"] == 2
        assert "n/lone" in result["table"] and "PodDisruptionBudget n/keep-web" in result["table"]

    def test_the_platform_must_be_well_unless_we_were_interrupted(self) -> None:
        kube = DrainKube()
        kube.objects["/apis/apps/v1/namespaces/n/deployments"] = {
            "items": [{"metadata": {"name": "web", "namespace": "n"}, "spec": {"replicas": 1}, "status": {}}]
        }
        result = self.run(kube)
        assert result["namespaces"] == ["n"]
        assert result["errors"] == 1 and "Deployment n/web: 0 of 1 pods" in result["table"]
        kube.nodes[0]["metadata"]["annotations"] = {MARK: "upgrade"}
        kube.nodes[0]["spec"]["unschedulable"] = True
        result = self.run(kube)
        assert result["errors"] == 0 and "begun by an earlier run" in result["table"]

    def test_a_budget_that_lacks_the_interrupted_node_does_not_stop_the_run(self) -> None:
        kube = DrainKube(make_pod("web", "b"), budgets=[make_budget("web", 0)])
        assert self.run(kube)["errors"] == 1
        kube.nodes[0]["metadata"]["annotations"] = {MARK: "upgrade"}
        result = self.run(kube)
        assert result["errors"] == 0 and "PodDisruptionBudget n/keep-web" in result["table"]

    def test_cordoned_by_hand_and_unknown_nodes_are_told(self) -> None:
        kube = DrainKube(nodes=[make_node("a"), make_node("b", unschedulable=True), make_node("c")])
        table = self.run(kube)["table"]
        assert "by hand" in table and "not in it, so not upgraded" in table

    def test_failure_says_that_nothing_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(upgrade_plan, "KubeClient", lambda path: DrainKube(make_pod("lone", owner="")))
        arguments = {
            "kubeconfig": "/x", "servers": ["a"], "agents": ["b"], "version": NEW, "states": {"a": self.state, "b": self.state},
            "timeout": 0,
        }  # fmt: skip
        result = run_module(upgrade_plan, arguments)
        assert result["failed"] and "Nothing was changed" in result["msg"] and "n/lone" in result["msg"]
        result = run_module(upgrade_plan, {**arguments, "version": "latest"})
        assert "'latest' is no version of k3s" in result["msg"]


def test_nodes_are_awaited_in_their_version() -> None:
    kube = DrainKube()
    assert unready(kube, Wanted(nodes=("a",), version=OLD)) == []
    (waiting,) = unready(kube, Wanted(nodes=("a",), version=NEW))
    assert waiting.reason == f"it runs {OLD}, not {NEW}"


def program(path: Path, version: str) -> Path:
    """A program that says it is k3s of this version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'k3s version {version} (0123abcd)'\necho go version go1.x\n")
    path.chmod(0o755)
    return path


def test_version_of_a_program(tmp_path: Path) -> None:
    assert binary_version(str(program(tmp_path / "k3s", OLD))) == OLD
    assert binary_version(str(tmp_path / "absent")) == ""
    (tmp_path / "other").write_text("#!/bin/sh\necho something else entirely\n")
    (tmp_path / "other").chmod(0o755)
    assert binary_version(str(tmp_path / "other")) == ""


class TestPrograms:
    """k3s_binary."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        program(tmp_path / "k3s", OLD)
        program(tmp_path / ".k3s.next", NEW)
        return tmp_path

    def programs(self, place: Path, check: bool = False) -> k3s_binary.Programs:
        return k3s_binary.Programs(place, place / "slipway.json", check)

    def versions(self, place: Path) -> dict[str, str]:
        return {path.name: binary_version(str(path)) for path in place.iterdir() if "k3s" in path.name}

    def test_there_and_settled(self, place: Path) -> None:
        assert self.programs(place).switch(NEW)
        assert self.versions(place) == {"k3s": NEW, ".k3s.previous": OLD}
        assert not self.programs(place).switch(NEW)
        assert self.programs(place).settle()
        assert self.versions(place) == {"k3s": NEW}
        assert not self.programs(place).settle()

    def test_back_when_it_did_not_come_up(self, place: Path) -> None:
        (place / "slipway.json").write_text(json.dumps({"version": OLD}))
        self.programs(place).switch(NEW)
        programs = self.programs(place)
        assert programs.restore("server", NEW) and programs.restored == OLD
        assert self.versions(place) == {"k3s": OLD}

    def test_a_server_that_came_up_does_not_go_back(self, place: Path) -> None:
        (place / "slipway.json").write_text(json.dumps({"version": NEW}))
        self.programs(place).switch(NEW)
        programs = self.programs(place)
        assert not programs.restore("server", NEW)
        assert "may have written to the datastore" in programs.kept
        assert self.programs(place).restore("agent", NEW)

    def test_a_failure_before_the_switch_needs_no_way_back(self, place: Path) -> None:
        programs = self.programs(place)
        assert not programs.restore("agent", NEW) and programs.kept == ""
        assert self.versions(place) == {"k3s": OLD, ".k3s.next": NEW}

    def test_what_was_not_placed_is_named(self, place: Path) -> None:
        program(place / ".k3s.next", "v1.36.0+k3s1")
        with pytest.raises(SlipwayError, match=r"\.k3s\.next: v1\.36\.0\+k3s1, not k3s v1\.35\.8"):
            self.programs(place).switch(NEW)
        assert self.versions(place)["k3s"] == OLD

    def test_check_mode_changes_nothing(self, place: Path) -> None:
        before = self.versions(place)
        assert self.programs(place, check=True).switch(NEW)
        assert self.versions(place) == before

    def test_as_a_module(self, place: Path) -> None:
        arguments = {"state": "switched", "role": "agent", "version": NEW, "directory": str(place)}
        result = run_module(k3s_binary, arguments)
        assert (result["changed"], result["kept"], result["restored"]) == (True, "", "")
        assert self.versions(place)["k3s"] == NEW
        failed = run_module(k3s_binary, {**arguments, "version": "v1.35.9+k3s1"})
        assert failed["failed"] and "run the playbook again" in failed["msg"]


class TestImages:
    """k3s_images."""

    def archive(self, path: Path, tags: list[str]) -> Path:
        content = json.dumps([{"RepoTags": tags}]).encode()
        with tarfile.open(path, "w") as files:
            member = tarfile.TarInfo("manifest.json")
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
        return path

    def test_names_are_those_of_the_runtime(self, tmp_path: Path) -> None:
        tags = ["rancher/pause:3", "busybox:1", "localhost/x/y:1", "quay.io/z:2"]
        assert k3s_images.images_in(self.archive(tmp_path / "a.tar", tags)) == [
            "docker.io/rancher/pause:3",
            "docker.io/library/busybox:1",
            "localhost/x/y:1",
            "quay.io/z:2",
        ]

    def test_archives_that_do_not_tell_are_not_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(b"\x28\xb5\x2f\xfd")
        assert k3s_images.images_in(tmp_path / "a.tar") == []
        assert k3s_images.images_in(tmp_path / "absent.tar") == []

    def test_waits_and_names_what_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = self.archive(tmp_path / "a.tar", ["x.io/a:1", "x.io/b:1"])
        known = [["x.io/a:1"], ["x.io/a:1", "x.io/b:1"]]
        monkeypatch.setattr(k3s_images, "known_images", lambda: known.pop(0) if len(known) > 1 else known[0])
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        assert run_module(k3s_images, {"archives": [str(path)]})["missing"] == []
        known[:] = [["x.io/a:1"]]
        failed = run_module(k3s_images, {"archives": [str(path)], "timeout": 0})
        assert failed["failed"] and "has not imported x.io/b:1" in failed["msg"]

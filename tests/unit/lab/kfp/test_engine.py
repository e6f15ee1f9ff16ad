"""Whole runs of compiled pipelines: the engine on a real store (SQLite) and a cluster that plays the pods."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.lab.kfp.kfp_server import pods
from tests.lab.kfp.kfp_server.drive import Limits
from tests.lab.kfp.kfp_server.kube import KubeError
from tests.lab.kfp.kfp_server.store import Unavailable
from tests.unit.lab.kfp.cluster import World, orders

SUCCEEDED, FAILED, SKIPPED, OMITTED, RUNNING = "SUCCEEDED", "FAILED", "SKIPPED", "OMITTED", "RUNNING"


@pytest.fixture
def world() -> World:
    """An empty one."""
    return World()


def history(run: Any) -> list[str]:
    """States that a run or a task went through."""
    return [entry["state"] for entry in run.state_history]


def test_happy(world: World) -> None:
    """Artifacts, parameters, a condition both ways, a loop; states as the recordings have them."""
    run = world.finish(world.submit("happy"))
    assert history(run) == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert run.finished_at and not run.error
    states = world.states(run)
    assert states["condition-branches-1.condition-2"] == SUCCEEDED
    assert states["condition-branches-1.condition-3"] == SKIPPED
    assert "condition-branches-1.condition-3.say-2" not in states
    assert world.command("condition-branches-1.condition-2.say")[1] == "accepted"
    assert [world.outputs(run, f"for-loop-5({i}).make-2")["rows"] for i in (0, 1)] == [1, 2]
    data = world.command("make")[-1]
    assert data.startswith(f"/minio/mlpipeline/v2/artifacts/happy/{run.run_id}/make/") and data.endswith("/data")
    line = world.command("train")
    assert line[line.index("--data") + 1] == data
    assert line[line.index("--uri") + 1] == data.replace("/minio/", "minio://")
    assert line[line.index("--rate") + 1] == "0.5"


def test_rows_are_those_of_argo(world: World) -> None:
    """By the tasks' own names, with drivers and executors beside them, and the run's name on top."""
    run = world.finish(world.submit("happy"))
    rows = {row.display_name: row for row in world.store.tasks(run.run_id)}
    assert {run.workflow, "root", "make", "make-driver", "executor", "executor(0)", "iteration-item"} <= set(rows)
    assert history(rows["make"]) == ["RUNNING", "SUCCEEDED"]
    assert history(rows["executor(0)"]) == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert (
        rows["make"].pods
        == [pod["metadata"]["name"] for pod in world.cluster.pods_made if "root.make" in _path(pod)][:1]
    )
    assert rows[run.workflow].state == SUCCEEDED
    logs = [row.state_json["artifacts"]["executor-logs"] for row in rows.values() if "artifacts" in row.state_json]
    assert all(uri.endswith("/executor-logs-0") for uri in logs)


def test_the_other_branch(world: World) -> None:
    """A condition that does not hold."""
    run = world.finish(world.submit("happy", rate=0.05))
    states = world.states(run)
    assert states["condition-branches-1.condition-2"] == SKIPPED
    assert world.command("condition-branches-1.condition-3.say-2")[1] == "rejected"


@pytest.mark.parametrize(("coin", "chosen"), [("heads", "one"), ("tails", "other"), ("edge", "third")])
def test_one_of(world: World, coin: str, chosen: str) -> None:
    """OneOf gives the output of the branch that ran; tasks are shown by their own names, whatever their display name."""
    run = world.finish(world.submit("branches", coin=coin))
    assert world.tasks(run)["say-4"].state_json["inputs"]["parameters"] == {"msg": chosen}
    assert world.tasks(run)["say-4"].display_name == "say-4"


@pytest.mark.parametrize(("large", "rows"), [(True, 100), (False, 1)])
def test_one_of_artifacts(world: World, large: bool, rows: int) -> None:
    """The same of artifacts."""
    run = world.finish(world.submit("data-branches", large=large))
    taken = world.tasks(run)["read"].state_json["inputs"]["artifacts"]["data"]
    branch = "condition-2.make" if large else "condition-3.make-2"
    assert taken == world.tasks(run)[f"condition-branches-1.{branch}"].state_json["outputs"]["artifacts"]["data"]
    assert world.outputs(run, f"condition-branches-1.{branch}") == {"rows": rows}
    assert taken[0]["metadata"] == {"rows": 1, "kept": 1}


def test_loops(world: World) -> None:
    """A loop over a parameter with a loop inside; items by their parts; what loops collect."""
    run = world.finish(world.submit("loops"))
    assert run.state == SUCCEEDED
    assert world.command("total")[1] == "[1,2,3]"
    assert world.command("total-2")[1] == "[1,2,1,2,1,2]"
    states = world.states(run)
    assert [states[f"for-loop-1({i}).for-loop-3(0).condition-4"] for i in range(3)] == [SKIPPED, SUCCEEDED, SUCCEEDED]
    assert world.command("for-loop-1(1).for-loop-3(0).condition-4.note")[1] == "b"
    sets = world.tasks(run)["gather"].state_json["inputs"]["artifacts"]["sets"]
    assert len({artifact["uri"] for artifact in sets}) == 3
    # The lightweight component reads them from the executor input.
    line = world.command("gather")
    told = json.loads(line[line.index("--executor_input") + 1])
    assert [artifact["uri"] for artifact in told["inputs"]["artifacts"]["sets"]["artifacts"]] == [
        a["uri"] for a in sets
    ]
    assert told["outputs"]["outputFile"].endswith("/output_metadata.json")


def test_iterations_are_limited(world: World) -> None:
    """Parallelism 2: the third iteration starts when one has ended."""
    run = world.submit("loops")
    world.cluster.fates = {f"root.for-loop-1({i}).make": ["forever"] for i in (0, 1, 2)}
    for _ in range(10):
        world.step()
    assert "for-loop-1(1)" in world.states(run) and "for-loop-1(2)" not in world.states(run)
    world.cluster.fates["root.for-loop-1(0).make"] = ["ok"]
    for _ in range(10):
        world.step()
    assert "for-loop-1(2)" in world.states(run)


def test_empty_loop(world: World) -> None:
    """A loop over nothing has succeeded."""
    run = world.finish(world.submit("empty-loop", values=[]))
    assert run.state == SUCCEEDED and world.states(run)["note"] == SUCCEEDED


def test_failure_and_exit_handler(world: World) -> None:
    """The handler runs after the failure; the run is FAILED, without a word of why but in the log."""
    run = world.finish(world.submit("handled"))
    assert history(run) == ["PENDING", "RUNNING", "FAILED"] and not run.error
    states = world.states(run)
    assert states == {
        "root": FAILED, "exit-handler-1": FAILED, "exit-handler-1.fail": FAILED, "exit-handler-1.say-2": SUCCEEDED, "say": SUCCEEDED,
    }  # fmt: skip
    tasks = {row.display_name: row for row in world.store.tasks(run.run_id)}
    assert not tasks["fail"].error
    assert tasks["exit-handler-1.onExit"].state == SUCCEEDED
    assert world.cluster.started["root.say"] == 1


def test_a_handler_that_fails(world: World) -> None:
    """Does not change how the run ended, as with Argo's hooks."""
    world.cluster.fates = {"root.exit-handler-1.fail": ["error"], "root.say": ["error"]}
    run = world.submit("handled")
    assert world.finish(run).state == FAILED
    assert world.states(run)["say"] == FAILED


def test_final_status(world: World) -> None:
    """A handler is told how its group ended."""
    run = world.finish(world.submit("status"))
    line = world.command("clean")
    told = json.loads(line[line.index("--executor_input") + 1])
    assert told["inputs"]["parameterValues"]["status"] == {
        "state": "FAILED", "pipelineTaskName": "exit-handler-1", "pipelineJobResourceName": run.workflow, "error": {},
    }  # fmt: skip


def test_ignored_failure(world: World) -> None:
    """The task after it runs, and the run is FAILED all the same."""
    run = world.finish(world.submit("ignored"))
    assert (run.state, world.states(run)["note"]) == (FAILED, SUCCEEDED)


def test_what_follows_a_failure_is_omitted(world: World) -> None:
    """Other branches go on to their end."""
    world.cluster.fates = {"root.make": ["error"]}
    run = world.finish(world.submit("happy"))
    states = world.states(run)
    assert (run.state, states["train"], states["condition-branches-1"]) == (FAILED, OMITTED, OMITTED)
    assert states["for-loop-5"] == SUCCEEDED
    assert world.tasks(run)["train"].state == ""


def test_sub_pipelines(world: World) -> None:
    """Inputs, defaults and optional inputs of a pipeline inside a pipeline, and its output."""
    run = world.finish(world.submit("nested", count=4))
    line = world.command("part.train")
    assert line[line.index("--rate") + 1] == "2"
    assert world.command("part.options") == ["options", "--silent", "--name", "part", "--times", "3"]
    made = world.tasks(run)["part.make"].state_json["outputs"]["artifacts"]["data"]
    assert world.tasks(run)["read"].state_json["inputs"]["artifacts"]["data"] == made


def test_importers(world: World) -> None:
    """No pod; the artifact is what the pipeline says."""
    run = world.finish(world.submit("imported"))
    assert set(world.cluster.started) == {"root.read", "root.read-2"}
    assert world.command("read") == ["read", "/s3/elsewhere/data.bin", "s3://elsewhere/data.bin"]
    assert world.command("read-2")[1] == "/minio/pipelines/fixed/set"
    assert world.tasks(run)["read"].state_json["inputs"]["artifacts"]["data"][0]["metadata"] == {"source": "elsewhere"}


def test_names(world: World) -> None:
    """What constants stand for: where they are the whole value, as in the real server."""
    run = world.finish(world.submit("names"))
    assert world.command("say")[1] == "names run"
    assert world.command("say-2")[1] == run.run_id
    assert world.command("say-3")[1] == "in {{$.pipeline_task_name}} of {{$.pipeline_job_resource_name}}"
    assert world.command("say-4")[1] == "say-4"


def test_retries_with_back_off(world: World) -> None:
    """Two more attempts, after 3 and 6 seconds, each with a pod and a log of its own."""
    world.cluster.fates = {"root.say": ["error", "error", "ok"]}
    run = world.finish(world.submit("retried"))
    assert run.state == SUCCEEDED
    made = [pod for pod in world.cluster.pods_made if _path(pod) == "root.say"]
    assert len({pod["metadata"]["name"] for pod in made}) == 3
    times = [pods.seconds(pod["metadata"]["creationTimestamp"]) for pod in made]
    assert times[1] - times[0] >= 3 and times[2] - times[1] >= 6
    assert [orders(pod)["artifacts"]["executor-logs"]["uri"][-1] for pod in made] == ["0", "1", "2"]
    assert [_environment(pod)["KFP_RETRY_INDEX"] for pod in made] == ["0", "1", "2"]
    attempts = [
        (row.display_name, row.state)
        for row in world.store.tasks(run.run_id)
        if row.display_name.startswith("executor(")
    ]
    assert attempts[:3] == [("executor(0)", FAILED), ("executor(1)", FAILED), ("executor(2)", SUCCEEDED)]


def test_retries_end(world: World) -> None:
    """No more than the task has."""
    world.cluster.fates = {"root.say": ["error"]}
    run = world.finish(world.submit("retried"))
    assert (run.state, world.cluster.started["root.say"], world.states(run)["note"]) == (FAILED, 3, OMITTED)


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("vanish", "the pod was deleted"),
        ("evict", "Evicted: The node was low on memory."),
        ("no report", "the pod ended without a report of its outputs"),
        ("bad outputs", "wait: Error (exit code 1): no rows"),
    ],
)
def test_pods_that_are_lost(world: World, fate: str, reason: str) -> None:
    """A failed attempt: the reason is the task's error, and a task with attempts left starts again."""
    world.cluster.fates = {"root.make": [fate]}
    run = world.finish(world.submit("happy"))
    assert run.state == FAILED
    assert world.tasks(run)["make"].error == {"code": 13, "message": reason}
    again = World()
    again.cluster.fates = {"root.say": [fate, "ok"]}
    assert again.finish(again.submit("retried")).state == SUCCEEDED


def test_a_pod_that_does_not_go(world: World) -> None:
    """Its node is gone: it is removed by force, and that is a failed attempt."""
    world.cluster.fates = {"root.say": ["undead", "ok"]}
    run = world.submit("retried")
    for _ in range(3):
        world.step()
    world.cluster.delete("pods", world.cluster.pods()[0]["metadata"]["name"])
    assert world.finish(run, 120).state == SUCCEEDED
    assert world.cluster.started["root.say"] == 2


UNSCHEDULABLE = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}],
}


def _waiting(reason: str) -> dict[str, Any]:
    waiting = {"waiting": {"reason": reason, "message": "because"}}
    return {"phase": "Pending", "containerStatuses": [{"name": "main", "state": waiting}]}


@pytest.mark.parametrize(
    ("status", "reason", "limit"),
    [
        (_waiting("ImagePullBackOff"), "main: ImagePullBackOff: because", 20),
        (_waiting("CreateContainerConfigError"), "main: CreateContainerConfigError: because", 20),
        (UNSCHEDULABLE, "Unschedulable: 0/2 nodes", 50),
        ({"phase": "Pending"}, "", 50),
    ],
)
def test_pods_that_do_not_start(status: dict[str, Any], reason: str, limit: int) -> None:
    """The reason is seen while it lasts; after a time the task fails with it, and the pod goes."""
    world = World(limits=Limits(broken=20, slow=50))
    world.cluster.fates = {"root.say": ["stuck " + json.dumps(status)]}
    run = world.submit("branches", coin="edge")
    world.cluster.fates = {"root.condition-branches-1.condition-4.say-3": ["stuck " + json.dumps(status)]}
    path = "condition-branches-1.condition-4.say-3"
    for _ in range(5):
        world.step()
    shown = world.tasks(run)[path]
    assert (shown.state, shown.error.get("message", "")) == (RUNNING, reason)
    for _ in range(limit - 10):
        world.step()
    assert world.states(run)[path] == RUNNING
    assert world.finish(run, 20).state == FAILED
    assert f"for {limit} s" in world.tasks(run)[path].error["message"]
    assert not [pod for pod in world.cluster.pods() if not pod["metadata"].get("deletionTimestamp")]


def test_pods_that_are_refused(world: World) -> None:
    """At once the end of the task, with the API's words; only a quota that is used up is waited for."""
    world.cluster.refusal = KubeError('pods "x" is forbidden: violates PodSecurity', 403)
    run = world.finish(world.submit("cached"), 3)
    assert (
        world.tasks(run)["make"].error["message"] == 'the pod is refused: pods "x" is forbidden: violates PodSecurity'
    )
    world.cluster.refusal = KubeError('pods "x" is forbidden: exceeded quota: few', 403)
    run = world.submit("cached")
    for _ in range(3):
        world.step()
    assert "exceeded quota" in world.tasks(run)["make"].error["message"]
    world.cluster.refusal = None
    assert world.finish(run).state == SUCCEEDED


def test_a_pod_that_starts_after_all(world: World) -> None:
    """What held it up is no longer shown."""
    world.cluster.fates = {"root.make": ["stuck " + json.dumps(UNSCHEDULABLE)]}
    run = world.submit("cached")
    for _ in range(5):
        world.step()
    assert world.tasks(run)["make"].error
    world.cluster.fates = {}
    world.cluster.pods()[0]["status"] = {"phase": "Pending"}
    assert world.finish(run).state == SUCCEEDED
    assert not world.tasks(run)["make"].error


def test_cache(world: World) -> None:
    """A second run takes what the first left, down to the tasks that depend on it; another input is another thing."""
    first = world.finish(world.submit("cached"))
    assert world.cluster.started == {"root.make": 1, "root.train": 1, "root.say": 1}
    second = world.finish(world.submit("cached"))
    assert world.cluster.started == {"root.make": 1, "root.train": 1, "root.say": 2}
    rows = {row.display_name: row.state for row in world.store.tasks(second.run_id) if row.state_json == {}}
    assert rows["executor"] in (SKIPPED, SUCCEEDED) and "executor(0)" not in {
        row.display_name
        for row in world.store.tasks(second.run_id)
        if row.task_id in {world.tasks(second)["make"].task_id}
    }
    assert world.outputs(second, "train") == world.outputs(first, "train")
    world.finish(world.submit("cached", count=4))
    assert world.cluster.started == {"root.make": 2, "root.train": 2, "root.say": 3}


def test_what_failed_is_not_cached(world: World) -> None:
    """Only success is kept."""
    world.cluster.fates = {"root.make": ["error", "ok"]}
    assert world.finish(world.submit("cached")).state == FAILED
    assert world.finish(world.submit("cached")).state == SUCCEEDED


def test_termination(world: World) -> None:
    """CANCELING, the pods go, then FAILED; the handler is cut off, too."""
    world.cluster.fates = {"root.exit-handler-1.fail": ["forever"], "root.exit-handler-1.say-2": ["forever"]}
    run = world.submit("handled")
    for _ in range(4):
        world.step()
    world.store.cancel_run(run.run_id)
    world.engine.tick()
    assert world.run(run).state == "CANCELING"
    assert all(pod["metadata"].get("deletionTimestamp") for pod in world.cluster.pods())
    ended = world.finish(run)
    assert history(ended) == ["PENDING", "RUNNING", "CANCELING", "FAILED"]
    states = world.states(run)
    assert (states["exit-handler-1.fail"], states["exit-handler-1"], states["say"]) == (FAILED, FAILED, OMITTED)


def test_termination_starts_nothing(world: World) -> None:
    """Not what was next, and nothing of a run that had not begun."""
    world.cluster.fates = {"root.make": ["forever"], "root.say": ["forever"]}
    run = world.submit("cached")
    for _ in range(2):
        world.step()
    world.store.cancel_run(run.run_id)
    other = world.submit("cached")
    world.store.cancel_run(other.run_id)
    assert world.finish(run).state == FAILED and world.finish(other).state == FAILED
    assert world.cluster.started == {"root.make": 1, "root.say": 1}
    assert not world.cluster.pods()


def test_retry_of_a_run(world: World) -> None:
    """Only what failed, and what was left out for it, is done again."""
    world.cluster.fates = {"root.train": ["error", "ok"]}
    run = world.finish(world.submit("happy"))
    assert run.state == FAILED
    before = dict(world.cluster.started)
    world.store.retry_run(run)
    run = world.finish(run)
    assert run.state == SUCCEEDED and not run.retry
    assert history(run) == ["PENDING", "RUNNING", "FAILED", "RUNNING", "SUCCEEDED"]
    assert world.cluster.started["root.make"] == before["root.make"] == 1
    assert world.cluster.started["root.train"] == 2
    assert world.states(run)["condition-branches-1"] == SUCCEEDED
    # The failed pod is removed, as by the real server; the others stay for their logs.
    kept = [_path(pod) for pod in world.cluster.pods()]
    assert kept.count("root.train") == 1 and kept.count("root.make") == 1


def test_retry_after_termination(world: World) -> None:
    """It goes on where it was cut off."""
    world.cluster.fates = {"root.train": ["forever", "ok"]}
    run = world.submit("happy")
    for _ in range(8):
        world.step()
    world.store.cancel_run(run.run_id)
    run = world.finish(run)
    world.store.retry_run(run)
    assert world.finish(run).state == SUCCEEDED
    assert world.cluster.started["root.make"] == 1


def test_site(world: World) -> None:
    """Claims made and removed by the engine, and all that kfp-kubernetes can say of a pod."""
    run = world.finish(world.submit("site", secret="chosen", memory="2Gi"))
    assert run.state == SUCCEEDED
    assert ("persistentvolumeclaims", world.outputs(run, "createpvc")["name"]) not in world.cluster.objects
    assert len(world.cluster.pods_made) == 1


def test_a_claim_that_is_there(world: World) -> None:
    """Somebody else's is an error of the task, and names the claim."""
    run = world.submit("site")
    world.engine.tick()
    claim = world.outputs(run, "createpvc")["name"]
    assert claim.endswith("-scratch")
    del world.cluster.objects[("persistentvolumeclaims", claim)]
    run = world.finish(run)
    assert (run.state, world.states(run)["deletepvc"]) == (FAILED, FAILED)
    assert claim in world.tasks(run)["deletepvc"].error["message"]


def test_inputs_that_do_not_fit(world: World) -> None:
    """The task says which parameter, and what it should be."""
    run = world.finish(world.submit("happy", count="many"))
    error = world.tasks(run)["make"].error["message"]
    assert error == 'input parameter "count" type mismatch: expect NUMBER_INTEGER, got string'
    assert world.states(run)["make"] == FAILED and "root.make" not in world.cluster.started


def test_a_pipeline_that_cannot_be_read(world: World) -> None:
    """The run fails and says why."""
    run = world.submit("happy")
    spec = world.run(run).pipeline_spec
    del spec["components"]["comp-train"]
    broken = world.submit("happy")
    world.store.remove_run(broken.run_id)
    broken.pipeline_spec = spec
    world.store.add_run(broken)
    ended = world.finish(broken)
    assert (ended.state, ended.error["message"]) == (FAILED, "component 'comp-train' is not in the pipeline")
    assert world.finish(run).state == SUCCEEDED


def test_runs_do_not_wait_for_each_other(world: World) -> None:
    """Many at once, one list of pods for all."""
    runs = [world.submit("happy", count=count) for count in range(8)]
    world.step()
    for _ in range(30):
        lists = world.cluster.lists
        world.step()
        assert world.cluster.lists - lists <= 1
    assert {world.run(run).state for run in runs} == {SUCCEEDED}


def test_a_list_that_is_old(world: World) -> None:
    """While pods are watched they are not listed without need; what the engine made itself is never taken for lost."""
    world.engine._followed = True
    run = world.submit("happy")
    for _ in range(60):
        world.engine.tick()
        world.engine.tick()
        world.cluster.step()
        world.clock.now += 1
    assert world.run(run).state == SUCCEEDED
    assert set(world.cluster.started.values()) == {1}
    assert world.cluster.lists < 30


def test_idle(world: World) -> None:
    """Without runs, Kubernetes is asked for old pods now and then only."""
    for _ in range(100):
        world.step()
    assert world.cluster.lists <= 2


def test_the_api_is_away(world: World) -> None:
    """Everything rests, and goes on."""
    run = world.submit("happy")
    for _ in range(4):
        world.step()
    world.cluster.away = True
    for _ in range(20):
        world.engine.tick()
        world.clock.now += 1
    world.cluster.away = False
    assert world.finish(run, 90).state == SUCCEEDED
    assert set(world.cluster.started.values()) == {1}


def test_the_database_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked less and less often, and then everything goes on."""
    run = world.submit("happy")
    asked = 0

    def away(*_: object) -> None:
        nonlocal asked
        asked += 1
        raise Unavailable("gone")

    for _ in range(3):
        world.step()
    with monkeypatch.context() as patch:
        patch.setattr(world.store, "leads", away)
        for _ in range(100):
            world.step()
    assert 3 < asked < 15
    assert world.finish(run, 90).state == SUCCEEDED
    assert set(world.cluster.started.values()) == {1}


def test_only_one_drives(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process waits for the lock of the first."""
    run = world.submit("happy")
    monkeypatch.setattr(world.store, "leads", lambda: False)
    for _ in range(3):
        world.step()
    assert world.run(run).state == "PENDING" and not world.cluster.lists


def test_the_pipelines_own_time_limit(world: World) -> None:
    """A run that takes longer ends as a terminated one does, without CANCELING."""
    run = world.submit("cached")
    world.store.remove_run(run.run_id)
    run.platform_spec = {"platforms": {"kubernetes": {"pipelineConfig": {"activeDeadlineSeconds": 20}}}}
    world.store.add_run(run)
    world.cluster.fates = {"root.make": ["forever"]}
    ended = world.finish(run)
    assert history(ended) == ["PENDING", "RUNNING", "FAILED"]
    assert world.states(run)["make"] == FAILED


def test_pods_of_deleted_and_old_runs_go(world: World) -> None:
    """At once, and after a day; others keep their logs."""
    world.cluster.fates = {"root.make": ["forever"]}
    deleted = world.submit("happy")
    for _ in range(3):
        world.step()
    world.store.remove_run(deleted.run_id)
    world.step()
    world.step()
    assert not world.cluster.pods()
    world.cluster.fates = {}
    run = world.finish(world.submit("happy"))
    count = len(world.cluster.pods())
    world.clock.now += 23 * 3600
    world.step()
    assert len(world.cluster.pods()) == count
    world.clock.now += 2 * 3600
    world.step()
    world.step()
    assert not world.cluster.pods() and world.run(run).state == SUCCEEDED


def test_pods_of_no_run_stay(world: World) -> None:
    """Whoever else gives a pod the component's label keeps it."""
    foreign: Any = {"metadata": {"name": "foreign", "labels": dict(pods.LABELS)}, "status": {"phase": "Running"}}
    world.cluster.objects["pods", "foreign"] = foreign
    world.clock.now += 25 * 3600
    world.engine.tick()
    assert world.cluster.pods() == [foreign] and "deletionTimestamp" not in foreign["metadata"]


class Killed(BaseException):
    """The end of the process."""


class Mortal:
    """Passes calls on until its time has come: then it dies before or after one that changes something."""

    CHANGES = frozenset({"create", "delete", "save_run", "save_task", "remove_task", "retry_begun", "cache"})

    def __init__(self, inner: Any, fate: Fate) -> None:
        self._inner = inner
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in self.CHANGES:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._fate.comes()
            answer = found(*arguments, **options)
            self._fate.comes()
            return answer

        return call


class Fate:
    """Says when to die, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.deaths = 0
        self._left = self._random.randint(1, 12)

    def comes(self) -> None:
        """Die if it is time."""
        self._left -= 1
        if self._left <= 0:
            self._left = self._random.randint(1, 12)
            self.deaths += 1
            raise Killed


class MortalWorld(World):
    """One whose engine is killed again and again, at calls that a seed chooses."""

    def __init__(self, seed: int) -> None:
        self.fate = Fate(seed)
        super().__init__()

    def new_engine(self) -> Any:
        """A new process on the same store and cluster."""
        engine = super().new_engine()
        engine._store = Mortal(self.store, self.fate)  # type: ignore[assignment]
        engine._kube = Mortal(self.cluster, self.fate)
        return engine

    def step(self) -> None:
        """The engine may be killed in its step; pods go on while it is away."""
        try:
            self.engine.tick()
        except Killed:
            self.engine = self.new_engine()
        self.cluster.step()
        self.clock.now += 1


@pytest.mark.parametrize("name", ["happy", "handled", "loops", "retried", "site", "branches"])
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_point(name: str, seed: int) -> None:
    """Nothing is lost and nothing done twice: the same states, outputs and number of starts as without kills."""
    fates = {"root.say": ["error", "ok"]} if name == "retried" else {}
    calm, killed = World(), MortalWorld(seed)
    calm.cluster.fates = killed.cluster.fates = fates
    expected, run = calm.finish(calm.submit(name, caching=False)), killed.submit(name, caching=False)
    assert killed.finish(run, 600).state == expected.state
    assert killed.fate.deaths > 3
    assert killed.states(run) == calm.states(expected)
    assert killed.cluster.started == calm.cluster.started
    for path, row in calm.tasks(expected).items():
        if row.state_json["kind"] == "container":
            assert killed.outputs(run, path) == calm.outputs(expected, path)
    claims = [key for key in killed.cluster.objects if key[0] == "persistentvolumeclaims"]
    assert not claims


@pytest.mark.parametrize("seed", range(6))
def test_killed_while_terminating_and_retrying(seed: int) -> None:
    """The same of a termination, and of a retry after it."""
    world = MortalWorld(seed)
    world.cluster.fates = {"root.train": ["forever", "ok"]}
    run = world.submit("happy")
    while world.states(run).get("train") != RUNNING or not world.cluster.started["root.train"]:
        world.step()
    world.store.cancel_run(run.run_id)
    ended = world.finish(run, 300)
    assert history(ended)[-2:] == ["CANCELING", "FAILED"]
    world.store.retry_run(ended)
    assert world.finish(run, 300).state == SUCCEEDED
    assert world.cluster.started["root.make"] == 1 and world.cluster.started["root.train"] == 2


def _path(pod: dict[str, Any]) -> str:
    found: str = pod["metadata"]["annotations"][pods.TASK_ANNOTATION]
    return found


def _environment(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0]["env"]}

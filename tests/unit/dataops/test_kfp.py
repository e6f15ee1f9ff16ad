"""The client on the stand-in, and on lines to it that break."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest

from slipway_dataops import kfp
from slipway_dataops.kfp import Address, Away, Client, KubeflowPipelinesError, Run, outcome, run_name

from .standin import Pipelines, eventually

T = TypeVar("T")


def do(pipelines: Pipelines | str, work: Callable[[Client], Awaitable[T]]) -> T:
    """Some work with an open client."""

    async def all_of_it() -> T:
        async with Client(Address(getattr(pipelines, "url", str(pipelines)))).open() as client:
            return await work(client)

    return asyncio.run(all_of_it())


def submit(
    pipelines: Pipelines, name: str = "happy one", pipeline: str = "happy", **parameters: Any
) -> tuple[Run, bool]:
    async def work(client: Client) -> tuple[Run, bool]:
        return await client.submit("tests", name, await client.pipeline(pipeline), parameters)

    return do(pipelines, work)


def wait(pipelines: Pipelines, run_id: str, seconds: float = 20) -> dict[str, Any]:
    client = Client(Address(pipelines.url))
    return asyncio.run(outcome(client, run_id, time.time() + seconds, 0.02))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp, "_TIMEOUT", httpx.Timeout(0.5))


def test_a_run_to_its_end(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    run, started = submit(pipelines, count=3, rate=0.25)
    assert started and run.name == "happy one" and not run.final
    event = wait(pipelines, run.run_id)
    assert (event["status"], event["message"], event["run"]["state"]) == ("succeeded", "", "SUCCEEDED")
    stored = pipelines.world.store.run(run.run_id)
    assert stored is not None and stored.runtime_config["parameters"] == {"count": 3, "rate": 0.25}


def test_the_newest_version_or_the_one_that_was_asked_for(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    first = do(pipelines, lambda client: client.pipeline("happy"))
    time.sleep(1.1)  # Times of versions are in seconds.
    pipelines.upload(pipelines_file("happy"), "happy", "second")
    second = do(pipelines, lambda client: client.pipeline("happy"))
    assert first[0] == second[0] and first[1] != second[1]
    assert do(pipelines, lambda client: client.pipeline("happy", "happy")) == first
    assert do(pipelines, lambda client: client.pipeline("happy", "second")) == second


def pipelines_file(name: str) -> Any:
    from tests.unit.lab.kfp.cluster import COMPILED

    return COMPILED / f"{name}.yaml"


def test_what_is_not_there_is_named(pipelines: Pipelines) -> None:
    with pytest.raises(KubeflowPipelinesError, match="no pipeline 'happy' was uploaded"):
        do(pipelines, lambda client: client.pipeline("happy"))
    pipelines.compiled("happy")
    with pytest.raises(KubeflowPipelinesError, match="pipeline 'happy' has no version 'x'"):
        do(pipelines, lambda client: client.pipeline("happy", "x"))
    event = wait(pipelines, "00000000-0000-0000-0000-000000000000")
    assert event["status"] == "refused" and "404" in event["message"] and event["run"] is None


def test_a_wrong_parameter_is_refused_in_the_servers_words(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    with pytest.raises(KubeflowPipelinesError, match=r"400 .*input parameter rate requires type double or integer"):
        submit(pipelines, rate="fast")
    assert pipelines.runs() == []


def test_the_same_name_is_the_same_run(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    first, _ = submit(pipelines)
    assert submit(pipelines)[0].run_id == first.run_id
    assert submit(pipelines, name="HAPPY one")[1], "the server compares without regard to case"
    wait(pipelines, first.run_id)
    again, started = submit(pipelines)
    assert (again.run_id, again.state, started) == (first.run_id, "SUCCEEDED", False)
    assert len(pipelines.runs()) == 2


def test_a_failed_run_is_no_reason_not_to_start_another(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "fail", "ok")
    first, _ = submit(pipelines)
    assert wait(pipelines, first.run_id)["status"] == "failed"
    second, started = submit(pipelines)
    assert started and second.run_id != first.run_id


def test_the_failed_task_is_named(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "fail")
    run, _ = submit(pipelines)
    event = wait(pipelines, run.run_id)
    assert event["status"] == "failed"
    assert f"run {run.run_id} (happy one) ended FAILED; failed: train; " in event["message"]


def test_termination(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    run, _ = submit(pipelines)
    eventually(lambda: pipelines.world.cluster.started["root.train"])
    do(pipelines, lambda client: client.terminate(run.run_id))
    event = wait(pipelines, run.run_id)
    assert (event["status"], event["message"]) == ("terminated", f"run {run.run_id} (happy one) was terminated")
    # Once more is no error.
    do(pipelines, lambda client: client.terminate(run.run_id))
    assert submit(pipelines)[1], "what was terminated is not what somebody else waits for"


def test_a_run_that_goes_on_is_overdue(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    pipelines.fate("train", "forever")
    run, _ = submit(pipelines)
    event = wait(pipelines, run.run_id, seconds=0.3)
    assert event["status"] == "overdue" and event["message"].endswith("is still RUNNING")


@pytest.mark.parametrize("what", ["fail", "lose", "hang"])
@pytest.mark.parametrize(
    "request_", ["POST /apis/v2beta1/runs", "POST /apis/v2beta1/experiments", "GET /apis/v2beta1/pipelines"]
)
def test_a_broken_line_makes_no_second_run(pipelines: Pipelines, what: str, request_: str) -> None:
    pipelines.compiled("happy")
    pipelines.line.fault(what, 2, request_)
    run, _ = submit(pipelines)
    assert [each.run_id for each in pipelines.runs()] == [run.run_id]
    assert pipelines.line.faults == [] or what == "lose"


def test_a_server_that_is_away_for_a_while_is_waited_for(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    run, _ = submit(pipelines)
    pipelines.line.fault("fail", 20)
    assert wait(pipelines, run.run_id)["status"] == "succeeded"
    assert pipelines.line.faults == []


def test_a_server_that_stays_away(pipelines: Pipelines) -> None:
    pipelines.compiled("happy")
    run, _ = submit(pipelines)
    pipelines.line.fault("fail", 10_000)
    begin = time.monotonic()
    event = wait(pipelines, run.run_id)
    assert event["status"] == "away" and "no good answer for 2 s: 503 no healthy upstream" in event["message"]
    assert 2 <= time.monotonic() - begin < 10


def test_nobody_listens() -> None:
    async def work(client: Client) -> Run:
        client.away, client.pause = 0.2, 0.05
        return await client.run("x")

    with pytest.raises(Away, match=r"127\.0\.0\.1:9: no good answer for 0\.2 s"):
        do("http://127.0.0.1:9", work)


def test_a_page_is_no_api(pipelines: Pipelines) -> None:
    pipelines.line.fault("login")
    with pytest.raises(KubeflowPipelinesError, match="200, but no JSON: is this the API"):
        do(pipelines, lambda client: client.pipeline("happy"))


def test_two_that_submit_at_once_share_the_older_run(pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have looked before either has made a run."""
    pipelines.compiled("happy")
    submit(pipelines, name="makes the experiment")
    monkeypatch.setattr(kfp, "_SETTLE", 1.1)
    # Neither has ended before both have looked.
    pipelines.running.clear()
    both = threading.Barrier(2)
    looked = Client._alive
    first_look: set[int] = set()

    async def alive(self: Client, experiment_id: str, name: str) -> list[Run]:
        found = await looked(self, experiment_id, name)
        if id(self) not in first_look:
            first_look.add(id(self))
            await asyncio.to_thread(both.wait, 10)
        return found

    monkeypatch.setattr(Client, "_alive", alive)
    results: list[tuple[Run, bool]] = []
    threads = [threading.Thread(target=lambda: results.append(submit(pipelines, name="raced"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len({run.run_id for run, _ in results}) == 1 and sorted(started for _, started in results) == [False, True]
    raced = [run for run in pipelines.runs() if run.display_name == "raced"]
    assert len(raced) == 2 and [bool(run.cancel) for run in sorted(raced, key=lambda r: (r.created_at, r.run_id))] == [
        False,
        True,
    ]


def test_names_are_cut_but_stay_different() -> None:
    assert run_name("epos", "data 1") == "epos data 1"
    names = {run_name("epos", "k" * 200 + end) for end in "ab"}
    assert len(names) == 2 and all(len(name) == kfp.MAX_NAME for name in names)

"""The stand-in for Kubeflow Pipelines as the lab runs it, with its engine, on pods that are played; and a line to it that can break."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from tests.lab.kfp.kfp_server import api, pods, web
from tests.lab.kfp.kfp_server.store import Run
from tests.unit.lab.kfp import cluster
from tests.unit.lab.kfp.conftest import NAMESPACE, serving

EPOS = Path(__file__).parents[3] / "pipelines/epos/pipeline.yaml"


class Line:
    """Between client and server: what happens to the next requests.

    fail    an answer 503, the server does nothing
    lose    the server does what it is asked to, the answer never comes
    hang    nothing comes
    login   a page that asks who one is
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.faults: list[tuple[str, str]] = []
        self.requests: list[str] = []

    def fault(self, what: str, times: int = 1, request: str = "") -> None:
        """What happens to so many requests whose method and path contain some text."""
        self.faults += [(what, request)] * times

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request = f"{scope['method']} {scope['path']}"
        self.requests.append(request)
        found = next((each for each in self.faults if each[1] in request), None)
        if found is None:
            return await self.app(scope, receive, send)
        self.faults.remove(found)
        if found[0] == "hang":
            await _gone(receive)
        if found[0] == "lose":

            async def nowhere(_: Any) -> None:
                pass

            await self.app(scope, receive, nowhere)
            await _gone(receive)
        status, content = (200, b"<html>Who are you?</html>") if found[0] == "login" else (503, b"no healthy upstream")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": content})


async def _gone(receive: Any) -> None:
    """Until the client has had enough, for 5 s at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while (await receive())["type"] != "http.disconnect":
                pass


@dataclass
class Pipelines:
    """The server from outside and from behind.

    Attributes:
        url: of its API.
        world: its store, engine and pods.
        line: between it and its clients.
        ended: called with the name of each step of pipeline `epos` that ends well, and its run.
    """

    url: str
    world: cluster.World
    line: Line
    running: threading.Event = field(default_factory=threading.Event)
    ended: Callable[[str, str], None] = lambda step, run_id: None

    def upload(self, path: Path, name: str, version: str = "") -> None:
        """A pipeline, or a version of one that is there."""
        query = {"name": version or name}
        if version:
            found = requests.get(f"{self.url}/apis/v2beta1/pipelines", timeout=10).json()["pipelines"]
            query["pipelineid"] = next(each["pipeline_id"] for each in found if each["display_name"] == name)
        where = "upload_version" if version else "upload"
        answer = requests.post(f"{self.url}/apis/v2beta1/pipelines/{where}", params=query, timeout=10,
                               files={"uploadfile": ("p.yaml", path.read_bytes())})  # fmt: skip
        answer.raise_for_status()

    def compiled(self, name: str) -> None:
        """Uploads one of the stand-in's own test pipelines."""
        self.upload(cluster.COMPILED / f"{name}.yaml", name)

    def runs(self) -> list[Run]:
        """All runs."""
        return self.world.store.list_runs()

    def fate(self, task: str, *fates: str) -> None:
        """What a task's pods do instead of ending well."""
        self.world.cluster.fates[f"root.{task}"] = list(fates)


@contextlib.contextmanager
def serving_pipelines() -> Iterator[Pipelines]:
    """A server whose runs go on by themselves, a step each few milliseconds."""
    world = cluster.World()
    service = api.Api(world.store, NAMESPACE)
    service.default_experiment()
    line = Line(web.app(service))
    stop = threading.Event()
    with serving(line) as url:
        found = Pipelines(url, world, line)
        found.running.set()
        played = cluster.outputs

        def outputs(pod: Any) -> Any:
            """What the steps of pipeline `epos` leave: enough for the steps after them."""
            main = pod["spec"]["containers"][0]
            words = [*main["command"], *main["args"]]
            result = played(pod)
            if words[:4] == ["python3", "-m", "epos", "step"]:
                found.ended(words[4], pod["metadata"]["labels"][pods.RUN_LABEL])
                values = {"verdict": "released"}
                result["parameters"] = {n: values.get(n, "x") for n in cluster.orders(pod)["parameters"]}
            return result

        def go_on() -> None:
            while not stop.wait(0.005):
                if found.running.is_set():
                    world.step()

        cluster.outputs = outputs
        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            stop.set()
            thread.join(10)
            cluster.outputs = played


def eventually(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """What a condition gives once it gives something."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("it never came true")

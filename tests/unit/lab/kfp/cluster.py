"""A Kubernetes that plays the pods of tasks: the engine's client for it, and the programs of pipelines.py."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.lab.kfp.kfp_server import pods
from tests.lab.kfp.kfp_server.drive import Limits
from tests.lab.kfp.kfp_server.engine import Engine
from tests.lab.kfp.kfp_server.kube import KubeError
from tests.lab.kfp.kfp_server.store import Run, Store, Task
from tests.unit.lab.kfp import memory

Json = dict[str, Any]
Objects = list[Json]

COMPILED = Path(__file__).parent / "compiled"


class Clock:
    """A time that the tests move."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now

    @property
    def stamp(self) -> str:
        """As Kubernetes writes it."""
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Cluster:
    """Pods that pass from Pending over Running to their end, one step at a time."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.objects: dict[tuple[str, str], Json] = {}
        # How often the program of each task was started, and with which command.
        self.started: Counter[str] = Counter()
        self.commands: dict[str, list[str]] = {}
        self.pods_made: list[Json] = []
        # By the task's path: what its pods do instead of ending well; the last one is for all that follow.
        self.fates: dict[str, list[str]] = {}
        self.lists = 0
        self.away = False
        # What the API says to every new pod.
        self.refusal: KubeError | None = None

    # The engine's client

    def get(self, kind: str, name: str) -> Json | None:
        self._answer()
        found = self.objects.get((kind, name))
        return json.loads(json.dumps(found)) if found else None

    def list(self, kind: str, selector: str) -> Objects:
        self._answer()
        self.lists += 1
        runs = selector.partition("pipeline/runid in (")[2].rstrip(")").split(",")
        listed = [
            found
            for (sort, _), found in self.objects.items()
            if sort == kind and (runs == [""] or found["metadata"]["labels"].get(pods.RUN_LABEL) in runs)
            if pods.RUN_LABEL not in selector or pods.RUN_LABEL in found["metadata"]["labels"]
        ]
        return json.loads(json.dumps(listed))  # type: ignore[no-any-return]

    def create(self, kind: str, body: Json) -> Json:
        self._answer()
        made = json.loads(json.dumps(body))
        key = (kind, made["metadata"]["name"])
        if kind == "pods" and self.refusal:
            raise self.refusal
        if key in self.objects:
            raise KubeError(f"{key} exists", 409)
        made["metadata"]["creationTimestamp"] = self.clock.stamp
        made["status"] = {"phase": "Pending"}
        self.objects[key] = made
        if kind == "pods":
            self.pods_made.append(made)
        return made  # type: ignore[no-any-return]

    def delete(self, kind: str, name: str, grace_s: int | None = None) -> None:
        self._answer()
        found = self.objects.get((kind, name))
        if found is None:
            return
        if kind == "pods" and grace_s != 0:
            found["metadata"].setdefault("deletionTimestamp", self.clock.stamp)
        else:
            del self.objects[(kind, name)]

    def watch(self, kind: str, selector: str = "", field: str = "") -> Iterator[Json]:
        raise KubeError("not watched here")

    def _answer(self) -> None:
        if self.away:
            raise KubeError("the Kubernetes API cannot be reached")

    # Its life

    def pods(self) -> Objects:
        """All pods that are there."""
        return [found for (kind, _), found in self.objects.items() if kind == "pods"]

    def step(self) -> None:
        """Every pod comes one step further."""
        for pod in self.pods():
            path = pod["metadata"]["annotations"][pods.TASK_ANNOTATION]
            attempt = self.started[path] - (pod["status"]["phase"] != "Pending")
            fates = self.fates.get(path, ["ok"])
            fate = fates[min(attempt, len(fates) - 1)]
            if pod["metadata"].get("deletionTimestamp"):
                if fate != "undead":
                    del self.objects[("pods", pod["metadata"]["name"])]
            elif fate.startswith("stuck "):
                pod["status"] = json.loads(fate.removeprefix("stuck "))
            elif pod["status"]["phase"] == "Pending":
                self.started[path] += 1
                main = pod["spec"]["containers"][0]
                self.commands[path] = [argument.replace("$$", "$") for argument in (*main["command"], *main["args"])]
                pod["status"] = {"phase": "Running", "containerStatuses": [_container("main", {"running": {}})]}
            elif pod["status"]["phase"] == "Running" and fate != "forever":
                self._end(pod, fate)

    def _end(self, pod: Json, fate: str) -> None:
        if fate == "vanish":
            del self.objects[("pods", pod["metadata"]["name"])]
        elif fate == "evict":
            pod["status"] = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory."}
        elif fate == "ok" and self.commands[pod["metadata"]["annotations"][pods.TASK_ANNOTATION]][0] != "fail":
            name = pod["metadata"]["name"]
            self.objects[(pods.RESULTS, name)] = pods.result(name, "uid", outputs(pod))
            pod["status"] = self._ended("Succeeded", main=0, wait=0)
        elif fate == "no report":
            pod["status"] = self._ended("Succeeded", main=0, wait=0)
        elif fate == "bad outputs":
            pod["status"] = self._ended("Failed", main=0, wait=1)
        else:
            pod["status"] = self._ended("Failed", main=1, wait=0)

    def _ended(self, phase: str, **codes: int) -> Json:
        return {
            "phase": phase,
            "containerStatuses": [
                _container(
                    name,
                    {
                        "terminated": {
                            "exitCode": code,
                            "reason": "Error" if code else "Completed",
                            "finishedAt": self.clock.stamp,
                            **({"message": "no rows"} if code and name == "wait" else {}),
                        }
                    },
                )
                for name, code in codes.items()
            ],
        }


def _container(name: str, state: Json) -> Json:
    return {"name": name, "state": state}


def orders(pod: Json) -> Json:
    """What our containers in a pod are told."""
    environment = {entry["name"]: entry.get("value") for entry in pod["spec"]["containers"][1]["env"]}
    found: Json = json.loads(environment["KFP_TASK"].replace("$$", "$"))
    return found


def outputs(pod: Json) -> Json:
    """What the programs of pipelines.py leave."""
    told = orders(pod)
    main = pod["spec"]["containers"][0]
    line = [argument.replace("$$", "$") for argument in (*main["command"], *main["args"])]
    programs: dict[str, Callable[[], Json]] = {
        "make": lambda: {"rows": int(line[line.index("--count") + 1])},
        "train": lambda: {"score": float(line[line.index("--rate") + 1]) * 10},
        "say": lambda: {"said": line[1]},
        "items": lambda: {"found": [{"n": 1, "label": "a"}, {"n": 2, "label": "b"}, {"n": 3, "label": "c"}]},
        "total": lambda: {"sum": sum(json.loads(line[1]))},
        "sh": lambda: dict.fromkeys(told["parameters"], 7),
    }
    artifacts = {
        name: {**artifact, "metadata": {"rows": 1, "kept": True}}
        for name, artifact in told["artifacts"].items()
        if name != pods.LOGS
    }
    return {"parameters": programs.get(line[0], dict)(), "artifacts": artifacts}


@dataclass
class World:
    """A store, a cluster, a clock, and the engine between them."""

    clock: Clock = field(default_factory=Clock)
    store: Store = field(default_factory=memory.store)
    limits: Limits = field(default_factory=Limits)
    site: pods.Site = field(default_factory=lambda: pods.Site("standin:1"))

    def __post_init__(self) -> None:
        self._submitted = 0
        self.cluster = Cluster(self.clock)
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        """As after a kill."""
        return Engine(self.store, self.cluster, self.site, self.clock, self.limits)

    def submit(self, name: str, caching: bool = True, **parameters: Any) -> Run:
        """A new run of a compiled pipeline."""
        self._submitted += 1
        content = (COMPILED / f"{name}.yaml").read_text()
        spec, *platform = yaml.safe_load_all(
            content if caching else content.replace("enableCache: true", "enableCache: false")
        )
        run = Run(
            display_name=f"{name} run",
            workflow=f"{name}-{self._submitted:05}",
            pipeline_spec=spec,
            platform_spec=platform[0] if platform else {},
            runtime_config={"parameters": parameters},
        )
        run.enter("PENDING")
        self.store.add_run(run)
        return run

    def step(self) -> None:
        """The engine's step, then the cluster's."""
        self.engine.tick()
        self.cluster.step()
        self.clock.now += 1

    def finish(self, run: Run, steps: int = 60) -> Run:
        """Go on until a run is final."""
        for _ in range(steps):
            self.step()
            found = self.run(run)
            if found.final:
                return found
        raise AssertionError(f"not final after {steps} steps: {self.states(run)}")

    def run(self, run: Run) -> Run:
        """A run as it is now."""
        found = self.store.run(run.run_id)
        assert found is not None
        return found

    def tasks(self, run: Run) -> dict[str, Task]:
        """The nodes of a run by their paths, without the first part."""
        return {
            row.state_json["path"].removeprefix("root."): row
            for row in self.store.tasks(run.run_id)
            if "path" in row.state_json
        }

    def states(self, run: Run) -> dict[str, str]:
        """States of the nodes by their paths."""
        return {path: row.state_json["state"] for path, row in self.tasks(run).items()}

    def outputs(self, run: Run, path: str) -> Json:
        """Output parameters of a task."""
        found: Json = self.tasks(run)[path].state_json["outputs"]["parameters"]
        return found

    def command(self, path: str) -> list[str]:
        """The command line that a task's pod had."""
        return self.cluster.commands[f"root.{path}"]

"""The site's Airflow as people use it: by its REST API at the front door, and by DAGs that come through Git."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from kubernetes.client.exceptions import ApiException

from .front_door import Answer, FrontDoor, eventually
from .git import Git
from .site import Site

Json = dict[str, Any]
NAMESPACE = "airflow"
# Its name at the front door.
HOST = "airflow"
DAG = "slipway_test"
FILE = f"dags/{DAG}.py"
TASKS = ("first", "second")
# What a task logs once it has done its work: to the last it can be killed, and then it must work again.
DONE = "the work is done"
FINAL = ("success", "failed")
# Seconds until a pushed DAG is there: half a minute to the next look into the repository, and the time to read it.
ARRIVAL = 180.0
# Seconds in which restarted programs answer again.
RECOVERY = 300.0
SOURCE = f'''\
"""What the tests of the site run; it is taken away when they are over."""

from datetime import timedelta

from airflow.sdk import Param, dag, task


@dag(schedule=None, params={{"seconds": Param(1, type="integer")}}, tags=["test"])
def {DAG}():
    @task(retries=3, retry_delay=timedelta(seconds=2))
    def first(params=None):
        import time

        for second in range(params["seconds"]):
            print(f"second {{second}}", flush=True)
            time.sleep(1)
        print("{DONE}", flush=True)

    @task(retries=3, retry_delay=timedelta(seconds=2))
    def second():
        print("{DONE}", flush=True)

    first() >> second()


{DAG}()
'''


class Airflow:
    """The API, as the user admin."""

    def __init__(self, site: Site, front_door: FrontDoor) -> None:
        self.site = site
        self.front_door = front_door
        self._token = ""

    def login(self, user: str = "admin", password: str = "") -> Answer:
        """What it answers to somebody who asks for a token; without a password, with that of admin."""
        body = {"username": user, "password": password or self.site.secret(NAMESPACE, "airflow-admin")["password"]}
        headers = {"Content-Type": "application/json"}
        return self.front_door.request("POST", HOST, "/auth/token", headers=headers, body=json.dumps(body).encode())

    def request(self, method: str, path: str, body: Json | None = None) -> Answer:
        """Ask below /api/v2 with the token of admin."""
        if not self._token:
            answer = self.login()
            assert answer.status == 201, f"login: {answer.status} {answer.text[:300]}"
            self._token = json.loads(answer.body)["access_token"]
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        if content:
            headers["Content-Type"] = "application/json"
        return self.front_door.request(method, HOST, f"/api/v2{path}", headers=headers, body=content)

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The same, and the answer's content; anything but success fails the test."""
        answer = self.request(method, path, body)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.text[:500]}"
        content: Json = json.loads(answer.body) if answer.body else {}
        return content

    def health(self) -> Json:
        """State of each part, as the start page asks for it."""
        content: Json = json.loads(self.front_door.get(HOST, "/api/v2/monitor/health").body)
        return {name: part["status"] for name, part in content.items()}

    def await_health(self) -> None:
        """Wait until every part is healthy."""

        def look() -> bool:
            found = self.health()
            assert set(found.values()) == {"healthy"}, found
            return True

        eventually(look, RECOVERY)

    def start(self, run: str, seconds: int = 1) -> Answer:
        """Start a run of the tests' DAG."""
        body = {"dag_run_id": run, "logical_date": None, "conf": {"seconds": seconds}}
        return self.request("POST", f"/dags/{DAG}/dagRuns", body)

    def await_end(self, run: str, timeout: float) -> str:
        """Wait for a run's end and return its state. While programs restart, nobody answers."""

        def look() -> str:
            found: str = self.call("GET", f"/dags/{DAG}/dagRuns/{quote(run)}")["state"]
            assert found in FINAL, f"run {run} is {found}: {self.tries(run)}"
            return found

        return eventually(look, timeout, interval=2)

    def runs(self) -> list[str]:
        """The names of all runs of the tests' DAG."""
        return [item["dag_run_id"] for item in self.call("GET", f"/dags/{DAG}/dagRuns?limit=100")["dag_runs"]]

    def tries(self, run: str) -> dict[str, tuple[str | None, int]]:
        """State and number of tries of each task."""
        listed = self.call("GET", f"/dags/{DAG}/dagRuns/{quote(run)}/taskInstances")["task_instances"]
        return {item["task_id"]: (item["state"], item["try_number"]) for item in listed}

    def log(self, run: str, task: str, number: int = 1) -> str:
        """The log of a try of a task, one line each."""
        path = f"/dags/{DAG}/dagRuns/{quote(run)}/taskInstances/{task}/logs/{number}?full_content=true"
        return "\n".join(str(line.get("event", line)) for line in self.call("GET", path)["content"])

    def await_log(self, run: str, task: str, text: str) -> None:
        """Wait until a task that runs has logged `text`."""

        def look() -> bool:
            found = self.log(run, task)
            assert text in found, found[-1000:]
            return True

        eventually(look, 180, interval=1)

    def worked(self, run: str, task: str) -> int:
        """How often a task came to its end, over all its tries."""
        count = self.tries(run)[task][1]
        return sum(self.log(run, task, number).count(DONE) for number in range(1, count + 1))

    def pods(self, selector: str) -> list[Any]:
        """Pods with these labels."""
        found: list[Any] = self.site.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
        return found

    def task_pods(self) -> list[Any]:
        """Those of the tests' tasks."""
        return self.pods(f"component=worker,dag_id={DAG}")

    @property
    def makes_pods(self) -> bool:
        """Whether each task has a pod."""
        config = self.site.core.read_namespaced_config_map("airflow-config", NAMESPACE).data["airflow.cfg"]
        return "executor = KubernetesExecutor" in config


def approver(site: Site) -> str:
    """A user of Git who may change dags/ on main."""
    settings = site.core.read_namespaced_config_map("git-settings", "git").data["settings.json"]
    approvers: list[str] = json.loads(settings)["approvers"]
    return approvers[0] if approvers else pytest.skip("git_users names no approver")


@pytest.fixture(scope="session")
def airflow_installed(site: Site) -> None:
    """Skips aloud where the site has no Airflow."""
    try:
        site.apps.read_namespaced_deployment("airflow-api-server", NAMESPACE)
    except ApiException as error:
        if error.status != 404:
            raise
        pytest.skip("the site has no Airflow")


@pytest.fixture(scope="session")
def airflow(site: Site, airflow_installed: None, front_door: FrontDoor) -> Airflow:
    """The site's Airflow."""
    return Airflow(site, front_door)


@pytest.fixture(scope="session")
def dag(airflow: Airflow, git: Git) -> Iterator[str]:
    """The tests' DAG: pushed and known to Airflow, with the commit that brought it; taken away at the end."""
    user = approver(airflow.site)
    with git.clone(user) as clone:
        if (clone.folder / FILE).exists() and (clone.folder / FILE).read_text() == SOURCE:
            commit = clone.head()
        else:
            commit = clone.commit("A DAG of the tests", {FILE: SOURCE})
            clone.push()

    def known() -> bool:
        answer = airflow.request("GET", f"/dags/{DAG}")
        errors = airflow.call("GET", "/importErrors")["import_errors"]
        assert answer.status == 200, f"{answer.status}; import errors: {errors}"
        return bool(json.loads(answer.body)["is_stale"] is False)

    eventually(known, ARRIVAL, interval=2)
    yield commit
    with git.clone(user) as clone:
        clone.commit("The tests are over", {FILE: None})
        clone.push()

    def stale() -> bool:
        return bool(json.loads(airflow.request("GET", f"/dags/{DAG}").body).get("is_stale", True))

    # One that is deleted while its file is there comes back.
    eventually(stale, ARRIVAL, interval=2)
    airflow.request("DELETE", f"/dags/{DAG}")

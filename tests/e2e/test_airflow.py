"""Airflow: who may in, DAGs by Git, runs and their logs, and that no run is lost or done twice when something dies under it."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from .airflow import DAG, DONE, FILE, HOST, NAMESPACE, TASKS, Airflow, approver
from .front_door import FrontDoor, eventually
from .git import Git
from .site import Site, Store

# What both kfp and Airflow's providers depend on, in versions that exclude each other.
PACKAGES = """
import importlib.util, json
from importlib.metadata import distributions
print(json.dumps([
    [name for name in ("kfp", "kfp_server_api", "airflow", "kubernetes", "slipway_dataops") if importlib.util.find_spec(name)],
    sorted(each.name for each in distributions() if each.name.lower().startswith("kfp")),
]))
"""


def name(case: str) -> str:
    """A run that no earlier test has started."""
    return f"{case}-{time.time_ns()}"


@pytest.mark.smoke
def test_every_part_is_healthy(airflow: Airflow) -> None:
    """Each tells so itself, some of them a while after they have begun."""
    healthy = dict.fromkeys(("metadatabase", "scheduler", "triggerer", "dag_processor"), "healthy")
    airflow.await_health()
    assert airflow.health() == healthy


@pytest.mark.smoke
def test_strangers_are_refused(airflow: Airflow, front_door: FrontDoor) -> None:
    """Without a token, with a wrong password, and with the chart's own."""
    for path in ("/api/v2/dags", "/api/v2/connections", "/api/v2/variables"):
        assert front_door.get(HOST, path).status == 401
    for user, password in (("admin", "wrong"), ("admin", "admin"), ("nobody", "nobody")):
        assert airflow.login(user, password).status == 401
    assert front_door.plain(HOST).status in (301, 308)


@pytest.mark.smoke
def test_people_get_the_page_of_the_login(airflow: Airflow, front_door: FrontDoor) -> None:
    """Over TLS, and what it leads to is at the same address over TLS."""
    answer = front_door.get(HOST, "/auth/login")
    while answer.status in (301, 302, 307, 308):
        location = answer.headers["location"]
        if "://" in location:
            assert location.startswith(f"https://{front_door.host(HOST)}/")
            location = location.removeprefix(f"https://{front_door.host(HOST)}")
        answer = front_door.get(HOST, location)
    assert answer.status == 200
    assert "password" in answer.text.lower()


@pytest.mark.smoke
def test_one_training_at_a_time(airflow: Airflow) -> None:
    """The pool's slot stays taken while a task waits for a trigger."""
    pool = airflow.call("GET", "/pools/training")
    assert pool["include_deferred"] is True
    assert pool["slots"] >= 1


@pytest.mark.smoke
def test_dags_can_be_read(airflow: Airflow) -> None:
    """Every file in the repository's dags/ is one that Airflow takes."""
    assert airflow.call("GET", "/importErrors")["import_errors"] == []


@pytest.mark.smoke
def test_the_image_has_no_kfp(site: Site, airflow_installed: None) -> None:
    """It would bring older versions of what Airflow's providers use."""
    command = [str(site.kubectl), "--kubeconfig", str(site.kubeconfig), "--namespace", NAMESPACE]
    command += ["exec", "deploy/airflow-api-server", "--container", "api-server", "--", "python3", "-c", PACKAGES]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    modules, distributions = json.loads(answer.stdout.splitlines()[-1])
    assert modules == ["airflow", "kubernetes", "slipway_dataops"]
    assert distributions == []


@pytest.mark.smoke
def test_no_password_is_in_a_command_line(site: Site, airflow_installed: None) -> None:
    """The chart would give that of admin as an argument."""
    password = site.secret(NAMESPACE, "airflow-admin")["password"]
    for pod in site.core.list_namespaced_pod(NAMESPACE).items:
        for container in pod.spec.containers:
            assert password not in " ".join([*(container.command or []), *(container.args or [])]), pod.metadata.name


def test_airflow_only_reads_the_repository(airflow: Airflow, git: Git, dag: str) -> None:
    """Its user pushes nothing, and who is no approver changes no DAG on main."""
    with git.clone("airflow") as clone:
        clone.commit("Not by Airflow", {FILE: "x = 1\n"})
        clone.refused()
    writers = [key.removesuffix(".write") for key in airflow.site.secret("git", "git-users") if key.endswith(".write")]
    for user in [each for each in writers if each != approver(airflow.site)][:1]:
        with git.clone(user) as clone:
            clone.commit("Not by everybody", {FILE: "x = 1\n"})
            assert "dags/: only approvers may change this on main" in clone.refused()


def test_a_run_and_its_logs(airflow: Airflow, dag: str, site: Site) -> None:
    """A run goes through, with the commit's code; its logs are there when its pods are gone, from MinIO.

    Whoever is unsure whether it began may ask again with the same name.
    """
    run = name("plain")
    assert [airflow.start(run).status for _ in range(2)] == [200, 409]
    assert airflow.await_end(run, 300) == "success", airflow.tries(run)
    found = airflow.call("GET", f"/dags/{DAG}/dagRuns/{run}")
    with_commit = {found["bundle_version"], *(each["bundle_version"] for each in found["dag_versions"])}
    assert all(len(each) == 40 for each in with_commit)
    assert airflow.runs().count(run) == 1

    eventually(lambda: not airflow.task_pods(), 120)
    for task in TASKS:
        assert DONE in airflow.log(run, task)
    with Store.open(site, NAMESPACE, "minio-airflow") as store:
        for task in TASKS:
            kept = store.read("airflow-logs", f"dag_id={DAG}/run_id={run}/task_id={task}/attempt=1.log").decode()
            assert DONE in kept


def _die(airflow: Airflow, what: str) -> None:
    """Kill the pods of a part, without giving them time for anything."""
    if what == "worker" and not airflow.makes_pods:
        pytest.skip("with this executor tasks have no pods of their own")
    namespace, selector = {
        "scheduler": (NAMESPACE, "component=scheduler"),
        "worker": (NAMESPACE, f"component=worker,dag_id={DAG}"),
        "api-server": (NAMESPACE, "component=api-server"),
        "postgresql": ("postgresql", "app.kubernetes.io/name=postgresql"),
    }[what]
    core = airflow.site.core
    found = core.list_namespaced_pod(namespace, label_selector=selector).items
    if what == "postgresql" and not found:
        # It is somebody else's.
        return
    assert found, f"no pod of {what}"
    for pod in found:
        core.delete_namespaced_pod(pod.metadata.name, namespace, grace_period_seconds=0)


@pytest.mark.fault
@pytest.mark.parametrize("lost", ["worker", "scheduler", "api-server postgresql"])
def test_no_run_is_lost_or_done_twice(airflow: Airflow, dag: str, lost: str) -> None:
    """Whatever dies while a task works: the run ends well, is one run, and each task came to its end once.

    A run that is started meanwhile is not forgotten.
    """
    run, early = name("run"), name("early")
    # Long enough for the programs to die and come back under it.
    assert airflow.start(run, seconds=10 if lost == "worker" else 30).status == 200
    # The work has begun, and there is most of it left.
    eventually(lambda: airflow.tries(run).get("first", (None, 0))[0] == "running", 180, interval=1)
    if airflow.makes_pods:
        airflow.await_log(run, "first", "second 3")
    for what in lost.split():
        _die(airflow, what)
    runs = [run]
    if lost == "scheduler":
        assert airflow.start(early).status == 200
        runs.append(early)

    for each in runs:
        assert airflow.await_end(each, 600) == "success", airflow.tries(each)
    eventually(lambda: not airflow.task_pods(), 120)
    for each in runs:
        assert airflow.runs().count(each) == 1
        assert {task: airflow.worked(each, task) for task in TASKS} == dict.fromkeys(TASKS, 1)
    tries = airflow.tries(run)
    if lost == "worker":
        assert tries["first"] == ("success", 2)
    elif airflow.makes_pods:
        # What has a pod of its own goes on without the others.
        assert tries["first"] == ("success", 1)


@pytest.mark.fault
def test_all_of_it_is_well_again(airflow: Airflow) -> None:
    """After what the test before has killed."""
    airflow.await_health()

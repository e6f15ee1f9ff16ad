"""What is in Git runs in the cluster, prod waits for an approval, and what must not be is refused and said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from .argocd import NAMESPACE, PREFIX, Argo, as_yaml, ingress
from .front_door import FrontDoor, eventually
from .site import Site

APP = PREFIX


@pytest.fixture(scope="module")
def cleaned(argo: Argo) -> Iterator[None]:
    """What the tests commit is not there before and not afterwards."""
    argo.clean()
    yield
    argo.clean()


@pytest.fixture(scope="module")
def model(argo: Argo, cleaned: None) -> str:
    """The commit of an application that runs in dev."""
    commit = argo.push(f"{APP}: version 1", argo.application_files(APP, "version 1"))
    argo.await_application(f"{APP}-{argo.dev}", commit)
    return commit


def session(front_door: FrontDoor, password: str) -> tuple[int, dict[str, Any]]:
    """Log in as admin over the front door."""
    answer = front_door.request(
        "POST",
        "argocd",
        "/api/v1/session",
        headers={"Content-Type": "application/json"},
        body=json.dumps({"username": "admin", "password": password}).encode(),
    )
    return answer.status, json.loads(answer.body)


@pytest.mark.smoke
def test_people_log_in(site: Site, argocd_installed: None, front_door: FrontDoor) -> None:
    """With the generated password only; strangers see no application and their messages of pushes are not heard."""
    password = site.secret(NAMESPACE, "argocd-initial-admin-secret")["password"]
    status, answer = session(front_door, password)
    assert status == 200, status
    bearer = {"Authorization": f"Bearer {answer['token']}"}
    listed = front_door.get("argocd", "/api/v1/applications?fields=items.metadata.name", headers=bearer)
    assert "platform" in [item["metadata"]["name"] for item in json.loads(listed.body)["items"]]
    assert session(front_door, "wrong")[0] == 401
    assert front_door.get("argocd", "/api/v1/applications").status == 401
    if "webhook.github.secret" not in site.secret(NAMESPACE, "argocd-secret"):
        return
    push = json.dumps({"ref": "refs/heads/main", "repository": {"html_url": "http://git.git/platform"}}).encode()
    headers = {"X-GitHub-Event": "push", "Content-Type": "application/json"}
    assert front_door.request("POST", "argocd", "/api/webhook", headers=headers, body=push).status == 400


@pytest.mark.smoke
def test_no_password_is_in_a_command_line(site: Site, argocd_installed: None) -> None:
    """Redis has one; upstream gives it as an argument."""
    password = site.secret(NAMESPACE, "argocd-redis")["auth"]
    for pod in site.core.list_namespaced_pod(NAMESPACE).items:
        for container in pod.spec.containers:
            words = " ".join([*(container.command or []), *(container.args or [])])
            assert password not in words and "$(REDIS_PASSWORD)" not in words, pod.metadata.name


def test_a_commit_arrives_in_dev(argo: Argo, model: str) -> None:
    """The application answers at the front door, over TLS that is checked, in a namespace of its own."""
    argo.await_page(APP, argo.dev, "version 1")
    labels = argo.site.core.read_namespace(f"{APP}-{argo.dev}").metadata.labels
    assert labels["pod-security.kubernetes.io/enforce"] in ("baseline", "restricted")


def test_prod_waits_for_approvals(argo: Argo, model: str) -> None:
    """Nothing is in prod without one, each version needs its own, and the revert of one brings the version before back."""
    assert argo.application(f"{APP}-{argo.prod}") is None
    argo.approve(APP, model)
    argo.await_application(f"{APP}-{argo.prod}", model)
    argo.await_page(APP, argo.prod, "version 1")

    second = argo.push(f"{APP}: version 2", argo.application_files(APP, "version 2"))
    argo.await_page(APP, argo.dev, "version 2")
    assert argo.page(APP, argo.prod) == "version 1"
    approval = argo.approve(APP, second)
    argo.await_page(APP, argo.prod, "version 2")

    argo.revert(approval)
    argo.await_page(APP, argo.prod, "version 1")
    shown = argo.await_application(f"{APP}-{argo.prod}", model)
    assert shown["metadata"]["annotations"]["slipway/approved-by"] == argo.approver
    assert argo.page(APP, argo.dev) == "version 2"


def test_drift_is_shown_and_healed(argo: Argo, site: Site, model: str) -> None:
    """What was scaled by hand or deleted is as Git says again, and the Application's events tell that it was not."""
    name, namespace = f"{APP}-{argo.dev}", f"{APP}-{argo.dev}"
    argo.await_application(name)
    since = time.time()
    site.core.delete_namespaced_service("server", namespace)
    site.apps.patch_namespaced_deployment("server", namespace, {"spec": {"replicas": 0}})

    def healed() -> bool:
        site.core.read_namespaced_service("server", namespace)
        return bool(site.apps.read_namespaced_deployment("server", namespace).spec.replicas == 1)

    eventually(healed, 30)

    def shown() -> bool:
        events = site.core.list_namespaced_event(NAMESPACE, field_selector=f"involvedObject.name={name}").items
        recent = [event.message for event in events if event.last_timestamp.timestamp() >= since - 1]
        assert any("-> OutOfSync" in message for message in recent), recent
        return True

    eventually(shown, 30)
    argo.await_application(name)


def test_what_must_not_be_is_refused(argo: Argo, site: Site, model: str) -> None:
    """Rights in the cluster, another's namespace, the platform's own: said at the Application, and the others go on."""
    rights = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": PREFIX}}
    foreign = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": PREFIX, "namespace": "minio"}}
    grab = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "minio", "labels": {PREFIX: "x"}}}
    at_git = ingress(argo.front_door.host("git"))
    anywhere = ingress("*." + argo.front_door.domain)
    refused = {
        f"{PREFIX}-passwords": (at_git, "needs a host of its own"),
        f"{PREFIX}-anywhere": (anywhere, "needs a host of its own"),
        f"{PREFIX}-rights": (rights, "ClusterRole is not permitted in project"),
        f"{PREFIX}-foreign": (foreign, "namespace minio is not permitted in project"),
        f"{PREFIX}-grab": (grab, "belongs to the platform"),
    }
    files: dict[str, str | None] = {
        f"apps/{app}/{argo.dev}/it.yaml": as_yaml(**item) for app, (item, _) in refused.items()
    }
    commit = argo.push("What must not be", {**files, **argo.application_files(APP, "version 3")})
    for app, (_, message) in refused.items():

        def said(name: str = f"{app}-{argo.dev}", message: str = message) -> bool:
            assert message in argo.complaints(name), f"{name}: {argo.complaints(name)!r}"
            return True

        eventually(said, 60)
    argo.await_application(f"{APP}-{argo.dev}", commit)
    argo.await_page(APP, argo.dev, "version 3")
    assert PREFIX not in (site.core.read_namespace("minio").metadata.labels or {})
    assert PREFIX not in [item.metadata.name for item in site.core.list_namespaced_config_map("minio").items]


def test_waves_wait_for_one_another(argo: Argo, site: Site, cleaned: None) -> None:
    """An Application of wave 1 is made only when that of wave 0 is healthy, which takes its pod some seconds."""
    files: dict[str, str | None] = {}
    for wave in (0, 1):
        name = f"{PREFIX}-wave-{wave}"
        source = {"repoURL": "http://git.git/platform.git", "targetRevision": "main", "path": f"platform/{name}"}
        files[f"platform/{name}.yaml"] = as_yaml(
            apiVersion="argoproj.io/v1alpha1",
            kind="Application",
            metadata={"name": name, "annotations": {"argocd.argoproj.io/sync-wave": str(wave)}},
            spec={
                "project": "platform",
                "source": source,
                "destination": {"server": "https://kubernetes.default.svc", "namespace": name},
                "syncPolicy": {"automated": {"prune": True}, "syncOptions": ["CreateNamespace=true"]},
            },
        )
        server, _ = argo.server()
        container = server["spec"]["template"]["spec"]["containers"][0]
        container |= {"readinessProbe": {**container["readinessProbe"], "initialDelaySeconds": 6}, "volumeMounts": []}
        container["command"] = ["python3", "-m", "http.server", "8080"]
        server["spec"]["template"]["spec"]["volumes"] = []
        files[f"platform/{name}/server.yaml"] = as_yaml(**server)
    argo.push("Two waves", files, argo.approver)
    first = argo.await_application(f"{PREFIX}-wave-0")
    second = argo.await_application(f"{PREFIX}-wave-1")
    ready = site.apps.read_namespaced_deployment("server", f"{PREFIX}-wave-0").status.conditions
    available = next(item.last_update_time for item in ready if item.type == "Available")
    assert first["metadata"]["creationTimestamp"] < second["metadata"]["creationTimestamp"]
    assert second["metadata"]["creationTimestamp"] >= available.strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.fault
def test_applications_outlive_argo_cd(argo: Argo, site: Site, model: str) -> None:
    """While every pod of Argo CD is killed the application answers; afterwards it is still known, and commits arrive again."""
    name = f"{APP}-{argo.dev}"
    before = argo.await_application(name)["metadata"]["uid"]
    page = argo.page(APP, argo.dev)
    assert page
    old = {pod.metadata.uid for pod in site.core.list_namespaced_pod(NAMESPACE).items}
    site.core.delete_collection_namespaced_pod(
        NAMESPACE, label_selector="app.kubernetes.io/name", grace_period_seconds=0
    )

    def back() -> bool:
        assert argo.page(APP, argo.dev) == page
        pods = site.core.list_namespaced_pod(NAMESPACE, label_selector="app.kubernetes.io/name").items
        assert not old & {pod.metadata.uid for pod in pods}
        states = {pod.metadata.name: [item.ready for item in pod.status.container_statuses or []] for pod in pods}
        assert len(pods) >= 5 and all(state == [True] for state in states.values()), states
        return True

    eventually(back, 120)
    assert argo.await_application(name)["metadata"]["uid"] == before
    commit = argo.push(f"{APP}: version 4", argo.application_files(APP, "version 4"))
    argo.await_application(name, commit)
    argo.await_page(APP, argo.dev, "version 4")

"""A tenant of MinIO gets another key while its clients go on, whatever interrupts it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from ansible.module_utils.slipway import minio_rotation, secrets
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json
from ansible.module_utils.slipway.minio_access import Login, Tenant, plan
from ansible.module_utils.slipway.minio_rotation import STATE, Holder, Rotation, state

from .fakes import Clock, FakeKube
from .test_minio_access import FakeMinio

HOLDER = Holder("epos", "minio-epos", ("epos", "airflow", "epos-dev"))
TENANT = Tenant("epos", ("datasets",), "epos", "minio-epos")
PLACE = secrets.path("epos", "minio-epos")
ENVIRONMENT = {"containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "minio-epos", "key": "secretKey"}}}]}]}
FROM = {"containers": [], "initContainers": [{"envFrom": [{"secretRef": {"name": "minio-epos"}}]}]}
MOUNTED = {"containers": [{}], "volumes": [{"secret": {"secretName": "minio-epos"}}]}
OTHER = {"containers": [{"env": [{"name": "PLAIN", "value": "1"}]}], "volumes": [{"emptyDir": {}}]}


class Cluster(FakeKube):
    """One with the tenant's Secret, pods and workloads."""

    def __init__(self) -> None:
        super().__init__()
        self.login = Login("epos", "first-key-of-epos")
        keys = [secrets.Key("accessKey", value="epos"), secrets.Key("secretKey", value=self.login.secret_key)]
        secrets.ensure(self, "epos", "minio-epos", keys, {})
        for namespace in HOLDER.namespaces:
            self.objects[f"/api/v1/namespaces/{namespace}/pods"] = {"items": []}

    def pods(self, namespace: str) -> list[Json]:
        found: list[Json] = self.objects[f"/api/v1/namespaces/{namespace}/pods"]["items"]
        return found

    def add_pod(self, namespace: str, name: str, spec: Json, owner: str = "ReplicaSet", phase: str = "Running") -> None:
        owners = [{"kind": owner}] if owner else []
        metadata = {"name": name, "uid": f"uid-{name}", "ownerReferences": owners}
        self.pods(namespace).append({"metadata": metadata, "spec": spec, "status": {"phase": phase}})

    def add_deployment(self, namespace: str, name: str, spec: Json) -> str:
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        item: Json = {"metadata": {"name": name, "resourceVersion": "1"}, "spec": {"template": {"spec": spec}}}
        self.objects.setdefault(path, {"items": []})["items"].append(item)
        self.objects[f"{path}/{name}"] = item
        return f"{path}/{name}"

    @property
    def current(self) -> Login:
        data = self.objects[PLACE]["data"]
        return Login(*(base64.b64decode(data[key]).decode() for key in ("accessKey", "secretKey")))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name, value in (("time", clock), ("monotonic", clock), ("sleep", clock.sleep)):
        monkeypatch.setattr(f"ansible.module_utils.slipway.minio_rotation.time.{name}", value)
    return clock


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def store(cluster: Cluster) -> FakeMinio:
    made = FakeMinio()
    for change in plan(made, [TENANT], {"epos": cluster.login}):
        change.do(made)
    return made


def rotation(cluster: Cluster, store: FakeMinio, check: bool = False) -> Rotation:
    return Rotation(cluster, store, check)


def test_both_keys_are_good_until_nobody_has_the_former_one(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    for before, after in (("epos", "epos.2"), ("epos.2", "epos")):
        former, rotating = cluster.current, rotation(cluster, store)
        assert former.access_key == before
        rotating.begin(HOLDER)
        assert cluster.current.access_key == after
        assert cluster.current.secret_key != former.secret_key
        assert len(cluster.current.secret_key) == 40
        assert store.accepts(former) and store.accepts(cluster.current)
        assert store.users[after].policies == {"epos"}
        # An installation in the middle of it leaves both.
        assert plan(store, [TENANT], {"epos": cluster.current}, {"epos"}) == []
        rotating.hand_over(HOLDER)
        rotating.end(HOLDER, 1)
        assert set(store.users) == {after}
        assert STATE not in cluster.objects[PLACE]["metadata"]["annotations"]
        assert rotating.changes == [
            "tenant epos: second key made, Secret epos/minio-epos has it",
            "tenant epos: former key removed",
        ]


def test_workloads_start_anew_and_their_pods_are_awaited(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    serving = cluster.add_deployment("epos-dev", "epos", ENVIRONMENT)
    others = cluster.add_deployment("epos-dev", "other", OTHER)
    cared_for = cluster.add_deployment("airflow", "scheduler", FROM)
    cluster.add_pod("epos-dev", "serving", ENVIRONMENT)
    cluster.add_pod("epos-dev", "other", OTHER)
    cluster.add_pod("airflow", "scheduler", FROM)
    # A run may have read the Secret by the API.
    cluster.add_pod("airflow", "run", OTHER, owner="Workflow")
    cluster.add_pod("airflow", "done", ENVIRONMENT, owner="Job", phase="Succeeded")
    rotating = rotation(cluster, store)
    rotating.begin(HOLDER)
    rotating.hand_over(HOLDER, owned=["airflow"])
    assert rotating.changes[1:] == ["epos-dev/epos restarted"]
    annotations: Json = cluster.objects[serving]["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations
    assert all("metadata" not in cluster.objects[path]["spec"]["template"] for path in (others, cared_for))
    assert state(cluster.objects[PLACE])["pods"] == ["uid-scheduler", "uid-serving"]
    # Meanwhile components are installed, whose new pods have the second key.
    cluster.add_pod("airflow", "scheduler-2", FROM)
    with pytest.raises(SlipwayError) as error:
        rotating.end(HOLDER, 5)
    assert str(error.value) == (
        "tenant epos: pods that may have the former key still run after 5 s: airflow/scheduler, airflow/run, epos-dev/serving. Both keys "
        "are valid, nothing is broken. Run it again when they have ended, or end them"
    )
    assert store.accepts(cluster.login) and store.accepts(cluster.current)
    for namespace in ("airflow", "epos-dev"):
        cluster.pods(namespace).clear()
    cluster.add_pod("airflow", "scheduler-2", FROM)
    cluster.add_pod("airflow", "run-2", OTHER, owner="Workflow")
    cluster.add_pod("epos-dev", "serving-2", ENVIRONMENT)
    writes = len(cluster.writes)
    again = rotation(cluster, store)
    for step in (again.begin, again.hand_over):
        step(HOLDER)
    assert len(cluster.writes) == writes
    again.end(HOLDER, 5)
    assert again.changes == ["tenant epos: former key removed"]
    assert not store.accepts(cluster.login)


def test_files_in_pods_are_given_time(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    cluster.add_pod("airflow", "archiver", MOUNTED, owner="StatefulSet")
    rotating = rotation(cluster, store)
    rotating.begin(HOLDER)
    rotating.hand_over(HOLDER)
    rotating.end(HOLDER, 5)
    assert clock.now >= minio_rotation.REFRESH


@pytest.mark.parametrize("lost", ["set_user", "attach"])
def test_an_interruption_before_the_secret_costs_nothing(
    cluster: Cluster, store: FakeMinio, clock: Clock, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, lost, interrupted)
        with pytest.raises(KeyboardInterrupt):
            rotation(cluster, store).begin(HOLDER)
    assert cluster.current == cluster.login and store.accepts(cluster.login)
    for step in steps(rotation(cluster, store)):
        step()
    assert set(store.users) == {"epos.2"} and store.accepts(cluster.current)


def steps(rotating: Rotation) -> list[Callable[[], None]]:
    return [
        lambda: rotating.begin(HOLDER),
        lambda: rotating.hand_over(HOLDER),
        lambda: rotating.end(HOLDER, 1),
    ]


def test_check_mode_only_says_it(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    before, users = json.dumps(cluster.objects), dict(store.users)
    checked = rotation(cluster, store, check=True)
    for step in steps(checked):
        step()
    assert checked.changes == ["tenant epos: second key made, Secret epos/minio-epos has it"]
    assert (json.dumps(cluster.objects), store.users) == (before, users)


def test_what_is_not_installed_is_named(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    with pytest.raises(SlipwayError, match=r"there is no Secret epos/other; run site\.yml first"):
        rotation(cluster, store).begin(Holder("epos", "other", ("epos",)))
    store.users.clear()
    with pytest.raises(SlipwayError, match=r"has no accessKey of a user in MinIO; run site\.yml first"):
        rotation(cluster, store).begin(HOLDER)


def test_no_key_is_shown(cluster: Cluster, store: FakeMinio, clock: Clock) -> None:
    rotating = rotation(cluster, store)
    rotating.begin(HOLDER)
    assert rotating.secret_keys == {cluster.current.secret_key}
    assert cluster.current.secret_key not in repr(rotating) + json.dumps(cluster.objects[PLACE]["metadata"])

"""How the suite has models made, and when it believes that one is current."""

from __future__ import annotations

import io
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException
from minio.error import S3Error

from tests.e2e import training
from tests.e2e.pipelines import Pipelines
from tests.e2e.training import (
    DATA,
    PARAMETERS,
    Way,
    adopt,
    find_way,
    ingredients,
    is_current,
    lineage,
    read_record,
    write_record,
)

HERE = Way(namespace="kubeflow-pipelines")
JOB = Way(reason="the site has no argocd of its own")
DOMAIN = "lab.internal"


class Objects:
    """A store in memory."""

    def __init__(self, objects: dict[str, Any]) -> None:
        self.objects = {key: json.dumps(value).encode() for key, value in objects.items()}
        self.client: Any = self

    def read(self, bucket: str, name: str) -> bytes:
        """Content of an object."""
        if f"{bucket}/{name}" not in self.objects:
            raise S3Error(None, "NoSuchKey", "", "", "", "")  # type: ignore[arg-type]
        return self.objects[f"{bucket}/{name}"]

    def stat_object(self, bucket_name: str, object_name: str) -> None:
        """Fails where there is none."""
        self.read(bucket_name, object_name)

    def list_objects(self, bucket_name: str, prefix: str, recursive: bool) -> list[Any]:
        """What lies below a prefix."""
        assert recursive
        below = [name.removeprefix(f"{bucket_name}/") for name in sorted(self.objects)]
        return [SimpleNamespace(object_name=name) for name in below if name.startswith(prefix)]

    def put_object(self, bucket_name: str, object_name: str, data: io.BytesIO, length: int) -> None:
        """Write an object."""
        self.objects[f"{bucket_name}/{object_name}"] = data.read(length)

    def latest(self) -> Any:
        """The pointer."""
        found = self.objects.get("epos-models/models/latest.json")
        return json.loads(found) if found else None


def fake_site(*there: str) -> Any:
    """A site with these of service, argocd, git, page, application, airflow."""

    def read(name: str) -> Any:
        def answer(*_: Any, **__: Any) -> Any:
            if name not in there:
                raise ApiException(status=404)
            return SimpleNamespace()

        return answer

    def deployment(name: str, namespace: str) -> Any:
        return read({"argocd-server": "argocd", "git": "git", "airflow-api-server": "airflow"}[name])()

    servers = [SimpleNamespace(metadata=SimpleNamespace(namespace="kubeflow-pipelines"))] if "service" in there else []
    return SimpleNamespace(
        manifest={"images": {"epos": "registry/epos:1"}},
        core=SimpleNamespace(list_service_for_all_namespaces=lambda field_selector: SimpleNamespace(items=servers)),
        apps=SimpleNamespace(read_namespaced_deployment=deployment),
        networking=SimpleNamespace(read_namespaced_ingress=read("page")),
        custom=SimpleNamespace(get_namespaced_custom_object=read("application")),
    )


ALL = ("service", "argocd", "git", "page", "application")


def test_the_pipeline_releases_where_everything_is_there() -> None:
    components = ["kubeflow_pipelines", "argocd", "git", "front_door"]
    assert find_way(fake_site(*ALL), components) == find_way(fake_site(*ALL), []) == HERE
    assert str(HERE) == "the pipeline"


@pytest.mark.parametrize(
    ("lost", "name"), [("service", "kubeflow_pipelines"), ("argocd", "argocd"), ("git", "git"), ("page", "front_door")]
)
def test_a_job_trains_where_something_is_left_out(lost: str, name: str) -> None:
    way = find_way(fake_site(*(each for each in ALL if each != lost)), ["minio"])
    assert way.namespace == ""
    assert str(way) == f"a Kubernetes Job: the site has no {name} of its own"


def test_a_component_that_must_be_there_is_missed() -> None:
    with pytest.raises(AssertionError, match="names kubeflow_pipelines, and the cluster has none of it"):
        find_way(fake_site("argocd", "git", "page"), ["minio", "kubeflow_pipelines"])
    with pytest.raises(AssertionError, match="names airflow, and the cluster has none of it"):
        find_way(fake_site(*ALL), ["git", "airflow"])
    # The inventory's component git may be a repository elsewhere.
    assert find_way(fake_site("service", "argocd", "page"), ["kubeflow_pipelines", "git"]).reason.endswith(
        "no git of its own"
    )


def test_another_failure_of_the_api_is_no_missing_component() -> None:
    site = fake_site(*ALL)

    def refuse(*_: Any) -> Any:
        raise ApiException(status=403)

    site.apps.read_namespaced_deployment = refuse
    with pytest.raises(ApiException):
        find_way(site, [])


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiled pipeline in place of ours."""
    path = tmp_path / "pipeline.yaml"
    path.write_text("one")
    monkeypatch.setattr(training, "compiled", lambda name: path)
    return path


@pytest.fixture
def store(pipeline: Path) -> Any:
    """A store with a model that is current, made by the pipeline."""
    pointer = {"version": "v1", "prefix": "models/v1/", "data_hash": "d1"}
    return Objects(
        {
            "epos-models/models/latest.json": pointer,
            "epos-models/models/v1/manifest.json": {},
            "epos-models/models/verified.json": {
                "version": "v1",
                "data": DATA,
                "pipeline_version": "p1",
                **ingredients(fake_site(*ALL), HERE, DOMAIN),
            },
            "epos-data/lab/manifest.json": {"data_hash": "d1"},
            "epos-data/lab/test_targets_bop19.json": [],
        }
    )


def test_a_current_model_is_not_made_again(store: Any) -> None:
    assert is_current(fake_site(*ALL), store, HERE, DOMAIN)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epos-models/models/latest.json", {"version": "v2", "prefix": "models/v2/", "data_hash": "d1"}),
        ("epos-models/models/latest.json", {"version": "v1", "prefix": "models/v1/", "data_hash": "d2"}),
        ("epos-data/lab/manifest.json", {"data_hash": "d2"}),
        ("epos-data/lab/manifest.json", None),
        ("epos-models/models/v1/manifest.json", None),
        ("epos-models/models/verified.json", None),
        ("epos-models/models/latest.json", None),
    ],
)
def test_another_model_or_other_data_are_noticed(store: Any, key: str, value: Any) -> None:
    if value is None:
        del store.objects[key]
    else:
        store.objects[key] = json.dumps(value).encode()
    assert not is_current(fake_site(*ALL), store, HERE, DOMAIN)


def test_whatever_changes_the_model_is_noticed(store: Any, pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = fake_site(*ALL)
    assert not is_current(site, store, JOB)
    assert not is_current(site, store, HERE, "other.internal")
    assert not is_current(fake_site("service", "argocd", "git", "page"), store, HERE, DOMAIN), (
        "the repository is a new one"
    )
    site.manifest["images"]["epos"] = "registry/epos:2"
    assert not is_current(site, store, HERE, DOMAIN)
    site.manifest["images"]["epos"] = "registry/epos:1"
    with monkeypatch.context() as changed:
        changed.setitem(PARAMETERS, "train_steps", "1")
        assert not is_current(site, store, HERE, DOMAIN)
    pipeline.write_text("two")
    assert not is_current(site, store, HERE, DOMAIN)
    pipeline.write_text("one")
    assert is_current(site, store, HERE, DOMAIN)


CHAIN = {
    "split": {"location": "s3://epos-data/dataops/sets/d2", "hash": "d2"},
    "run": {"run_id": "r2", "version_id": "p1"},
    "model": {"verdict": "released", "version": "v2"},
}


@pytest.fixture
def dropped(store: Any) -> Any:
    """The same store, after dropped data have led to a better model."""
    pointer = {"version": "v2", "prefix": "models/v2/", "data_hash": "d2", "registered_by": "r2", "commit": "c2"}
    rejected = {**CHAIN, "model": {"verdict": "rejected", "version": "v2"}}
    store.objects |= Objects(
        {
            "epos-models/models/latest.json": {**pointer, "metrics": {"recall": 0.7}},
            "epos-models/models/v2/manifest.json": {},
            "epos-models/models/v2/card.json": {"built_with": {"device": "cpu", "gpus": []}},
            "epos-data/dataops/sets/d2/manifest.json": {"data_hash": "d2"},
            "epos-data/dataops/sets/d2/test_targets_bop19.json": [],
            "epos-data/dataops/records/a/1.json": rejected,
            "epos-data/dataops/records/b/2.json": CHAIN,
        }
    ).objects
    return store


def test_a_model_of_the_data_operations_is_verified_like_ours(dropped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = fake_site(*ALL)
    assert not is_current(site, dropped, HERE, DOMAIN)
    assert lineage(site, dropped, HERE, DOMAIN) == CHAIN
    ended = {
        "run_id": "r2",
        "created_at": "2026-01-01T00:00:00Z",
        "finished_at": "2026-01-01T00:01:00Z",
        "pipeline_version_reference": {"pipeline_version_id": "p1"},
    }
    pipelines = nullcontext(SimpleNamespace(run={"r2": ended}.__getitem__))
    monkeypatch.setattr(Pipelines, "open", lambda site, namespace: pipelines)
    monkeypatch.setattr(training, "steps", lambda path: [])
    door: Any = SimpleNamespace(domain=DOMAIN, host=lambda name: name)
    record = adopt(site, dropped, HERE, door, CHAIN)
    told = {
        "version": "v2",
        "data": "s3://epos-data/dataops/sets/d2",
        "data_hash": "d2",
        "run_id": "r2",
        "commit": "c2",
    }
    assert told.items() <= record.items()
    assert record["run_seconds"] == record["train_seconds"] == 60
    # From now on it is the verified one.
    write_record(dropped, record)
    assert is_current(site, dropped, HERE, DOMAIN)
    assert lineage(site, dropped, HERE, DOMAIN) == CHAIN


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epos-data/dataops/records/b/2.json", {**CHAIN, "run": {"run_id": "r2", "version_id": "p0"}}),
        ("epos-data/dataops/records/b/2.json", {**CHAIN, "run": {"run_id": "r1", "version_id": "p1"}}),
        ("epos-data/dataops/records/b/2.json", {**CHAIN, "model": {"verdict": "unknown"}}),
        ("epos-data/dataops/sets/d2/manifest.json", {"data_hash": "d3"}),
        ("epos-models/models/latest.json", {"metrics": {"recall": 0.4}}),
        ("epos-models/models/verified.json", {"image": "registry/epos:0"}),
        ("epos-data/dataops/sets/d2/test_targets_bop19.json", None),
    ],
)
def test_a_model_of_unknown_making_is_not(dropped: Any, key: str, value: Any) -> None:
    if value is None:
        del dropped.objects[key]
    else:
        dropped.objects[key] = json.dumps({**json.loads(dropped.objects[key]), **value}).encode()
    assert lineage(fake_site(*ALL), dropped, HERE, DOMAIN) == {}


def test_a_job_has_its_own_ingredients(store: Any) -> None:
    site = fake_site()
    write_record(store, {"version": "v1", "data": DATA, **ingredients(site, JOB)})
    assert read_record(store)["arguments"] == training.ARGUMENTS
    assert is_current(site, store, JOB)
    assert not is_current(fake_site(*ALL), store, HERE, DOMAIN)


def test_a_part_of_a_data_set_names_no_image_that_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "HELD_OUT", 1)
    scene: dict[str, Any] = {"0": {}, "1": {}}
    files = ["camera.json", "train/000001/rgb/000000.png"]
    for number in (1, 2):
        folder = f"test/{number:06d}"
        files += [f"{folder}/scene_gt.json", *(f"{folder}/{kind}" for kind in ("rgb/000000.png", "rgb/000001.png"))]
    store = Objects({f"epos-data/lab/{name}": scene for name in files})
    targets = [{"scene_id": 1, "im_id": 1, "obj_id": 1}, {"scene_id": 2, "im_id": 0, "obj_id": 1}]
    for name, content in {"manifest": {"files": files}, "test_targets_bop19": targets}.items():
        store.objects[f"epos-data/lab/{name}.json"] = json.dumps(content).encode()
    training.download_images(store, tmp_path)  # type: ignore[arg-type]
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {
        "camera.json": json.dumps(scene),
        "test/000001/rgb/000001.png": json.dumps(scene),
        "test/000001/scene_gt.json": '{"1": {}}',
        "test/000002/scene_gt.json": "{}",
        "test_targets_bop19.json": json.dumps(targets[:1]),
    }

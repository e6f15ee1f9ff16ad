"""The released model answers people over TLS, and other versions come and go by commits without a lost request."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minio.error import S3Error

from .argocd import Argo
from .front_door import FrontDoor, eventually
from .model_service import APP, ModelService, Picture, Poller, pictures
from .site import Epos, Site, Store
from .training import FEW_RENDERED, IMAGE_SIZE

# Written below the released models, and gone at the end.
BUCKET, PREFIX = "epos-models", "models"


def serving(shares: dict[str, int]) -> str:
    """The file that says which versions answer in an environment, as `epos deploy` writes it."""
    path = "/spec/template/spec/containers/0/args/-"
    return "".join(
        f"- {{op: add, path: {path}, value: --serve={version}={weight}}}\n" for version, weight in shares.items()
    )


@pytest.mark.smoke
def test_a_prediction_over_tls(dev_service: ModelService, released: dict[str, Any], picture: Picture) -> None:
    """By the name of dev, certified by the site's authority, with the version in body and header."""
    answer = dev_service.predict(picture, X_Request_Id="slipway-test")
    assert answer["model_version"] == released["version"]
    assert answer["poses"], "the released model finds nothing in an image of the data set"
    for pose in answer["poses"]:
        rotation, translation = pose["cam_R_m2c"], pose["cam_t_m2c"]
        assert all(math.isclose(sum(a * a for a in rotation[row : row + 3]), 1, abs_tol=1e-3) for row in (0, 3, 6)), (
            pose
        )
        assert len(translation) == 3 and translation[2] > 0, pose


@pytest.mark.smoke
def test_the_interface_is_described(dev_service: ModelService) -> None:
    """By an OpenAPI document with requests and answers."""
    document = json.loads(dev_service.get("/openapi.json").body)
    assert document["openapi"].startswith("3.")
    for path in ("/v1/predict", "/v1/predict/batch"):
        assert "multipart/form-data" in document["paths"][path]["post"]["requestBody"]["content"]
    assert "model_version" in document["components"]["schemas"]["Prediction"]["required"]


@pytest.mark.smoke
def test_a_batch_says_what_single_requests_say(dev_service: ModelService, held_out: Path) -> None:
    """In the order of the images."""
    batch = pictures(held_out, 3)
    answer = dev_service.predict_batch(batch)
    assert [each["image"] for each in answer["results"]] == [each.name for each in batch]
    assert [each["poses"] for each in answer["results"]] == [dev_service.predict(each)["poses"] for each in batch]


@pytest.mark.smoke
def test_what_is_wrong_is_named(dev_service: ModelService, released: dict[str, Any], picture: Picture) -> None:
    """With the field, and with the version that would have answered; also behind a proxy's own limits."""
    for fields, field in (
        ([("image", ("a.png", b"no image")), ("camera", picture.camera)], "image"),
        ([("image", ("a.png", picture.data)), ("camera", "1,2,3")], "camera"),
        ([("image", ("a.png", picture.data)), ("camera", picture.camera), ("objects", "x")], "objects"),
        ([("camera", picture.camera)], "image"),
    ):
        answer = dev_service.post("/v1/predict", fields)
        problem = json.loads(answer.body)
        assert (answer.status, problem["field"]) == (422, field), problem
        assert problem["detail"].startswith(f"{field}: ") and problem["model_version"] == released["version"]
    answer = dev_service.post("/v1/predict", [("image", ("a.png", bytes(17 << 20))), ("camera", picture.camera)])
    assert answer.status == 413, answer.text


@pytest.mark.smoke
def test_predictions_are_counted(
    dev_service: ModelService, released: dict[str, Any], picture: Picture, site: Site
) -> None:
    """For the version that answered."""
    labels = {"path": "/v1/predict", "status": "200", "version": released["version"]}
    pods = site.apps.read_namespaced_deployment(APP, f"{APP}-dev").spec.replicas
    before = dev_service.metric("epos_requests_total", **labels)
    for _ in range(3):
        dev_service.predict(picture)
    after = dev_service.metric("epos_requests_total", **labels)
    # Of several pods, who knows which one tells.
    assert after == before + 3 if pods == 1 else after > 0


def test_the_service_may_do_little(site: Site, dev_service: ModelService, released: dict[str, Any]) -> None:
    """Its namespace is restricted, who may speak to whom is listed, and its user in the store only reads models."""
    namespace = f"{APP}-dev"
    assert site.core.read_namespace(namespace).metadata.labels["pod-security.kubernetes.io/enforce"] == "restricted"
    policies = [item.metadata.name for item in site.networking.list_namespaced_network_policy(namespace).items]
    assert sorted(policies) == ["default-deny", "models", "people", "runs"]
    with Store.open(site, namespace, "minio-epos-serving") as store:
        assert store.read(BUCKET, f"{PREFIX}/{released['version']}/config.json")
        with pytest.raises(S3Error, match="AccessDenied"):
            store.client.put_object(
                bucket_name=BUCKET, object_name=f"{PREFIX}/slipway-test", data=io.BytesIO(b""), length=0
            )
        with pytest.raises(S3Error, match="AccessDenied"):
            store.read("epos-data", "lab/manifest.json")


# Other versions


@pytest.fixture(scope="module")
def other(
    epos: Epos, store: Store, released: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Another version in the store: hardly trained, which does not matter to who only looks for its name."""
    work = tmp_path_factory.mktemp("other")
    dataset = work / "data"
    epos.run("render", "--out", str(dataset), *FEW_RENDERED)
    options = f"--train-steps 1 --backbone small --num-frags 8 --image-size {IMAGE_SIZE} --device cpu".split()
    epos.run("train", "--data-dir", str(dataset), "--work-dir", str(work), *options)
    version: str = json.loads((work / "model/config.json").read_text())["version"]
    assert version != released["version"]
    prefix = f"{PREFIX}/{version}/"
    try:
        epos.run("push", str(work / "model"), f"s3://{BUCKET}/{prefix}")
        yield version
    finally:
        for item in store.client.list_objects(bucket_name=BUCKET, prefix=prefix, recursive=True):
            store.client.remove_object(bucket_name=BUCKET, object_name=item.object_name)


@pytest.fixture
def restored(argo: Argo, front_door: FrontDoor, dev_service: ModelService, other: str) -> Iterator[None]:
    """What a test pushes is taken back, and the services answer as before; before `other` is removed."""
    if (argo.dev, argo.prod) != ("dev", "prod"):
        pytest.skip(f"the application is written for dev and prod; the site has {argo.dev} and {argo.prod}")
    names = [f"apps/{APP}/dev/serving.yaml", f"apps/{APP}/prod/serving.yaml", f"approvals/prod/{APP}.yml"]
    services = [ModelService(front_door, environment) for environment in ("dev", "prod")]
    shares = [service.shares() for service in services]
    with argo.git.clone(argo.approver) as clone:
        before = {name: (clone.folder / name).read_text() if (clone.folder / name).exists() else None for name in names}
    yield
    with argo.git.clone(argo.approver) as clone:
        changed = {
            name: text
            for name, text in before.items()
            if text != ((clone.folder / name).read_text() if (clone.folder / name).exists() else None)
        }
        if changed:
            clone.commit("The tests are over", changed)
            clone.push()
    for service, each in zip(services, shares, strict=True):
        if each:
            service.await_shares(each)
        elif service.shares():
            # Nothing was in prod; Argo CD leaves what runs there when nobody approves it any more.
            namespace = f"{APP}-{service.environment}"

            def gone(name: str = namespace) -> bool:
                return argo.application(name) is None

            eventually(gone, 120)
            argo.site.apps.delete_namespaced_deployment(APP, namespace)

            def silent(ended: ModelService = service) -> bool:
                return not ended.shares()

            # A pod that ends answers for some seconds more.
            eventually(silent, 60)


@pytest.mark.usefixtures("restored")
def test_prod_follows_approvals_without_a_lost_request(
    argo: Argo, prod_service: ModelService, released: dict[str, Any], other: str, picture: Picture
) -> None:
    """The release is approved; another version waits for its approval, takes over, and leaves by the revert of it."""
    version = released["version"]
    argo.approve(APP, released["commit"])
    argo.await_application(f"{APP}-prod", released["commit"], timeout=300)
    prod_service.await_shares({version: 1})
    with Poller(prod_service, picture) as poller:
        commit = argo.push(f"{APP}: {other} for prod", {f"apps/{APP}/prod/serving.yaml": serving({other: 1})})
        argo.await_application(f"{APP}-dev", commit)
        assert poller.versions == [version], "what is in Git runs in prod without an approval"
        approval = argo.approve(APP, commit)
        prod_service.await_shares({other: 1})
        argo.revert(approval)
        prod_service.await_shares({version: 1})
    poller.check(version, other, first=version, last=version)


@pytest.mark.usefixtures("restored")
def test_a_canary_in_dev_gets_its_share(
    argo: Argo, dev_service: ModelService, released: dict[str, Any], other: str, picture: Picture
) -> None:
    """Seen in the answers: about one of five, the same for the same request; and gone by a revert."""
    version = released["version"]
    ids = [f"slipway-test-{number}" for number in range(150)]
    with Poller(dev_service, picture) as poller:
        files = {f"apps/{APP}/dev/serving.yaml": serving({version: 80, other: 20})}
        commit = argo.push(f"{APP}: a canary", files)
        dev_service.await_shares({version: 80, other: 20})
        seen = [dev_service.version(each) for each in ids]
        assert 15 <= Counter(seen)[other] <= 50, Counter(seen)
        assert [dev_service.version(each) for each in ids[:30]] == seen[:30]
        assert dev_service.predict(picture, X_Model_Version=other)["model_version"] == other
        argo.revert(commit)
        dev_service.await_shares({version: 1})
        assert {dev_service.version(each) for each in ids[:30]} == {version}
    poller.check(*poller.versions, first=version, last=version)
    assert set(poller.versions) <= {version, other}


@pytest.mark.fault
@pytest.mark.usefixtures("restored")
def test_a_version_that_is_not_there_disturbs_nobody(
    argo: Argo, site: Site, dev_service: ModelService, released: dict[str, Any], picture: Picture
) -> None:
    """Its pod says why it does not start, the one before goes on answering, and a revert clears up."""
    version = released["version"]
    namespace, selector = f"{APP}-dev", f"app.kubernetes.io/name={APP}"
    with Poller(dev_service, picture) as poller:
        commit = argo.push(f"{APP}: a mistake", {f"apps/{APP}/dev/serving.yaml": serving({"0000slipwaytest": 1})})

        def said() -> bool:
            evidence = site.evidence(namespace, selector)
            assert f"s3://{BUCKET}/{PREFIX}/0000slipwaytest/manifest.json: missing object" in evidence, evidence
            return True

        eventually(said, 120)
        argo.revert(commit)
        argo.await_application(f"{APP}-dev", timeout=120)
        dev_service.await_shares({version: 1})
    poller.check(version)


@pytest.mark.fault
def test_a_lost_pod_is_replaced(
    site: Site, argo: Argo, dev_service: ModelService, released: dict[str, Any], picture: Picture
) -> None:
    """A pod that is deleted finishes what it has begun while another one starts."""
    namespace, selector = f"{APP}-dev", f"app.kubernetes.io/name={APP}"
    old = {pod.metadata.name for pod in site.core.list_namespaced_pod(namespace, label_selector=selector).items}
    site.core.delete_collection_namespaced_pod(namespace, label_selector=selector)

    def back() -> bool:
        pods = site.core.list_namespaced_pod(namespace, label_selector=selector).items
        assert pods and not old & {pod.metadata.name for pod in pods}
        return bool(dev_service.predict(picture)["model_version"] == released["version"])

    eventually(back, 120)

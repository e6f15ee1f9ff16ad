"""The model service, asked over HTTP."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from PIL import Image

from epos import service, service_client, store
from epos.bop import BopDataset, View, read_image
from epos.cli import main
from epos.config import TrainConfig
from epos.errors import EposError, UsageError
from epos.fragments import make_fragments
from epos.model import Model, export, load
from epos.network import init
from epos.pose import PoseConfig
from epos.samples import fit
from epos.versions import Share, check_shares, choose

from .conftest import SOURCE
from .test_store import FakeStore

POSE = PoseConfig(iterations=128)


@pytest.fixture(scope="module")
def views(rendered: Path) -> list[View]:
    return BopDataset(rendered).targets("test")


@pytest.fixture(scope="module")
def models(rendered: Path, views: list[View], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, as a pipeline lays them down; what they were taught does not matter here."""
    root = tmp_path_factory.mktemp("models")
    objects = BopDataset(rendered).models()
    for seed in (3, 4):
        config = TrainConfig(backbone="small", image_size=64, num_frags=4, seed=seed)
        params = init(seed, config.backbone, len(objects), config.num_frags)
        # Untrained heads are near zero and know nothing for sure; these are sure of something, so that there are poses.
        params["objects"]["w"] = 100 * params["objects"]["w"]
        model = Model(params, config, make_fragments(objects, config.num_frags), (64, 64))
        probe = fit(read_image(views[0].path), views[0].camera, model.canvas)[0]
        version = export(model, root / "draft", f"run {seed}", {"data_hash": f"data {seed}"}, probe)
        (root / "draft").rename(root / version)
        (root / version / "metrics.json").write_text(json.dumps({"recall": seed / 10}))
    return root


@pytest.fixture(scope="module")
def versions(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir())


class Running:
    """A service in a thread."""

    def __init__(self, predictor: service.Predictor, drain: float = 0.3) -> None:
        self.predictor = predictor
        self.server = service.Server(predictor, drain)
        self.listener = service.bind(0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        self.pool = urllib3.PoolManager(maxsize=20, retries=False)

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.predictor.close()

    def ask(self, method: str, path: str, **more: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
        answer = self.pool.request(method, f"{self.url}{path}", **more)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return answer.status, json.loads(answer.data), headers

    def await_empty(self) -> None:
        """An answer is there a moment before the service has done with the request."""
        end = time.monotonic() + 5
        while self.predictor.inside:
            assert time.monotonic() < end, f"{self.predictor.inside} requests are still inside"
            time.sleep(0.01)

    def metric(self, name: str, **labels: str) -> float:
        return self.predictor.metrics.registry.get_sample_value(name, labels) or 0.0


def start(models: Path, *shares: Share, **more: Any) -> Running:
    predictor = service.Predictor(POSE, **more)
    predictor.open([service.load_version(str(models), share) for share in shares])
    return Running(predictor)


@pytest.fixture(scope="module")
def running(models: Path, versions: list[str]) -> Iterator[Running]:
    """One version."""
    found = start(models, Share(versions[0]))
    yield found
    found.end()


@pytest.fixture(scope="module")
def canary(models: Path, versions: list[str]) -> Iterator[Running]:
    """Two versions, 9 to 1."""
    found = start(models, Share(versions[0], 90), Share(versions[1], 10))
    yield found
    found.end()


def camera(view: View) -> str:
    k = view.camera
    return f"{k[0, 0]!r},{k[1, 1]!r},{k[0, 2]!r},{k[1, 2]!r}".replace("np.float64(", "").replace(")", "")


def form(view: View, **more: str) -> dict[str, Any]:
    return {"image": ("a.png", view.path.read_bytes()), "camera": camera(view), **more}


def expected(models: Path, version: str, view: View, wanted: dict[int, int] | None = None) -> list[dict[str, Any]]:
    model = load(models / version, probe=False)[0]
    return [
        {
            "obj_id": e.obj_id,
            "score": e.score,
            "cam_R_m2c": e.rotation.ravel().tolist(),
            "cam_t_m2c": e.translation.tolist(),
        }
        for e in model.predict(read_image(view.path), view.camera, wanted, POSE)
    ]


# Predictions


def test_a_form_is_answered_as_the_library_does(
    running: Running, models: Path, versions: list[str], views: list[View]
) -> None:
    status, answer, headers = running.ask("POST", "/v1/predict", fields=form(views[0]))
    assert status == 200, answer
    assert answer["model_version"] == headers["x-model-version"] == versions[0]
    assert answer["poses"] and answer["poses"] == expected(models, versions[0], views[0])
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])


@pytest.mark.parametrize(("kind", "format"), [("image/png", "PNG"), ("image/jpeg; x=y", "JPEG")])
def test_a_body_may_be_the_image(running: Running, views: list[View], kind: str, format: str) -> None:
    buffer = io.BytesIO()
    Image.open(views[1].path).convert("RGB").save(buffer, format)
    path = f"/v1/predict?camera={camera(views[1])}&objects=1"
    status, answer, _ = running.ask("POST", path, body=buffer.getvalue(), headers={"Content-Type": kind})
    assert status == 200, answer
    assert {pose["obj_id"] for pose in answer["poses"]} <= {1}


def test_instances_are_counted(running: Running, models: Path, versions: list[str], views: list[View]) -> None:
    status, answer, _ = running.ask("POST", "/v1/predict", fields=form(views[0], objects="3,1,3"))
    assert status == 200
    assert answer["poses"] == expected(models, versions[0], views[0], {1: 1, 3: 2})


def test_a_batch_is_answered_in_its_order(
    running: Running, models: Path, versions: list[str], views: list[View]
) -> None:
    fields: list[Any] = [("image", (view.path.name, view.path.read_bytes())) for view in views]
    fields += [("camera", camera(view)) for view in views]
    status, answer, headers = running.ask("POST", "/v1/predict/batch", fields=fields)
    assert status == 200, answer
    assert answer["model_version"] == headers["x-model-version"] == versions[0]
    assert [result["image"] for result in answer["results"]] == [view.path.name for view in views]
    assert [result["poses"] for result in answer["results"]] == [expected(models, versions[0], view) for view in views]
    # One camera for all.
    status, again, _ = running.ask("POST", "/v1/predict/batch", fields=[*fields[:3], ("camera", camera(views[0]))])
    assert status == 200 and again["results"][0] == answer["results"][0]


# Wrong requests


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "status", "field", "text"),
    [
        ({"image": None}, 422, "image", "image: is missing"),
        ({"image": "text"}, 422, "image", "image: expected a file with a name"),
        ({"image": ("a.png", b"")}, 422, "image", "image: is empty"),
        ({"image": ("a.png", b"no image")}, 422, "image", "image: is neither a PNG nor a JPEG image"),
        ({"image": ("a.gif", b"GIF89a\1\0\1\0\0\0\0;")}, 422, "image", "image: is neither a PNG nor a JPEG image"),
        ({"image": ("a.png", png(99, 99)[:-30])}, 422, "image", "image: damaged image: "),
        ({"image": ("a.png", png(6000, 6000))}, 413, "image", "image: 6000x6000 px are more than 25000000 px"),
        ({"camera": None}, 422, "camera", "camera: is missing; expected fx,fy,cx,cy in px"),
        ({"camera": "1,2,3"}, 422, "camera", "camera: expected fx,fy,cx,cy in px, found '1,2,3'"),
        ({"camera": "1,2,3,x"}, 422, "camera", "camera: expected fx,fy,cx,cy in px"),
        ({"camera": "nan,2,3,4"}, 422, "camera", "camera: expected finite numbers"),
        ({"camera": "0,2,3,4"}, 422, "camera", "camera: expected finite numbers, focal lengths above 0"),
        ({"camera": ("a.txt", b"1,2,3,4")}, 422, "camera", "camera: expected text, not a file"),
        ({"objects": "one"}, 422, "objects", "objects: expected at most 100 numbers of objects such as 1,3,3"),
        ({"objects": "1,7"}, 422, "objects", "objects: the model knows no object 7, only [1, 2, 3]"),
        ({"objets": "1"}, 422, "objets", "objets: unknown part; there are image, camera and objects"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    running: Running, views: list[View], versions: list[str], change: dict[str, Any], status: int, field: str, text: str
) -> None:
    fields = {name: value for name, value in (form(views[0]) | change).items() if value is not None}
    found, answer, headers = running.ask("POST", "/v1/predict", fields=fields)
    assert (found, answer["field"]) == (status, field), answer
    assert answer["detail"].startswith(text)
    assert answer["model_version"] == headers["x-model-version"] == versions[0]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "field"),
    [
        ("POST", "/v1/predict", {"Content-Type": "image/tiff"}, 415, "Content-Type"),
        ("POST", "/v1/predict", {}, 415, "Content-Type"),
        ("POST", "/v1/predict/batch", {"Content-Type": "image/png"}, 415, "Content-Type"),
        ("POST", "/v1/predict", {"Content-Type": "multipart/form-data"}, 400, "body"),
        ("POST", "/v1/predict", {"X-Request-Id": "a b", "Content-Type": "image/png"}, 422, "X-Request-Id"),
        ("POST", "/v1/predict", {"X-Request-Id": "a" * 129, "Content-Type": "image/png"}, 422, "X-Request-Id"),
        ("GET", "/v1/model", {"X-Model-Version": "other"}, 404, "X-Model-Version"),
        ("GET", "/v1/predict", {}, 405, None),
        ("GET", "/v2", {}, 404, None),
        ("GET", "/docs", {}, 404, None),
    ],
)
def test_wrong_requests_are_refused(
    running: Running, method: str, path: str, headers: dict[str, str], status: int, field: str | None
) -> None:
    found, answer, _ = running.ask(method, path, headers=headers, body=b"x" if method == "POST" else None)
    assert (found, answer["field"]) == (status, field), answer
    assert answer["detail"]


def test_one_wrong_image_refuses_the_batch(running: Running, views: list[View]) -> None:
    fields: list[Any] = [
        ("image", ("a.png", views[0].path.read_bytes())),
        ("image", ("b.png", b"no")),
        ("camera", "1,1,1,1"),
    ]
    before = running.metric("epos_images_total", version=running.predictor.loaded[0].share.version)
    assert running.ask("POST", "/v1/predict/batch", fields=fields)[1]["detail"].startswith("image[1]: is neither")
    assert running.metric("epos_images_total", version=running.predictor.loaded[0].share.version) == before
    fields = [*fields[:1] * 3, ("camera", "1,1,1,1"), ("camera", "1,1,1,1")]
    assert running.ask("POST", "/v1/predict/batch", fields=fields)[1]["detail"].startswith(
        "camera: is there 2 times; expected"
    )
    fields = [*fields[:1] * 3, ("camera", "1,1,1,1"), ("objects", "9")]
    assert running.ask("POST", "/v1/predict/batch", fields=fields)[1]["field"] == "objects[0]"
    status, answer, _ = running.ask("POST", "/v1/predict/batch", fields=[*fields[:1] * 17, ("camera", "1,1,1,1")])
    assert (status, answer["detail"]) == (413, "image: 17 images are more than 16")


def test_large_uploads_are_refused_and_the_answer_arrives(running: Running) -> None:
    """Declared or not; the client sends all of it before it reads."""
    data = os.urandom(service.MAX_UPLOAD + 1)
    kind = {"Content-Type": "image/png"}
    status, answer, _ = running.ask("POST", "/v1/predict", body=data, headers=kind)
    assert (status, answer["detail"]) == (413, "body: is larger than 16 MiB")
    status, answer, _ = running.ask("POST", "/v1/predict", body=iter([data[: 1 << 20]] * 17), headers=kind)
    assert (status, answer["detail"]) == (413, "body: is larger than 16 MiB")
    # Nobody reads what is larger than anything a person would send.
    with socket.create_connection(("127.0.0.1", running.port)) as stream:
        stream.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
        stream.settimeout(10)
        assert stream.recv(100).startswith(b"HTTP/1.1 413 ")
    running.await_empty()
    # The limit itself is let in, and found to be no image.
    status, answer, _ = running.ask("POST", "/v1/predict?camera=1,1,1,1", body=data[:-1], headers=kind)
    assert (status, answer["field"]) == (422, "image")


def test_a_body_that_does_not_come_is_not_waited_for(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UPLOAD_TIMEOUT", 0.3)
    with socket.create_connection(("127.0.0.1", running.port)) as stream:
        stream.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n1")
        stream.settimeout(10)
        assert stream.recv(100).startswith(b"HTTP/1.1 408 ")
    # Whoever goes away in the middle leaves nothing behind.
    with socket.create_connection(("127.0.0.1", running.port)) as stream:
        stream.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1")
        time.sleep(0.1)
    version = running.predictor.loaded[0].share.version
    end = time.monotonic() + 5
    while not running.metric("epos_requests_total", path="/v1/predict", status="499", version=version):
        assert time.monotonic() < end
        time.sleep(0.01)
    running.await_empty()


# Several versions


def test_weights_share_the_requests(canary: Running, versions: list[str]) -> None:
    """By ids that are always the same, so that the counts are; and the same id is answered by the same version."""
    ids = [f"request-{number}" for number in range(400)]

    def seen() -> list[str]:
        answers = [canary.ask("GET", "/v1/model", headers={"X-Request-Id": each}) for each in ids]
        assert all(headers["x-request-id"] == each for each, (_, _, headers) in zip(ids, answers, strict=True))
        return [answer["model_version"] for _, answer, _ in answers]

    first = seen()
    assert 25 <= Counter(first)[versions[1]] <= 55
    assert seen() == first
    shares = [Share(versions[1], 10), Share(versions[0], 90)]
    assert [choose(shares, each).version for each in ids] == first, "in any order, in any process"


def test_predictions_are_those_of_the_version_named(
    canary: Running, models: Path, versions: list[str], views: list[View]
) -> None:
    answers = {}
    for version in versions:
        headers = {"X-Model-Version": version}
        status, answers[version], found = canary.ask("POST", "/v1/predict", fields=form(views[0]), headers=headers)
        assert status == 200 and found["x-model-version"] == version
        assert answers[version]["poses"] == expected(models, version, views[0])
    assert answers[versions[0]]["poses"] != answers[versions[1]]["poses"]


def test_a_request_without_an_id_is_shared_too(canary: Running, versions: list[str]) -> None:
    seen = Counter(canary.ask("GET", "/v1/model")[1]["model_version"] for _ in range(150))
    assert set(seen) == set(versions) and seen[versions[0]] > seen[versions[1]]


def test_choice_follows_the_weights() -> None:
    ids = [f"id-{number}" for number in range(20_000)]
    before = [Share("a", 70), Share("b", 30), Share("c", 0)]
    counts = Counter(choose(before, each).version for each in ids)
    assert counts["c"] == 0 and abs(counts["a"] / len(ids) - 0.7) < 0.02
    after = [Share("a", 70), Share("b", 60)]
    moved = [each for each in ids if choose(before, each) != choose(after, each) and choose(after, each).version == "a"]
    assert not moved, "who was asked to go to b stays there when b gets more"


@pytest.mark.parametrize(
    "text", ["", "a b", "A", "../x", "a=-1", "a=x", "a=1.5", "a=", "a=9999999", "a=\uff11", "a" * 64]
)
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--serve"):
        Share.parse(text)


@pytest.mark.parametrize(
    ("shares", "text"),
    [([], "would answer"), ([Share("a", 0)], "would answer"), ([Share("a"), Share("a", 2)], "a is given twice")],
)
def test_shares_that_cannot_serve_are_refused(shares: list[Share], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check_shares(shares)


# What surrounds it


def test_what_is_served_is_told(canary: Running, versions: list[str]) -> None:
    status, answer, _ = canary.ask("GET", "/v1/model")
    assert status == 200
    assert [(each["version"], each["weight"]) for each in answer["versions"]] == [(versions[0], 90), (versions[1], 10)]
    assert all(each["objects"] == [1, 2, 3] for each in answer["versions"])
    assert {(each["data_hash"], each["recall"]) for each in answer["versions"]} == {("data 3", 0.3), ("data 4", 0.4)}
    assert answer["limits"] == {"bytes": 16777216, "images": 16, "pixels": 25000000, "requests": 16}


def test_openapi_describes_requests_and_answers(running: Running) -> None:
    status, document, _ = running.ask("GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert set(schemas["Prediction"]["required"]) == {"model_version", "poses"}
    assert schemas["Pose"]["properties"]["cam_R_m2c"]["minItems"] == 9
    operation = document["paths"]["/v1/predict"]["post"]
    body = operation["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "image/png", "image/jpeg"}
    assert body["multipart/form-data"]["schema"]["required"] == ["image", "camera"]
    assert {item["name"] for item in operation["parameters"]} == {
        "camera",
        "objects",
        "X-Request-Id",
        "X-Model-Version",
    }
    answers = {
        status: item["content"]["application/json"]["schema"]["$ref"] for status, item in operation["responses"].items()
    }
    assert answers.pop("200") == "#/components/schemas/Prediction"
    assert set(answers) == {"404", "408", "413", "415", "422", "503"}
    assert set(answers.values()) == {"#/components/schemas/Problem"}
    assert document["paths"]["/v1/predict/batch"]["post"]["requestBody"]["content"].keys() == {"multipart/form-data"}
    assert "16 MiB" in document["info"]["description"]


def test_metrics_count_what_was_asked(running: Running, versions: list[str], views: list[View]) -> None:
    def counted(name: str, **labels: str) -> float:
        return running.metric(name, version=versions[0], **labels)

    before = counted("epos_requests_total", path="/v1/predict", status="200"), counted("epos_images_total")
    running.ask("POST", "/v1/predict", fields=form(views[0]))
    end = time.monotonic() + 5
    while counted("epos_requests_total", path="/v1/predict", status="200") == before[0] and time.monotonic() < end:
        time.sleep(0.01)
    assert counted("epos_requests_total", path="/v1/predict", status="200") == before[0] + 1
    assert counted("epos_images_total") == before[1] + 1
    running.ask("GET", "/no/such/thing")
    answer = running.pool.request("GET", f"{running.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    text = answer.data.decode()
    assert 'epos_model_weight{data_hash="data ' in text and "epos_ready 1.0" in text
    assert "/no/such/thing" not in text and 'path="other"' in text
    assert "process_resident_memory_bytes" in text and "epos_predict_seconds_bucket" in text


class Slow(service.Predictor):
    """Computes nothing but takes its time, until it is let go."""

    def __init__(self, **more: Any) -> None:
        super().__init__(POSE, **more)
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def _compute(self, *_: object) -> list[service.Pose]:
        self.begun.release()
        self.go.wait(30)
        return []


@pytest.fixture
def slow(models: Path, versions: list[str]) -> Iterator[Running]:
    """One that has room for three requests and computes one at a time."""
    predictor = Slow(requests=3)
    predictor.open([service.load_version(str(models), Share(versions[0]))])
    found = Running(predictor)
    yield found
    predictor.go.set()
    found.end()


def in_threads(count: int, work: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, results


def test_too_many_requests_are_sent_away(slow: Running, views: list[View]) -> None:
    predictor = slow.predictor
    assert isinstance(predictor, Slow)
    threads, results = in_threads(3, lambda: slow.ask("POST", "/v1/predict", fields=form(views[0]))[0])
    end = time.monotonic() + 10
    while predictor.inside < 3 and time.monotonic() < end:
        time.sleep(0.01)
    status, answer, headers = slow.ask("POST", "/v1/predict", fields=form(views[0]))
    assert (status, headers["retry-after"]) == (503, "1") and answer["detail"].startswith("busy: 3 predictions")
    assert slow.ask("GET", "/readyz")[0] == 200 and slow.ask("GET", "/v1/model")[0] == 200
    predictor.go.set()
    for thread in threads:
        thread.join()
    assert results == [200] * 3
    slow.await_empty()


def test_readiness_answers_while_the_models_compute(running: Running, views: list[View]) -> None:
    """Real computations, which hold Python's lock for parts of their time: readiness does not queue behind them."""
    stop = threading.Event()
    predictions: list[int] = []

    def work() -> None:
        while not stop.is_set():
            predictions.append(running.ask("POST", "/v1/predict", fields=form(views[0]))[0])

    threads, _ = in_threads(3, work)
    ready = []
    while len(predictions) < 6 and any(thread.is_alive() for thread in threads):
        ready.append(running.ask("GET", "/readyz")[0])
    meanwhile = len(predictions)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(predictions) == set(ready) == {200}
    # Behind a computation each answer would take at least one prediction's time.
    assert len(ready) > 2 * meanwhile


def test_a_stop_loses_no_request(slow: Running, views: list[View]) -> None:
    """First it only says so, then it refuses connections, and what has begun is answered."""
    predictor = slow.predictor
    assert isinstance(predictor, Slow)
    slow.server.drain = 1.0
    threads, results = in_threads(1, lambda: slow.ask("POST", "/v1/predict", fields=form(views[0])))
    assert predictor.begun.acquire(timeout=10)
    slow.server.stop()
    status, answer, headers = slow.ask("GET", "/readyz")
    assert (status, answer) == (503, {"status": "stopping"})
    assert headers["connection"] == "close", "who keeps connections asks another one next"
    # Those who do not know yet are answered as ever.
    assert slow.ask("GET", "/v1/model")[0] == 200 and slow.ask("GET", "/healthz")[0] == 200
    end = time.monotonic() + 10
    refused = False
    while not refused and time.monotonic() < end:
        try:
            slow.ask("GET", "/healthz")
            time.sleep(0.05)
        except urllib3.exceptions.HTTPError:
            refused = True
    assert refused and not results
    predictor.go.set()
    threads[0].join()
    assert results[0][0] == 200 and results[0][2]["x-model-version"]
    slow.thread.join(10)
    assert not slow.thread.is_alive()


def test_a_second_word_to_stop_is_obeyed_at_once(slow: Running) -> None:
    slow.server.drain = 60
    slow.server.stop()
    slow.server.stop()
    slow.thread.join(10)
    assert not slow.thread.is_alive()


def test_nothing_is_predicted_before_the_model_is_there(views: list[View]) -> None:
    found = Running(service.Predictor(POSE))
    try:
        assert found.ask("GET", "/healthz")[:2] == (200, {"status": "alive"})
        assert found.ask("GET", "/readyz")[:2] == (503, {"status": "loading"})
        status, answer, headers = found.ask("POST", "/v1/predict", fields=form(views[0]))
        assert (status, answer["detail"], answer["model_version"]) == (503, "the model is being loaded", None)
        assert headers["retry-after"] == "1"
        # Nobody sends requests yet, so there is nothing to wait for.
        found.server.drain = 60
        found.server.stop()
        found.thread.join(10)
        assert not found.thread.is_alive()
    finally:
        found.end()


def test_an_error_of_the_service_says_no_more_than_that(
    running: Running, views: list[View], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(running.predictor, "_compute", broken)
    status, answer, headers = running.ask("POST", "/v1/predict", fields=form(views[0]))
    assert status == 500 and "secret" not in answer["detail"] and headers["x-model-version"] == answer["model_version"]
    running.await_empty()


# Loading


def test_versions_come_from_the_store(
    models: Path, versions: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeStore()
    for version in versions:
        store.push(fake, models / version, store.Location("bucket", f"models/{version}"))
    monkeypatch.setattr(store, "connect", lambda: fake)
    found = service.load_version("s3://bucket/models", Share(versions[1]))
    assert found.card["version"] == versions[1] and found.recall in (0.3, 0.4)
    assert f"loaded s3://bucket/models/{versions[1]} in " in capsys.readouterr().out
    key = ("bucket", f"models/{versions[0]}/weights.npz")
    fake.objects[key] = fake.objects[key][:-1] + b"x"
    with pytest.raises(EposError, match=r"weights\.npz: has another SHA-256"):
        service.load_version("s3://bucket/models", Share(versions[0]))
    with pytest.raises(EposError, match=r"s3://bucket/models/other/manifest\.json: missing object"):
        service.load_version("s3://bucket/models", Share("other"))


def test_a_model_under_another_name_is_refused(models: Path, versions: list[str], tmp_path: Path) -> None:
    (tmp_path / "aa").symlink_to(models / versions[0])
    with pytest.raises(EposError, match=f"aa: holds model {versions[0]}"):
        service.load_version(str(tmp_path), Share("aa"))


def process(models: Path, *words: str, port: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "epos", "listen", "--models", str(models), "--port", str(port), "--drain", "1"]
    return subprocess.Popen(
        [*command, "--iterations", "128", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_sigterm_ends_the_process_well(models: Path, versions: list[str], views: list[View]) -> None:
    """As a cluster does it: requests without a pause until the process refuses connections; none fails."""
    running = process(models, "--serve", f"{versions[0]}=90", "--serve", f"{versions[1]}=10")
    assert running.stdout is not None
    lines = []
    try:
        for line in running.stdout:
            lines.append(line)
            if line.startswith("ready in "):
                break
        url = "http://127.0.0.1:" + lines[0].rpartition(" ")[2].strip()
        with urllib3.PoolManager(retries=False) as pool:
            seen: list[int] = []
            ended = threading.Event()

            def ask() -> None:
                while not ended.is_set():
                    try:
                        seen.append(pool.request("POST", f"{url}/v1/predict", fields=form(views[0])).status)
                    except urllib3.exceptions.NewConnectionError:
                        ended.set()

            thread = threading.Thread(target=ask)
            thread.start()
            while not seen:
                time.sleep(0.02)
            running.send_signal(signal.SIGTERM)
            before = len(seen)
            rest = running.stdout.read()
            thread.join()
        assert running.wait(20) == 0
        assert set(seen) == {200} and len(seen) > before, "requests go on being answered after the signal"
        assert "takes no more requests" in rest and rest.rstrip().endswith("stopped"), rest
    finally:
        running.kill()


def test_a_version_that_cannot_be_loaded_ends_the_process(models: Path, versions: list[str]) -> None:
    running = process(models, "--serve", versions[0], "--serve", "00ff")
    said = running.communicate(timeout=60)[0]
    assert running.returncode == 4
    assert said.rstrip().splitlines()[-1] == f"epos: {models}/00ff/config.json: missing file"
    assert "ready in" not in said


def test_a_port_in_use_is_an_error(models: Path, versions: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with service.bind(0) as taken:
        port = taken.getsockname()[1]
        assert main(["listen", "--models", str(models), "--serve", versions[0], "--port", str(port)]) == 1
    assert f"epos: --port: {port}: Address already in use" in capsys.readouterr().err


# The client


def test_the_client_predicts(running: Running, models: Path, versions: list[str], views: list[View]) -> None:
    k = views[0].camera
    lens = [float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])]
    image = views[0].path.read_bytes()
    answer = service_client.predict(running.url, image, lens, [1, 2], version=versions[0], request_id="x")
    assert answer == {"model_version": versions[0], "poses": expected(models, versions[0], views[0], {1: 1, 2: 1})}
    batch = service_client.predict_batch(running.url, [image, image], [lens], [[1, 2]])
    assert [result["poses"] for result in batch["results"]] == [answer["poses"]] * 2
    with pytest.raises(EposError, match=r"/v1/predict: 422: image: is neither a PNG nor a JPEG image"):
        service_client.predict(running.url, b"x", lens)
    with pytest.raises(EposError, match=r"/v1/predict: 404: X-Model-Version: 'other' is none of"):
        service_client.predict(running.url, image, lens, version="other")


def test_the_client_waits_for_a_version(
    running: Running, canary: Running, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_client, "_INTERVAL", 0.01)
    service_client.await_version(running.url, versions[0], 5)
    with pytest.raises(
        EposError, match=f"version {versions[1]} is not the only one .* after 0 s; at last: {versions[0]} answered"
    ):
        service_client.await_version(running.url, versions[1], 0.2)
    with pytest.raises(EposError, match=f"at last: {versions[0]} and {versions[1]} answered"):
        service_client.await_version(canary.url, versions[0], 0.2)
    with pytest.raises(UsageError, match="--service"):
        service_client.await_version("epos.epos-dev", versions[0], 1)


def test_the_client_says_that_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(
        EposError, match=r"after 0 s; at last: http://127\.0\.0\.1:1/v1/model: cannot reach the service: .*refused"
    ):
        service_client.await_version("http://127.0.0.1:1", "aa", 0)


def test_an_answer_of_something_else_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy before the service answers for it while no pod is ready."""
    monkeypatch.setattr(service_client, "_INTERVAL", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    stream, _ = listener.accept()
                except OSError:
                    return
                with stream:
                    stream.recv(4096)
                    stream.sendall(
                        b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\nConnection: close\r\n\r\n404 page not found\n"
                    )

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(EposError, match=r"at last: .*/v1/model: 404: 404 page not found"):
            service_client.await_version(url, "aa", 0.1)

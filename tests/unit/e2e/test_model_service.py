"""What proves that no request is lost must itself notice a lost one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.front_door import Answer
from tests.e2e.model_service import ModelService, Picture, Poller, pictures

PICTURE = Picture("a.png", b"png", "1,1,1,1")


class FakeDoor:
    """A front door with the answers of a list; the last one is repeated."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def host(self, name: str) -> str:
        return f"{name}.site.example"

    def request(self, method: str, name: str, path: str, **more: Any) -> Answer:
        self.asked.append((method, name, path, *more.get("headers", {}).items()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get(self, name: str, path: str, **more: Any) -> Answer:
        return self.request("GET", name, path, **more)


def answered(version: str, header: str = "") -> Answer:
    body = json.dumps({"model_version": version, "poses": []}).encode()
    return Answer(200, {"x-model-version": header or version}, body)


def service(*answers: Answer | Exception, environment: str = "dev") -> ModelService:
    return ModelService(FakeDoor(*answers), environment)  # type: ignore[arg-type]


def poll(*answers: Answer | Exception) -> Poller:
    door = FakeDoor(*answers)
    with Poller(ModelService(door, "prod"), PICTURE, interval=0) as poller:  # type: ignore[arg-type]
        end = time.monotonic() + 10
        while len(door.asked) <= len(answers) and time.monotonic() < end:
            time.sleep(0.01)
    assert door.asked[0][:3] == ("POST", "epos", "/v1/predict?camera=1,1,1,1")
    return poller


def test_answers_are_kept_in_their_order() -> None:
    poller = poll(answered("a"), answered("a"), answered("b"), answered("a"))
    assert poller.versions == ["a", "b"] and poller.answers >= 4
    poller.check("b", "a", first="a", last="a")
    with pytest.raises(AssertionError, match="answered by"):
        poller.check("a")
    with pytest.raises(AssertionError):
        poller.check("a", "b", last="b")


def test_the_last_answer_was_asked_for_at_the_end() -> None:
    """Not before, by a request that was slow."""

    class Slow(FakeDoor):
        def request(self, method: str, name: str, path: str, **more: Any) -> Answer:
            answer = answered(current)
            if len(self.asked) == 1:
                under_way.set()
                time.sleep(0.3)
            self.asked.append((method, name, path))
            return answer

    current, under_way = "old", threading.Event()
    with Poller(ModelService(Slow(), "prod"), PICTURE, interval=0) as poller:  # type: ignore[arg-type]
        assert under_way.wait(10)
        current = "new"
    poller.check("old", "new", first="old", last="new")


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (Answer(502, {}, b"Bad Gateway"), "502 Bad Gateway"),
        (Answer(503, {}, b"no available server"), "503 no available server"),
        (ConnectionRefusedError("refused"), "refused"),
        (TimeoutError("timed out"), "timed out"),
        (answered("a", "b"), "AssertionError"),
        (Answer(200, {"x-model-version": "a"}, b"not json"), "JSONDecodeError"),
        (Answer(200, {}, b"{}"), "KeyError"),
    ],
)
def test_one_failure_is_enough(failure: Answer | Exception, text: str) -> None:
    poller = poll(answered("a"), failure, answered("a"))
    with pytest.raises(AssertionError, match=r"1 of [0-9]+ requests failed") as caught:
        poller.check("a")
    assert text in str(caught.value) and "after 0." in str(caught.value)


def test_metrics_are_found_by_their_labels() -> None:
    text = (
        "# HELP epos_requests_total Requests\n"
        'epos_requests_total{path="/v1/predict",status="200",version="a"} 3.0\n'
        'epos_requests_total{path="/v1/predict",status="200",version="b"} 4.0\n'
        "epos_ready 1.0\n"
    )
    found = service(Answer(200, {}, text.encode()))
    assert found.metric("epos_requests_total", version="b", status="200") == 4
    assert found.metric("epos_requests_total", version="c") == 0 and found.metric("epos_ready") == 1


def test_shares_are_awaited_of_every_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.e2e.front_door.time.sleep", lambda _: None)

    def model(**weights: int) -> Answer:
        versions = [{"version": version, "weight": weight} for version, weight in weights.items()]
        return Answer(200, {}, json.dumps({"versions": versions}).encode())

    # The answers of a rollout: old, new, old again.
    found = service(Answer(404, {}, b""), model(a=1), model(b=1), model(a=1), model(b=1))
    found.await_shares({"b": 1}, timeout=5)
    with pytest.raises(AssertionError, match=r"serves {'b': 1}, expected {'a': 1}"):
        found.await_shares({"a": 1}, timeout=0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "test/000002"
    (folder / "rgb").mkdir(parents=True)
    (folder / "mask_visib").mkdir()
    cameras = {str(i): {"cam_K": [500.5, 0, 320, 0, 501, 240, 0, 0, 1]} for i in (10, 9)}
    (folder / "scene_camera.json").write_text(json.dumps(cameras))
    for i in (9, 10):
        (folder / f"rgb/{i:06d}.png").write_bytes(b"%d" % i)
        (folder / f"mask_visib/{i:06d}_000000.png").write_bytes(b"mask")
    yield tmp_path


def test_pictures_come_with_their_camera(scene: Path) -> None:
    found = pictures(scene, 2)
    assert [(each.name, each.data) for each in found] == [("000009.png", b"9"), ("000010.png", b"10")]
    assert found[0].camera == "500.5,501,320,240" and found[0].kind == "image/png"

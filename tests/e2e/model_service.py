"""The deployed model service as its users see it: over TLS, by its name at the front door."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from urllib3.filepost import encode_multipart_formdata

from .front_door import Answer, FrontDoor, eventually
from .training import IMAGES

# The application's name in the repository, and so the first part of its namespaces.
APP = "epos"
# Its names below the domain, by environment.
HOSTS = {"dev": "epos-dev", "prod": "epos"}
# Seconds until pods of another version have taken over: the push arrives, a pod starts, loads the model, the old one leaves.
ROLLOUT = 240.0


@dataclass(frozen=True)
class Picture:
    """An image with what the service must know of it.

    Attributes:
        name: of the file.
        data: PNG or JPEG.
        camera: fx,fy,cx,cy in px.
    """

    name: str
    data: bytes
    camera: str

    @property
    def kind(self) -> str:
        """Its media type."""
        return "image/png" if self.name.endswith(".png") else "image/jpeg"


def pictures(dataset: Path, count: int, split: str = "test") -> list[Picture]:
    """The first images that are there of a BOP data set's first scene."""
    scene = min(path for path in (dataset / split).iterdir() if path.name.isdigit())
    cameras = json.loads((scene / "scene_camera.json").read_text())
    found = []
    for path in sorted(scene.glob("*/*"), key=lambda path: path.stem):
        if path.parent.name in ("rgb", "gray") and path.suffix in IMAGES:
            k = cameras[str(int(path.stem))]["cam_K"]
            found.append(Picture(path.name, path.read_bytes(), f"{k[0]},{k[4]},{k[2]},{k[5]}"))
    return found[:count]


class ModelService:
    """The service of one environment.

    Args:
        front_door: of the site.
        environment: dev or prod.
    """

    def __init__(self, front_door: FrontDoor, environment: str) -> None:
        self.front_door, self.environment = front_door, environment
        self.name = HOSTS[environment]

    @property
    def url(self) -> str:
        """Its address, for people."""
        return f"https://{self.front_door.host(self.name)}"

    def get(self, path: str, **headers: str) -> Answer:
        """GET over TLS, checked by the site's authority; headers with _ for -."""
        return self.front_door.get(self.name, path, headers=_headers(headers))

    def post(self, path: str, fields: Sequence[tuple[str, Any]], **headers: str) -> Answer:
        """POST of a form; a file is a tuple of name and content."""
        body, kind = encode_multipart_formdata(fields)
        return self.front_door.request(
            "POST", self.name, path, headers={**_headers(headers), "Content-Type": kind}, body=body
        )

    def predict(self, picture: Picture, **headers: str) -> dict[str, Any]:
        """Poses in a picture; anything but an answer with its version fails the test."""
        answer = self.front_door.request(
            "POST", self.name, f"/v1/predict?camera={picture.camera}", body=picture.data,
            headers={**_headers(headers), "Content-Type": picture.kind},
        )  # fmt: skip
        assert answer.status == 200, f"{self.url}: {answer.status} {answer.text[:300]}"
        value: dict[str, Any] = json.loads(answer.body)
        assert value["model_version"] == answer.headers["x-model-version"], answer
        return value

    def predict_batch(self, batch: Sequence[Picture]) -> dict[str, Any]:
        """Poses in several pictures."""
        fields: list[tuple[str, Any]] = [("image", (each.name, each.data)) for each in batch]
        fields += [("camera", each.camera) for each in batch]
        answer = self.post("/v1/predict/batch", fields)
        assert answer.status == 200, f"{self.url}: {answer.status} {answer.text[:300]}"
        value: dict[str, Any] = json.loads(answer.body)
        return value

    def version(self, request_id: str) -> str:
        """The version that answers a request of this id; costs no prediction."""
        answer = self.get("/v1/model", X_Request_Id=request_id)
        assert answer.status == 200, f"{self.url}: {answer.status} {answer.text[:300]}"
        return answer.headers["x-model-version"]

    def shares(self) -> dict[str, int]:
        """Weights of the versions that are loaded, as one of the pods tells; empty while there is no service."""
        answer = self.get("/v1/model")
        if answer.status != 200:
            return {}
        return {each["version"]: each["weight"] for each in json.loads(answer.body)["versions"]}

    def await_shares(self, wanted: Mapping[str, int], timeout: float = ROLLOUT) -> None:
        """Wait until every pod serves these versions with these weights: until many answers in a row say so."""

        def look() -> bool:
            for _ in range(8):
                seen = self.shares()
                assert seen == dict(wanted), f"{self.url} serves {seen}, expected {dict(wanted)}"
            return True

        eventually(look, timeout)

    def metric(self, name: str, **labels: str) -> float:
        """A value of /metrics, of one of the pods; 0 where it is not there."""
        answer = self.get("/metrics")
        assert answer.status == 200, answer
        for line in answer.text.splitlines():
            if found := re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line):
                own = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or ""))
                if labels.items() <= own.items():
                    return float(found[2])
        return 0.0


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


class Poller:
    """Asks for predictions without a pause while something happens to the service; every failure is kept.

    Attributes:
        failures: what was not answered, each with the seconds since the start.
    """

    def __init__(self, service: ModelService, picture: Picture, interval: float = 0.2) -> None:
        """Prepare; the block of a `with` is the time in which requests are sent.

        Args:
            service: to ask.
            picture: to ask about.
            interval: seconds between an answer and the next request.
        """
        self.service, self.picture, self.interval = service, picture, interval
        self.failures: list[str] = []
        self._versions: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._start = 0.0

    def __enter__(self) -> Poller:
        self._start = time.monotonic()
        self._thread.start()
        end = self._start + 60
        while not self._versions and not self.failures:
            assert time.monotonic() < end, f"{self.service.url} answers nothing"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        # The thread's last request may have begun long before the end of the block.
        self._ask()

    def _work(self) -> None:
        while not self._stop.is_set():
            self._ask()
            self._stop.wait(self.interval)

    def _ask(self) -> None:
        try:
            self._versions.append(self.service.predict(self.picture)["model_version"])
        except (AssertionError, OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.failures.append(f"after {time.monotonic() - self._start:.1f} s: {error!r}")

    @property
    def answers(self) -> int:
        """How many requests were answered."""
        return len(self._versions)

    @property
    def versions(self) -> list[str]:
        """Versions that answered, in the order in which they answered for the first time."""
        return list(dict.fromkeys(self._versions))

    def check(self, *versions: str, first: str = "", last: str = "") -> None:
        """Fail unless every request was answered, by these versions and no other.

        Args:
            versions: all that answered.
            first, last: that answered the first and the last request, if it matters.
        """
        lost = "\n".join(self.failures[:10])
        assert not self.failures, (
            f"{len(self.failures)} of {self.answers + len(self.failures)} requests failed:\n{lost}"
        )
        assert set(self._versions) == set(versions), f"answered by {self.versions}, expected {versions}"
        assert not first or self._versions[0] == first, self._versions[0]
        assert not last or self._versions[-1] == last, self._versions[-1]


@pytest.fixture(scope="session")
def dev_service(front_door: FrontDoor, released: dict[str, Any]) -> Iterator[ModelService]:
    """The service in dev, with the model that the pipeline has released."""
    service = ModelService(front_door, "dev")
    service.await_shares({released["version"]: 1})
    yield service


@pytest.fixture(scope="session")
def prod_service(front_door: FrontDoor, released: dict[str, Any]) -> ModelService:
    """The service in prod, where nothing may be approved yet."""
    return ModelService(front_door, "prod")


@pytest.fixture(scope="session")
def picture(held_out: Path) -> Picture:
    """An image that the model has not seen."""
    return pictures(held_out, 1)[0]

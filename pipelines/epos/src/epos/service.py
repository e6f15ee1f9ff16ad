"""The model service: poses over HTTP, by one version of a model or by several that share the requests."""

from __future__ import annotations

import asyncio
import io
import math
import re
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from PIL import Image, UnidentifiedImageError
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from pydantic import BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from epos import __version__, device, store
from epos.bop import read_json
from epos.errors import DataError, EposError
from epos.model import CARD, Model, load
from epos.pose import Estimate, PoseConfig
from epos.progress import say
from epos.versions import Share, check_shares, choose

# Limits of a request, and of all at a time; the documentation of the interface states them.
MAX_UPLOAD = 16 << 20  # bytes
MAX_IMAGES = 16  # of a batch
MAX_PIXELS = 25_000_000  # of an image
MAX_REQUESTS = 16  # that are received, wait or are computed
UPLOAD_TIMEOUT = 30.0  # s
# What is too large is taken all the same, and forgotten: a proxy that cannot get rid of a body does not wait for the answer.
_MAX_DISCARDED = 4 * MAX_UPLOAD  # bytes
# How long requests that have begun may take to end when the service stops.
FINISH_TIMEOUT = 30  # s
# Traefik closes idle connections after 90 s; who closes first must not be the one who gets requests.
_KEEP_ALIVE = 120  # s
_RETRY_AFTER = "1"  # s

_PREDICTIONS = ("/v1/predict", "/v1/predict/batch")
_PATHS = (*_PREDICTIONS, "/v1/model", "/healthz", "/readyz", "/metrics", "/openapi.json")
_FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SCOPE = "epos"


class Refused(Exception):
    """A request that gets no prediction.

    Args:
        status: of the answer.
        field: of the request that is wrong; empty where none is.
        text: what is wrong.
    """

    def __init__(self, status: int, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.status, self.field = status, field


class Pose(BaseModel):
    """An object's pose in BOP's convention: x_camera = R x_model + t."""

    obj_id: int = Field(description="object, as the data set numbers it")
    score: float = Field(description="support of the pose; more is better")
    cam_R_m2c: list[float] = Field(description="rotation matrix, row by row", min_length=9, max_length=9)
    cam_t_m2c: list[float] = Field(description="translation, mm", min_length=3, max_length=3)


class Prediction(BaseModel):
    """Poses in one image."""

    model_version: str = Field(description="version of the model that answered")
    poses: list[Pose]


class BatchResult(BaseModel):
    """Poses in one image of a batch."""

    image: str = Field(description="name of the file, as it was sent")
    poses: list[Pose]


class BatchPrediction(BaseModel):
    """Poses in several images, in their order."""

    model_version: str = Field(description="version of the model that answered")
    results: list[BatchResult]


class Version(BaseModel):
    """A version that is loaded."""

    version: str
    weight: int = Field(description="part of the sum of all weights; 0: answers only who asks for it")
    objects: list[int] = Field(description="objects that it knows")
    data_hash: str = Field(description="SHA-256 of the data that it learned from")
    recall: float | None = Field(description="mean of MSSD and MSPD recall on held-out images, if it was measured")


class Serving(BaseModel):
    """What is served."""

    model_version: str = Field(description="version that would have answered this request")
    versions: list[Version]
    limits: dict[str, int] = Field(description="of a request: bytes, images and pixels of one; requests at a time")


class Problem(BaseModel):
    """Why there is no prediction."""

    detail: str
    field: str | None = Field(description="the part of the request that is wrong")
    model_version: str | None


class State(BaseModel):
    """Whether requests are welcome."""

    status: str


@dataclass(frozen=True)
class Loaded:
    """A version in memory.

    Attributes:
        share: of the requests.
        model: verified.
        card: what people want to know of it.
        recall: as it was evaluated; None where it was not.
    """

    share: Share
    model: Model
    card: dict[str, Any]
    recall: float | None


@dataclass(frozen=True)
class Task:
    """One image to look for objects in.

    Attributes:
        name: of the field that holds the image.
        data: PNG or JPEG.
        camera: (3, 3) intrinsic matrix, px.
        wanted: number of instances by object id; None for at most one of each.
    """

    name: str
    data: bytes
    camera: np.ndarray
    wanted: dict[int, int] | None


def load_version(models: str, share: Share) -> Loaded:
    """Brings a version into memory and has it compute its probe.

    Args:
        models: s3://bucket/prefix, or a folder.
        share: which version.

    Raises:
        DataError: it is missing, damaged or another one than its place says.
        EposError: the store cannot be reached, or this machine computes something else.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        if models.startswith("s3://"):
            place = store.Location.parse(models)
            where, folder = f"{models}/{share.version}", Path(scratch)
            store.pull(store.connect(), store.Location(place.bucket, place.key(share.version)), folder)
        else:
            folder = Path(models) / share.version
            where = str(folder)
        model, found = load(folder)
        if found != share.version:
            raise DataError(f"{where}: holds model {found}")
        metrics = folder / "metrics.json"
        recall = read_json(metrics).get("recall") if metrics.exists() else None
        card = read_json(folder / CARD)
    say(f"loaded {where} in {time.monotonic() - start:.1f} s")
    return Loaded(share, model, card, recall)


class Metrics:
    """What Prometheus reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of = {"registry": self.registry}
        self.requests = Counter("epos_requests", "Requests answered", ["path", "status", "version"], **of)
        self.seconds = Histogram("epos_request_seconds", "Time from a request to its answer", ["path", "version"],
                                 buckets=_BUCKETS, **of)  # fmt: skip
        self.images = Counter("epos_images", "Images looked at", ["version"], **of)
        self.poses = Counter("epos_poses", "Poses found", ["version", "obj_id"], **of)
        self.compute = Histogram(
            "epos_predict_seconds", "Time to compute an image", ["version"], buckets=_BUCKETS, **of
        )
        self.inside = Gauge("epos_requests_inside", "Predictions that are received, wait or are computed", **of)
        self.ready = Gauge("epos_ready", "Whether requests are welcome", **of)
        self.weight = Gauge("epos_model_weight", "Loaded versions and their shares", ["version", "data_hash"], **of)
        ProcessCollector(registry=self.registry)


class Predictor:
    """Models in memory and the threads that compute with them.

    Args:
        pose: how poses are fitted.
        workers: images that are computed at the same time.
        requests: predictions that may be received, wait or be computed at a time.
    """

    def __init__(self, pose: PoseConfig, workers: int = 1, requests: int = MAX_REQUESTS) -> None:
        self.pose, self.requests = pose, requests
        self.metrics = Metrics()
        self.state = "loading"
        self.inside = 0
        self._loaded: dict[str, Loaded] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="predict")

    @property
    def loaded(self) -> list[Loaded]:
        """Versions in memory."""
        return list(self._loaded.values())

    def open(self, loaded: Sequence[Loaded]) -> None:
        """Begins to answer."""
        check_shares([each.share for each in loaded])
        self._loaded = {each.share.version: each for each in loaded}
        for each in loaded:
            self.metrics.weight.labels(each.share.version, each.card.get("data_hash", "")).set(each.share.weight)
        if self.state == "loading":
            self.state = "ready"
            self.metrics.ready.set(1)

    def leave(self) -> None:
        """Says that requests are better sent elsewhere; those that come are answered."""
        self.state = "stopping"
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Waits for what is computed."""
        self._pool.shutdown()

    def pick(self, request_id: str, version: str) -> Loaded:
        """The version that answers.

        Args:
            request_id: decides by the shares.
            version: wanted by who asks; empty for no matter.

        Raises:
            Refused: nothing is loaded yet, or not that version.
        """
        if not self._loaded:
            raise Refused(503, "", "the model is being loaded")
        if not version:
            version = choose([each.share for each in self.loaded], request_id).version
        if version not in self._loaded:
            raise Refused(404, "X-Model-Version", f"{version!r} is none of {', '.join(self._loaded)}")
        return self._loaded[version]

    async def predict(self, loaded: Loaded, tasks: Sequence[Task]) -> list[list[Pose]]:
        """Poses in each image.

        Raises:
            Refused: an image cannot be read, or an object is unknown.
        """
        known = {int(obj_id) for obj_id in loaded.model.fragments.obj_ids}
        for task in tasks:
            if unknown := set(task.wanted or ()) - known:
                where = task.name.replace("image", "objects", 1)
                raise Refused(422, where, f"the model knows no object {min(unknown)}, only {sorted(known)}")
        loop = asyncio.get_running_loop()
        # All are decoded first: a batch with a damaged image costs no computation.
        images = await asyncio.gather(*(loop.run_in_executor(self._pool, decode, t.name, t.data) for t in tasks))
        pairs = zip(tasks, images, strict=True)
        work = (loop.run_in_executor(self._pool, self._compute, loaded, task, image) for task, image in pairs)
        return list(await asyncio.gather(*work))

    def _compute(self, loaded: Loaded, task: Task, image: np.ndarray) -> list[Pose]:
        version = loaded.share.version
        with self.metrics.compute.labels(version).time():
            found: list[Estimate] = loaded.model.predict(image, task.camera, task.wanted, self.pose)
        self.metrics.images.labels(version).inc()
        for estimate in found:
            self.metrics.poses.labels(version, estimate.obj_id).inc()
        return [
            Pose(
                obj_id=e.obj_id, score=e.score, cam_R_m2c=e.rotation.ravel().tolist(), cam_t_m2c=e.translation.tolist()
            )
            for e in found
        ]


def decode(name: str, data: bytes) -> np.ndarray:
    """An image as (h, w, 3) uint8.

    Raises:
        Refused: it is none, damaged or too large.
    """
    if not data:
        raise Refused(422, name, "is empty")
    try:
        with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Refused(413, name, f"{width}x{height} px are more than {MAX_PIXELS} px")
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise Refused(422, name, "is neither a PNG nor a JPEG image") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Refused(422, name, f"damaged image: {error}") from error


def parse_camera(name: str, text: str | None) -> np.ndarray:
    """The intrinsic matrix of "fx,fy,cx,cy".

    Raises:
        Refused: something else.
    """
    if not text:
        raise Refused(422, name, "is missing; expected fx,fy,cx,cy in px")
    try:
        fx, fy, cx, cy = (float(word) for word in text.split(","))
    except ValueError as error:
        raise Refused(422, name, f"expected fx,fy,cx,cy in px, found {text[:80]!r}") from error
    if not all(map(math.isfinite, (fx, fy, cx, cy))) or fx <= 0 or fy <= 0:
        raise Refused(422, name, "expected finite numbers, focal lengths above 0")
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def parse_objects(name: str, text: str | None) -> dict[int, int] | None:
    """Number of instances by object of "1,3,3"; None for no text.

    Raises:
        Refused: something else.
    """
    if not text:
        return None
    words = text.split(",")
    if len(words) > 100 or not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        raise Refused(422, name, f"expected at most 100 numbers of objects such as 1,3,3, found {text[:80]!r}")
    return {int(word): words.count(word) for word in words}


async def _fields(request: Request, several: tuple[str, ...]) -> dict[str, list[str | UploadFile]]:
    """Parts of a form by their names; those in `several` may be there more than once.

    Raises:
        Refused: no form, or parts that nobody reads.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Refused(415, "Content-Type", f"{kind or 'nothing'} is not multipart/form-data")
    form = await request.form(max_files=1000, max_fields=1000, max_part_size=MAX_UPLOAD)
    parts: dict[str, list[str | UploadFile]] = {}
    for name, value in form.multi_items():
        if name not in ("image", "camera", "objects"):
            raise Refused(422, name[:80], "unknown part; there are image, camera and objects")
        if (name == "image") != isinstance(value, UploadFile):
            raise Refused(422, name, "expected a file with a name" if name == "image" else "expected text, not a file")
        parts.setdefault(name, []).append(value)
        if len(parts[name]) > 1 and name not in several:
            raise Refused(422, name, "is there more than once")
    if "image" not in parts:
        raise Refused(422, "image", "is missing")
    return parts


_FORM = {
    "image": {"type": "string", "format": "binary", "description": "PNG or JPEG"},
    "camera": {"type": "string", "description": "fx,fy,cx,cy in px", "examples": ["1066.8,1067.5,312.99,241.31"]},
    "objects": {
        "type": "string",
        "description": "objects to look for, each as often as it is there; without it at most one of each",
        "examples": ["1,3,3"],
    },
}


def _many(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _FORM[name], "maxItems": MAX_IMAGES}


_SINGLE_BODY = {
    "multipart/form-data": {"schema": {"type": "object", "required": ["image", "camera"], "properties": _FORM}},
    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _FORMATS},
}
_BATCH_BODY = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["image", "camera"],
            "properties": {name: _many(name) for name in _FORM},
        }
    }
}
_HEADERS = [
    {"in": "header", "name": "X-Request-Id", "schema": {"type": "string", "maxLength": 128},
     "description": "decides, where several versions share the requests, which one answers: the same id, the same version"},
    {"in": "header", "name": "X-Model-Version", "schema": {"type": "string"},
     "description": "have this version answer"},
]  # fmt: skip
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (404, "the version asked for is not loaded"),
        (408, f"the request did not arrive within {UPLOAD_TIMEOUT:.0f} s"),
        (413, "larger than the limits"),
        (415, "neither a form nor an image"),
        (422, "a field is missing or wrong; `field` names it"),
        (503, "busy or not ready: try again, as Retry-After says"),
    )
}
_DESCRIPTION = f"""6D poses of rigid objects in colour images (EPOS). Lengths are mm, the camera is a pinhole without distortion.

Every answer says in `model_version` and in the header `X-Model-Version` which model it is of.

Limits: {MAX_UPLOAD >> 20} MiB of a request, {MAX_IMAGES} images of a batch, {MAX_PIXELS // 1_000_000} million pixels of an image,
{MAX_REQUESTS} predictions at a time in each process."""


def create_app(predictor: Predictor) -> ASGIApp:
    """The web application.

    Args:
        predictor: answers.
    """
    # Its pages of documentation load programs from elsewhere.
    app = FastAPI(
        title="EPOS model service", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None
    )

    @app.post("/v1/predict", responses=_PROBLEMS, summary="Poses in one image",
              openapi_extra={"requestBody": {"required": True, "content": _SINGLE_BODY}, "parameters": _HEADERS})  # fmt: skip
    async def predict(
        request: Request,
        camera: Annotated[str | None, Query(description="for a body that is the image: fx,fy,cx,cy in px")] = None,
        objects: Annotated[str | None, Query(description="for a body that is the image; see the form")] = None,
    ) -> Prediction:
        loaded: Loaded = request.scope[_SCOPE]
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _FORMATS:
            data = await request.body()
        elif kind == "multipart/form-data":
            parts = await _fields(request, ())
            (file,) = parts["image"]
            assert isinstance(file, UploadFile)
            data = await file.read()
            camera = str(parts.get("camera", [camera or ""])[0])
            objects = str(parts.get("objects", [objects or ""])[0])
        else:
            expected = ", ".join(("multipart/form-data", *_FORMATS))
            raise Refused(415, "Content-Type", f"{kind[:80] or 'nothing'} is none of {expected}")
        task = Task("image", data, parse_camera("camera", camera), parse_objects("objects", objects))
        (poses,) = await predictor.predict(loaded, [task])
        return Prediction(model_version=loaded.share.version, poses=poses)

    @app.post("/v1/predict/batch", responses=_PROBLEMS, summary="Poses in several images",
              openapi_extra={"requestBody": {"required": True, "content": _BATCH_BODY}, "parameters": _HEADERS})  # fmt: skip
    async def predict_batch(request: Request) -> BatchPrediction:
        """One camera for all images, or one for each, in their order; the same holds for `objects`."""
        loaded: Loaded = request.scope[_SCOPE]
        parts = await _fields(request, ("image", "camera", "objects"))
        files = parts["image"]
        if len(files) > MAX_IMAGES:
            raise Refused(413, "image", f"{len(files)} images are more than {MAX_IMAGES}")
        each: dict[str, list[str]] = {}
        for name in ("camera", "objects"):
            texts = [str(value) for value in parts.get(name, [""])]
            if len(texts) not in (1, len(files)):
                raise Refused(
                    422, name, f"is there {len(texts)} times; expected one, or one for each of {len(files)} images"
                )
            each[name] = texts * len(files) if len(texts) == 1 else texts
        tasks, names = [], []
        for i, file in enumerate(files):
            assert isinstance(file, UploadFile)
            camera = parse_camera(f"camera[{i}]", each["camera"][i])
            wanted = parse_objects(f"objects[{i}]", each["objects"][i])
            tasks.append(Task(f"image[{i}]", await file.read(), camera, wanted))
            names.append(file.filename or "")
        found = await predictor.predict(loaded, tasks)
        results = [BatchResult(image=name, poses=poses) for name, poses in zip(names, found, strict=True)]
        return BatchPrediction(model_version=loaded.share.version, results=results)

    @app.get("/v1/model", summary="Versions that answer, and limits", responses={503: _PROBLEMS[503]})
    async def model(request: Request) -> Serving:
        versions = [
            Version(version=each.share.version, weight=each.share.weight, data_hash=each.card.get("data_hash", ""),
                    objects=[int(i) for i in each.model.fragments.obj_ids], recall=each.recall)
            for each in predictor.loaded
        ]  # fmt: skip
        limits = {"bytes": MAX_UPLOAD, "images": MAX_IMAGES, "pixels": MAX_PIXELS, "requests": predictor.requests}
        return Serving(model_version=request.scope[_SCOPE].share.version, versions=versions, limits=limits)

    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> State:
        return State(status="alive")

    @app.get("/readyz", summary="Whether requests are welcome", responses={503: {"model": State}})
    async def readyz(response: Response) -> State:
        response.status_code = 200 if predictor.state == "ready" else 503
        return State(status=predictor.state)

    @app.get("/metrics", summary="For Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(predictor.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _problem(error, request.scope.get(_SCOPE))

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        field = "body" if error.status_code == 400 else ""
        answer = _problem(Refused(error.status_code, field, str(error.detail)), request.scope.get(_SCOPE))
        answer.headers.update(error.headers or {})
        return answer

    async def failed(request: Request, error: Exception) -> Response:
        return _problem(Refused(500, "", "an error of the service; its log says more"), request.scope.get(_SCOPE))

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(Exception, failed)
    return Entrance(app, predictor)


def _problem(error: Refused, loaded: Loaded | None) -> JSONResponse:
    problem = Problem(
        detail=str(error), field=error.field or None, model_version=loaded.share.version if loaded else None
    )
    retry = {"Retry-After": _RETRY_AFTER} if error.status == 503 else {}
    return JSONResponse(problem.model_dump(), error.status, headers=retry)


class _Gone(Exception):
    """Who has asked did not wait."""


class Entrance:
    """What every request passes: which version answers, limits, measurements, a line in the log."""

    def __init__(self, app: ASGIApp, predictor: Predictor) -> None:
        self.app, self.predictor = app, predictor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        path = scope["path"] if scope["path"] in _PATHS else "other"
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        loaded: Loaded | None = None
        status = 500
        own_id = True

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                if own_id:
                    found["X-Request-Id"] = request_id
                if loaded:
                    found["X-Model-Version"] = loaded.share.version
                if self.predictor.state == "stopping":
                    # Whoever keeps connections shall ask another pod next time.
                    found["Connection"] = "close"
            await send(message)

        try:
            if not _REQUEST_ID.fullmatch(request_id):
                own_id = False
                raise Refused(422, "X-Request-Id", "expected 1 to 128 visible ASCII characters")
            if path.startswith("/v1/"):
                loaded = self.predictor.pick(request_id, headers.get("x-model-version", ""))
                scope[_SCOPE] = loaded
            if path in _PREDICTIONS and scope["method"] == "POST":
                await self._predict(scope, receive, answer, headers)
            else:
                await self.app(scope, receive, answer)
        except Refused as error:
            await _problem(error, loaded)(scope, receive, answer)
        except _Gone:
            status = 499
        finally:
            seconds = time.perf_counter() - start
            version = loaded.share.version if loaded else ""
            self.predictor.metrics.requests.labels(path, status, version).inc()
            self.predictor.metrics.seconds.labels(path, version).observe(seconds)
            if path in _PREDICTIONS:
                shown = request_id if own_id else "-"
                say(f"{path} {status} version={version or '-'} {1000 * seconds:.0f} ms id={shown}")

    async def _predict(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        predictor = self.predictor
        if predictor.inside >= predictor.requests:
            raise Refused(503, "", f"busy: {predictor.inside} predictions are being received, wait or are computed")
        predictor.inside += 1
        predictor.metrics.inside.set(predictor.inside)
        try:
            body = await _body(receive, headers.get("content-length", ""))
            pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

            async def replay() -> Message:
                return pending.pop() if pending else await receive()

            await self.app(scope, replay, send)
        finally:
            predictor.inside -= 1
            predictor.metrics.inside.set(predictor.inside)


async def _body(receive: Callable[[], Awaitable[Message]], declared: str) -> bytes:
    """The body of a request, all of it before anything is done.

    Raises:
        Refused: it is too large or takes too long.
        _Gone: the connection ended before.
    """
    large = Refused(413, "body", f"is larger than {MAX_UPLOAD >> 20} MiB")
    if declared.isdigit() and int(declared) > _MAX_DISCARDED:
        raise large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Gone
                data = message.get("body", b"")
                size += len(data)
                if size <= MAX_UPLOAD:
                    chunks.append(data)
                else:
                    chunks.clear()
                if size > _MAX_DISCARDED:
                    raise large
                if not message.get("more_body", False):
                    if size > MAX_UPLOAD:
                        raise large
                    return b"".join(chunks)
    except TimeoutError as error:
        raise Refused(408, "body", f"did not arrive within {UPLOAD_TIMEOUT:.0f} s") from error


class Server(uvicorn.Server):
    """Answers until it is told to stop; then first says that it leaves, and only later refuses connections.

    Args:
        predictor: answers.
        drain: seconds in which requests still come after the word to stop: as long as it takes until everybody knows.
    """

    def __init__(self, predictor: Predictor, drain: float) -> None:
        config = uvicorn.Config(
            create_app(predictor),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=FINISH_TIMEOUT,
        )
        super().__init__(config)
        self.predictor, self.drain = predictor, drain

    def handle_exit(self, sig: int, frame: object) -> None:
        """Takes SIGTERM and SIGINT."""
        self.stop()

    def stop(self) -> None:
        """Leaves; told a second time, or when nobody sends requests yet, without delay."""
        if self.predictor.state != "ready":
            self.should_exit = True
            return
        self.predictor.leave()
        # Not in this thread, which a signal has interrupted anywhere.
        timer = threading.Timer(self.drain, self._end)
        timer.daemon = True
        timer.start()

    def _end(self) -> None:
        say("takes no more requests; finishes those that have begun")
        self.should_exit = True


def bind(port: int) -> socket.socket:
    """A socket that listens on all addresses."""
    # It must say that it is TCP: asyncio sends answers without delay only then.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise EposError(f"--port: {port}: {error.strerror}") from error
    return listener


def _say_device() -> None:
    try:
        found = device.describe()
    except RuntimeError as error:
        raise device.unusable(error) from error
    say(f"computes on {found['device']}; {device.remark(found)}")


def listen(
    models: str,
    shares: Sequence[Share],
    listener: socket.socket,
    pose: PoseConfig,
    *,
    workers: int = 1,
    drain: float = 5.0,
    hardware: str = "auto",
    loader: Callable[[str, Share], Loaded] = load_version,
) -> None:
    """Serves until SIGTERM. Answers /healthz at once, and is ready when every version is loaded and has passed its probe.

    Args:
        models: s3://bucket/prefix, or a folder, that holds the versions.
        shares: versions that answer.
        listener: of bind().
        pose: how poses are fitted.
        workers: images that are computed at the same time.
        drain: seconds in which requests still come after SIGTERM.
        hardware: what JAX shall compute on, one of device.CHOICES.
        loader: brings a version into memory.

    Raises:
        EposError: a version cannot be loaded.
    """
    device.select(hardware)
    predictor = Predictor(pose, workers)
    server = Server(predictor, drain)
    failures: list[Exception] = []

    def work() -> None:
        start = time.monotonic()
        try:
            _say_device()
            loaded: list[Loaded] = []
            for share in check_shares(shares):
                if server.should_exit:
                    return
                loaded.append(loader(models, share))
            predictor.open(loaded)
            say(f"ready in {time.monotonic() - start:.1f} s: {', '.join(map(str, shares))}")
        except Exception as error:
            failures.append(error)
            server.should_exit = True

    loading = threading.Thread(target=work, name="load")
    loading.start()
    say(f"listens on port {listener.getsockname()[1]}")
    server.run(sockets=[listener])
    # JAX does not survive that Python ends under it.
    loading.join()
    predictor.close()
    if failures:
        raise failures[0]
    say("stopped")

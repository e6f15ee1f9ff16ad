"""Requests to the model service."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import urllib3

from epos.errors import EposError, UsageError

# Answers in a row, each by a new connection, after which no pod of another version is left.
_IN_A_ROW = 5
_INTERVAL = 0.5  # s


class Service:
    """The model service at an address.

    Args:
        url: http(s)://host.
        ca_file: PEM file of the authority that signed its certificate; by default those that the system trusts.
        timeout: s, for one answer.
    """

    def __init__(self, url: str, ca_file: str | None = None, timeout: float = 60) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--service: {url!r} is not of the form http(s)://host")
        self.url = url.rstrip("/")
        tls = {"cert_reqs": "CERT_REQUIRED", "ca_certs": ca_file} if ca_file else {}
        # A pod that is replaced ends connections; what has not begun is asked again.
        retries = urllib3.Retry(total=4, connect=4, read=0, other=0, status=4, status_forcelist=(503,), backoff_factor=0.5,
                                allowed_methods=None, raise_on_status=False)  # fmt: skip
        self._pool = urllib3.PoolManager(timeout=urllib3.Timeout(connect=10, read=timeout), retries=retries, **tls)

    def model(self) -> dict[str, Any]:
        """What is served: see /v1/model. Always by a new connection, as another pod may answer that."""
        return self._ask("GET", "/v1/model", headers={"Connection": "close"})

    def predict(
        self,
        image: bytes,
        camera: Sequence[float],
        objects: Sequence[int] = (),
        *,
        version: str = "",
        request_id: str = "",
    ) -> dict[str, Any]:
        """Poses in one image.

        Args:
            image: PNG or JPEG.
            camera: fx, fy, cx, cy in px.
            objects: to look for, each as often as it is there; none for at most one of each.
            version: that shall answer; empty for no matter.
            request_id: decides which version answers, where several do.

        Returns:
            `model_version` and `poses`.

        Raises:
            EposError: the service is away or refuses; its text says why.
        """
        fields: list[Any] = [("image", ("image", image)), ("camera", _numbers(camera))]
        if objects:
            fields.append(("objects", _numbers(objects)))
        return self._ask("POST", "/v1/predict", fields, _headers(version, request_id))

    def predict_batch(
        self,
        images: Sequence[bytes],
        cameras: Sequence[Sequence[float]],
        objects: Sequence[Sequence[int]] = (),
        *,
        version: str = "",
        request_id: str = "",
    ) -> dict[str, Any]:
        """Poses in several images; see predict().

        Args:
            images: PNG or JPEG each.
            cameras: one for all, or one for each.
            objects: likewise; none for at most one of each.
            version, request_id: as in predict().

        Returns:
            `model_version` and `results`, each with `poses`.

        Raises:
            EposError: the service is away or refuses; its text says why.
        """
        fields: list[Any] = [("image", (f"image-{i}", image)) for i, image in enumerate(images)]
        fields += [("camera", _numbers(camera)) for camera in cameras]
        fields += [("objects", _numbers(wanted)) for wanted in objects]
        return self._ask("POST", "/v1/predict/batch", fields, _headers(version, request_id))

    def _ask(self, method: str, path: str, fields: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        where = f"{self.url}{path}"
        try:
            answer = self._pool.request(method, where, fields=fields, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise EposError(f"{where}: cannot reach the service: {error}") from error
        try:
            value = json.loads(answer.data)
            if answer.status == 200:
                return dict(value)
            text = str(value["detail"])
        except (ValueError, KeyError, TypeError):
            text = answer.data[:200].decode(errors="replace") or answer.reason or ""
        raise EposError(f"{where}: {answer.status}: {text}")


def _numbers(values: Sequence[float]) -> str:
    return ",".join(repr(value) for value in values)


def _headers(version: str, request_id: str) -> dict[str, str]:
    return {
        **({"X-Model-Version": version} if version else {}),
        **({"X-Request-Id": request_id} if request_id else {}),
    }


def predict(
    url: str, image: bytes, camera: Sequence[float], objects: Sequence[int] = (), **options: Any
) -> dict[str, Any]:
    """Poses in one image; see Service.predict()."""
    return Service(url).predict(image, camera, objects, **options)


def predict_batch(
    url: str,
    images: Sequence[bytes],
    cameras: Sequence[Sequence[float]],
    objects: Sequence[Sequence[int]] = (),
    **options: Any,
) -> dict[str, Any]:
    """Poses in several images; see Service.predict_batch()."""
    return Service(url).predict_batch(images, cameras, objects, **options)


def await_version(url: str, version: str, timeout: float, ca_file: str | None = None) -> None:
    """Waits until a version is the only one that answers: until several answers in a row say so.

    Args:
        url: of the service.
        version: wanted.
        timeout: s.
        ca_file: PEM file of the authority that signed the service's certificate.

    Raises:
        EposError: not in time; says what was seen last.
    """
    service = Service(url, ca_file, timeout=10)
    end = time.monotonic() + timeout
    matching = 0
    while matching < _IN_A_ROW:
        try:
            served = [item["version"] for item in service.model()["versions"] if item["weight"]]
            seen = f"{' and '.join(served)} answered"
            matching = matching + 1 if served == [version] else 0
        except (EposError, KeyError, TypeError) as error:
            seen, matching = str(error), 0
        if matching < _IN_A_ROW:
            if time.monotonic() > end:
                raise EposError(
                    f"{url}: version {version} is not the only one that answers after {timeout:.0f} s; at last: {seen}"
                )
            time.sleep(_INTERVAL)

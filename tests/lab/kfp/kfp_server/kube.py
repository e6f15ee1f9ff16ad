"""A small client for the Kubernetes API, from inside a pod: objects in the pod's own namespace, by the plural of their kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import urllib3
from urllib3.exceptions import HTTPError

Json = dict[str, Any]

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# All others are of the core group.
_GROUPS = {"workflowtaskresults": "apis/argoproj.io/v1alpha1"}


class KubeError(Exception):
    """The API refused a request (`status` is its HTTP status) or cannot be reached (`status` is 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 429) or self.status >= 500


class Kube(Protocol):
    """What the engine needs. `kind` is the plural in the path; every method raises KubeError."""

    def get(self, kind: str, name: str) -> Json | None:
        """An object, if it is there."""

    def list(self, kind: str, selector: str) -> list[Json]:
        """Objects by labels."""

    def create(self, kind: str, body: Json) -> Json:
        """A new object; status 409 in the error means that it exists."""

    def delete(self, kind: str, name: str, grace_s: int | None = None) -> None:
        """Remove an object, if it is there."""

    def watch(self, kind: str, selector: str = "", field: str = "") -> Iterator[Json]:
        """Events of objects, first one for each that is there; ends after a while."""


class KubeClient:
    """The API as a pod's ServiceAccount may use it."""

    def __init__(self, host: str = "https://kubernetes.default.svc", account: Path = _ACCOUNT) -> None:
        self.namespace = (account / "namespace").read_text().strip()
        # Kubernetes renews the token while the pod runs.
        self._token = account / "token"
        self._host = host
        self._pool = urllib3.PoolManager(ca_certs=str(account / "ca.crt"), maxsize=4)

    def get(self, kind: str, name: str) -> Json | None:
        """An object, if it is there."""
        try:
            return self._json("GET", f"{kind}/{name}")
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, selector: str) -> list[Json]:
        """Objects by labels."""
        items: list[Json] = self._json("GET", kind, {"labelSelector": selector})["items"]
        return items

    def create(self, kind: str, body: Json) -> Json:
        """A new object; status 409 in the error means that it exists."""
        return self._json("POST", kind, body=body)

    def delete(self, kind: str, name: str, grace_s: int | None = None) -> None:
        """Remove an object, if it is there."""
        options = {} if grace_s is None else {"gracePeriodSeconds": str(grace_s)}
        try:
            self._json("DELETE", f"{kind}/{name}", options)
        except KubeError as error:
            if error.status != 404:
                raise

    def watch(self, kind: str, selector: str = "", field: str = "") -> Iterator[Json]:
        """Events of objects, first one for each that is there; ends after a while."""
        query = {"watch": "true", "timeoutSeconds": "240", "labelSelector": selector, "fieldSelector": field}
        response = self._request("GET", kind, query, stream=True)
        try:
            # Lines may come in pieces.
            rest = b""
            for piece in response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + piece).split(b"\n")
                yield from (json.loads(line) for line in lines if line.strip())
        except (HTTPError, OSError) as error:
            raise KubeError(f"watching {kind}: {error}") from error
        finally:
            response.release_conn()

    def log(self, pod: str, container: str) -> Iterator[bytes]:
        """The log of a container, in pieces."""
        response = self._request("GET", f"pods/{pod}/log", {"container": container}, stream=True)
        try:
            yield from response.stream(1 << 16)
        except (HTTPError, OSError) as error:
            raise KubeError(f"log of {pod}: {error}") from error
        finally:
            response.release_conn()

    def _json(self, method: str, path: str, query: Json | None = None, **request: Any) -> Json:
        found: Json = json.loads(self._request(method, path, query, **request).data)
        return found

    def _request(
        self,
        method: str,
        path: str,
        query: Json | None = None,
        body: Json | None = None,
        stream: bool = False,
    ) -> urllib3.BaseHTTPResponse:
        given = {key: value for key, value in (query or {}).items() if value}
        group = _GROUPS.get(path.partition("/")[0], "api/v1")
        url = f"{self._host}/{group}/namespaces/{self.namespace}/{path}" + (f"?{urlencode(given)}" if given else "")
        headers = {"Authorization": f"Bearer {self._token.read_text().strip()}", "Content-Type": "application/json"}
        try:
            response = self._pool.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=urllib3.Timeout(connect=5.0, read=300.0 if stream else 20.0),
                retries=False,
                preload_content=not stream,
            )
        except (HTTPError, OSError) as error:
            raise KubeError(f"the Kubernetes API cannot be reached: {error}") from error
        if response.status >= 400:
            message = _message(response.data)
            response.release_conn()
            raise KubeError(message, response.status)
        return response


def _message(data: bytes) -> str:
    """The message of a Status object, or the start of any other error page."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")

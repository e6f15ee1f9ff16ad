"""A small client for the Kubernetes API: plain dictionaries in and out. For modules on the controller."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

from ansible.module_utils.slipway.errors import SlipwayError

Json = dict[str, Any]


class KubeError(SlipwayError):
    """The API refused a request (`status` is its HTTP status) or could not be reached (`status` is 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Kube(Protocol):
    """What the modules need from the API; `KubeClient` is the real one, the tests have another.

    Every method raises KubeError.
    """

    def get(self, path: str, **query: str) -> Json | None:
        """The object or list at `path`; None where there is none."""

    def text(self, path: str, **query: str) -> str:
        """The plain text at `path`, such as a container's log."""

    def create(self, path: str, body: Json) -> Json:
        """POST; status 409 in the error means that it exists."""

    def merge_patch(self, path: str, body: Json) -> Json:
        """PATCH by RFC 7386; a `metadata.resourceVersion` in the body makes it conditional (409)."""


class ObjectKube(Kube, Protocol):
    """What sets of objects need besides."""

    def apply(self, path: str, body: Json, manager: str, dry_run: bool = False) -> Json:
        """Server-side apply; fields that another manager has set are taken over."""

    def delete(self, path: str) -> None:
        """DELETE, in the background; what does not exist is deleted."""


class KubeClient:
    """`Kube` over HTTPS with the credentials of a kubeconfig file."""

    def __init__(self, kubeconfig: str, timeout: float = 30) -> None:
        """Read `kubeconfig`; `timeout` is in seconds for one request. Raises KubeError if the file is unusable."""
        # Imported here: it takes most of a second, and the tests of everything above do without it.
        from kubernetes import config

        try:
            self._client: Any = config.new_client_from_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, persist_config=False
            )
        except (config.ConfigException, OSError, ValueError) as error:
            raise KubeError(f"kubeconfig {kubeconfig} cannot be used: {error}") from error
        self._timeout = timeout

    def get(self, path: str, **query: str) -> Json | None:
        try:
            return self._json("GET", path, query=query)
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    def text(self, path: str, **query: str) -> str:
        return self._request("GET", path, query=query).decode(errors="replace")

    def create(self, path: str, body: Json) -> Json:
        return self._json("POST", path, body=body)

    def merge_patch(self, path: str, body: Json) -> Json:
        return self._json("PATCH", path, body=body, content_type="application/merge-patch+json")

    def apply(self, path: str, body: Json, manager: str, dry_run: bool = False) -> Json:
        query = {"fieldManager": manager, "force": "true", **({"dryRun": "All"} if dry_run else {})}
        return self._json("PATCH", path, query=query, body=body, content_type="application/apply-patch+yaml")

    def delete(self, path: str) -> None:
        try:
            self._request("DELETE", path, query={"propagationPolicy": "Background"})
        except KubeError as error:
            if error.status != 404:
                raise

    def _json(self, method: str, path: str, **request: Any) -> Json:
        answer = json.loads(self._request(method, path, **request))
        if not isinstance(answer, dict):
            raise KubeError(f"{method} {path}: the answer is no object")
        return answer

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> bytes:
        from urllib3.exceptions import HTTPError

        settings = self._client.configuration
        url = settings.host.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*", "Content-Type": content_type}
        for auth in settings.auth_settings().values():
            headers[auth["key"]] = auth["value"]
        try:
            # The pool of the official client: it has the CA, the client certificate and the proxy settings.
            response = self._client.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=self._timeout,
                retries=False,
            )
        except HTTPError as error:
            raise KubeError(f"the Kubernetes API at {settings.host} cannot be reached: {error}") from error
        if response.status >= 400:
            raise KubeError(f"{method} {path}: {response.status} {_reason(response.data)}", response.status)
        data: bytes = response.data
        return data


def _reason(data: bytes) -> str:
    """The message of a Status object, or the start of any other error page."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:200].decode(errors="replace")

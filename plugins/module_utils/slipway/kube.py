"""A small client for the Kubernetes API: plain dictionaries in and out. For modules on the controller."""

from __future__ import annotations

import base64
import json
import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
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


class RemovingKube(Kube, Protocol):
    """What those need besides who take things away."""

    def delete(self, path: str) -> None:
        """DELETE, in the background; what does not exist is deleted."""


class ObjectKube(RemovingKube, Protocol):
    """What sets of objects need besides."""

    def apply(self, path: str, body: Json, manager: str, dry_run: bool = False) -> Json:
        """Server-side apply; fields that another manager has set are taken over."""


def items(kube: Kube, path: str, **query: str) -> list[Json]:
    """The members of the list at `path`; none where there is no such list. Raises KubeError."""
    return list((kube.get(path, **query) or {}).get("items") or [])


class KubeClient:
    """`Kube` over HTTPS with the credentials of a kubeconfig file."""

    def __init__(self, kubeconfig: str, timeout: float = 30, host: str = "") -> None:
        """Read `kubeconfig`; `timeout` is in seconds for one request, `host` is asked instead of the one in the file.

        Raises KubeError if the file is unusable.
        """
        own, self._headers, self._pool = _read_simple(kubeconfig) or _read_any(kubeconfig)
        self.host = host or own
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

        url = self.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json, */*", "Content-Type": content_type, **self._headers}
        try:
            response = self._pool.request(
                method,
                url,
                headers=headers,
                body=None if body is None else json.dumps(body).encode(),
                timeout=self._timeout,
                retries=False,
            )
        except HTTPError as error:
            raise KubeError(f"the Kubernetes API at {self.host} cannot be reached: {error}") from error
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


# Address of the API, headers that authenticate, connections.
_Access = tuple[str, dict[str, str], Any]


def _read_simple(kubeconfig: str) -> _Access | None:
    """What a kubeconfig says that has all it needs inside, as Slipway writes it; None for any other.

    The official client reads every kubeconfig, but importing it takes longer than most modules work.
    """
    import urllib3
    import yaml

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return None
    try:
        content = yaml.safe_load(Path(kubeconfig).read_text())
        parts = {
            kind: {item["name"]: item[kind] for item in content[f"{kind}s"]} for kind in ("context", "cluster", "user")
        }
        context = parts["context"][content["current-context"]]
        cluster, user = parts["cluster"][context["cluster"]], parts["user"][context["user"]]
        if set(cluster) - {"server", "certificate-authority-data"} or set(user) - {*_CERTIFICATE, "token"}:
            return None
        settings = None
        if "certificate-authority-data" in cluster:
            settings = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
            # Newer versions of Python ask for extensions that not every cluster's certificates have.
            settings.verify_flags &= ~ssl.VERIFY_X509_STRICT
            if set(user) >= set(_CERTIFICATE):
                # Python takes a key from a file only; nobody else may read this one, and it goes at once.
                with tempfile.NamedTemporaryFile("w") as file:
                    file.write("".join(_decoded(user[key]) for key in _CERTIFICATE))
                    file.flush()
                    settings.load_cert_chain(file.name)
        headers = {"authorization": f"Bearer {user['token']}"} if "token" in user else {}
        return cluster["server"].rstrip("/"), headers, urllib3.PoolManager(ssl_context=settings)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        # The official client says best what is wrong with it.
        return None


_CERTIFICATE = ("client-certificate-data", "client-key-data")


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


def _read_any(kubeconfig: str) -> _Access:
    """The same of any kubeconfig, by the official client. Raises KubeError if it is unusable."""
    from kubernetes import config

    try:
        client: Any = config.new_client_from_config(  # type: ignore[no-untyped-call]
            config_file=kubeconfig, persist_config=False
        )
    except (config.ConfigException, OSError, ValueError) as error:
        raise KubeError(f"kubeconfig {kubeconfig} cannot be used: {error}") from error
    settings = client.configuration
    headers = {auth["key"]: auth["value"] for auth in settings.auth_settings().values()}
    # Its pool has the CA, the client certificate and the proxy settings.
    return settings.host.rstrip("/"), headers, client.rest_client.pool_manager

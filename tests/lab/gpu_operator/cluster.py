"""As much of the Kubernetes API as the stand-in needs, as the service account of its pod."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TIMEOUT_S = 5.0
MERGE_PATCH = "application/merge-patch+json"
# A node's status is long and changes all the time; nobody here reads it.
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
RUNTIME_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"


class ApiError(Exception):
    """The API refused or could not be asked; the message names the request. `status` is 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The API behind one connection, which is kept open."""

    def __init__(self, connection: http.client.HTTPConnection, token: Path) -> None:
        self._connection, self._token = connection, token

    @classmethod
    def of_pod(cls) -> Cluster:
        """The API of the cluster that we run in."""
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])
        trusted = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=trusted)
        return cls(connection, ACCOUNT / "token")

    def read_labels(self, node: str) -> tuple[dict[str, str], str]:
        """A node's labels and the version of the node that they are from. Raises ApiError."""
        # From the API server's cache, which is cheap; a version that is too old is refused when we write.
        metadata = self._call("GET", f"/api/v1/nodes/{node}?resourceVersion=0", accept=METADATA)["metadata"]
        return metadata.get("labels", {}), metadata["resourceVersion"]

    def write_labels(self, node: str, version: str, labels: Mapping[str, str | None]) -> None:
        """Change some of a node's labels, unless the node has changed since `version`; None removes one. Raises ApiError."""
        metadata = {"resourceVersion": version, "labels": dict(labels)}
        self._call("PATCH", f"/api/v1/nodes/{node}", {"metadata": metadata}, accept=METADATA)

    def own_runtime_class(self, name: str, owner: str) -> None:
        """Write RuntimeClass `name` as the operator does: over what is there, and gone with its owner, a ClusterRole.

        Raises:
            ApiError: also when somebody else writes it at the same moment.
        """
        role = self._call("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{owner}")
        reference = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "name": owner, "uid": role["metadata"]["uid"], "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        metadata: dict[str, Any] = {"name": name, "ownerReferences": [reference]}
        wanted = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": name}
        try:
            found = self._call("GET", f"{RUNTIME_CLASSES}/{name}")
        except ApiError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise
            self._call("POST", RUNTIME_CLASSES, wanted)
            return
        if found["metadata"].get("ownerReferences") != [reference]:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
            self._call("PUT", f"{RUNTIME_CLASSES}/{name}", wanted)

    def _call(self, method: str, path: str, body: Any = None, accept: str = "application/json") -> dict[str, Any]:
        headers = {
            # The kubelet writes a new token before the old one expires.
            "Authorization": f"Bearer {self._token.read_text().strip()}",
            "Accept": accept,
            "Content-Type": MERGE_PATCH if method == "PATCH" else "application/json",
        }
        try:
            self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            # The next call connects anew.
            self._connection.close()
            raise ApiError(f"{method} {path}: {error!r}") from error
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            said = content[:300].decode(errors="replace")
            raise ApiError(f"{method} {path}: {response.status} {said}", response.status)
        answer: dict[str, Any] = json.loads(content)
        return answer

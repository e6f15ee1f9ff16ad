"""What stands for servers in tests."""

from __future__ import annotations

import threading
from typing import Any

import urllib3
from minio.error import S3Error


class Response:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        return self.data

    def close(self) -> None:
        pass

    release_conn = close


class FakeStore:
    """Keeps objects in memory, in the order of their last writing."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.forbidden: set[str] = set()
        self.fail_on: str | None = None
        self._lock = threading.Lock()

    def _check(self, bucket: str, name: str) -> None:
        if bucket in self.forbidden:
            raise _error("AccessDenied", bucket, name)
        if self.fail_on and name.endswith(self.fail_on):
            raise urllib3.exceptions.ProtocolError("connection broken")

    def get_object(self, bucket_name: str, object_name: str) -> Response:
        self._check(bucket_name, object_name)
        if (bucket_name, object_name) not in self.objects:
            raise _error("NoSuchKey", bucket_name, object_name)
        return Response(self.objects[bucket_name, object_name])

    def put_object(self, bucket_name: str, object_name: str, data: Any, length: int) -> None:
        self._check(bucket_name, object_name)
        content = data.read()
        assert len(content) == length
        with self._lock:
            self.objects.pop((bucket_name, object_name), None)
            self.objects[bucket_name, object_name] = content

    def remove_object(self, bucket_name: str, object_name: str) -> None:
        self._check(bucket_name, object_name)
        self.objects.pop((bucket_name, object_name), None)


def _error(code: str, bucket: str, name: str) -> S3Error:
    response = urllib3.HTTPResponse(status=404)
    return S3Error(
        response=response, code=code, message="no", resource=f"/{bucket}/{name}", request_id=None, host_id=None,
        bucket_name=bucket, object_name=name,
    )  # fmt: skip

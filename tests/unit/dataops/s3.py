"""An object store over HTTP that speaks as much of S3 as is used, and asks nobody who he is."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class ObjectStore:
    """What is in it, by bucket and key, with the time of each object; a test may change both."""

    url: str
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)
    times: dict[tuple[str, str], datetime] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=set)
    # The status of all answers, where it is not 0.
    ill: int = 0
    puts: list[str] = field(default_factory=list)

    def put(self, bucket: str, key: str, content: bytes, when: datetime | None = None) -> None:
        """An object."""
        self.objects[bucket, key] = content
        self.times[bucket, key] = when or datetime.now(UTC)

    def put_folder(
        self, bucket: str, prefix: str, root: Path, marker: bool = True, when: datetime | None = None
    ) -> None:
        """All files of a folder and, unless it is not complete, the marker after them."""
        for path in sorted(root.rglob("*")):
            if path.is_file():
                self.put(bucket, f"{prefix}/{path.relative_to(root).as_posix()}", path.read_bytes())
        if marker:
            self.put(bucket, f"{prefix}/_COMPLETE", b"", when)

    def json(self, bucket: str, key: str) -> Any:
        """An object that is JSON."""
        return json.loads(self.objects[bucket, key])

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys that begin so."""
        return sorted(key for name, key in self.objects if name == bucket and key.startswith(prefix))


@contextmanager
def serving_objects(*buckets: str) -> Iterator[ObjectStore]:
    """A store with empty buckets, on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.serve()

        do_HEAD = do_PUT = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

        def serve(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            bucket, _, key = unquote(url.path).lstrip("/").partition("/")
            query = parse_qs(url.query, keep_blank_values=True)
            if store.ill:
                return self.answer(store.ill, _error("InternalError", bucket, key))
            if bucket not in store.buckets:
                return self.answer(404, _error("NoSuchBucket", bucket, key))
            if "location" in query:
                return self.answer(200, b"<LocationConstraint></LocationConstraint>")
            if not key:
                return self.answer(200, _listing(store, bucket, query))
            if self.command == "PUT":
                store.put(bucket, key, content)
                store.puts.append(key)
                return self.answer(200, b"", {"ETag": _etag(content)})
            if self.command == "DELETE":
                store.objects.pop((bucket, key), None)
                return self.answer(204, b"")
            if (bucket, key) not in store.objects:
                return self.answer(404, _error("NoSuchKey", bucket, key))
            found = store.objects[bucket, key]
            when = format_datetime(store.times[bucket, key].astimezone(UTC), usegmt=True)
            return self.answer(200, found, {"ETag": _etag(found), "Last-Modified": when})

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", "application/xml")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store = ObjectStore(f"http://127.0.0.1:{server.server_port}", buckets=set(buckets))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _error(code: str, bucket: str, key: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>no</Message><Resource>/{escape(bucket)}/{escape(key)}</Resource></Error>".encode()


def _listing(store: ObjectStore, bucket: str, query: dict[str, list[str]]) -> bytes:
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    parts, groups = [], set()
    for key in store.keys(bucket, prefix):
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if found:
            groups.add(prefix + head + delimiter)
            continue
        when = store.times[bucket, key].strftime("%Y-%m-%dT%H:%M:%S.000Z")
        content = store.objects[bucket, key]
        parts.append(f"<Contents><Key>{escape(key)}</Key><LastModified>{when}</LastModified>"
                     f"<ETag>{escape(_etag(content))}</ETag><Size>{len(content)}</Size></Contents>")  # fmt: skip
    parts += [f"<CommonPrefixes><Prefix>{escape(group)}</Prefix></CommonPrefixes>" for group in sorted(groups)]
    return f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>{''.join(parts)}</ListBucketResult>".encode()

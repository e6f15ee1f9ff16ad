"""A local server of release files that can misbehave on purpose."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Releases:
    """Serves `files`; per path it can cut, stall, ignore ranges or answer with an error, a number of times."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        # path -> bytes after which the connection is cut, one entry for each request
        self.cuts: dict[str, list[int]] = {}
        # path -> error status, one entry for each request
        self.errors: dict[str, list[int]] = {}
        self.stall: set[str] = set()
        self.ranges = True
        self.requests: list[tuple[str, str | None]] = []
        releases = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self.close_connection = True
                wanted = self.headers.get("Range")
                releases.requests.append((self.path, wanted))
                if releases.errors.get(self.path):
                    return self.send_error(releases.errors[self.path].pop(0))
                if self.path not in releases.files:
                    return self.send_error(404)
                data = releases.files[self.path]
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and releases.ranges else 0
                if start and start >= len(data):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                cut = releases.cuts.get(self.path)
                self.wfile.write(data[start : cut.pop(0)] if cut else data[start:])
                if self.path in releases.stall:
                    time.sleep(1)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

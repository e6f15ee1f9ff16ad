"""In place of upstream's Deployments that the stand-in needs none of: they become ready, and do nothing."""

from __future__ import annotations

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOG = logging.getLogger(__name__)
# Where upstream's manifests probe: the workflow controller's health, and the TCP port of metadata-grpc. Its metrics ports are open too.
PORTS = (6060, 8080, 9090)
HEALTH = "/healthz"


class Handler(BaseHTTPRequestHandler):
    """Answers the probe, and 404 to all else."""

    server_version = "slipway-stand-in"

    def do_GET(self) -> None:
        """Answer."""
        healthy = self.path == HEALTH
        self.send_response(200 if healthy else 404)
        self.end_headers()
        self.wfile.write(b"idle stand-in\n" if healthy else b"an idle stand-in answers nothing\n")

    def log_message(self, format: str, *args: object) -> None:
        """Probes are no news."""


def serve(stop: threading.Event, ports: tuple[int, ...] = PORTS) -> None:
    """Listen until the end."""
    servers = [ThreadingHTTPServer(("", port), Handler) for port in ports]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stop.wait()
    for server in servers:
        server.shutdown()
        server.server_close()

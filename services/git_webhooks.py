"""Tells others of pushes, as GitHub does: POST with a signature, in the background of the Git service.

A hook leaves an event as a file; this reads the receivers' addresses from the settings of the service each time.
A receiver that does not answer costs nobody anything but a line in the log: Argo CD looks by itself, too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

# Seconds that a receiver may take.
PATIENCE = 5
# Seconds before each try: a receiver may be starting.
PAUSES = (0, 1, 4)
# Inside the cluster nobody stands in between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Notifier(threading.Thread):
    """Sends the events of a folder, oldest first, each once."""

    def __init__(self, events: Path, settings: Path, secret: Path) -> None:
        """Make the folder of events.

        Args:
            settings: JSON file with a list `webhooks` of addresses.
            secret: file with the key of the signature.
        """
        super().__init__(daemon=True)
        self.events = events
        self.settings = settings
        self.secret = secret
        self._due = threading.Event()
        events.mkdir(parents=True, exist_ok=True)

    def wake(self) -> None:
        """There may be new events."""
        self._due.set()

    def run(self) -> None:
        """Send what there is whenever woken."""
        while self._due.wait():
            self._due.clear()
            self.send()

    def send(self) -> None:
        """Send every event to every receiver; returns when all have answered or their time is up."""
        for path in sorted(self.events.glob("*.json")):
            try:
                body = path.read_bytes()
                path.unlink()
                receivers = json.loads(self.settings.read_bytes()).get("webhooks", [])
                key = self.secret.read_bytes().strip()
            except (OSError, ValueError) as error:
                log(f"{path.name} is not sent: {error}")
                continue
            threads = [threading.Thread(target=post, args=(url, body, key)) for url in receivers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()


def post(url: str, body: bytes, key: bytes) -> None:
    """Send one event to one receiver."""
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/slipway",
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest(),
    }
    reason: Exception | None = None
    for pause in PAUSES:
        time.sleep(pause)
        try:
            with _OPENER.open(urllib.request.Request(url, body, headers), timeout=PATIENCE):
                return
        except urllib.error.HTTPError as error:
            # It has understood, and will not think otherwise.
            reason = error
            break
        except (HTTPException, OSError, ValueError) as error:
            reason = error
    log(f"{url} was not told of a push: {reason}")


def log(text: str) -> None:
    """One line on stderr, in one piece: others write, too."""
    sys.stderr.write(f"git_webhooks: {text}\n")
    sys.stderr.flush()

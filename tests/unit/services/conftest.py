"""Services for the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .service import SERVICES, Service


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    """Answer while the block runs."""
    thread = threading.Thread(target=service.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        service.server.shutdown()
        thread.join()
        service.server.server_close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """One without hooks."""
    with serving(Service(tmp_path)) as running:
        yield running


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Service]:
    """One with the product's hooks; team writes, admin and anna approve."""
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"approvers": ["admin", "anna"], "address": "http://git.git", "webhooks": []}))
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (tmp_path / "events").mkdir()
    for name in ("pre-receive", "post-receive"):
        (hooks / name).symlink_to(SERVICES / "git_hooks.py")
    with serving(Service(tmp_path, settings)) as running:
        for user in ("admin", "anna"):
            (running.users / f"{user}.write").write_text("w-password")
        yield running

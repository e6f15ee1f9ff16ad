"""The unmodified KFP SDK against the server. The SDK pins what the lab's own environment has newer, so its client runs in its own."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.lab.cache import PROJECT
from tests.lab.kfp.kfp_server.store import Store, Task
from tests.unit.lab.kfp.conftest import Server

PYTHON = PROJECT / ".venv/kfp/bin/python"


def drive(store: Store, stop: threading.Event) -> None:
    """Bring every run to its end, as short as an engine can: only one named slow has to be cancelled."""
    while not stop.wait(0.2):
        for run in store.list_active_runs():
            if run.cancel:
                run.enter("CANCELING")
                run.enter("FAILED")
            elif run.state == "PENDING":
                run.enter("RUNNING")
                store.save_task(Task(run.run_id, "count", state="RUNNING"))
            elif run.display_name != "slow":
                for task in store.tasks(run.run_id):
                    task.enter("SUCCEEDED")
                    store.save_task(task)
                run.enter("SUCCEEDED")
            store.save_run(run)


@pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON} is missing: bin/environment kfp makes it")
@pytest.mark.timeout(300)
def test_the_sdk_finds_the_server_it_knows(server: Server, tmp_path: Path) -> None:
    stop = threading.Event()
    engine = threading.Thread(target=drive, args=(server.store, stop), daemon=True)
    engine.start()
    script = Path(__file__).parent / "sdk_client.py"
    # The client reads and writes settings of its user.
    environment = {**os.environ, "HOME": str(tmp_path)}
    try:
        done = subprocess.run(
            [PYTHON, script, server.url, tmp_path], env=environment, capture_output=True, text=True, check=False
        )
    finally:
        stop.set()
        engine.join(5)
    assert done.returncode == 0 and "all done" in done.stdout, done.stdout + done.stderr

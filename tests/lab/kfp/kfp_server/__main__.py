"""Entry point: `python3 -m kfp_server api|ui|idle|io`.

api   the REST API on port 8888, with the engine that runs pipelines and the schedules in threads beside it; the gRPC port is open
ui    the pages on port 3000
idle  nothing, as Deployments that the real server needs and this one does not; arguments are upstream's and ignored
io    the containers around a task's own in its pod
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import uvicorn

from . import api, idle, schedules, ui, web
from .store import Store, Unavailable, mysql

LOG = logging.getLogger("kfp_server")
API_PORT, GRPC_PORT, UI_PORT = 8888, 8887, 3000
PACE_S = 1.0


def open_store() -> Store:
    """The store in the database that the real server's variables name; its being away is waited out, and said."""
    host = os.environ["DBCONFIG_MYSQLCONFIG_HOST"]
    while True:
        try:
            return mysql(
                host,
                int(os.environ.get("DBCONFIG_MYSQLCONFIG_PORT", "3306")),
                os.environ.get("DBCONFIG_MYSQLCONFIG_USER", "root"),
                os.environ.get("DBCONFIG_MYSQLCONFIG_PASSWORD", ""),
                os.environ.get("DBCONFIG_MYSQLCONFIG_DBNAME", "mlpipeline"),
            )
        except Unavailable as error:
            LOG.warning("waiting for the database at %s: %s", host, error)
            time.sleep(2)


def serve_api() -> int:
    """Serve until SIGTERM; an engine that breaks ends the process, so that it is started again."""
    # The other parts need nothing of the engine.
    from . import engine as engines
    from .stores import server_reader

    store = open_store()
    engine = engines.from_environment(store)
    service = api.Api(
        store,
        os.environ.get("POD_NAMESPACE", "kubeflow"),
        os.environ.get("DEFAULTPIPELINERUNNERSERVICEACCOUNT", "pipeline-runner"),
        server_reader(),
    )
    service.default_experiment()
    server = _server(web.app(service), API_PORT)
    stop = threading.Event()
    broken: list[str] = []

    def run(name: str, work: Callable[[threading.Event], object]) -> threading.Thread:
        def guarded() -> None:
            try:
                work(stop)
            except Exception:
                LOG.exception("%s broke", name)
                broken.append(name)
                server.should_exit = True

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    threads = [
        run("engine", engine.run),
        run("schedules", lambda stop: run_schedules(store, service, stop)),
        # Nobody here speaks gRPC to the server, but who may is shown by connections.
        run("gRPC port", lambda stop: idle.serve(stop, (GRPC_PORT,))),
    ]
    try:
        server.run()
    finally:
        stop.set()
        store.changed.set()
        for thread in threads:
            thread.join(timeout=10)
    return 1 if broken else 0


def run_schedules(store: Store, service: api.Api, stop: threading.Event) -> None:
    """Start the runs of schedules as they become due."""
    while not stop.wait(PACE_S):
        try:
            if store.leads():
                schedules.trigger(store, schedules.utc_now(), service.trigger)
        except Unavailable as error:
            LOG.warning("schedules wait for the database: %s", error)


def _server(app: object, port: int) -> uvicorn.Server:
    return uvicorn.Server(uvicorn.Config(app, host="0.0.0.0", port=port, log_config=None, access_log=False))  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    """Run a part."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stdout)
    part = arguments[0] if arguments else ""
    if part not in ("api", "ui", "idle", "io"):
        print(__doc__, file=sys.stderr)
        return 2
    # Process 1 of a container ends by no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    LOG.info("this is a stand-in for Kubeflow Pipelines, made for tests: part %s", part)
    if part == "io":
        from .io import main as serve_io

        return serve_io(arguments[1:])
    if part == "api":
        return serve_api()
    if part == "ui":
        _server(ui.app(ui.api_address()), UI_PORT).run()
        return 0
    idle.serve(threading.Event())
    return 0


sys.exit(main(sys.argv[1:]))

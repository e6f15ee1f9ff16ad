"""The page in place of the pipelines' UI: runs and their tasks as plain tables, and the API's addresses passed on to the API."""

from __future__ import annotations

import os
from datetime import datetime
from html import escape
from typing import Any

import requests
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from .store import RUN_NOT_FINISHED, TASK_NOT_FINISHED, Json
from .web import HEADERS, STAND_IN

TIMEOUT_S = 30
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font-family: sans-serif; margin: 2rem; }} td, th {{ text-align: left; padding: .2rem 1rem .2rem 0; }}
.note {{ background: #fff3cd; padding: .5rem 1rem; }} .FAILED {{ color: #b00020; }} .SUCCEEDED {{ color: #1b7f3b; }}
</style></head><body>
<p class="note"><b>This is a stand-in</b> for Kubeflow Pipelines, made for tests: its API is served, its UI is these tables.</p>
<h1>{title}</h1>{content}
<script>
// Where the SDK's links to a run lead in the real UI.
const run = location.hash.match(/^#\\/runs\\/details\\/([-0-9a-f]+)/); if (run) location.replace("/runs/" + run[1]);
</script></body></html>
"""


class Pages:
    """The pages, made from answers of the API at an address."""

    def __init__(self, api: str) -> None:
        """Ask the API at `api`, for example http://ml-pipeline:8888."""
        self.api = api

    def get(self, path: str) -> Json:
        """An answer of the API."""
        response = requests.get(f"{self.api}/apis/v2beta1/{path}", timeout=TIMEOUT_S)
        response.raise_for_status()
        answer: Json = response.json()
        return answer

    def runs(self, _: Request) -> Response:
        """The newest runs."""
        runs = self.get("runs?page_size=100&sort_by=created_at%20desc").get("runs", [])
        rows = [
            [
                _link(run["run_id"], run["display_name"]),
                _state(run["state"]),
                escape(run["created_at"]),
                _duration(run, "created_at"),
            ]
            for run in runs
        ]
        return _page("Runs", _table(["Run", "State", "Created", "Seconds"], rows))

    def run(self, request: Request) -> Response:
        """A run and its tasks."""
        run = self.get(f"runs/{request.path_params['run_id']}")
        tasks = sorted(run.get("run_details", {}).get("task_details", []), key=lambda task: task["start_time"])
        rows = [
            [
                escape(task.get("display_name", task["task_id"])),
                _state(task.get("state", "")),
                escape(task["start_time"]),
                _duration(task, "start_time"),
                escape(", ".join(child.get("pod_name", "") for child in task.get("child_tasks", []))),
            ]
            for task in tasks
        ]
        head = f'<p>{_state(run["state"])} <a href="/">all runs</a></p>'
        error = run.get("error", {}).get("message", "")
        return _page(
            run["display_name"],
            head + f"<p>{escape(error)}</p>" + _table(["Task", "State", "Started", "Seconds", "Pods"], rows),
        )

    def health(self, _: Request) -> Response:
        """What the probes ask for: this page's own health; whether the API answers is part of the answer."""
        try:
            ready = bool(self.get("healthz"))
        except requests.RequestException:
            ready = False
        return JSONResponse({"frontendTagName": STAND_IN, "apiServerReady": ready}, headers=HEADERS)

    async def proxy(self, request: Request) -> Response:
        """Pass a request on to the API."""
        body = await request.body()
        kept = {name: value for name, value in request.headers.items() if name in ("accept", "content-type")}
        answer = await run_in_threadpool(
            requests.request,
            request.method,
            f"{self.api}{request.url.path}",
            params=request.url.query,
            data=body,
            headers=kept,
            timeout=TIMEOUT_S,
        )
        return Response(answer.content, answer.status_code, HEADERS, answer.headers.get("content-type"))


def unreachable(_: Request, error: Exception) -> Response:
    """The page when the API does not answer, or says no."""
    answer = error.response if isinstance(error, requests.HTTPError) else None
    if answer is not None and answer.status_code == 404:
        return HTMLResponse(PAGE.format(title="Not found", content=""), 404, HEADERS)
    return HTMLResponse(
        PAGE.format(title="The API does not answer", content=f"<p>{escape(str(error))}</p>"), 502, HEADERS
    )


def app(api: str) -> Starlette:
    """The web application in front of the API at an address."""
    pages = Pages(api)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return Starlette(
        routes=[
            Route("/", pages.runs),
            Route("/runs/{run_id}", pages.run),
            Route("/apis/v1beta1/healthz", pages.health),
            Route("/apis/{path:path}", pages.proxy, methods=methods),
        ],
        exception_handlers={requests.RequestException: unreachable},
    )


def api_address() -> str:
    """Where the API is: Kubernetes names the address of its Service to every container."""
    return f"http://{os.environ.get('ML_PIPELINE_SERVICE_HOST', 'ml-pipeline')}:{os.environ.get('ML_PIPELINE_SERVICE_PORT', '8888')}"


def _page(title: str, content: str) -> Response:
    return HTMLResponse(PAGE.format(title=escape(title), content=content), headers=HEADERS)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _link(run_id: str, name: str) -> str:
    return f'<a href="/runs/{escape(run_id)}">{escape(name)}</a>'


def _state(state: str) -> str:
    return f'<span class="{escape(state)}">{escape(state)}</span>'


def _duration(item: dict[str, Any], start: str) -> str:
    end = item.get("finished_at", item.get("end_time", ""))
    if end in ("", RUN_NOT_FINISHED, TASK_NOT_FINISHED):
        return ""
    return str(int((datetime.fromisoformat(end) - datetime.fromisoformat(item[start])).total_seconds()))

"""The API over HTTP: routes, and the shapes of its errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import api
from .errors import ALREADY_EXISTS, NOT_FOUND, UNIMPLEMENTED, ApiError, internal
from .store import Json, Unavailable

LOG = logging.getLogger(__name__)
STAND_IN = "slipway-stand-in"
HEADERS = {"X-Slipway-Stand-In": "kfp"}


def app(service: api.Api) -> Starlette:
    """The web application."""

    def answer(content: Json, status: int = 200) -> Response:
        return JSONResponse(content, status, HEADERS)

    def endpoint(handler: api.Handler) -> Callable[[Request], Any]:
        async def serve(request: Request) -> Response:
            call = api.Call(request.path_params, request.query_params, await request.body())
            try:
                return answer(await run_in_threadpool(handler, service, call))
            except ApiError as error:
                LOG.info("%s %s: %s", request.method, request.url.path, error)
                return answer(error.answer(), error.status)

        return serve

    def upload(handler: api.Handler, failure: str) -> Callable[[Request], Any]:
        """Uploads are no part of the gateway: their errors have another shape."""

        async def serve(request: Request) -> Response:
            call = api.Call(query=request.query_params)
            try:
                async with request.form() as form:
                    file = form.get("uploadfile")
                    if file is not None and not isinstance(file, str):
                        call.file_name, call.file = file.filename or "", await file.read()
                return answer(await run_in_threadpool(handler, service, call))
            except (ApiError, HTTPException) as error:
                LOG.info("%s %s: %s", request.method, request.url.path, error)
                message, status = failure, 400
                if isinstance(error, ApiError):
                    # The reason is for the log only, but for what is wrong with the file.
                    message = failure if error.code == ALREADY_EXISTS else error.external or failure
                    status = error.status
                return answer({"error_message": message, "error_details": message}, status)

        return serve

    async def health(_: Request) -> Response:
        return answer({"commit_sha": STAND_IN, "tag_name": STAND_IN, "multi_user": False, "pipeline_store": "database"})

    async def failed(request: Request, error: Exception) -> Response:
        """Errors outside of a handler, in the gateway's words."""
        if isinstance(error, HTTPException) and error.status_code == 405:
            return answer({"code": UNIMPLEMENTED, "message": "Method Not Allowed", "details": []}, 501)
        if isinstance(error, HTTPException):
            return answer({"code": NOT_FOUND, "message": "Not Found", "details": []}, 404)
        if not isinstance(error, Unavailable):
            LOG.error("%s %s", request.method, request.url.path, exc_info=error)
        fault = internal("the database does not answer" if isinstance(error, Unavailable) else "unexpected", str(error))
        return answer(fault.answer(), fault.status)

    return Starlette(
        routes=[
            Route("/apis/v1beta1/healthz", health),
            Route("/apis/v2beta1/healthz", health),
            Route(
                "/apis/v2beta1/pipelines/upload",
                upload(api.Api.upload, "Failed to create a pipeline and a pipeline version"),
                methods=["POST"],
            ),
            Route(
                "/apis/v2beta1/pipelines/upload_version",
                upload(api.Api.upload_version, "Failed to create a pipeline version"),
                methods=["POST"],
            ),
            # Those with a verb behind a colon first: the id of the others would take it.
            *(
                Route(path, endpoint(handler), methods=[method])
                for method, path, handler in sorted(
                    api.ROUTES, key=lambda each: ":" not in re.sub(r"\{[^}]*\}", "", each[1])
                )
            ),
        ],
        exception_handlers={HTTPException: failed, Unavailable: failed, Exception: failed},
    )

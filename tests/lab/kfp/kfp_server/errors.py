"""Errors as the real server answers them: a gRPC code, a chain of what was tried, and a message for people."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

INVALID_ARGUMENT = 3
NOT_FOUND = 5
ALREADY_EXISTS = 6
FAILED_PRECONDITION = 9
ABORTED = 10
UNIMPLEMENTED = 12
INTERNAL = 13

HTTP_STATUS = {
    INVALID_ARGUMENT: 400,
    NOT_FOUND: 404,
    ALREADY_EXISTS: 409,
    FAILED_PRECONDITION: 400,
    ABORTED: 409,
    UNIMPLEMENTED: 501,
    INTERNAL: 500,
}


class ApiError(Exception):
    """What a request failed with. `chain` is the message, `external` its last link without what was tried."""

    def __init__(self, code: int, chain: str, external: str | None = None) -> None:
        """Without `external` the answer has no details, as errors of the gateway have none."""
        super().__init__(chain)
        self.code = code
        self.chain = chain
        self.external = external

    @property
    def status(self) -> int:
        """The HTTP status."""
        return HTTP_STATUS[self.code]

    def answer(self) -> dict[str, Any]:
        """The body of the answer."""
        details: list[dict[str, Any]] = []
        if self.external is not None:
            details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.external}]
        return {"code": self.code, "message": self.chain, "details": details}


def invalid(message: str) -> ApiError:
    """An error in what was sent."""
    return ApiError(INVALID_ARGUMENT, f"Invalid input error: {message}", message)


def invalid_spec(message: str) -> ApiError:
    """An error in a compiled pipeline."""
    return ApiError(INVALID_ARGUMENT, f"InvalidInputError: {message}: InvalidPipelineSpec", message)


def malformed(message: str) -> ApiError:
    """A body that is not the JSON of its message."""
    return ApiError(INVALID_ARGUMENT, f"proto: {message}")


def not_found(kind: str, name: str) -> ApiError:
    """Something that does not exist."""
    return ApiError(NOT_FOUND, f"ResourceNotFoundError: {kind} {name} not found", f"{kind} {name} not found")


def exists(message: str) -> ApiError:
    """Something whose name is taken."""
    return ApiError(ALREADY_EXISTS, f"Already exist error: {message}", message)


def bad_request(message: str, cause: str) -> ApiError:
    """A request against the state of things."""
    return ApiError(ABORTED, f"BadRequestError: {message}: {cause}", message)


def internal(message: str, cause: str) -> ApiError:
    """What the real server calls its own fault, even where the request is wrong."""
    return ApiError(INTERNAL, f"InternalServerError: {message}: {cause}", "Internal Server Error")


@contextmanager
def trying(*tried: str) -> Iterator[None]:
    """Say what was tried, the outermost first, in front of an error."""
    try:
        yield
    except ApiError as error:
        if error.external is not None:
            error.chain = ": ".join([*tried, error.chain])
        raise


@contextmanager
def failing(message: str) -> Iterator[None]:
    """Turn any error into the server's own fault, as the real server does in places."""
    try:
        yield
    except ApiError as error:
        raise internal(message, error.chain) from error

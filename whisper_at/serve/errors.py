"""Errors in the form that OpenAI's API has for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException


class ErrorDetails(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of a response that tells of an error."""

    error: ErrorDetails


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be done"},
    "5XX": {"model": ErrorBody, "description": "The server failed, or is busy"},
}
"""Responses of every route, for OpenAPI."""
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def add_error_handlers(app: FastAPI) -> None:
    """Let an application answer errors as OpenAI's does, without paths and traces."""
    app.add_exception_handler(RequestValidationError, _invalid_fields_response)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error_response)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _server_error_response)


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return what describes an error."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response for an error."""
    return JSONResponse(error_body(status, message), status, headers)


def failure_message(error: BaseException) -> str:
    """Return what a client is told of a failure that is not its fault."""
    return f"the server failed ({type(error).__name__}); its log says where"


async def _http_error_response(_: Request, error: HTTPException) -> Response:
    return error_response(error.status_code, error.detail, error.headers)


async def _invalid_fields_response(_: Request, error: RequestValidationError) -> Response:
    return error_response(400, "; ".join(sorted({_reason(one) for one in _errors(error)})))


def _errors(error: RequestValidationError) -> Iterable[Mapping[str, Any]]:
    return error.errors()


def _reason(error: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in error["loc"][1:])
    if field == "file" and error["type"] == "value_error":
        return "file: it came as text; send it as a file that has a name (curl: -F file=@NAME)"
    return f"{field}: {error['msg']}"


async def _server_error_response(_: Request, error: Exception) -> Response:
    return error_response(500, failure_message(error))

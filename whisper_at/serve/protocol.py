"""What HTTP has beyond the routes: HEAD and OPTIONS for each of them, and names of files in RFC 5987's encoding."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ENCODED_NAME = re.compile(rb";\s*filename\*\s*=\s*\"?([\w-]+)'[^']*'([^;\"\s]+)", re.IGNORECASE)
_PLAIN_NAME = re.compile(rb";\s*filename\s*=", re.IGNORECASE)


class MethodsMiddleware:
    """Answers HEAD as GET without the body, and OPTIONS by the methods of a path."""

    def __init__(self, app: ASGIApp, routes: FastAPI) -> None:
        self.app, self.routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and (allowed := self._methods(scope["path"])):
            return await Response(status_code=204, headers={"Allow": ", ".join(allowed)})(scope, receive, send)
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self.app(scope, receive, send)

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, send_without_body)

    def _methods(self, path: str) -> list[str]:
        """Return the methods of a path; none if nothing is there."""
        found: set[str] = set()
        for route in self.routes.routes:
            if getattr(route, "path_regex", None) is not None and route.path_regex.match(path):  # type: ignore[attr-defined]
                found |= set(getattr(route, "methods", None) or ())
        if not found:
            return []
        return sorted(found | {"OPTIONS"} | ({"HEAD"} if "GET" in found else set()))


class FormRoute(APIRoute):
    """A route whose forms may have files that are named by ``filename*`` only, as some clients name them.

    ``app.state.check_room`` may refuse a request by an HTTPException before its form is read.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        respond = super().get_route_handler()

        async def respond_to_form(request: Request) -> Response:
            if self.body_field is not None:
                request.app.state.check_room(request)
            return await respond(_FormRequest(request.scope, request.receive))

        return respond_to_form


class _FormRequest(Request):
    async def _get_form(self, **limits: Any) -> FormData:
        if self._form is None and self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            try:
                async with aclosing(self.stream()) as stream:
                    self._form = await _Parser(self.headers, stream, **limits).parse()
            except MultiPartException as error:
                raise HTTPException(400, error.message) from None
        return await super()._get_form(**limits)


class _Parser(MultiPartParser):
    """Starlette's parser, which takes a part for text where there is no ``filename``."""

    def on_headers_finished(self) -> None:
        header = self._current_part.content_disposition or b""
        if (encoded := _ENCODED_NAME.search(header)) and not _PLAIN_NAME.search(header):
            charset, value = (part.decode("latin-1") for part in encoded.groups())
            try:
                name = unquote(value, charset, "replace")
            except LookupError:
                name = unquote(value)
            name = re.sub(r'[\x00-\x1f"\\]', "_", name)
            self._current_part.content_disposition = header + f'; filename="{name}"'.encode(self._charset, "replace")
        super().on_headers_finished()

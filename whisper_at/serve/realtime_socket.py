"""The WebSocket of realtime sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..languages import language_code
from ..live import Stream
from ..tagging.rows import TagOptions
from .engine import Engine
from .realtime import Event, LiveStream, RealtimeSession, SessionError
from .schemas import class_names
from .served_models import ServedModels

SUBPROTOCOL = "realtime"
TRY_AGAIN_LATER, POLICY_VIOLATION = 1013, 1008


def add_realtime_route(
    app: FastAPI, engine: Engine, models: ServedModels, origins: Sequence[str], max_sessions: int
) -> None:
    """Add ``/v1/realtime``.

    Browsers let any page open a WebSocket to any server: pages of other sites than the server's own, and `origins`, are
    refused.
    """
    sessions: set[WebSocket] = set()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        if not _is_allowed(socket, origins):
            return await socket.close(POLICY_VIOLATION, "pages of this origin may not use the server")
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if len(sessions) >= max_sessions:
            return await socket.close(TRY_AGAIN_LATER, "too many sessions; try again later")
        sessions.add(socket)
        try:
            await _converse(socket, engine, _stream_opener(models, socket.query_params.get("model", "")))
        except WebSocketDisconnect:
            pass
        finally:
            sessions.discard(socket)


async def _converse(socket: WebSocket, engine: Engine, open_stream: Callable[..., LiveStream]) -> None:
    session = RealtimeSession(open_stream)
    await socket.send_json(session.created())
    while True:
        event = _parse(await socket.receive())
        # what a model does, one thread does for all
        for answer in await engine.run_soon(lambda event=event: list(session.handle(event))):  # type: ignore[misc]
            await socket.send_json(answer)


def _stream_opener(models: ServedModels, default: str) -> Callable[..., LiveStream]:
    """Return what opens a stream with the settings of a session."""

    def open_stream(
        model: str, language: str | None, prompt: str, at_time_res: Any, include_classes: str, position: float
    ) -> LiveStream:
        try:
            served = models.find(model or default)
        except HTTPException as error:
            raise SessionError(error.detail) from None
        options = TagOptions(include_classes=class_names(include_classes))
        return Stream(
            served.model,
            language_code(language),
            prompt=prompt,
            at_time_res=at_time_res,
            position=position,
            tag_options=options,
        )

    return open_stream


def _parse(message: Message) -> Event | None:
    """Return the event of a message; None if it is no JSON."""
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    try:
        return json.loads(message.get("text") or message.get("bytes") or "")
    except ValueError:
        return None


def _is_allowed(socket: WebSocket, origins: Sequence[str]) -> bool:
    origin = socket.headers.get("origin")
    own = urlsplit(origin or "").netloc == socket.headers.get("host")
    return origin is None or own or origin in origins or "*" in origins

"""The WebSocket of realtime sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..languages import language_code
from ..live import Stream
from ..tagging.rows import TagOptions
from .backlog import Backlog
from .engine import Engine
from .limits import Limits
from .realtime import APPEND, MAX_LISTEN_SECONDS, Event, LiveStream, RealtimeSession, SessionError
from .schemas import class_names
from .served_models import ServedModels

SUBPROTOCOL = "realtime"
TRY_AGAIN_LATER, POLICY_VIOLATION = 1013, 1008


def add_realtime_route(
    app: FastAPI, engine: Engine, models: ServedModels, origins: Sequence[str], limits: Limits
) -> None:
    """Add ``/v1/realtime``.

    Browsers let any page open a WebSocket to any server: pages of other sites than the server's own, and `origins`, are
    refused. A client that is ahead of its session by as many bytes as a request may have is not read until it is less.
    """
    sessions: set[WebSocket] = set()

    @app.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        if not _is_allowed(socket, origins):
            return await socket.close(POLICY_VIOLATION, "pages of this origin may not use the server")
        offered = socket.scope.get("subprotocols", ())
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        if len(sessions) >= limits.live:
            return await socket.close(TRY_AGAIN_LATER, "too many sessions; try again later")
        sessions.add(socket)
        try:
            opener = _stream_opener(models, socket.query_params.get("model", ""))
            await _converse(socket, engine, opener, limits.megabytes * 1e6)
        except WebSocketDisconnect:
            pass
        finally:
            sessions.discard(socket)


async def _converse(
    socket: WebSocket, engine: Engine, open_stream: Callable[..., LiveStream], max_bytes: float
) -> None:
    """Receive and answer at the same time, until the client goes."""
    session = RealtimeSession(open_stream)
    await socket.send_json(session.created())
    with Backlog(max_bytes) as backlog:
        works = _receive(socket, backlog), _answer(socket, engine, session, backlog)
        tasks = [asyncio.create_task(work) for work in works]
        try:
            for task in (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]:
                task.result()  # neither ends but by an error
        finally:
            for task in tasks:
                task.cancel()


async def _receive(socket: WebSocket, backlog: Backlog) -> None:
    """Take what a client sends, however long it waits for its answer."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        await backlog.put((message.get("text") or "").encode() or message.get("bytes") or b"")


async def _answer(socket: WebSocket, engine: Engine, session: RealtimeSession, backlog: Backlog) -> None:
    """Handle what has come in its order; what a model does, one thread does for all.

    Sound that has come meanwhile is listened to at once.
    """
    while True:
        event = _parse(await backlog.get())
        answers: Callable[[], list[Event]] = partial(list, session.handle(event))
        is_sound = isinstance(event, dict) and event.get("type") == APPEND
        for answer in await (run_in_threadpool(answers) if is_sound else engine.run_soon(answers)):
            await socket.send_json(answer)
        while session.unheard >= MAX_LISTEN_SECONDS or (session.unheard and not backlog):
            for answer in await engine.run_soon(partial(list, session.listen())):
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


def _parse(message: bytes) -> Event | None:
    """Return the event of a message; None if it is no JSON."""
    try:
        return json.loads(message)
    except ValueError:
        return None


def _is_allowed(socket: WebSocket, origins: Sequence[str]) -> bool:
    origin = socket.headers.get("origin")
    own = urlsplit(origin or "").netloc == socket.headers.get("host")
    return origin is None or own or origin in origins or "*" in origins

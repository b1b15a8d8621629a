"""A request and the engine: the recording that it brings goes in, and what is told of it comes out."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

from fastapi import Request, UploadFile
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..model import WhisperAT
from .engine import Engine
from .recordings import Finished, Message, Recording

T = TypeVar("T")

CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client has gone, which sees it no more."""


def client_of(request: Request) -> str:
    """Return whose turn a request takes: that of its key, else of the address it comes from."""
    return request.scope.get("api_client") or (request.client.host if request.client else "")


class Submission:
    """A recording that a request brought.

    Parameters
    ----------
    engine : Engine
        What transcribes it.
    http : Request
        While its client is there, the recording is worked on.
    """

    def __init__(self, engine: Engine, http: Request) -> None:
        self.engine, self.http = engine, http
        self.recording: Recording | None = None
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def send(self, file: UploadFile, model: WhisperAT, options: dict[str, Any], **how: Any) -> None:
        """Give a file to the engine, with the options of `transcribe`, or of `tag`; `how` are fields of `Recording`."""
        name = file.filename or "the file"
        recording = Recording(client_of(self.http), model, options, self._notify, name=name, **how)
        try:
            await run_in_threadpool(_copy, file.file, recording)
            self.engine.submit(recording)
        except BaseException:
            recording.close()
            raise
        self.recording = recording

    @property
    def seconds(self) -> float:
        """Length of the recording, once it has been opened."""
        return 0.0 if self.recording is None else self.recording.seconds

    async def opened(self) -> None:
        """Wait until the recording has been read; raise what is wrong with it."""
        await self._while_client_is_there(self._next())

    async def result(self) -> dict[str, Any]:
        """Wait for the result; raise what went wrong."""
        return await self._while_client_is_there(self._result())

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what is told of the recording, to the last; whoever stops before that stops the work too."""
        try:
            while True:
                message = await self._queue.get()
                yield message
                if isinstance(message, (Finished, Exception)):
                    return
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop the work, if it is not done."""
        if self.recording is not None:
            self.engine.cancel(self.recording)

    def _notify(self, message: Message) -> None:
        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)

    async def _next(self) -> Message:
        message = await self._queue.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def _result(self) -> dict[str, Any]:
        while True:
            message = await self._next()
            if isinstance(message, Finished):
                return message.result

    async def _while_client_is_there(self, wanted: Coroutine[Any, Any, T]) -> T:
        """Return what is waited for; raise an HTTPException of 499 where the client goes meanwhile."""
        work = asyncio.ensure_future(wanted)
        gone = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise HTTPException(CLIENT_CLOSED_REQUEST, "the client has gone")
        except BaseException:
            self.cancel()
            raise
        finally:
            work.cancel()
            gone.cancel()

    async def _disconnected(self) -> None:
        while (await self.http.receive())["type"] != "http.disconnect":
            pass


def _copy(source: BinaryIO, recording: Recording) -> None:
    with recording.path.open("wb") as target:
        shutil.copyfileobj(source, target)

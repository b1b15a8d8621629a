"""What a server accepts: bytes and minutes, patience with slow clients, and how many recordings may wait."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_DISCARDED = 64_000_000
"""Bytes that are read of a refused request, so that its client sees why: one that still sends sees a broken pipe."""
DISCARD_SECONDS = 2.0
"""How long the rest of it is waited for."""


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes
    ----------
    megabytes : float
        Largest request, and how far a realtime session's client may be ahead of it.
    minutes : float
        Longest recording, however few bytes it has.
    waiting : int
        Recordings that may wait while others are transcribed.
    waiting_per_client : int
        As many of one client.
    live : int
        Realtime sessions at once.
    upload_seconds : float
        A client that sends nothing for so long in the middle of a request is given up.
    kept : int
        Results that are kept at most for clients who ask for that; of more, the oldest go.
    kept_hours : float
        Hours of recordings whose results are kept.
    keep_minutes : float
        A result that nobody reads for so long is forgotten.
    """

    megabytes: float = 1000.0
    minutes: float = 240.0
    waiting: int = 16
    waiting_per_client: int = 8
    live: int = 4
    upload_seconds: float = 60.0
    kept: int = 32
    kept_hours: float = 12.0
    keep_minutes: float = 60.0


class BodyMiddleware:
    """Refuses requests of too many bytes before they are on disk, and those whose client falls silent."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = dict(scope["headers"])
        header = headers.get(b"content-length", b"0")
        max_bytes = self.limits.megabytes * 1e6
        received, complete = 0, False

        async def receive_and_count() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is that the client has gone
                return await receive()
            if header.isdigit() and int(header) > max_bytes:
                raise HTTPException(413, f"requests are of {self.limits.megabytes:g} MB at most")
            try:
                message = await asyncio.wait_for(receive(), self.limits.upload_seconds)
            except asyncio.TimeoutError:
                raise HTTPException(408, f"nothing came for {self.limits.upload_seconds:g} s") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if received > max_bytes:
                raise HTTPException(413, f"requests are of {self.limits.megabytes:g} MB at most")
            return message

        async def send_when_read(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and message["status"] != 408:
                await discard_body()
            await send(message)

        async def discard_body() -> None:
            nonlocal complete
            discarded = 0
            if headers.get(b"expect", b"").lower() == b"100-continue" and not received:
                return  # it waits for the answer before it sends
            while not complete and discarded < MAX_DISCARDED:
                try:
                    message = await asyncio.wait_for(receive(), DISCARD_SECONDS)
                except asyncio.TimeoutError:
                    return
                discarded += len(message.get("body", b""))
                complete = not message.get("more_body", False)

        await self.app(scope, receive_and_count, send_when_read)

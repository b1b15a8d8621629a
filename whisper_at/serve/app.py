"""The routes, and what keeps a server up: limits, one recording at a time, errors that say what is wrong."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..audio import SAMPLE_RATE, stream_audio
from ..model import WhisperAT
from ..tagging.classes import ClassSet
from ..tagging.labels import label_names
from ..version import __version__
from .responses import answer
from .schemas import Asked, tag_options, transcribe_options

OPENAI_NAME = "whisper-1"
"""What OpenAI calls its Whisper: taken for whichever is served, so that programs need not be changed."""
GONE = 499
"""Status for a client that did not wait for its answer, which it does not see."""
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
PAGE_POLICY += "; media-src blob:; img-src data:"


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes
    ----------
    megabytes : of a request
    minutes : of a recording, however few bytes it has
    waiting : recordings that wait while one is heard
    """

    megabytes: float = 1000.0
    minutes: float = 240.0
    waiting: int = 16


def create_app(model: WhisperAT, name: str, limits: Limits | None = None, **options: Any) -> FastAPI:
    """The application, for any ASGI server.

    Parameters
    ----------
    model : with its heads; recordings are heard one after the other, in the order in which they came
    name : what it is called in requests
    limits : those of `Limits` by default
    options : of `transcribe` for every request, as ``batch_size`` or ``beam_size``

    Routes: ``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``, ``GET /v1/models`` and ``/health``, and a
    page at ``/``. Requests and answers are those of OpenAI's API; see `whisper_at.serve.schemas.Asked`.
    """
    app = FastAPI(title="whisper_at", version=__version__)
    limits = limits or Limits()
    desk = _Desk(model, limits, options)
    page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    started = int(time.time())
    app.add_middleware(_AtMost, n_bytes=int(limits.megabytes * 1e6))
    app.add_exception_handler(RequestValidationError, _refuse_fields)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _refuse)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _fail)

    @app.get("/", include_in_schema=False)
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "recordings": desk.recordings}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        served = {"id": name, "object": "model", "created": started, "owned_by": "whisper_at", "heads": _heads(model)}
        return {"object": "list", "data": [served]}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request, asked: Annotated[Asked, Form()]) -> Response:
        _require_name(asked.model, name)
        return await desk.serve(request, asked, "transcribe")

    @app.post("/v1/audio/translations")
    async def translations(request: Request, asked: Annotated[Asked, Form()]) -> Response:
        _require_name(asked.model, name)
        return await desk.serve(request, asked, "translate")

    return app


class _Desk:
    """Where recordings queue up for the one model."""

    def __init__(self, model: WhisperAT, limits: Limits, options: dict[str, Any]) -> None:
        self.model, self.limits, self.options = model, limits, options
        self.recordings = 0  # that wait or are being heard
        self.turn = asyncio.Lock()
        self.thread = ThreadPoolExecutor(1, "whisper_at")  # PyTorch keeps a pool for each thread that computes
        self.reader = ThreadPoolExecutor(1, "whisper_at-reader")  # ffmpeg runs once at a time

    async def serve(self, request: Request, asked: Asked, task: str) -> Response:
        """The answer to a request, when it is its turn."""
        try:
            options = {**self.options, **transcribe_options(asked, self.model, task)}
            tag_options(asked)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if self.recordings > self.limits.waiting:
            raise HTTPException(503, "too many recordings are waiting; try again later", {"Retry-After": "30"})
        self.recordings += 1
        run = asyncio.get_running_loop().run_in_executor
        try:
            with tempfile.TemporaryDirectory(prefix="whisper-at-") as folder:
                path = Path(folder, "recording")
                seconds = await run(self.reader, self._take, asked.file, path)
                async with self.turn:
                    if await request.is_disconnected():
                        return Response(status_code=GONE)
                    return await run(self.thread, self._hear, path, options, asked, task, seconds)
        finally:
            self.recordings -= 1

    def _hear(self, path: Path, options: dict[str, Any], asked: Asked, task: str, seconds: float) -> Response:
        return answer(self.model.transcribe(str(path), **options), asked, task, seconds)

    def _take(self, file: UploadFile, path: Path) -> float:
        """Put an upload where it can be read; returns its seconds, which are counted while others are heard."""
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)
        name, samples = file.filename or "the file", 0
        try:
            for block in stream_audio(path):
                samples += len(block)
                if samples > self.limits.minutes * 60 * SAMPLE_RATE:
                    raise HTTPException(413, f"{name} is longer than {self.limits.minutes:g} minutes")
        except RuntimeError as error:
            raise HTTPException(400, str(error).replace(str(path), name)) from None
        return samples / SAMPLE_RATE


class _AtMost:
    """Refuses requests of too many bytes, before they are on disk."""

    def __init__(self, app: ASGIApp, n_bytes: int) -> None:
        self.app, self.n_bytes = app, n_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        announced, received = int(told) if told.isdigit() else 0, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(announced, received) > self.n_bytes:
                raise HTTPException(413, f"requests are of {self.n_bytes / 1e6:g} MB at most")
            return message

        await self.app(scope, counted, send)


def _heads(model: WhisperAT) -> dict[str, list[str]]:
    """The classes of each head, by the name under which answers tell of it."""
    heads = {} if model.head is None else {"audio_tag": list(label_names())}
    for name, head in model.attached.items():
        heads[name] = list(head.classes.names if isinstance(head.classes, ClassSet) else head.classes or ())
    return heads


def _require_name(asked: str, served: str) -> None:
    if asked not in ("", served, OPENAI_NAME):
        raise HTTPException(404, f"model: {asked!r} is not served here; {served!r} is")


def _error(status: int, message: str) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


async def _refuse(_: Request, error: HTTPException) -> Response:
    response = _error(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _refuse_fields(_: Request, error: RequestValidationError) -> Response:
    reasons = {f"{'.'.join(str(part) for part in one['loc'][1:])}: {one['msg']}" for one in error.errors()}
    return _error(400, "; ".join(sorted(reasons)))


async def _fail(_: Request, error: Exception) -> Response:
    return _error(500, f"the server failed ({type(error).__name__}); its log says where")

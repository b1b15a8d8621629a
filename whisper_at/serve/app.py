"""The routes of the server, its limits, its queue and its errors."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..audio import SAMPLE_RATE, stream_audio
from ..model import WhisperAT
from ..suggest import did_you_mean
from ..tagging.listeners import class_set
from ..version import __version__
from .protocol import FormRoute, MethodsMiddleware
from .responses import to_response
from .schemas import TranscriptionRequest, tag_options, transcribe_options

OPENAI_NAMES = re.compile(r"whisper-1|gpt-4o(-mini)?-transcribe(-\d{4}-\d\d-\d\d)?")
"""OpenAI's names for what transcribes: they mean whichever model is served, so that programs need not be changed."""
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client has gone, which sees it no more."""
PAGE_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
PAGE_POLICY += "; media-src blob:; img-src data:"


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes
    ----------
    megabytes : float
        Largest request.
    minutes : float
        Longest recording, however few bytes it has.
    waiting : int
        Recordings that may wait while one is transcribed.
    """

    megabytes: float = 1000.0
    minutes: float = 240.0
    waiting: int = 16


def create_app(
    model: WhisperAT, name: str, limits: Limits | None = None, *, cors: Sequence[str] = (), **options: Any
) -> FastAPI:
    """Return the application, for any ASGI server.

    Routes: ``POST /v1/audio/transcriptions`` and ``/v1/audio/translations``, ``GET /v1/models``, ``/v1/models/{id}``
    and ``/health``, and a page at ``/``. Requests and responses are those of OpenAI's API; see `TranscriptionRequest`.

    Parameters
    ----------
    model : WhisperAT
        With its heads. It transcribes one recording after the other, in the order in which they came.
    name : str
        Its name in requests.
    limits : Limits, optional
        What the server accepts.
    cors : sequence of str
        Origins (``https://example.org``, or ``*``) whose pages may use the server from a browser.
    **options
        Options of `transcribe` for every request, as ``batch_size`` or ``beam_size``.
    """
    # the pages that FastAPI has of its own fetch their scripts from elsewhere
    app = FastAPI(title="whisper_at", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = FormRoute
    limits = limits or Limits()
    queue = TranscriptionQueue(model, limits, options)
    page = resources.files(__package__).joinpath("page.html").read_text("utf-8")
    started = int(time.time())
    app.add_middleware(MaxBodyMiddleware, max_bytes=int(limits.megabytes * 1e6))
    app.add_middleware(MethodsMiddleware, routes=app)
    if cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), allow_methods=["*"], allow_headers=["*"])
    app.add_exception_handler(RequestValidationError, _invalid_fields_response)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _http_error_response)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, _server_error_response)

    @app.get("/", include_in_schema=False)
    def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "recordings": queue.recordings}

    def describe(id: str) -> dict[str, Any]:
        made = {"object": "model", "created": started, "owned_by": "whisper_at"}
        return {"id": id, **made, "heads": _class_names(model)}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(name)]}

    @app.get("/v1/models/{id:path}")
    def one_model(id: str) -> dict[str, Any]:
        _check_model_name(id, name)
        return describe(id)

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(http: Request, request: Annotated[TranscriptionRequest, Form()]) -> Response:
        _check_model_name(request.model, name)
        return await queue.transcribe(http, request, "transcribe")

    @app.post("/v1/audio/translations")
    async def translations(http: Request, request: Annotated[TranscriptionRequest, Form()]) -> Response:
        _check_model_name(request.model, name)
        return await queue.transcribe(http, request, "translate")

    return app


class TranscriptionQueue:
    """Transcribes recordings one after the other with the one model."""

    def __init__(self, model: WhisperAT, limits: Limits, options: dict[str, Any]) -> None:
        self.model, self.limits, self.options = model, limits, options
        self.recordings = 0  # that wait or are being transcribed
        self.turn = asyncio.Lock()
        self.thread = ThreadPoolExecutor(1, "whisper_at")  # PyTorch keeps a pool for each thread that computes
        self.reader = ThreadPoolExecutor(1, "whisper_at-reader")  # ffmpeg runs once at a time

    async def transcribe(self, http: Request, request: TranscriptionRequest, task: str) -> Response:
        """Return the response to a request, when it is its turn."""
        try:
            options = {**self.options, **transcribe_options(request, self.model, task)}
            tag_options(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        if self.recordings > self.limits.waiting:
            raise HTTPException(503, "too many recordings are waiting; try again later", {"Retry-After": "30"})
        self.recordings += 1
        run = asyncio.get_running_loop().run_in_executor
        try:
            with tempfile.TemporaryDirectory(prefix="whisper-at-") as folder:
                path = Path(folder, "recording")
                seconds = await run(self.reader, self._save_upload, request, path)
                async with self.turn:
                    if await http.is_disconnected():
                        return Response(status_code=CLIENT_CLOSED_REQUEST)
                    return await run(self.thread, self._respond, path, options, request, task, seconds)
        finally:
            self.recordings -= 1

    def _respond(
        self, path: Path, options: dict[str, Any], request: TranscriptionRequest, task: str, seconds: float
    ) -> Response:
        return to_response(self.model.transcribe(str(path), **options), request, task, seconds)

    def _save_upload(self, request: TranscriptionRequest, path: Path) -> float:
        """Write an upload to `path`; return its seconds, which are counted while other recordings are transcribed."""
        with path.open("wb") as target:
            shutil.copyfileobj(request.file.file, target)
        name, samples = request.file.filename or "the file", 0
        try:
            for block in stream_audio(path, audio_track=request.audio_track or None):
                samples += len(block)
                if samples > self.limits.minutes * 60 * SAMPLE_RATE:
                    raise HTTPException(413, f"{name} is longer than {self.limits.minutes:g} minutes")
        except (RuntimeError, ValueError) as error:
            raise HTTPException(400, str(error).replace(str(path), name)) from None
        return samples / SAMPLE_RATE


class MaxBodyMiddleware:
    """Refuses requests of too many bytes, before they are on disk."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count the bytes of its body."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        header = dict(scope["headers"]).get(b"content-length", b"0")
        announced, received = int(header) if header.isdigit() else 0, 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(announced, received) > self.max_bytes:
                raise HTTPException(413, f"requests are of {self.max_bytes / 1e6:g} MB at most")
            return message

        await self.app(scope, receive_and_count, send)


def _class_names(model: WhisperAT) -> dict[str, list[str]]:
    """Return the classes of each head, by the name of the head in responses."""
    return {name: list(class_set(head).names) for name, head in model.heads.items()}


def _check_model_name(name: str, served: str) -> None:
    if name not in ("", served) and not OPENAI_NAMES.fullmatch(name):
        raise HTTPException(404, f"model: {name!r} is not served here; {served!r} is")


def _error_response(status: int, message: str) -> JSONResponse:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)


async def _http_error_response(_: Request, error: HTTPException) -> Response:
    response = _error_response(error.status_code, error.detail)
    response.headers.update(error.headers or {})
    return response


async def _invalid_fields_response(_: Request, error: RequestValidationError) -> Response:
    reasons = {_reason(one, ".".join(str(part) for part in one["loc"][1:])) for one in error.errors()}
    return _error_response(400, "; ".join(sorted(reasons)))


def _reason(error: Mapping[str, Any], field: str) -> str:
    if error["type"] == "extra_forbidden":
        fields = [option.alias or name for name, option in TranscriptionRequest.model_fields.items()]
        return f"{field}: there is no such field; {did_you_mean(field, fields)}"
    if field == "file" and error["type"] == "value_error":
        return "file: it came as text; send it as a file that has a name (curl: -F file=@NAME)"
    return f"{field}: {error['msg']}"


async def _server_error_response(_: Request, error: Exception) -> Response:
    return _error_response(500, f"the server failed ({type(error).__name__}); its log says where")

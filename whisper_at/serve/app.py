"""The routes of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, Form, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..formats import FORMATS
from ..model import WhisperAT
from ..version import __version__
from . import docs_page, metrics, streaming
from .api_keys import ApiKeyMiddleware
from .engine import Engine
from .errors import ERRORS, add_error_handlers, error_response, failure_message
from .kept_results import new_id
from .limits import BodyMiddleware, Limits
from .page_routes import add_page_routes
from .protocol import FormRoute, MethodsMiddleware
from .realtime_socket import add_realtime_route
from .responses import TEXT_FORMATS, detections, to_response
from .result_routes import add_result_routes
from .schemas import (
    ClassificationRequest,
    TranscriptionRequest,
    classification_options,
    detection_options,
    ignored_fields,
    tag_options,
    transcribe_options,
)
from .served_models import ServedModels
from .submission import Submission, client_of

IGNORED_FIELDS = "X-Ignored-Fields"
"""Header of a response that names the fields of its request that mean nothing here."""
RESULT_ID, DURATION = "X-Result-ID", "X-Audio-Duration"
"""Headers of a response that name the result that is kept, and the seconds of the recording."""


def create_app(
    model: WhisperAT,
    name: str,
    limits: Limits | None = None,
    *,
    more_models: Mapping[str, WhisperAT] | None = None,
    strict_models: bool = False,
    cors: Sequence[str] = (),
    api_keys: Sequence[str] = (),
    **options: Any,
) -> FastAPI:
    """Return the application, for any ASGI server.

    Requests and responses are those of OpenAI's API; see `TranscriptionRequest`. ``/docs`` lists the routes.

    Parameters
    ----------
    model : WhisperAT
        With its heads.
    name : str
        Its name in requests.
    limits : Limits, optional
        What the server accepts.
    more_models : mapping of str to WhisperAT, optional
        Others, by their names in requests.
    strict_models : bool
        Whether OpenAI's names of models mean nothing here; by default they mean the first one.
    cors : sequence of str
        Origins (``https://example.org``, or ``*``) whose pages may use the server from a browser.
    api_keys : sequence of str
        Keys of which a request has to show one; none for a server that is open to all who reach it.
    **options
        Options of `transcribe` for every request, as ``beam_size``. With ``batch_size``, so many windows are
        transcribed at once, of several recordings where there are several; without, each recording goes by itself,
        window after window, as `transcribe` does it.
    """
    # the pages that FastAPI has of its own fetch their scripts from elsewhere
    app = FastAPI(title="whisper_at", version=__version__, docs_url=None, redoc_url=None)
    app.router.route_class = FormRoute
    limits = limits or Limits()
    models = ServedModels({name: model, **(more_models or {})}, strict_models)
    counts = metrics.Metrics()
    engine = Engine(limits, options.get("batch_size") or 1, counts)
    app.state.engine = engine
    app.state.check_room = lambda request: engine.check_room(client_of(request))
    # the last one is the outermost
    app.add_middleware(BodyMiddleware, limits=limits)
    if api_keys:
        app.add_middleware(ApiKeyMiddleware, keys=api_keys)
    app.add_middleware(metrics.MetricsMiddleware, metrics=counts)
    app.add_middleware(MethodsMiddleware, routes=app)
    if cors:
        exposed = [IGNORED_FIELDS, RESULT_ID, DURATION, "Retry-After"]
        anything: dict[str, Any] = {"allow_methods": ["*"], "allow_headers": ["*"], "expose_headers": exposed}
        app.add_middleware(CORSMiddleware, allow_origins=list(cors), **anything)
    add_error_handlers(app)
    _add_audio_routes(app, engine, models, options)
    add_result_routes(app, engine)
    _add_other_routes(app, engine, models, counts)
    add_page_routes(app)
    add_realtime_route(app, engine, models, cors, limits)
    return app


def _add_audio_routes(app: FastAPI, engine: Engine, models: ServedModels, options: dict[str, Any]) -> None:
    """Add what is asked with a recording."""

    async def respond(http: Request, request: TranscriptionRequest, task: str) -> Response:
        served = models.find(request.model)
        try:
            ignored = ignored_fields(request)
            wanted = {**options, **transcribe_options(request, served.model, task)}
            tag_options(request)
        except (ValueError, ImportError) as error:
            raise HTTPException(400, str(error)) from None
        submission = Submission(engine, http)
        keep_as = new_id() if request.keep or request.response_format in FORMATS else None
        tells_progress = request.stream and request.response_format == "verbose_json"
        await submission.send(request.file, served.model, wanted, keep_as=keep_as, tells_progress=tells_progress)
        headers = _ignored(ignored) | ({RESULT_ID: keep_as} if request.keep and keep_as else {})
        try:
            await submission.opened()
            headers[DURATION] = f"{submission.seconds:.3f}"
            if request.stream:
                events = streaming.events(submission.messages(), request)
                headers |= streaming.HEADERS
                return StreamingResponse(events, media_type=streaming.MEDIA_TYPE, headers=headers)
            result = await submission.result()
        except HTTPException:
            raise
        except Exception as error:  # the engine has written it into the log
            return error_response(500, failure_message(error))
        kept = engine.kept.find(keep_as, client_of(http)) if keep_as else None
        audio = kept.audio if kept else None
        try:
            response = await run_in_threadpool(to_response, result, request, task, submission.seconds, audio)
        finally:
            if keep_as and not request.keep:  # its file was needed for this response alone
                engine.kept.remove(keep_as, client_of(http))
        response.headers.update(headers)
        return response

    @app.post("/v1/audio/transcriptions", responses=ERRORS | TEXT_FORMATS, response_model=None)
    async def transcriptions(http: Request, request: Annotated[TranscriptionRequest, Form()]) -> Response:
        """Transcribe in the language spoken, and tell what sounds where that is asked for."""
        return await respond(http, request, "transcribe")

    @app.post("/v1/audio/translations", responses=ERRORS | TEXT_FORMATS, response_model=None)
    async def translations(http: Request, request: Annotated[TranscriptionRequest, Form()]) -> Response:
        """Translate into English."""
        return await respond(http, request, "translate")

    @app.post("/v1/audio/classification", responses=ERRORS, response_model=None)
    async def classification(http: Request, request: Annotated[ClassificationRequest, Form()]) -> Response:
        """Tell what sounds, how likely, and from when to when, without text, at the encoder's speed."""
        served = models.find(request.model)
        try:
            ignored = ignored_fields(request)
            wanted = classification_options(request, served.model)
            shown = detection_options(request)
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        submission = Submission(engine, http)
        await submission.send(request.file, served.model, wanted, tag_only=True)
        try:
            result = await submission.result()
        except HTTPException:
            raise
        except Exception as error:  # the engine has written it into the log
            return error_response(500, failure_message(error))
        found = await run_in_threadpool(detections, result, shown, request.top_k)
        body = {"model": request.model or served.name, "duration": submission.seconds, "detections": found}
        return JSONResponse(body, headers=_ignored(ignored))


def _add_other_routes(app: FastAPI, engine: Engine, models: ServedModels, counts: metrics.Metrics) -> None:
    """Add what tells of the server."""

    @app.get("/docs", include_in_schema=False)
    def show_docs() -> HTMLResponse:
        return HTMLResponse(docs_page.docs_page(app.openapi()), headers={"Content-Security-Policy": docs_page.POLICY})

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Tell that the server runs, and how many recordings it has."""
        return {"status": "ok", "recordings": engine.n_recordings}

    @app.get("/ready", responses=ERRORS, response_model=None)
    def ready(http: Request) -> dict[str, Any] | Response:
        """Tell whether it takes a further recording; status 503 or 429 if not."""
        engine.check_room(client_of(http))
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def show_metrics() -> Response:
        """Show figures for Prometheus."""
        return Response(counts.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/models", responses=ERRORS)
    def all_models() -> dict[str, Any]:
        """List the models that are served, and the classes of their heads."""
        return models.describe_all()

    @app.get("/v1/models/{id:path}", responses=ERRORS)
    def one_model(id: str) -> dict[str, Any]:
        """Describe one of them."""
        return models.describe(id)


def _ignored(fields: Sequence[str]) -> dict[str, str]:
    return {IGNORED_FIELDS: ", ".join(quote(name, safe="[]") for name in fields)} if fields else {}

"""Routes of results that are kept: what is known of one, its sounds by other thresholds, and its files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from whisper.tokenizer import LANGUAGES

from ..checkpoints.files import to_jsonable
from ..formats import FORMATS
from ..formats.registry import WHISPER_FORMATS, extension, is_available
from ..tagging.classes import sigmoid
from ..tagging.event_times import choose_rows
from ..tagging.events import event_thresholds
from ..tagging.labels import display_names, label_languages, tag_language
from ..tagging.named_rows import result_events
from ..tagging.rows import EVENT_ROWS, read_rows
from .engine import Engine
from .errors import ERRORS
from .kept_results import KeptResult
from .responses import TEXT_FORMATS, file_response
from .schemas import FileQuery, ResultQuery, label_language, tag_options
from .submission import client_of

MIN_PROBABILITY = 0.05
"""Classes that are never as probable are left out."""


def add_result_routes(app: FastAPI, engine: Engine) -> None:
    """Add ``/v1/results``."""

    def find(http: Request, id: str) -> KeptResult:
        kept = engine.kept.find(id, client_of(http))
        if kept is None:
            raise HTTPException(404, "there is no such result, or it is not kept any more; send the recording again")
        return kept

    @app.get("/v1/results/{id}", responses=ERRORS)
    def describe(http: Request, id: str) -> dict[str, Any]:
        """Tell of a result that a request with ``keep=true`` left here, and which files can be had of it."""
        kept = find(http, id)
        language = kept.result["language"]
        about = {"id": id, "filename": kept.filename, "duration": kept.seconds, "language": language}
        names = {"language_name": LANGUAGES[language], "label_languages": _language_names()}
        return to_jsonable({**about, **names, "formats": _formats(kept.result)})

    @app.delete("/v1/results/{id}", responses=ERRORS)
    def forget(http: Request, id: str) -> dict[str, Any]:
        """Forget a result."""
        find(http, id)
        return {"id": id, "deleted": engine.kept.remove(id, client_of(http))}

    @app.get("/v1/results/{id}/events", responses=ERRORS)
    def events(http: Request, id: str, query: Annotated[ResultQuery, Query()]) -> dict[str, Any]:
        """Tell which sounds there are, by a threshold, of some classes, with names in a language."""
        kept = find(http, id)
        try:
            found = result_events(kept.result, tag_options(query))
        except ValueError as error:
            raise HTTPException(400, str(error)) from None
        return to_jsonable({"events": found})

    @app.get("/v1/results/{id}/probabilities", responses=ERRORS)
    def probabilities(
        http: Request, id: str, label_language: Annotated[str, Query(description="of the names")] = ""
    ) -> dict[str, Any]:
        """Tell how probable classes are over time: of each head, seconds of a row, and a byte for each row."""
        try:
            return {"heads": _probabilities(find(http, id).result, label_language)}
        except ValueError as error:
            raise HTTPException(400, str(error)) from None

    @app.get("/v1/results/{id}/file", responses=ERRORS | TEXT_FORMATS, response_model=None)
    async def file(http: Request, id: str, query: Annotated[FileQuery, Query()]) -> Response:
        """Write a result in any format."""
        kept = find(http, id)
        try:
            return await run_in_threadpool(file_response, query.format, kept.result, query, kept.filename, kept.audio)
        except (ValueError, ImportError) as error:
            raise HTTPException(400, str(error)) from None


def _language_names() -> dict[str, str]:
    return {code: LANGUAGES.get(code, code) for code in label_languages()}


def _formats(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return name and extension of the formats that there can be of a result."""
    has_tags = bool(read_rows(result))
    of_tags = [name for name in FORMATS if has_tags or FORMATS[name].at_time_res is None]
    return [{"name": name, "extension": extension(name)} for name in (*WHISPER_FORMATS, *of_tags) if is_available(name)]


def _probabilities(result: Mapping[str, Any], language: str) -> list[dict[str, Any]]:
    """Return the rows that events are made of, by head: their seconds, and classes with names and probabilities.

    ``threshold`` is the probability from which on a class begins an event, and ``probabilities`` a byte a row, of which
    255 is 1, in base64.
    """
    names_language = tag_language(result, label_language(language))
    heads = []
    for head, found in {**read_rows(result), **read_rows(result.get(EVENT_ROWS, {}))}.items():
        seconds, _ = choose_rows(found.logits)
        logits = np.nan_to_num(found.logits[seconds], nan=-np.inf)
        probabilities = found.classes.probabilities(torch.from_numpy(logits)).numpy()
        thresholds = [sigmoid(value) for value in event_thresholds(found.classes, None)]
        names = display_names(found.classes, names_language)
        shown = np.flatnonzero(probabilities.max(0, initial=0.0) >= MIN_PROBABILITY)
        classes = [
            {
                "index": int(index),
                "name": names[index],
                "threshold": round(float(thresholds[index]), 4),
                "probabilities": base64.b64encode(np.rint(255 * probabilities[:, index]).astype(np.uint8)).decode(),
            }
            for index in shown
        ]
        heads.append({"head": head, "seconds": seconds, "rows": len(logits), "classes": classes})
    return heads

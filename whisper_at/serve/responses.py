"""A result in the formats of OpenAI's API. Sounds have keys of their own in ``verbose_json``."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from whisper.tokenizer import LANGUAGES

from ..checkpoints.files import to_jsonable
from ..formats.registry import extension
from ..tagging.named_rows import result_events
from ..tagging.rows import AUDIOSET, TagOptions
from ..writers import UPSTREAM_KEYS, result_bytes, result_to_json
from .schemas import FileQuery, TranscriptionRequest, tag_options

_ONE_AT_A_TIME = threading.Lock()
"""Matplotlib's settings are those of the whole process, so that two pictures at once would mix them."""
MEDIA_TYPES = {
    **{"vtt": "text/vtt", "metadata.vtt": "text/vtt", "tsv": "text/tab-separated-values", "json": "application/json"},
    **{"markers": "text/csv", "rows.csv": "text/csv", "sed": "text/tab-separated-values"},
    **{
        "parquet": "application/vnd.apache.parquet",
        "png": "image/png",
        "svg": "image/svg+xml",
        "pdf": "application/pdf",
    },
}
"""Of the formats of files that are more than plain text."""
TEXT_FORMATS: dict[int | str, dict[str, Any]] = {
    200: {"content": {name: {} for name in ("text/event-stream", *sorted({"text/plain", *MEDIA_TYPES.values()}))}}
}
"""What a transcription may be beside JSON, for OpenAPI."""


def to_response(
    result: dict[str, Any], request: TranscriptionRequest, task: str, seconds: float, audio: Any
) -> Response:
    """Return the response to a request, from what `transcribe` returned for a recording of so many seconds."""
    if request.response_format == "text":
        return PlainTextResponse(result["text"].strip() + "\n")
    if request.response_format == "json":
        return JSONResponse({"text": result["text"].strip()})
    if request.response_format == "verbose_json":
        return JSONResponse(_verbose(result, request, task, seconds))
    return file_response(request.response_format, result, request, request.file.filename or "", audio)


def file_response(
    format: str, result: dict[str, Any], request: TranscriptionRequest | FileQuery, filename: str, audio: Any
) -> Response:
    """Return a result as the file that the command writes of a recording of that name."""
    name = filename.replace("\\", "/").rsplit("/", 1)[-1] or "recording"
    options = vars(tag_options(request))
    with _ONE_AT_A_TIME:
        content = result_bytes(format, result, name, audio=audio, captions=request.captions or None, **options)
    disposition = f"attachment; filename*=UTF-8''{quote(f'{Path(name).stem}.{extension(format)}', safe='')}"
    headers = {"Content-Disposition": disposition, "X-Content-Type-Options": "nosniff"}
    return Response(content, media_type=MEDIA_TYPES.get(format, "text/plain"), headers=headers)


def _verbose(result: dict[str, Any], request: TranscriptionRequest, task: str, seconds: float) -> dict[str, Any]:
    """``task``, ``language`` by its name, ``duration``, ``text``, ``segments`` and ``words``, then what sounds."""
    out: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES[result["language"]],
        "duration": round(seconds, 3),
        "text": result["text"].strip(),
    }
    segments = result["segments"]
    if "segment" in request.timestamp_granularities:
        out["segments"] = [{key: segment[key] for key in segment if key != "words"} for segment in segments]
    if "word" in request.timestamp_granularities:
        words = [word for segment in segments for word in segment.get("words", [])]
        out["words"] = [{**word, "word": word["word"].strip()} for word in words]
    sounds = result_to_json(result, tag_options(request))
    return to_jsonable(out | {key: sounds[key] for key in sounds if key not in {*UPSTREAM_KEYS, *out}})


def detections(result: dict[str, Any], options: TagOptions, top_k: int) -> list[dict[str, Any]]:
    """Return what sounds, the likeliest first: LocalAI's keys, and from when to when in seconds.

    What sounds several times is there several times. ``index`` is that of the class in its head; heads of one's own are
    named.
    """
    events = sorted(result_events(result, options), key=lambda event: -event["probability"])
    found = [
        {
            "index": event["index"],
            "label": event["name"],
            "score": event["probability"],
            "onset": event["start"],
            "offset": event["end"],
            **({} if event["head"] == AUDIOSET else {"head": event["head"]}),
        }
        for event in events
    ]
    return to_jsonable(found[:top_k] if top_k else found)

"""A result in the formats of OpenAI's API. What sounds is told by keys of its own in ``verbose_json``."""

from __future__ import annotations

import io
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from whisper.tokenizer import LANGUAGES

from ..checkpoints.files import to_jsonable
from ..writers import UPSTREAM_KEYS, get_writer, plain_result
from .schemas import CAPTIONS, Asked, tag_options


def answer(result: dict[str, Any], asked: Asked, task: str, seconds: float) -> Response:
    """The response to a request, of what `transcribe` returned for a recording of ``seconds``."""
    if asked.response_format in CAPTIONS:
        file = io.StringIO()
        writer = get_writer(asked.response_format, ".", sound_captions=asked.sound_captions, **tag_options(asked))
        writer.write_result(result, file, {})  # type: ignore[attr-defined]
        return PlainTextResponse(file.getvalue(), media_type="text/vtt" if asked.response_format == "vtt" else None)
    if asked.response_format == "text":
        return PlainTextResponse(result["text"].strip() + "\n")
    if asked.response_format == "json":
        return JSONResponse({"text": result["text"].strip()})
    return JSONResponse(_verbose(result, asked, task, seconds))


def _verbose(result: dict[str, Any], asked: Asked, task: str, seconds: float) -> dict[str, Any]:
    """``task``, ``language`` by its name, ``duration``, ``text``, ``segments`` and ``words``, then what sounds."""
    out: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES[result["language"]],
        "duration": round(seconds, 3),
        "text": result["text"].strip(),
    }
    segments = result["segments"]
    if "segment" in asked.timestamp_granularities:
        out["segments"] = [{key: segment[key] for key in segment if key != "words"} for segment in segments]
    if "word" in asked.timestamp_granularities:
        words = [word for segment in segments for word in segment.get("words", [])]
        out["words"] = [{**word, "word": word["word"].strip()} for word in words]
    sounds = plain_result(result, **tag_options(asked))
    return to_jsonable(out | {key: sounds[key] for key in sounds if key not in {*UPSTREAM_KEYS, *out}})

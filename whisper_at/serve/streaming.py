"""A transcription as server-sent events, by OpenAI's names; sounds are events of a type of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ..checkpoints.files import to_jsonable
from ..tagging.named_rows import named_spans, result_events
from ..tagging.progress import Progress
from .errors import error_body, failure_message
from .recordings import Finished, Message
from .schemas import TranscriptionRequest, tag_options

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""What keeps proxies from holding events back."""


async def events(messages: AsyncIterator[Message], request: TranscriptionRequest) -> AsyncIterator[str]:
    """Yield what is told of a recording.

    ``transcript.text.delta`` is the text of each segment, and ``transcript.text.done`` all of it, which the deltas make
    up. With ``response_format=verbose_json`` a ``transcript.text.segment`` with its times comes before each delta. If
    sounds are asked for, each is an ``audio_event``, before the last event, and with ``verbose_json`` the rows of tags
    that are final before are ``audio_tags``: what an event is made of may still change.
    """
    n_segments, text = 0, ""
    verbose = request.response_format == "verbose_json"
    words = "word" in request.timestamp_granularities
    async for message in messages:
        if isinstance(message, list):
            for segment in message:
                id, delta = f"seg_{n_segments}", segment["text"] if text else segment["text"].lstrip()
                if not delta.strip():
                    continue
                n_segments += 1
                text += delta
                if verbose:
                    times = {
                        "id": id,
                        "start": segment["start"],
                        "end": segment["end"],
                        "text": segment["text"].strip(),
                    }
                    timed = {"words": segment["words"]} if words and "words" in segment else {}
                    yield _event("transcript.text.segment", times | timed)
                yield _event("transcript.text.delta", {"delta": delta} | ({"segment_id": id} if verbose else {}))
        elif isinstance(message, Progress) and verbose:
            for row in _named_rows(message, request):
                yield _event("audio_tags", row)
        elif isinstance(message, Finished):
            if message.result.get("at_time_res") is not None:
                for event in result_events(message.result, tag_options(request)):
                    yield _event("audio_event", event)
            yield _event("transcript.text.done", {"text": message.result["text"].strip()})
        elif isinstance(message, Exception):
            yield f"data: {json.dumps(error_body(500, failure_message(message)))}\n\n"


def _named_rows(progress: Progress, request: TranscriptionRequest) -> Iterator[dict[str, Any]]:
    """Yield the new rows that have tags, each with the name of its head."""
    about = {"language": progress.language, "task": progress.task}
    for head, found in progress.rows.items():
        for seconds, logits in found.logits.items():
            for row in named_spans(found.times(seconds), logits, found, about, tag_options(request)):
                if row["tags"]:
                    yield {"head": head, **row}


def _event(type: str, values: dict[str, Any]) -> str:
    return f"data: {json.dumps(to_jsonable({'type': type, **values}), ensure_ascii=False)}\n\n"

"""Words and sounds of a result as spans of time, and times and texts as files write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..tagging.labels import classes_under
from ..tagging.named_rows import result_events
from ..tagging.rows import AUDIOSET, TagOptions, read_rows

SPEECH = "/m/09x0r"
"""AudioSet's class of speech."""


class Span(NamedTuple):
    """Something that is heard from one time to another.

    Attributes
    ----------
    start, end : float
        In seconds.
    text : str
        In one line.
    probability : float, optional
        Of a sound; None for what is said.
    """

    start: float
    end: float
    text: str
    probability: float | None = None


def text_spans(result: Mapping[str, Any], *, words: bool = False) -> list[Span]:
    """Return the segments of a result or, where they were timed and are asked for, its words."""
    spans = []
    for segment in result["segments"]:
        timed = segment.get("words") if words else None
        parts = [(word["start"], word["end"], word["word"]) for word in timed or ()]
        for start, end, text in parts or [(segment["start"], segment["end"], segment["text"])]:
            if text := one_line(text):
                spans.append(Span(start, max(start, end), text))
    return spans


def sound_spans(result: Mapping[str, Any], options: TagOptions, *, with_speech: bool = True) -> list[Span]:
    """Return the events of a result, with their names in brackets; none where nothing was tagged."""
    if not read_rows(result):
        return []
    events = result_events(result, options)
    if not with_speech:
        speech = classes_under([SPEECH])
        events = [
            event
            for event in events
            if event["head"] != AUDIOSET or not speech.issuperset(event.get("indices") or [event["index"]])
        ]
    return [Span(e["start"], e["end"], f"[{one_line(e['name'])}]", e["probability"]) for e in events]


def timeline(result: Mapping[str, Any], options: TagOptions, *, words: bool = False) -> list[Span]:
    """Return words or segments and events in order of time.

    That somebody speaks is no event of its own where words say so, unless its class is asked for.
    """
    spoken = text_spans(result, words=words)
    sounds = sound_spans(result, options, with_speech=not spoken or options.include_classes is not None)
    return sorted(spoken + sounds, key=lambda span: span[:2])


def one_line(text: str) -> str:
    r"""Return a text without line breaks, tabs and control characters.

    Examples
    --------
    >>> one_line(" so\tthis\r\nis\x00 it ")
    'so this is it'
    """
    return " ".join("".join(c if c.isprintable() or c.isspace() or ord(c) > 159 else " " for c in text).split())


def clock(seconds: float, *, hours: bool = True, decimals: int = 3) -> str:
    """Return a time as ``HH:MM:SS.mmm`` or, without hours, ``MM:SS.mmm``, where minutes may be more than 59.

    Examples
    --------
    >>> clock(3661.5), clock(3661.5, hours=False, decimals=2)
    ('01:01:01.500', '61:01.50')
    """
    unit = 10**decimals
    whole, fraction = divmod(round(seconds * unit), unit)
    minutes, whole = divmod(whole, 60)
    start = f"{minutes // 60:02d}:{minutes % 60:02d}" if hours else f"{minutes:02d}"
    return f"{start}:{whole:02d}.{fraction:0{decimals}d}"

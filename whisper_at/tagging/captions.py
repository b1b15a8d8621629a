"""Captions that show sounds beside the words, in brackets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from .events import find_events
from .labels import classes_under

CAPTION_RESOLUTION = 2.0
"""Seconds per row of tags for captions, if none are asked for."""
HIDDEN_CLASSES = ("/m/09x0r", "/m/028v0c", "/t/dd00123")
"""MIDs not worth a caption: speech, which is written down; silence; rooms, channels and noise of the background."""
MIN_SECONDS, MAX_SECONDS = 1.0, 7.0
"""How long a caption of sounds stays, as guides for subtitles for the hard of hearing have it."""
REPEAT_SECONDS = 10.0
"""Seconds of rest after which the same sound is shown again."""


@cache
def _hidden() -> frozenset[int]:
    return classes_under(HIDDEN_CLASSES)


def with_sounds(result: Mapping[str, Any], events: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Return a copy of a result whose segments show sounds in brackets, for captions.

    Sounds that begin while nobody speaks get segments of their own, of 1 to 7 seconds, which end before the next words
    begin; others stand before the words that they sound with. A sound that comes again within ten seconds is not
    repeated; speech, silence and the background (rooms, channels, noise) are not shown.

    Parameters
    ----------
    result : dict
        What `transcribe` returned.
    events : list of dict, optional
        Those to show, as of `find_events`, by their start; all by default.
    """
    events = find_events(result) if events is None else events
    segments = unify_words(result["segments"])
    spoken = sorted((segment for segment in segments if segment["text"].strip()), key=lambda segment: segment["start"])
    has_words = bool(segments) and "words" in segments[0]
    names_before: dict[int, list[str]] = {}  # index in `spoken` → sounds to put before its words
    cues: list[dict[str, Any]] = []  # segments of sounds alone
    i = 0
    for start, end, names in _captions(events):
        while i < len(spoken) and spoken[i]["end"] <= start:
            i += 1
        next_speech = spoken[i]["start"] if i < len(spoken) else math.inf
        previous = cues[-1] if cues and cues[-1]["end"] > start else None
        if next_speech - start < MIN_SECONDS and i < len(spoken):
            names_before.setdefault(i, []).extend(names)
        elif previous is not None and start - previous["start"] < MIN_SECONDS:
            previous["names"].extend(names)
        else:
            if previous is not None:
                previous["end"] = start
            end = min(max(end, start + MIN_SECONDS), start + MAX_SECONDS, next_speech)
            cues.append({"start": start, "end": end, "names": [*names]})
    for index, names in names_before.items():
        _put_before(spoken[index], names, has_words)
    for cue in cues:
        _put_before(cue, cue.pop("names"), has_words)
    return {**result, "segments": sorted([*segments, *cues], key=lambda segment: segment["start"])}


def unify_words(segments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return copies of segments, with ``words`` only if all have them.

    A segment that was cleared has an empty list of words even where none are timed, and openai-whisper's writers
    look at the first segment alone.
    """
    copies = [dict(segment) for segment in segments]
    if not all("words" in segment for segment in copies):
        for segment in copies:
            segment.pop("words", None)
    return copies


def _captions(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, float, list[str]]]:
    """Start, end and names of sounds to show; those that begin together come together."""
    last_end: dict[str, float] = {}
    sounds = []
    for event in events:
        name = event["name"]
        if "mid" in event:  # one of AudioSet's classes
            if event["index"] in _hidden():
                continue
            name = name.split(",")[0].split(" (")[0].lower()
        if event["start"] - last_end.get(name, -math.inf) > REPEAT_SECONDS:
            sounds.append((event["start"], event["end"], name))
        last_end[name] = max(event["end"], last_end.get(name, 0.0))
    for start, group in groupby(sounds, key=lambda sound: sound[0]):
        members = list(group)
        yield start, max(end for _, end, _ in members), [name for *_, name in members]


def _put_before(segment: dict[str, Any], names: Sequence[str], has_words: bool) -> None:
    """Put sounds in brackets before what a segment says, and as a word before its words if they are timed."""
    sounds, text = f" [{', '.join(dict.fromkeys(names))}]", segment.get("text", "").strip()
    segment["text"] = f"{sounds} {text}" if text else sounds
    if has_words:
        words = segment.get("words", [])
        end = max(segment["start"], words[0]["start"]) if words else segment["end"]
        first = {"word": sounds, "start": segment["start"], "end": end, "probability": 1.0}
        segment["words"] = [first, *words]

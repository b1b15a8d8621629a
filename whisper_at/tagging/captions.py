"""Captions that show sounds beside the words, in brackets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

from .events import AUDIOSET, find_events
from .labels import within

CAPTION_RESOLUTION = 2.0
"""Seconds per row of tags for captions, if none are asked for."""
UNSHOWN = ("/m/09x0r", "/m/028v0c", "/t/dd00123")
"""Not worth a caption: speech, which is written down; silence; and rooms, channels and noise of the background."""
SHORTEST, LONGEST = 1.0, 7.0
"""Seconds that a caption of sounds stays, as guides for subtitles for the hard of hearing have it."""
AGAIN = 10.0
"""Seconds of rest after which the same sound is shown again."""


@cache
def _unshown() -> frozenset[int]:
    return within(UNSHOWN)


def with_sounds(result: Mapping[str, Any], events: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """A copy of a result whose segments show sounds in brackets, for captions.

    Sounds that begin while nobody speaks get segments of their own, of 1 to 7 seconds, which end before the next words
    begin; others stand before the words that they sound with. What sounds again within ten seconds is not
    repeated; speech, silence and the background (rooms, channels, noise) are not shown.

    Parameters
    ----------
    result : what `transcribe` returned
    events : those to show, as of `find_events`, by their start; all by default
    """
    events = find_events(result) if events is None else events
    segments = alike(result["segments"])
    spoken = sorted((segment for segment in segments if segment["text"].strip()), key=lambda segment: segment["start"])
    timed = bool(segments) and "words" in segments[0]
    shown: dict[int, list[str]] = {}
    own: list[dict[str, Any]] = []
    i = 0
    for start, end, names in _beginnings(events):
        while i < len(spoken) and spoken[i]["end"] <= start:
            i += 1
        until = spoken[i]["start"] if i < len(spoken) else math.inf
        before = own[-1] if own and own[-1]["end"] > start else None
        if until - start < SHORTEST and i < len(spoken):
            shown.setdefault(i, []).extend(names)
        elif before is not None and start - before["start"] < SHORTEST:
            before["names"].extend(names)
        else:
            if before is not None:
                before["end"] = start
            end = min(max(end, start + SHORTEST), start + LONGEST, until)
            own.append({"start": start, "end": end, "names": [*names]})
    for index, names in shown.items():
        _put_before(spoken[index], names, timed)
    for cue in own:
        _put_before(cue, cue.pop("names"), timed)
    return {**result, "segments": sorted([*segments, *own], key=lambda segment: segment["start"])}


def alike(segments: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of segments, with ``words`` if all have them.

    One that was cleared has an empty list of words even where none are timed, and openai-whisper's writers take the
    first segment's word for all.
    """
    copies = [dict(segment) for segment in segments]
    if not all("words" in segment for segment in copies):
        for segment in copies:
            segment.pop("words", None)
    return copies


def _beginnings(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, float, list[str]]]:
    """Start, end and names of sounds to show; those that begin together come together."""
    last: dict[str, float] = {}
    sounds = []
    for event in events:
        audioset = event["head"] == AUDIOSET
        if audioset and event["index"] in _unshown():
            continue
        name = event["name"].split(",")[0].split(" (")[0].lower() if audioset else event["name"]
        if event["start"] - last.get(name, -math.inf) > AGAIN:
            sounds.append((event["start"], event["end"], name))
        last[name] = max(event["end"], last.get(name, 0.0))
    for start, together in groupby(sounds, key=lambda sound: sound[0]):
        members = list(together)
        yield start, max(end for _, end, _ in members), [name for *_, name in members]


def _put_before(segment: dict[str, Any], names: Sequence[str], timed: bool) -> None:
    """Put sounds in brackets before what a segment says, and as a word before its words if they are timed."""
    sounds, text = f" [{', '.join(dict.fromkeys(names))}]", segment.get("text", "").strip()
    segment["text"] = f"{sounds} {text}" if text else sounds
    if timed:
        words = segment.get("words", [])
        end = max(segment["start"], words[0]["start"]) if words else segment["end"]
        first = {"word": sounds, "start": segment["start"], "end": end, "probability": 1.0}
        segment["words"] = [first, *words]

"""Which sounds captions show, when, and between which words."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..tagging.events import find_events
from ..tagging.labels import ASSETS, ancestors, caption_names, classes_under, find_class, tag_language
from .phrases import break_cost
from .styles import CaptionStyle
from .words import Word

CAPTION_RESOLUTION = 2.0
"""Seconds per row of tags for captions, if none are asked for."""
SINGING = "/m/015lz1"
AMBIGUOUS = "/t/dd00098"
"""Sounds that may have many sources, such as *Crackle* or *Thump*."""
BRANCHES = ("/m/0dgw9r", "/m/0jbk", "/m/04rlf", "/m/059j3w", "/t/dd00041", AMBIGUOUS, "/t/dd00123")
"""MIDs of the ontology's seven main branches: human, animal, music, natural, things, ambiguous, background."""
SOUND_SECONDS = 4.0
"""How long a cue of sounds alone stays at most."""
REPEAT_SECONDS = 10.0
"""Seconds of rest after which the same sound is shown again."""
TOGETHER_SECONDS = 1.0
"""Sounds that begin no farther apart are shown together, one of each branch of the ontology."""
SAME_CAUSE_SECONDS = 3.0
"""A sound of a kind that another one began so shortly before is taken for the same one."""
MAX_TOGETHER = 2
"""Sounds of AudioSet's in one pair of brackets."""
MAX_WAIT = 1.5
"""Seconds that a sound waits for a pause between the words before it stands among them."""


@dataclass(frozen=True)
class Sound:
    """Sounds that one pair of brackets shows.

    Attributes
    ----------
    start, end : float
        In seconds.
    text : str
        With the brackets.
    """

    start: float
    end: float
    text: str


@cache
def caption_classes() -> tuple[int, ...]:
    """Return the indices of AudioSet's classes that captions show, if no others are asked for.

    Left out are speech, silence, rooms and backgrounds, and classes that say nothing to a reader (*Mechanisms*).
    """
    with open(ASSETS / "caption_classes.csv", encoding="utf-8", newline="") as file:
        return tuple(find_class(row["mid"]) for row in csv.DictReader(file))


def caption_sounds(
    result: Mapping[str, Any],
    *,
    include_classes: Iterable[int | str] | int | str | None = None,
    p_threshold: float | None = None,
    language: str | None = "follow_asr",
    without_singing: bool = False,
) -> list[Sound]:
    """Return the sounds of a tagged result that are worth a caption, by their start.

    A sound is shown when it begins, and again only after ten seconds without it. Of sounds that begin together, the
    likeliest of each branch of the ontology is shown, two at most, and those with many possible sources only alone;
    of heads of one's own, all.

    Parameters
    ----------
    result : dict
        What `transcribe` returned with tags.
    include_classes, p_threshold, language
        As of `find_events`; by default the classes of `caption_classes`, and all of other heads.
    without_singing : bool
        Leave out singing, because the words show it.
    """
    wanted = caption_classes() if include_classes is None else include_classes
    events = find_events(result, p_threshold, include_class_list=wanted, language="en")
    names = caption_names(tag_language(result, language))
    last_end: dict[Any, float] = {}
    shown: list[tuple[dict[str, Any], int | None]] = []
    for event in events:
        index = find_class(event["mid"]) if "mid" in event else None
        if without_singing and index in _singing():
            continue
        key = event["name"] if index is None else index
        rested = event["start"] - last_end.get(key, -math.inf) > REPEAT_SECONDS
        last_end[key] = max(event["end"], last_end.get(key, 0.0))
        if rested and not any(_same_cause(event, index, *other) for other in shown[-8:]):
            shown.append((event, index))
    sounds = []
    while shown:
        start = shown[0][0]["start"]
        together = [item for item in shown if item[0]["start"] - start <= TOGETHER_SECONDS]
        shown = shown[len(together) :]
        chosen = _one_of_each_branch(together)
        texts = dict.fromkeys(event["name"] if index is None else names[index] for event, index in chosen)
        end = max(event["end"] for event, _ in chosen)
        sounds.append(Sound(min(event["start"] for event, _ in chosen), end, f"[{', '.join(texts)}]"))
    return sounds


def singing_spans(result: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return start and end, in seconds, of where AudioSet's classes of singing sound."""
    if result.get("audio_tag") is None:
        return []
    events = find_events(result, include_class_list=sorted(_singing()), head="audio_tag", language="en", specific=False)
    return [(event["start"], event["end"]) for event in events]


def mark_sung(words: Sequence[Word], spans: Sequence[tuple[float, float]], breaks: Sequence[int]) -> list[Word]:
    """Return words with `is_sung` set in those parts, given by where they begin, that are mostly sung."""
    marked = list(words)
    for first, last in zip([0, *breaks], [*breaks, len(words)]):
        part = words[first:last]
        inside = sum(any(a <= (word.start + word.end) / 2 <= b for a, b in spans) for word in part)
        if 2 * inside > len(part):
            marked[first:last] = [replace(word, is_sung=True) for word in part]
    return marked


def place_sounds(
    words: Sequence[Word], sounds: Sequence[Sound], style: CaptionStyle, language: str | None = None
) -> tuple[list[Word], list[Sound]]:
    """Put sounds among the words they begin with; return the words, and the sounds that have cues of their own.

    A sound has a cue of its own where a pause leaves time for it, at its start or, while it lasts, up to 1.5 s
    later. Else it stands before the words at the nearest place where these may be parted.
    """
    before: dict[int, list[Sound]] = {}  # index of a word → sounds that stand before it
    alone: list[Sound] = []
    i = 0
    for sound in sounds:
        while i < len(words) and words[i].end <= sound.start:
            i += 1
        pause = _pause_for(words, i, sound, style)
        if pause is not None:
            alone.append(
                replace(sound, start=pause[0], end=min(max(sound.end, pause[0] + style.min_seconds), pause[1]))
            )
        else:
            before.setdefault(_place_among(words, i, sound, language), []).append(sound)
    placed: list[Word] = []
    for i, word in enumerate(words):
        if i in before:
            texts = " ".join(dict.fromkeys(sound.text for sound in before[i]))
            placed.append(Word(f" {texts}", word.start, word.start, is_sound=True))
            word = replace(word, text=f" {word.text.lstrip()}")
        placed.append(word)
    return placed, alone


def _pause_for(words: Sequence[Word], i: int, sound: Sound, style: CaptionStyle) -> tuple[float, float] | None:
    """First and last second of a cue for a sound, of which words before `i` have ended; None if words leave no time."""
    for k in range(i, len(words) + 1):  # the pauses before word k
        earliest = words[k - 1].end + style.min_gap if k else 0.0
        start = max(sound.start, earliest)
        if start > sound.start and (start - sound.start > MAX_WAIT or start >= sound.end):
            break
        latest = words[k].start - style.min_gap if k < len(words) else math.inf
        if latest - start >= style.min_seconds:
            return start, latest
    return None


def _place_among(words: Sequence[Word], i: int, sound: Sound, language: str | None) -> int:
    """Index of the word before which a sound stands that begins with word `i` or in the short pause before it."""
    last = len(words) - 1
    near = [k for k in range(max(0, i - 12), min(last, i + 12) + 1) if -2.0 <= words[k].start - sound.start <= 2.0]
    near = near or [min(i, last)]

    def cost(k: int) -> float:
        parts = k > 0 and words[k].start - words[k - 1].end
        between = break_cost(words[k - 1].text, words[k].text, float(parts), language) if k else 0.0
        return between / 4 + abs(words[k].start - sound.start)

    return min(near, key=cost)


def _same_cause(event: Mapping[str, Any], index: int | None, other: Mapping[str, Any], other_index: int | None) -> bool:
    """Return whether an event is taken for what another one, which began earlier or is likelier, shows already."""
    if index is None or other_index is None or event["start"] - other["start"] > SAME_CAUSE_SECONDS:
        return False
    if event["start"] >= other["end"]:
        return False
    above, other_above = set(ancestors(index)), set(ancestors(other_index))
    return index in other_above or other_index in above or bool(_parents(above) & _parents(other_above))


def _parents(above: set[int]) -> set[int]:
    """Of the classes that contain a class, those that contain no other of them: its parents."""
    return {index for index in above if not any(index in ancestors(other) for other in above)}


def _one_of_each_branch(
    together: Iterable[tuple[dict[str, Any], int | None]],
) -> list[tuple[dict[str, Any], int | None]]:
    """Return the likeliest of each branch of the ontology, two at most, and all of one's own heads."""
    by_probability = sorted(together, key=lambda item: -item[0]["probability"])
    own = [item for item in by_probability if item[1] is None]
    plain = [item for item in by_probability if item[1] is not None and item[1] not in _under(AMBIGUOUS)]
    if not own and not plain:
        plain = by_probability[:1]
    of_branch: dict[str, tuple[dict[str, Any], int | None]] = {}
    for event, index in plain:
        if index is not None:
            of_branch.setdefault(_branch(index), (event, index))
    return sorted([*own, *list(of_branch.values())[:MAX_TOGETHER]], key=lambda item: item[0]["start"])


@cache
def _branch(index: int) -> str:
    """MID of the first main branch of the ontology in which an AudioSet class lies."""
    return next(root for root in BRANCHES if index in _under(root))


@cache
def _under(mid: str) -> frozenset[int]:
    return classes_under([mid])


def _singing() -> frozenset[int]:
    return _under(SINGING)

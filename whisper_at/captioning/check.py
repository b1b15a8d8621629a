"""A check of caption files against the rules of a style."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .styles import CaptionStyle, is_cjk, text_width

TOLERANCE = 0.0011
"""Seconds by which times may miss a rule: files have whole milliseconds."""
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{2})[,.](\d{3})"
_ARROW = re.compile(rf"^\s*{_TIME}\s+-->\s+{_TIME}(?:\s.*)?$")


@dataclass(frozen=True)
class BrokenRule:
    """A rule that a cue breaks.

    Attributes
    ----------
    cue : int
        From 1.
    rule : str
        ``order``, ``overlap``, ``gap``, ``short``, ``long``, ``speed``, ``line``, ``lines`` or ``empty``.
    message : str
        What is wrong, with numbers.
    """

    cue: int
    rule: str
    message: str


def read_captions(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the cues of an SRT or WebVTT file, as `captions` returns them, with tags of WebVTT taken out.

    Raises
    ------
    ValueError
        If it is neither, or a cue has no times.
    """
    with open(path, encoding="utf-8-sig") as file:
        try:
            content = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    is_vtt = content.startswith("WEBVTT")
    cues = []
    for number, block in enumerate(re.split(r"\n[ \t]*\n", content.replace("\r\n", "\n").strip())):
        lines = block.split("\n")
        if is_vtt and (number == 0 or re.match(r"(NOTE|STYLE|REGION)\b", lines[0])):
            continue
        index = next((i for i, line in enumerate(lines[:2]) if "-->" in line), None)
        match = None if index is None else _ARROW.match(lines[index])
        if match is None or index is None:
            if not block.strip():
                continue
            raise ValueError(f"{path} has no caption times in {lines[0][:60]!r}: only .srt and .vtt can be checked")
        text = "\n".join(lines[index + 1 :]).strip()
        if is_vtt:
            text = re.sub(r"<[^>]*>", "", text)
            text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&nbsp;", " ").replace("&amp;", "&")
        cues.append({"start": _seconds(match.groups()[:4]), "end": _seconds(match.groups()[4:]), "text": text})
    return cues


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in parts)
    return (3_600_000 * hours + 60_000 * minutes + 1000 * seconds + milliseconds) / 1000


def check_captions(cues: Iterable[Mapping[str, Any]], style: CaptionStyle | None = None) -> list[BrokenRule]:
    """Return every rule of a style that cues break, in their order.

    Parameters
    ----------
    cues : iterable of dict
        As `captions` and `read_captions` return them.
    style : CaptionStyle, optional
        ``plain`` by default.

    Examples
    --------
    >>> cue = {"start": 0.0, "end": 0.5, "text": "Yes."}
    >>> [broken.message for broken in check_captions([cue])]
    ['stays for 0.500 s, at least 1 s is the rule']
    """
    style = style or CaptionStyle()
    return [
        BrokenRule(number, rule, message)
        for number, (cue, previous) in enumerate(_with_previous(cues), 1)
        for rule, message in _broken(cue, previous, style)
    ]


def _with_previous(cues: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
    previous = None
    for cue in cues:
        yield cue, previous
        previous = cue


def _broken(
    cue: Mapping[str, Any], previous: Mapping[str, Any] | None, style: CaptionStyle
) -> Iterator[tuple[str, str]]:
    start, text = cue["start"], cue["text"]
    seconds = cue["end"] - start
    if previous is not None:
        gap = start - previous["end"]
        if start < previous["start"]:
            yield "order", f"begins {previous['start'] - start:.3f} s before the one before it"
        elif gap < 0:
            yield "overlap", f"begins {-gap:.3f} s before the one before it ends"
        elif gap < style.min_gap - TOLERANCE:
            yield "gap", f"begins {gap:.3f} s after the one before it, at least {style.min_gap:g} s is the rule"
    if seconds < style.min_seconds - TOLERANCE:
        yield "short", f"stays for {seconds:.3f} s, at least {style.min_seconds:g} s is the rule"
    if seconds > style.max_seconds + TOLERANCE:
        yield "long", f"stays for {seconds:.3f} s, at most {style.max_seconds:g} s is the rule"
    lines = text.split("\n")
    if not text.strip() or not all(line.strip() for line in lines):
        yield "empty", "has a line without text"
        return
    if style.reading_seconds(text) > max(seconds, style.min_seconds) + TOLERANCE:
        by_characters = text_width(text) / style.max_chars_per_second > seconds + TOLERANCE
        speed = f"{text_width(text) / max(seconds, 1e-3):.1f} characters a second"
        limit = f"at most {style.max_chars_per_second:g}"
        if not by_characters:
            speed = f"{seconds / len(text.split()):.2f} s a word"
            limit = f"at least {style.min_word_seconds:g} s"
        yield "speed", f"is to be read at {speed}, {limit} is the rule"
    if len(lines) > style.max_lines:
        yield "lines", f"has {len(lines)} lines, at most {style.max_lines} is the rule"
    for line in lines:
        length = style.max_line_length_cjk if is_cjk(text) else style.max_line_length
        if text_width(line) > length:
            yield "line", f"has a line of {text_width(line):g} characters, at most {length} is the rule: {line!r}"

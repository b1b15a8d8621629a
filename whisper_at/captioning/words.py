"""The words of a result, with times, whether or not they were timed one by one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .phrases import NON_STARTERS
from .styles import is_cjk

_WIDE_PIECE = re.compile(rf"\s*[「『（“(]*\S[{re.escape(NON_STARTERS + '!?,.:;')}]*")  # noqa: RUF001
LONGEST_WORD = 16
"""Characters of a word without spaces, beyond which it may be broken anywhere, as Thai text is."""


@dataclass(frozen=True)
class Word:
    """A word, or a sound in brackets, and when it is heard.

    Attributes
    ----------
    text : str
        With the space before it, as Whisper writes words.
    start, end : float
        In seconds.
    is_sound : bool
        It stands for sounds: a cue begins with it.
    is_sung : bool
        It is sung.
    """

    text: str
    start: float
    end: float
    is_sound: bool = False
    is_sung: bool = False


def result_words(result: Mapping[str, Any]) -> list[Word]:
    """Return the words of a result in order of time.

    Words that were timed are taken as they are; the time of other segments is shared out by the length of words.
    Times never go back, whatever the segments say.
    """
    words: list[Word] = []
    for segment in sorted(result["segments"], key=lambda segment: segment["start"]):
        if not segment["text"].strip():
            continue
        timed = [word for word in segment.get("words") or () if word["word"].strip()]
        found = [Word(w["word"], w["start"], w["end"]) for w in timed] if timed else _share_out(segment)
        for word in found:
            start = max(word.start, words[-1].end if words else 0.0)
            text = word.text if words else word.text.lstrip()
            words.append(Word(text, start, max(word.end, start)))
    return words


def _share_out(segment: Mapping[str, Any]) -> Iterable[Word]:
    """Yield the words of a segment, with times in proportion to their characters."""
    parts = list(split_words(segment["text"]))
    n_characters = sum(len(part.strip()) for part in parts)
    start, seconds = segment["start"], segment["end"] - segment["start"]
    done = 0
    for part in parts:
        begin = start + seconds * done / n_characters
        done += len(part.strip())
        yield Word(part, begin, start + seconds * done / n_characters)


def split_words(text: str) -> Iterator[str]:
    """Yield the words of a text, each with the space before it; where a script has no spaces, pieces of it.

    Examples
    --------
    >>> list(split_words(" And so, my"))
    [' And', ' so,', ' my']
    >>> list(split_words("会議を、始め"))
    ['会', '議', 'を、', '始', 'め']
    """
    for word in re.findall(r"\s*\S+", text):
        if is_cjk(word):
            yield from _WIDE_PIECE.findall(word)
        elif len(word.strip()) > LONGEST_WORD and not word.strip().isascii() and not re.search(r"[^\W\d_]-", word):
            yield from _pieces(word)
        else:
            yield word


def _pieces(word: str) -> Iterator[str]:
    """Cut a long word into pieces, before letters only: never before a mark or vowel sign that belongs to a letter."""
    piece = ""
    for character in word:
        if len(piece) >= LONGEST_WORD // 2 and character.isalpha():
            yield piece
            piece = ""
        piece += character
    yield piece

"""Where a caption may be broken: after sentences and clauses rather than within phrases."""

from __future__ import annotations

import csv
import unicodedata
from functools import cache

from ..tagging.labels import ASSETS

SENTENCE_END = (".", "!", "?", "…", "。", "！", "？", "؟", "।", "۔", "♪")  # noqa: RUF001
CLAUSE_END = (",", ";", ":", "—", "–", "、", "，", "；", "：", "،", "؛")  # noqa: RUF001
NON_STARTERS = "ーっゃゅょぁぃぅぇぉッャュョァィゥェォ々ヽゝ、。，．！？）」』】〕’”…ๆฯ"  # noqa: RUF001
"""Characters that stand at the beginning of no line."""
CLOSING = "\"'”’»)]）」』"  # noqa: RUF001
TITLES = frozenset("mr. mrs. ms. dr. st. prof. sr. sra. mme. mlle. hr. fr. vs. etc. e.g. i.e. z.b. bzw.".split())
"""Abbreviations that end in a full stop but no sentence."""
PAUSE = 0.4
"""Seconds of silence that part phrases."""

AFTER_SENTENCE, AFTER_CLAUSE, AFTER_PAUSE, BEFORE_CONJUNCTION = 0.0, 1.0, 1.5, 2.5
WITHIN_CLAUSE, WITHIN_PHRASE, WITHIN_WORD = 4.0, 12.0, 100.0
"""What a break costs at each kind of place."""


@cache
def _words(language: str | None) -> tuple[frozenset[str], frozenset[str]]:
    """Words that belong to what follows them (articles, prepositions, pronouns …), and those that begin clauses."""
    with open(ASSETS / "phrase_words.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["language"] == language:
                return frozenset(row["bound"].split()), frozenset(row["conjunctions"].split())
    return frozenset(), frozenset()


def ends_sentence(word: str) -> bool:
    """Return whether a sentence ends with this word, to judge by its punctuation."""
    word = word.strip().rstrip(CLOSING)
    return word.endswith(SENTENCE_END) and word.lower() not in TITLES


def ends_clause(word: str) -> bool:
    """Return whether a clause ends with this word, to judge by its punctuation."""
    return word.strip().rstrip(CLOSING).endswith(CLAUSE_END)


def is_bound(word: str, language: str | None) -> bool:
    """Return whether a word should not be the last of a line, as it belongs to what follows it."""
    word = word.strip().lower()
    return word in TITLES or word in _words(language)[0]


def break_cost(word: str, following: str, pause: float, language: str | None = None) -> float:
    """Return how bad it is to break between two words, from 0.

    Parameters
    ----------
    word, following : str
        The words, with their punctuation.
    pause : float
        Seconds between them.
    language : str, optional
        Whisper's code. Without word lists for it, punctuation and pauses decide.

    Examples
    --------
    >>> break_cost("country.", "And", 0.1, "en"), break_cost("the", "country", 0.1, "en")
    (0.0, 12.0)
    """
    first = following.lstrip()[:1]
    if not following[:1].isspace() and (first in NON_STARTERS or unicodedata.category(first or "a").startswith("M")):
        return WITHIN_WORD
    if ends_sentence(word):
        return AFTER_SENTENCE
    if ends_clause(word):
        return AFTER_CLAUSE
    if is_bound(word, language) and pause < 2 * PAUSE:
        return WITHIN_PHRASE
    if pause >= PAUSE:
        return AFTER_PAUSE
    if following.strip().lower() in _words(language)[1]:
        return BEFORE_CONJUNCTION
    return WITHIN_CLAUSE

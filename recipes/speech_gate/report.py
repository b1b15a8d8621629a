"""Tables in Markdown of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whisper_at.study.wer import whisper_words, word_errors

from .recordings import Recording

Z = 1.96
DRAWS = 2000


def interval(successes: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    Examples
    --------
    >>> [round(bound, 3) for bound in interval(0, 100)]
    [0.0, 0.037]
    """
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def has_words(text: str) -> bool:
    """Return whether a text says anything but punctuation."""
    return any(letter.isalnum() for letter in text)


def overlap(spans: Sequence[tuple[float, float]], others: Sequence[tuple[float, float]]) -> float:
    """Return how many seconds of spans others cover, which do not overlap one another.

    Examples
    --------
    >>> overlap([(0, 2), (5, 6)], [(1, 5.5)])
    1.5
    """
    return sum(max(0.0, min(b, d) - max(a, c)) for a, b in spans for c, d in others)


def tables(rows: Sequence[dict[str, Any]], recordings: Sequence[Recording]) -> Iterator[str]:
    """Yield the lines of both tables: sounds without speech, and speech."""
    by_key = {(row["method"], row["name"]): row for row in rows}
    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(one.kind for one in recordings))
    yield "| without speech | n | " + " | ".join(methods) + " |"
    yield "|---|--:|" + "--:|" * len(methods)
    for kind in kinds:
        silent = [one for one in recordings if one.kind == kind and not one.text]
        if silent:
            cells = [_text_share([by_key.get((method, one.name)) for one in silent]) for method in methods]
            yield f"| {kind} | {len(silent)} | {' | '.join(cells)} |"
            cells = [_cpu([by_key.get((method, one.name)) for one in silent]) for method in methods]
            yield f"| … CPU, s | | {' | '.join(cells)} |"
    yield ""
    yield "| speech | words | " + " | ".join(methods) + " |"
    yield "|---|--:|" + "--:|" * len(methods)
    for kind in kinds:
        spoken = [one for one in recordings if one.kind == kind and one.text]
        if spoken:
            n_words = sum(len(whisper_words(one.text)) for one in spoken)
            pairs = {method: [(one, by_key.get((method, one.name))) for one in spoken] for method in methods}
            cells = [_errors(pairs[method], pairs["default"]) for method in methods]
            yield f"| {kind} | {n_words} | {' | '.join(cells)} |"
            yield f"| … CPU, s | | {' | '.join(_cpu([row for _, row in pairs[method]]) for method in methods)} |"
            yield f"| … s withheld of {_seconds(spoken):.0f} spoken | | {' | '.join(map(_lost, pairs.values()))} |"


def _text_share(rows: Sequence[dict[str, Any] | None]) -> str:
    found = [row for row in rows if row is not None]
    if not found:
        return "–"
    n_text = sum(has_words(row["text"]) for row in found)
    low, high = interval(n_text, len(found))
    partial = "" if len(found) == len(rows) else f" of {len(found)}"
    return f"{100 * n_text / len(found):.1f} % ({100 * low:.1f}–{100 * high:.1f}){partial}"


def _cpu(rows: Sequence[dict[str, Any] | None]) -> str:
    return "–" if None in rows else f"{sum(row['cpu'] for row in rows if row):.0f}"


def _seconds(recordings: Sequence[Recording]) -> float:
    return sum(b - a for one in recordings for a, b in one.spoken)


Pairs = Sequence[tuple[Recording, dict[str, Any] | None]]


def _errors(pairs: Pairs, default: Pairs) -> str:
    """Word error rate in percent; and by how much it moves from the default's, with an interval over recordings."""
    if any(row is None for _, row in pairs):
        return "–"
    counts = [_counts(pair) for pair in pairs]
    rate = 100 * sum(errors for errors, _ in counts) / sum(words for _, words in counts)
    if pairs is default or any(row is None for _, row in default):
        return f"{rate:.2f} %"
    before = [_counts(pair) for pair in default]
    rng = np.random.default_rng(0)
    moved = np.array([errors - other for (errors, _), (other, _) in zip(counts, before)])
    words = np.array([n for _, n in counts])
    draws = rng.integers(len(moved), size=(DRAWS, len(moved)))
    low, high = np.quantile(100 * moved[draws].sum(1) / words[draws].sum(1), [0.025, 0.975])
    return f"{rate:.2f} % ({100 * moved.sum() / words.sum():+.2f}; {low:+.2f} to {high:+.2f})"


def _counts(pair: tuple[Recording, dict[str, Any] | None]) -> tuple[int, int]:
    recording, row = pair
    found = word_errors([recording.text], [row["text"] if row else ""], whisper_words)
    return found.errors, found.words


def _lost(pairs: Pairs) -> str:
    if any(row is None for _, row in pairs):
        return "–"
    lost = sum(overlap(one.spoken, [(w["start"], w["end"]) for w in row["withheld"]]) for one, row in pairs if row)
    return f"{lost:.1f}"

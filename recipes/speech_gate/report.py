"""Tables in Markdown of what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from whisper_at.study.wer import whisper_words, word_errors

from .recordings import Recording

Z = 1.96
"""Standard deviations of a normal distribution's 95 % interval."""
DRAWS = 2000
"""Of the bootstrap."""

Rows = Sequence[dict[str, Any]]


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
    """Yield the lines of both tables: sounds without speech, and speech; of recordings that every method has heard."""
    by_key = {(row["method"], row["name"]): row for row in rows}
    kinds = sorted({one.kind for one in recordings})
    for has_speech, title in ((False, "without speech"), (True, "speech")):
        names = {one.name for one in recordings if bool(one.text) == has_speech}
        methods = list(dict.fromkeys(row["method"] for row in rows if row["name"] in names))
        yield f"| {title} | {'words' if has_speech else 'n'} | " + " | ".join(methods) + " |"
        yield "|---|--:|" + "--:|" * len(methods)
        for kind in [*kinds, *([] if has_speech else ["all"])]:
            heard = [one for one in recordings if kind in (one.kind, "all") and one.name in names]
            heard = [one for one in heard if all((method, one.name) in by_key for method in methods)]
            found = {method: [by_key[method, one.name] for one in heard] for method in methods}
            if heard and has_speech:
                yield from _speech_lines(kind, heard, found)
            elif heard:
                yield f"| {kind} | {len(heard)} | {' | '.join(map(_text_share, found.values()))} |"
                yield f"| … CPU, s | | {' | '.join(map(_cpu, found.values()))} |"
        yield ""


def _speech_lines(kind: str, heard: Sequence[Recording], found: dict[str, Rows]) -> Iterator[str]:
    words = sum(len(whisper_words(one.text)) for one in heard)
    default = _counts(heard, found["default"])
    cells = [_moved(_counts(heard, rows), default, method == "default") for method, rows in found.items()]
    yield f"| {kind} | {words} | {' | '.join(cells)} |"
    yield f"| … CPU, s | | {' | '.join(map(_cpu, found.values()))} |"
    seconds = sum(b - a for one in heard for a, b in one.spoken)
    yield f"| … s withheld of {seconds:.0f} spoken | | {' | '.join(_lost(heard, rows) for rows in found.values())} |"


def _text_share(rows: Rows) -> str:
    n_text = sum(has_words(row["text"]) for row in rows)
    low, high = interval(n_text, len(rows))
    return f"{100 * n_text / len(rows):.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _cpu(rows: Rows) -> str:
    return f"{sum(row['cpu'] for row in rows):.0f}"


def _counts(heard: Sequence[Recording], rows: Rows) -> np.ndarray:
    """Word errors and words of each recording, ``(recordings, 2)``."""
    pairs = zip(heard, rows)
    return np.array([word_errors([one.text], [row["text"]], whisper_words) for one, row in pairs], dtype=float)


def _moved(counts: np.ndarray, default: np.ndarray, is_default: bool) -> str:
    """Word error rate in percent; and by how much it moves from the default's, with an interval over recordings."""
    errors, words = counts.sum(0)
    if is_default:
        return f"{100 * errors / words:.2f} %"
    moved = counts[:, 0] - default[:, 0]
    draws = np.random.default_rng(0).integers(len(moved), size=(DRAWS, len(moved)))
    low, high = np.quantile(100 * moved[draws].sum(1) / counts[:, 1][draws].sum(1), [0.025, 0.975])
    return f"{100 * errors / words:.2f} % ({100 * moved.sum() / words:+.2f}; {low:+.2f} to {high:+.2f})"


def _lost(heard: Sequence[Recording], rows: Rows) -> str:
    lost = [overlap(one.spoken, [(w["start"], w["end"]) for w in row["withheld"]]) for one, row in zip(heard, rows)]
    return f"{sum(lost):.1f}"

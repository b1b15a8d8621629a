"""When an event begins and ends, from rows of 0.4 s, where longer rows have said that there is one.

Longer rows tell better what sounds, and short ones when. Within an event, the class counts as heard where its short
rows are nearer to its highest score there than to its lowest around; the event reaches from the first such row to the
last. What counts is how the score rises and falls, so that it does not matter how well short rows are calibrated.

The constants are the best for event F1 (±0.4 s) by the head of tiny.en on mixtures for tuning; those that are reported
(``recipes/open_head/events.py``) are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .timeline import STEP_SECONDS

LONGEST_DECIDING_ROW = 4.0
"""Seconds of a row up to which short rows place its events: longer ones hold several events."""
RISE = 0.6
"""Share of the way from the lowest score around to the highest at which a class begins to count as heard."""
MARGIN = 4.0
"""Seconds before and after in which the lowest score is looked for."""
REACH = 0.8
"""Seconds that an event may begin before its rows, or end after them: what is faint there reaches no threshold."""


class Span(NamedTuple):
    """From when to when, in seconds."""

    start: float
    end: float


def choose_rows(resolutions: Iterable[float]) -> tuple[float, float | None]:
    """Return the seconds of the rows that say whether there is an event, and of those that say when.

    Examples
    --------
    >>> choose_rows([0.4, 1.2, 10.0]), choose_rows([0.4, 10.0]), choose_rows([2.0])
    ((1.2, 0.4), (0.4, None), (2.0, None))
    """
    finest, *longer = sorted(resolutions)
    if longer and finest <= STEP_SECONDS + 1e-6 and longer[0] <= LONGEST_DECIDING_ROW:
        return longer[0], finest
    return finest, None


def place_event(span: Span, log_odds: np.ndarray, duration: float) -> Span:
    """Return when an event begins and ends.

    Parameters
    ----------
    span : Span
        What longer rows say.
    log_odds : ndarray, shape (steps,)
        Scores of rows of 0.4 s of the whole recording, NaN where there was no audio.
    duration : float
        Of the recording, in seconds.
    """
    first, end = _steps(span, REACH, len(log_odds))
    around = log_odds[slice(*_steps(span, REACH + MARGIN, len(log_odds)))]
    inside = log_odds[first:end]
    if np.isnan(inside).all():
        return span
    lowest, highest = float(np.nanmin(around)), float(np.nanmax(inside))
    heard = np.flatnonzero(inside >= lowest + RISE * (highest - lowest))
    start, last = first + int(heard[0]), first + int(heard[-1])
    return Span(start * 4 / 10, min((last + 1) * 4 / 10, duration))


def _steps(span: Span, margin: float, n_steps: int) -> tuple[int, int]:
    first = round((span.start - margin) / STEP_SECONDS)
    end = int(np.ceil(round((span.end + margin) / STEP_SECONDS, 6)))
    return max(first, 0), min(end, n_steps)


def touching(spans: Sequence[Span]) -> Iterator[tuple[int, int]]:
    """Yield first and last index of spans, in order of time, that touch or overlap.

    Examples
    --------
    >>> list(touching([Span(0.0, 1.0), Span(1.0, 2.0), Span(3.0, 4.0)]))
    [(0, 1), (2, 2)]
    """
    first, end = 0, spans[0].end if spans else 0.0
    for i, span in enumerate(spans):
        if span.start > end + 1e-6:
            yield first, i - 1
            first, end = i, span.end
        end = max(end, span.end)
    if spans:
        yield first, len(spans) - 1

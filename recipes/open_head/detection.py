"""Figures of sound event detection, by events with a collar and by segments, as sed_eval computes them.

Mesaros et al., "Metrics for polyphonic sound event detection", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

Span = tuple[float, float]
"""Onset and offset in seconds."""


class Counts(NamedTuple):
    """Numbers of events, or of segments: found rightly, found at all, and to be found."""

    right: int
    found: int
    wanted: int

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        """Return the sums."""
        return Counts(*(a + b for a, b in zip(self, other)))

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN where nothing is found or to be found."""
        return 2 * self.right / (self.found + self.wanted) if self.found + self.wanted else float("nan")


def join_spans(spans: Sequence[Span], gap: float) -> list[Span]:
    """Return spans in their order, those with no more than `gap` seconds between them as one.

    Examples
    --------
    >>> join_spans([(3.0, 4.0), (0.0, 1.0), (1.2, 2.0)], 0.5)
    [(0.0, 2.0), (3.0, 4.0)]
    """
    joined: list[Span] = []
    for onset, offset in sorted(spans):
        if joined and onset - joined[-1][1] <= gap:
            joined[-1] = (joined[-1][0], max(joined[-1][1], offset))
        else:
            joined.append((onset, offset))
    return joined


def match_events(wanted: Sequence[Span], found: Sequence[Span], collar: float, offsets: bool = False) -> Counts:
    """Match found events of a class to the true ones, one to one, so that most are matched.

    Parameters
    ----------
    wanted, found : sequence of (float, float)
        Events in a recording.
    collar : float
        Seconds that an onset may be early or late.
    offsets : bool
        Whether the offset must match too: within the collar, or half of the true event's length if that is longer.

    Returns
    -------
    Counts

    Examples
    --------
    >>> match_events([(0.0, 1.0), (5.0, 6.0)], [(0.1, 3.0)], 0.2), match_events([(0.0, 1.0)], [(0.1, 3.0)], 0.2, True)
    (Counts(right=1, found=1, wanted=2), Counts(right=0, found=1, wanted=1))
    """
    if not wanted or not found:
        return Counts(0, len(found), len(wanted))
    truth, guess = np.array(wanted), np.array(found)
    fits = np.abs(truth[:, None, 0] - guess[None, :, 0]) <= collar + 1e-9
    if offsets:
        allowed = np.maximum(collar, 0.5 * (truth[:, 1] - truth[:, 0]))[:, None]
        fits &= np.abs(truth[:, None, 1] - guess[None, :, 1]) <= allowed + 1e-9
    pairs = linear_sum_assignment(fits, maximize=True)
    return Counts(int(fits[pairs].sum()), len(found), len(wanted))


def active_segments(spans: Sequence[Span], segments: int, seconds: float) -> np.ndarray:
    """Return in which of so many segments of so many seconds a class is heard at all, bool (segments,)."""
    active = np.zeros(segments, bool)
    for onset, offset in spans:
        active[int(onset / seconds + 1e-6) : max(int(np.ceil(offset / seconds - 1e-6)), int(onset / seconds) + 1)] = (
            True
        )
    return active


def match_segments(wanted: np.ndarray, found: np.ndarray) -> Counts:
    """Count the segments in which a class is heard, both bool (segments,)."""
    return Counts(int((wanted & found).sum()), int(found.sum()), int(wanted.sum()))

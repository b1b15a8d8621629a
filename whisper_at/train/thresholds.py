"""Thresholds of a head: precise on clips of its classes, and seldom reached by what is none of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..features.store import Features
from ..tagging.classes import logit
from ..tagging.heads import Head
from ..tagging.timeline import STEP_SECONDS
from .calibration import fit_temperature, probabilities, thresholds_for_precision
from .recipe import compute_logits, compute_row_logits

ROW_STEPS = 5
"""Length of the rows in which false alarms are counted: 2 s."""
PRIOR_CLIPS = 10
"""A class with so many clips has a threshold halfway between its own and that of all classes together."""
TAIL_SHARE, MIN_TAIL = 0.03, 10
"""Share, and least number, of the rows of background whose scores are taken for the tail of their distribution."""


class LeftOutScores(NamedTuple):
    """Logits of clips by heads that did not see them.

    Attributes
    ----------
    positions : ndarray, shape (views,)
        Position in the data set of the clip of each view.
    logits : ndarray, shape (views, classes)
        Logits of whole views.
    row_positions : ndarray, shape (rows,)
        Of clips of background, in all their views in context: position of the clip of each row of 2 s.
    row_logits : ndarray, shape (rows, classes)
        Logits of these rows.
    n_row_views : int
        Number of these views.
    """

    positions: np.ndarray
    logits: np.ndarray
    row_positions: np.ndarray
    row_logits: np.ndarray
    n_row_views: int


@dataclass(frozen=True)
class Calibration:
    """Temperature, thresholds (probabilities, of shape (classes,)) and log odds of `LeftOutScores`."""

    temperature: float
    thresholds: np.ndarray
    log_odds: np.ndarray
    row_log_odds: np.ndarray


def score_left_out(
    heads: Iterable[tuple[np.ndarray, Head]],
    features: Features,
    indices: np.ndarray,
    background: np.ndarray,
    max_steps: int,
) -> LeftOutScores:
    """Compute logits of clips by heads that did not see them.

    Parameters
    ----------
    heads : iterable of (ndarray, Head)
        Positions of clips in the data set, and the head that was trained without them.
    features : Features
        Where the states are.
    indices : ndarray, shape (clips,)
        Index in `features` of every clip of the data set.
    background : ndarray, shape (clips,)
        Bool: which clips are background.
    max_steps : int
        See `whisper_at.train.recipe.compute_logits`.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for positions, head in heads:
        views = features.view_indices(indices[positions])
        logits = compute_logits(head, features, views.ravel(), max_steps)
        quiet = np.flatnonzero(background[positions])
        in_context = views[min(1, len(views) - 1) :, quiet]  # as in a recording, where there are such views
        rows, row_logits = compute_row_logits(head, features, in_context.ravel(), ROW_STEPS)
        clips = np.tile(positions[quiet], len(in_context))
        parts.append((np.tile(positions, len(views)), logits, clips[rows], row_logits))
    joined, logits, clips, row_logits = (np.concatenate(part) for part in zip(*parts))
    return LeftOutScores(joined, logits, clips, row_logits, len(in_context))


def calibrate(
    scored: LeftOutScores,
    targets: np.ndarray,
    known: np.ndarray,
    multi_label: bool,
    precision: float,
    false_alarms_per_hour: float,
    counted: np.ndarray,
) -> Calibration:
    """Find the temperature and the threshold of each class.

    A threshold is the least that reaches `precision` on the clips, moved towards that of all classes together the fewer
    clips the class has; and no less than background reaches so many times per hour in all.

    Parameters
    ----------
    scored : LeftOutScores
        Logits of clips.
    targets : ndarray, shape (clips of the data set, classes)
        0 and 1.
    known : ndarray, shape (classes,)
        Bool: which classes the head was taught.
    multi_label : bool
        Whether classes are decided one by one.
    precision : float
        See `whisper_at.train.calibration.thresholds_for_precision`.
    false_alarms_per_hour : float
        Events per hour of background, of all classes together.
    counted : ndarray, shape (rows,)
        Bool: rows of background in which events are false alarms.
    """
    wanted = targets[scored.positions]
    temperature = fit_temperature(wanted[:, known], scored.logits[:, known], multi_label)

    def log_odds(logits: np.ndarray) -> np.ndarray:
        return logits / temperature if multi_label else logit(probabilities(logits, False, temperature))

    scores, rows = log_odds(scored.logits), log_odds(scored.row_logits)
    thresholds = shrunk_thresholds(wanted, scores, precision, targets[np.unique(scored.positions)].sum(0))
    if counted.any():
        thresholds = np.maximum(thresholds, tail_thresholds(rows[counted], false_alarms_per_hour))
    return Calibration(temperature, 1 / (1 + np.exp(-thresholds)), scores, rows)


def shrunk_thresholds(targets: np.ndarray, scores: np.ndarray, precision: float, clips: np.ndarray) -> np.ndarray:
    """Return thresholds that reach a precision, those of classes with few clips nearer to that of all classes.

    With n clips of a class, its threshold weighs n and the common one `PRIOR_CLIPS`. A class that reaches the precision
    at no threshold has the common one if it has fewer clips than that, else infinity.

    Parameters
    ----------
    targets : ndarray, shape (views, classes)
        0 and 1.
    scores : ndarray, shape (views, classes)
        Log odds.
    precision : float
        Share, among the accepted, of those that have the class.
    clips : ndarray, shape (classes,)
        Number of clips of each class.

    Returns
    -------
    ndarray, shape (classes,)
        Log odds.
    """
    own = thresholds_for_precision(targets, scores, precision)
    common = float(thresholds_for_precision(targets.reshape(-1, 1), scores.reshape(-1, 1), precision)[0])
    common = common if np.isfinite(common) else 0.0
    weight = clips / (clips + PRIOR_CLIPS)
    shrunk = np.where(np.isfinite(own), weight * np.nan_to_num(own, posinf=0.0) + (1 - weight) * common, common)
    return np.where(np.isposinf(own) & (clips >= PRIOR_CLIPS), np.inf, shrunk)


def tail_thresholds(rows: np.ndarray, per_hour: float) -> np.ndarray:
    """Return thresholds that background exceeds so many times per hour, all classes sharing alike.

    Minutes of background say nothing directly of what happens once in an hour. Above a high quantile, the scores of a
    class are taken to fall off exponentially (peaks over threshold: Davison & Smith, "Models for exceedances over high
    thresholds", 1990), at the rate that the observed ones have.

    Parameters
    ----------
    rows : ndarray, shape (rows, classes)
        Log odds of rows of background of 2 s.
    per_hour : float
        Events per hour.

    Returns
    -------
    ndarray, shape (classes,)
        Log odds.
    """
    n, classes = rows.shape
    share = per_hour / classes * ROW_STEPS * STEP_SECONDS / 3600
    tail = min(n - 1, max(MIN_TAIL, round(TAIL_SHARE * n)))
    if share * n >= tail:
        return np.quantile(rows, max(0.0, 1 - share), axis=0)
    ranked = -np.sort(-rows, axis=0)
    start = ranked[tail]
    scale = (ranked[:tail] - start).mean(0)
    return start + scale * np.log(tail / n / share)


def count_events(above: np.ndarray, clips: np.ndarray) -> int:
    """Return the number of events: runs of rows of one clip in which a class is above its threshold.

    Parameters
    ----------
    above : ndarray, shape (rows, classes)
        Bool, rows in order of time.
    clips : ndarray, shape (rows,)
        Clip of each row.
    """
    if not len(above):
        return 0
    begins = above.copy()
    begins[1:] &= ~(above[:-1] & (clips[1:] == clips[:-1])[:, None])
    return int(begins.sum())

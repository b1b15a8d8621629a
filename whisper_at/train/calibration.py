"""Logits turned into probabilities that hold, and into decisions: temperature, thresholds, reliability.

Temperature scaling is Guo et al.'s ("On calibration of modern neural networks", ICML 2017), for classes of which one is
right (softmax) and for classes decided one by one (sigmoid). It changes no ranking: mAP and AUC stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from .metrics import one_hot

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of the temperature: beyond them, probabilities are 0 and 1, or all the same."""


def probabilities(logits: np.ndarray, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
    """Probabilities ``(clips, classes)`` of logits over ``temperature``: sigmoids, or softmax where one is right."""
    scaled = np.asarray(logits, np.float64) / temperature
    return expit(scaled) if multi_label else softmax(scaled, axis=1)


def fit_temperature(targets: np.ndarray, logits: np.ndarray, multi_label: bool) -> float:
    """Temperature ``T`` with which ``probabilities(logits, multi_label, T)`` has the least cross-entropy.

    The targets are Platt's ("Probabilistic outputs for support vector machines", 1999): what was so ``n`` times counts
    as ``(n + 1) / (n + 2)`` likely instead of certain, ``n`` being all decisions for a class, or all against one, or
    where one class is right the clips. So a few clips that are all right do not make a head certain, and many are as
    they were. The cross-entropy is convex in ``1 / T``, so the sign of its derivative brackets the one minimum.

    Parameters
    ----------
    targets : ``(clips, classes)`` of 0 and 1, or ``(clips,)`` of class indices
    logits : ``(clips, classes)``, of clips that the head was not trained on
    multi_label : binary cross-entropy of every class, else the categorical one

    Returns
    -------
    float in 0.01 … 100: 100 where the logits tell nothing or the opposite

    Raises
    ------
    ValueError
        If shapes do not agree, there are no clips, or a logit is no number.
    """
    targets, z = _checked(targets, logits)
    z = z.astype(np.float64)
    if not multi_label and not (targets.sum(axis=1) == 1).all():
        raise ValueError("with multi_label=False every clip must have exactly one class")

    likely = _likely(targets, multi_label)

    def slope(inverse: float) -> float:
        return float(np.mean((probabilities(z * inverse, multi_label) - likely) * z))

    coldest, hottest = 1 / COLDEST, 1 / HOTTEST
    if slope(hottest) >= 0:
        return HOTTEST
    if slope(coldest) <= 0:
        return COLDEST
    return 1 / float(brentq(slope, hottest, coldest, xtol=1e-9, rtol=1e-9))


def _likely(targets: np.ndarray, multi_label: bool) -> np.ndarray:
    """Targets of `fit_temperature`, ``(clips, classes)``; what one right class lacks is shared by the others."""
    n, classes = targets.shape
    if multi_label:
        found = int((targets > 0).sum())
        return np.where(targets > 0, (found + 1) / (found + 2), 1 / (targets.size - found + 2))
    return np.where(targets > 0, (n + 1) / (n + 2), 1 / (n + 2) / max(1, classes - 1))


def thresholds_for_precision(targets: np.ndarray, scores: np.ndarray, precision: float) -> np.ndarray:
    """Lowest threshold of each class at which, of the clips above it, at least ``precision`` have the class.

    The lowest has the greatest recall. A threshold lies halfway between two scores, so that ``>`` and ``>=`` decide
    alike; where all clips may be taken, it is just below the lowest score.

    Parameters
    ----------
    targets : ``(clips, classes)`` of 0 and 1, or ``(clips,)`` of class indices
    scores : ``(clips, classes)``, logits or probabilities
    precision : above 0, at most 1

    Returns
    -------
    float64 ``(classes,)``: inf where no threshold reaches the precision, NaN where no clip has the class, so that
    nothing is known. Either way, no score is above it.

    Raises
    ------
    ValueError
        If shapes do not agree, ``precision`` is none, or a score is no number.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision is a share above 0 and at most 1, not {precision!r}")
    targets, scores = _checked(targets, scores)
    out = np.full(targets.shape[1], np.nan)
    for i, (wanted, found) in enumerate(zip(targets.T, scores.T)):
        if not wanted.any():
            continue
        order = np.argsort(-found, kind="stable")
        ranked, right = found[order].astype(np.float64), np.cumsum(wanted[order])
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores go together
        reached = ends[right[ends] >= precision * (ends + 1) - 1e-9]
        if not len(reached):
            out[i] = np.inf
        elif (last := reached[-1]) + 1 < len(ranked):
            out[i] = (ranked[last] + ranked[last + 1]) / 2
        else:
            out[i] = np.nextafter(np.float32(ranked[last]), np.float32(-np.inf))
    return out


class Reliability(NamedTuple):
    """What was claimed and what came true, by bin of probability; each array is ``(bins,)``.

    Attributes
    ----------
    edges : ``(bins + 1,)`` from 0 to 1
    counts : decisions in each bin
    claimed : mean probability in each, NaN where it is empty
    observed : share of them that were right, NaN where it is empty
    """

    edges: np.ndarray
    counts: np.ndarray
    claimed: np.ndarray
    observed: np.ndarray


def reliability(targets: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> Reliability:
    """Compare probabilities with what came true, in ``bins`` bins of equal width.

    Parameters
    ----------
    targets, probabilities : of the same shape, whatever it is: 0 and 1, and 0 … 1. For classes decided one by one
        ``(clips, classes)``, pooled; for one right class ``decided == truth`` and ``p.max(axis=1)``, both ``(clips,)``

    Raises
    ------
    ValueError
        If shapes differ, a probability is none, or there are no bins.
    """
    right, p = np.asarray(targets, float).ravel(), np.asarray(probabilities, float).ravel()
    if np.shape(targets) != np.shape(probabilities):
        raise ValueError(f"targets are {np.shape(targets)}, but probabilities are {np.shape(probabilities)}")
    if not ((p >= 0) & (p <= 1)).all():  # NaN is neither
        raise ValueError("probabilities must lie between 0 and 1; logits go through probabilities() first")
    if bins < 1:
        raise ValueError(f"there must be at least one bin, not {bins}")
    edges = np.linspace(0, 1, bins + 1)
    member = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1)
    count = np.bincount(member, minlength=bins)
    with np.errstate(invalid="ignore"):
        claimed = np.bincount(member, p, bins) / count
        observed = np.bincount(member, right, bins) / count
    return Reliability(edges, count, claimed, observed)


def expected_calibration_error(result: Reliability) -> float:
    """Mean distance of what was claimed from what came true, weighted by the number of decisions in each bin."""
    filled = result.counts > 0
    if not filled.any():
        return float("nan")
    gap = np.abs(result.claimed[filled] - result.observed[filled])
    return float(np.average(gap, weights=result.counts[filled]))


def _checked(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (clips, classes) with some of each, not {scores.shape}")
    targets = one_hot(targets, scores.shape[1])
    if targets.shape != scores.shape:
        raise ValueError(f"targets are {targets.shape}, but scores are {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).any(1).sum())} clips have scores that are no numbers")
    return targets, scores

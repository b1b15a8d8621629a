"""Probabilities that hold, and decisions, from logits: temperature, thresholds, reliability.

Temperature scaling is that of Guo et al. ("On calibration of modern neural networks", ICML 2017), for one right class
(softmax) and for classes decided independently (sigmoid). It changes no ranking: mAP and AUC stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .metrics import one_hot

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""Bounds of the temperature; beyond them, probabilities are 0 and 1, or all the same."""


def probabilities(logits: np.ndarray, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
    """Return the sigmoid (`multi_label`) or softmax of logits over `temperature`, shape (clips, classes)."""
    from scipy.special import expit, softmax

    scaled = np.asarray(logits, np.float64) / temperature
    return expit(scaled) if multi_label else softmax(scaled, axis=1)


def fit_temperature(targets: np.ndarray, logits: np.ndarray, multi_label: bool) -> float:
    """Find the temperature with the least cross-entropy.

    The targets are those of Platt ("Probabilistic outputs for support vector machines", 1999): what occurred `n` times
    has the target probability ``(n + 1) / (n + 2)`` instead of 1, `n` being the number of positive or of negative
    decisions or, with one right class, of clips. So a few clips that are all right do not make a head certain, and for
    many clips the difference vanishes. The cross-entropy is convex in ``1 / T``, so the sign of its derivative brackets
    the minimum.

    Parameters
    ----------
    targets : ndarray, shape (clips, classes) or (clips,)
        0 and 1, or class indices.
    logits : ndarray, shape (clips, classes)
        Logits of clips that the head was not trained on.
    multi_label : bool
        Binary cross-entropy of every class, else categorical cross-entropy.

    Returns
    -------
    float
        Between 0.01 and 100; 100 if the logits tell nothing, or the opposite.

    Raises
    ------
    ValueError
        If shapes do not agree, there are no clips, or a logit is NaN or infinite.
    """
    from scipy.optimize import brentq

    targets, z = _check_arrays(targets, logits)
    z = z.astype(np.float64)
    if not multi_label and not (targets.sum(axis=1) == 1).all():
        raise ValueError("with multi_label=False every clip must have exactly one class")

    smoothed = _platt_targets(targets, multi_label)

    def slope(inverse: float) -> float:
        return float(np.mean((probabilities(z * inverse, multi_label) - smoothed) * z))

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return 1 / float(brentq(slope, low, high, xtol=1e-9, rtol=1e-9))


def _platt_targets(targets: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return Platt's targets, shape (clips, classes); with one right class, the rest is shared by the others."""
    n, classes = targets.shape
    if multi_label:
        positives = int((targets > 0).sum())
        return np.where(targets > 0, (positives + 1) / (positives + 2), 1 / (targets.size - positives + 2))
    return np.where(targets > 0, (n + 1) / (n + 2), 1 / (n + 2) / max(1, classes - 1))


def thresholds_for_precision(targets: np.ndarray, scores: np.ndarray, precision: float) -> np.ndarray:
    """Find the lowest threshold of each class that reaches a precision.

    The lowest one has the greatest recall. It lies halfway between two scores, so that ``>`` and ``>=`` decide alike;
    if all clips may be accepted, it is just below the lowest score.

    Parameters
    ----------
    targets : ndarray, shape (clips, classes) or (clips,)
        0 and 1, or class indices.
    scores : ndarray, shape (clips, classes)
        Logits or probabilities.
    precision : float
        Least share, among the accepted clips, of those that have the class; above 0, at most 1.

    Returns
    -------
    ndarray, shape (classes,)
        float64: inf if no threshold reaches the precision, NaN if no clip has the class. In both cases, no score is
        above it.

    Raises
    ------
    ValueError
        If shapes do not agree, `precision` is out of range, or a score is NaN or infinite.
    """
    if not 0 < precision <= 1:
        raise ValueError(f"precision is a share above 0 and at most 1, not {precision!r}")
    targets, scores = _check_arrays(targets, scores)
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


class ReliabilityCurve(NamedTuple):
    """Predicted probabilities and observed frequencies, by bin of probability.

    Attributes
    ----------
    edges : ndarray, shape (bins + 1,)
        From 0 to 1.
    counts : ndarray, shape (bins,)
        Number of decisions in each bin.
    predicted : ndarray, shape (bins,)
        Mean probability in each bin, NaN if it is empty.
    observed : ndarray, shape (bins,)
        Share of the decisions that were right, NaN if the bin is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def reliability_curve(targets: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> ReliabilityCurve:
    """Compare probabilities with what came true, in bins of equal width.

    Parameters
    ----------
    targets : ndarray, any shape
        0 and 1. For classes decided independently, shape (clips, classes); for one right class
        ``decided == truth``, shape (clips,).
    probabilities : ndarray, same shape
        0 to 1; for one right class those of the decisions, ``p.max(axis=1)``.
    bins : int
        Number of bins.

    Raises
    ------
    ValueError
        If shapes differ, a probability is out of range, or there are no bins.
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
        predicted = np.bincount(member, p, bins) / count
        observed = np.bincount(member, right, bins) / count
    return ReliabilityCurve(edges, count, predicted, observed)


def expected_calibration_error(curve: ReliabilityCurve) -> float:
    """Return the mean gap between prediction and observation, weighted by the number of decisions in each bin."""
    filled = curve.counts > 0
    if not filled.any():
        return float("nan")
    gap = np.abs(curve.predicted[filled] - curve.observed[filled])
    return float(np.average(gap, weights=curve.counts[filled]))


def _check_arrays(targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and scores, both of shape (clips, classes); ValueError if they do not agree."""
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (clips, classes) with some of each, not {scores.shape}")
    targets = one_hot(targets, scores.shape[1])
    if targets.shape != scores.shape:
        raise ValueError(f"targets are {targets.shape}, but scores are {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).any(1).sum())} clips have scores that are no numbers")
    return targets, scores

"""Scores of classifiers: of rankings (average precision, area under the ROC curve, d') and of decisions.

``targets`` is ``(clips, classes)`` of 0 and 1, or ``(clips,)`` of class indices where only one is right; ``scores`` is
``(clips, classes)``, of which only the order within a class matters for rankings.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import norm
from sklearn.metrics import average_precision_score, confusion_matrix, f1_score, recall_score, roc_auc_score


def average_precision(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Average precision of each class, ``(classes,)``; NaN where no clip has the class."""
    return _per_class(average_precision_score, targets, scores, needs_negatives=False)


def roc_auc(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class, ``(classes,)``; NaN where all clips have the class, or none has."""
    return _per_class(roc_auc_score, targets, scores, needs_negatives=True)


def _per_class(metric: Callable, targets: np.ndarray, scores: np.ndarray, needs_negatives: bool) -> np.ndarray:
    targets = one_hot(targets, scores.shape[1])
    if targets.shape != scores.shape:
        raise ValueError(f"targets are {targets.shape}, but scores are {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).any(1).sum())} clips have scores that are no numbers")
    out = np.full(targets.shape[1], np.nan)
    for i, (wanted, found) in enumerate(zip(targets.T, scores.T)):
        if wanted.any() and not (needs_negatives and wanted.all()):
            out[i] = metric(wanted, found)
    return out


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    """bool ``(clips, classes)`` of either form of targets; ValueError if an index is not that of a class."""
    targets = np.asarray(targets)
    if targets.ndim == 1 and len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(f"class indices are {targets.min()} to {targets.max()}, but there are {classes} classes")
    return targets > 0.5 if targets.ndim == 2 else np.arange(classes) == targets[:, None]


def d_prime(auc: float | np.ndarray) -> float | np.ndarray:
    """Separation of two unit normal distributions with this area under the ROC curve: ``sqrt(2) * Φ⁻¹(auc)``."""
    return np.sqrt(2) * norm.ppf(auc)


def ranking_scores(targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """``mAP``, ``AUC`` (means over classes that occur) and ``d_prime`` of the mean AUC, as Whisper-AT reports them."""
    ap, auc = average_precision(targets, scores), roc_auc(targets, scores)
    mean_auc = float(np.nanmean(auc)) if np.isfinite(auc).any() else float("nan")
    mean_ap = float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")
    return {"mAP": mean_ap, "AUC": mean_auc, "d_prime": float(d_prime(mean_auc))}


def decision_scores(truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """``accuracy``, ``UAR`` (unweighted average recall) and macro ``F1`` of class indices ``(clips,)``.

    UAR and F1 are means over the classes that occur in ``truth``.
    """
    occurring = np.unique(truth)
    options = {"labels": occurring, "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(np.mean(np.asarray(truth) == np.asarray(decided))),
        "UAR": float(recall_score(truth, decided, **options)),
        "F1": float(f1_score(truth, decided, **options)),
    }


def confusion(truth: np.ndarray, decided: np.ndarray, classes: int) -> np.ndarray:
    """int ``(classes, classes)``: clips of each true class (row) by the class decided (column)."""
    return confusion_matrix(truth, decided, labels=np.arange(classes))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Mean of a few independent values and half the width of its confidence interval (Student's t).

    The half width is NaN for a single value.
    """
    from scipy.stats import t

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    targets: np.ndarray,
    scores: np.ndarray,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Bounds of a metric over clips drawn anew with replacement (percentile bootstrap)."""
    r = np.random.default_rng(seed)
    n = len(targets)
    values = [metric(targets[picked], scores[picked]) for picked in (r.integers(0, n, n) for _ in range(draws))]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Scores of classifiers: of rankings (average precision, area under the ROC curve, d') and of decisions.

`targets` are of shape (clips, classes), 0 and 1, or of shape (clips,), class indices. `scores` are of shape
(clips, classes); for rankings, only their order within a class matters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def average_precision(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, shape (classes,); NaN if no clip has the class."""
    from sklearn.metrics import average_precision_score

    return _per_class(average_precision_score, targets, scores, needs_negatives=False)


def roc_auc(targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve of each class, shape (classes,); NaN if all clips have the class, or none."""
    from sklearn.metrics import roc_auc_score

    return _per_class(roc_auc_score, targets, scores, needs_negatives=True)


def _per_class(
    metric: Callable[[np.ndarray, np.ndarray], float], targets: np.ndarray, scores: np.ndarray, needs_negatives: bool
) -> np.ndarray:
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
    """Return either form of targets as bool, shape (clips, classes); ValueError if an index is that of no class."""
    targets = np.asarray(targets)
    if targets.ndim == 1 and len(targets) and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(f"class indices are {targets.min()} to {targets.max()}, but there are {classes} classes")
    return targets > 0.5 if targets.ndim == 2 else np.arange(classes) == targets[:, None]


def d_prime(auc: float | np.ndarray) -> float | np.ndarray:
    """Return ``sqrt(2) * Φ⁻¹(auc)``: how far apart two unit normal distributions are that have this AUC."""
    from scipy import stats

    return np.sqrt(2) * stats.norm.ppf(auc)


def ranking_scores(targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return ``mAP``, ``AUC`` (means over classes that occur) and ``d_prime`` of the mean AUC (spec section 3.5)."""
    ap, auc = average_precision(targets, scores), roc_auc(targets, scores)
    mean_auc = float(np.nanmean(auc)) if np.isfinite(auc).any() else float("nan")
    mean_ap = float(np.nanmean(ap)) if np.isfinite(ap).any() else float("nan")
    return {"mAP": mean_ap, "AUC": mean_auc, "d_prime": float(d_prime(mean_auc))}


def decision_scores(truth: np.ndarray, decided: np.ndarray) -> dict[str, float]:
    """Return ``accuracy``, ``UAR`` (unweighted average recall) and macro ``F1`` of class indices, shape (clips,).

    UAR and F1 are means over the classes that occur in `truth`.
    """
    from sklearn.metrics import f1_score, recall_score

    occurring = np.unique(truth)
    options = {"labels": occurring, "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(np.mean(np.asarray(truth) == np.asarray(decided))),
        "UAR": float(recall_score(truth, decided, **options)),
        "F1": float(f1_score(truth, decided, **options)),
    }


def confusion(truth: np.ndarray, decided: np.ndarray, classes: int) -> np.ndarray:
    """Count the clips of each true class (row) by the class decided (column), int of shape (classes, classes)."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(truth, decided, labels=np.arange(classes))


def mean_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the mean of a few independent values and half the width of its confidence interval (Student's t).

    The half width is NaN for a single value.
    """
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def bootstrap_interval(
    metric: Callable[[np.ndarray, np.ndarray], float],
    targets: np.ndarray,
    scores: np.ndarray,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bounds of a metric over clips that are resampled with replacement (percentile bootstrap)."""
    rng, n = np.random.default_rng(seed), len(targets)
    values = [metric(targets[chosen], scores[chosen]) for chosen in (rng.integers(0, n, n) for _ in range(draws))]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

"""Robustness of a recogniser to a class of noise against recognition of that class (spec section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .transcriptions import CLEAN
from .wer import WordErrors


class Correlation(NamedTuple):
    """Correlation of two measures over classes.

    Attributes
    ----------
    r : float
        Pearson's coefficient.
    interval : (float, float)
        Its 95 % confidence interval (Fisher); NaN for fewer than four classes.
    p : float
        Two-sided p-value.
    n : int
        Number of classes.
    without_one : (float, float)
        Lowest and highest ``r`` with any one class left out.
    intercept, slope : float
        Least-squares line through all classes.
    """

    r: float
    interval: tuple[float, float]
    p: float
    n: int
    without_one: tuple[float, float]
    intercept: float
    slope: float


def word_error_increase(
    table: Mapping[tuple[str, str, float], WordErrors], recogniser: str, low: float = -10.0, high: float = 20.0
) -> dict[str, float]:
    """Return the increase of the word error rate from ``high`` to ``low`` dB by class of noise, as a fraction.

    Parameters
    ----------
    table : mapping
        Result of `whisper_at.study.wer.error_table`.
    recogniser : str
        Name in the table.
    low, high : float
        Signal-to-noise ratios in dB.

    Raises
    ------
    ValueError
        If the table lacks one of the ratios.
    """
    classes = sorted({noise for name, noise, _ in table if name == recogniser and noise != CLEAN})
    missing = [(c, snr) for c in classes for snr in (low, high) if (recogniser, c, snr) not in table]
    if not classes or missing:
        what = f"for {missing[0][0]} at {missing[0][1]:g} dB" if missing else "with noise"
        raise ValueError(f"{recogniser} has no transcriptions {what}; run `whisper-at study noise` with that ratio")
    return {c: table[recogniser, c, low].rate - table[recogniser, c, high].rate for c in classes}


def correlate(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Correlate two measures over all classes.

    The paper left out 12 outliers that were chosen after seeing the plot. Here no class is left out, and
    ``without_one`` shows how much a single class can change.

    Parameters
    ----------
    x, y : ndarray of float, shape (classes,)
        The measures.

    Raises
    ------
    ValueError
        If there are fewer than three classes, or a measure is constant.
    """
    from scipy.stats import pearsonr

    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a correlation needs at least three classes with both measures, not {min(len(x), len(y))}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a measure that is the same for all classes has no correlation")
    result = pearsonr(x, y)
    interval = result.confidence_interval(0.95)
    leave_one_out = [_pearson(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    slope, intercept = np.polyfit(x, y, 1)
    return Correlation(
        float(result.statistic),
        (float(interval.low), float(interval.high)) if len(x) > 3 else (float("nan"), float("nan")),
        float(result.pvalue),
        len(x),
        (float(np.nanmin(leave_one_out)), float(np.nanmax(leave_one_out))),
        float(intercept),
        float(slope),
    )


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else float("nan")


def bootstrap_line(
    x: np.ndarray, y: np.ndarray, grid: np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrap confidence band of the least-squares line: lower and upper bounds at ``grid``."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    rng = np.random.default_rng(seed)
    lines = []
    for sample in (rng.integers(0, len(x), len(x)) for _ in range(draws)):
        if np.ptp(x[sample]) > 0:  # else there is no line
            lines.append(np.polyval(np.polyfit(x[sample], y[sample], 1), grid))
    low, high = np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def best_layers(f1: Sequence[np.ndarray]) -> np.ndarray:
    """Return the layer with the highest F1 of each class, counted from 1; the first of equal ones.

    The paper's histogram is one too low: its ``+ 1`` is inside of the argmax, where it has no effect.

    Parameters
    ----------
    f1 : sequence of ndarray, each of shape (classes,)
        F1 by class of layers 1 to L, without the input and the average.

    Returns
    -------
    ndarray of int, shape (classes,)
    """
    table = np.stack(list(f1))
    if np.isnan(table).all(axis=0).any():
        raise ValueError("a class has no F1 in any layer")
    return np.argmax(np.where(np.isnan(table), -np.inf, table), axis=0) + 1

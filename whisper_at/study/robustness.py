"""Does a recogniser withstand the noises it can recognise? Class by class (spec section 4.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import pearsonr

from .wer import CLEAN, Errors


def rises(
    table: Mapping[tuple[str, str, float], Errors], recogniser: str, low: float = -10.0, high: float = 20.0
) -> dict[str, float]:
    """How much the word error rate rises from ``high`` dB to ``low`` dB in each class of noise (a fraction).

    ``table`` is of `whisper_at.study.wer.error_table`. Raises ValueError if the study has no such ratios.
    """
    classes = sorted({noise for name, noise, _ in table if name == recogniser and noise != CLEAN})
    missing = [(c, snr) for c in classes for snr in (low, high) if (recogniser, c, snr) not in table]
    if not classes or missing:
        what = f"{missing[0][0]} at {missing[0][1]:g} dB" if missing else "no noise"
        raise ValueError(f"{recogniser} was not heard with {what}; run `whisper-at study noise` with that ratio")
    return {c: table[recogniser, c, low].rate - table[recogniser, c, high].rate for c in classes}


class Correlation(NamedTuple):
    """How two figures of the classes go together, over all of them.

    Attributes
    ----------
    r : Pearson's
    interval : its 95 % interval (Fisher's); NaN for less than four classes
    p : chance of so large an ``r`` of either sign where there is none
    n : classes
    without_one : least and greatest ``r`` with any one class left out
    intercept, slope : of the line through all classes
    """

    r: float
    interval: tuple[float, float]
    p: float
    n: int
    without_one: tuple[float, float]
    intercept: float
    slope: float


def correlate(x: np.ndarray, y: np.ndarray) -> Correlation:
    """Correlate two figures over all classes.

    No class is left out: the paper's 12 outliers were chosen after seeing the plot. How much one class alone can
    change is told by ``without_one``.

    Raises
    ------
    ValueError
        If there are fewer than three classes, or a figure is the same for all.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"a correlation needs at least three classes with both figures, not {min(len(x), len(y))}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("a figure that is the same for all classes correlates with nothing")
    found = pearsonr(x, y)
    interval = found.confidence_interval(0.95)
    each = [_r(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    slope, intercept = np.polyfit(x, y, 1)
    return Correlation(
        float(found.statistic),
        (float(interval.low), float(interval.high)) if len(x) > 3 else (float("nan"), float("nan")),
        float(found.pvalue),
        len(x),
        (float(np.nanmin(each)), float(np.nanmax(each))),
        float(intercept),
        float(slope),
    )


def _r(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else float("nan")


def line_band(
    x: np.ndarray, y: np.ndarray, grid: np.ndarray, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the fitted line at ``grid``, from lines through classes drawn anew with replacement."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    r = np.random.default_rng(seed)
    lines = []
    for picked in (r.integers(0, len(x), len(x)) for _ in range(draws)):
        if np.ptp(x[picked]) > 0:  # else there is no line
            lines.append(np.polyval(np.polyfit(x[picked], y[picked], 1), grid))
    low, high = np.quantile(lines, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def best_layers(f1: Sequence[np.ndarray]) -> np.ndarray:
    """The layer with the highest F1 of each class, int ``(classes,)``, counted from 1; the first of equal ones.

    ``f1`` holds an array ``(classes,)`` for each layer from 1 on, without the input and the average. The paper's
    histogram is one too low: its ``+ 1`` stands inside of the argmax, where it changes nothing.
    """
    table = np.stack(list(f1))
    if np.isnan(table).all(axis=0).any():
        raise ValueError("a class has no F1 in any layer")
    return np.argmax(np.where(np.isnan(table), -np.inf, table), axis=0) + 1

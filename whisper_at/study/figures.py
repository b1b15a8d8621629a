"""Figures of the paper, drawn from the results of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..train.plots import COLOURS, GREY, STYLES, new_figure
from .layer_probes import AVERAGE, INPUT, layer_values
from .robustness import Correlation, bootstrap_line
from .wer import WordErrors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKERS = "os^Dv<>P"
MAX_NAMES = 15
"""Maximum number of classes that are named in a plot: those farthest from the line."""


def draw_errors(curves: Mapping[str, Mapping[float, WordErrors]]) -> Figure:
    """Draw figure 1, upper: word error rate against the signal-to-noise ratio, which decreases to the right.

    Parameters
    ----------
    curves : mapping
        Result of `whisper_at.study.transcriptions.errors_by_snr` by recogniser; an infinite ratio is speech without
        noise.
    """
    figure, axes = new_figure(6.2, 4.2)
    ratios = sorted({snr for curve in curves.values() for snr in curve if np.isfinite(snr)}, reverse=True)
    if not ratios:
        raise ValueError("there are no noisy transcriptions to draw")
    clean_x = ratios[0] + max(5.0, (ratios[0] - ratios[-1]) / 8)  # position of speech without noise
    has_clean = any(np.inf in curve for curve in curves.values())
    for i, (name, curve) in enumerate(curves.items()):
        points = sorted(((snr, 100 * e.rate) for snr, e in curve.items() if np.isfinite(snr)), reverse=True)
        line, style = _style(i)
        style["clip_on"] = False
        axes.plot(*zip(*points), line, label=name, **style)
        if np.inf in curve:
            axes.plot([clean_x], [100 * curve[np.inf].rate], **(style | {"mfc": "none"}))
    ticks = ([clean_x] if has_clean else []) + ratios
    axes.set_xticks(ticks, (["none"] if has_clean else []) + [_minus(f"{snr:g}") for snr in ratios])
    axes.set_xlim(ticks[0] + 2, ratios[-1] - 2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="signal-to-noise ratio (dB)", ylabel="word error rate (%)", title="Speech recognition in noise")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def draw_layers(accuracy: Mapping[str, Mapping[str, float]], chance: float | None = None) -> Figure:
    """Draw figure 1, lower: accuracy of the probes by layer.

    Parameters
    ----------
    accuracy : mapping
        Accuracy by backbone and layer (`layer_probes.average_folds`). The input and the average are open marks.
    chance : float, optional
        Accuracy of guessing, drawn as a dashed line.
    """
    figure, axes = new_figure(6.2, 4.2)
    depth = max(len(layer_values(rows)) for rows in accuracy.values())
    for i, (name, rows) in enumerate(accuracy.items()):
        values = 100 * np.array(layer_values(rows))
        line, style = _style(i)
        axes.plot(np.arange(1, len(values) + 1), values, line, label=name, **style)
        for x, row in ((0, INPUT), (depth + 1, AVERAGE)):
            if row in rows:
                axes.plot([x], [100 * rows[row]], **(style | {"mfc": "none"}))
    if chance is not None:
        axes.axhline(100 * chance, color=GREY, linewidth=1, linestyle="--")
        axes.text(0.99, 100 * chance, "chance", color="#555555", ha="right", va="bottom", fontsize=8,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    step = max(1, round(depth / 10))
    layers = [i for i in range(1, depth + 1) if (i - 1) % step == 0]
    axes.set_xticks([0, *layers, depth + 1], ["input", *map(str, layers), "mean\nof all"], fontsize=9)
    axes.set(xlabel="layer", ylabel="accuracy (%)", title="Sound classification by linear probes")
    axes.legend(loc="best", frameon=True, fontsize=9)
    return figure


def draw_robustness(
    names: Sequence[str], f1: np.ndarray, increase: np.ndarray, correlation: Correlation, low: float, high: float
) -> Figure:
    """Draw figure 2: increase of word errors with a class of noise against the F1 of that class.

    As in the paper, the vertical axis points downwards. The line is fitted to all classes, its band by bootstrap.

    Parameters
    ----------
    names : sequence of str
        The classes.
    f1, increase : ndarray of float, shape (classes,)
        F1, and increase of the word error rate from ``high`` to ``low`` dB, as fractions.
    correlation : Correlation
        Of the two.
    low, high : float
        Ratios in dB.
    """
    x, y = 100 * np.asarray(f1, float), 100 * np.asarray(increase, float)
    figure, axes = new_figure(6.4, 4.6)
    grid = np.linspace(x.min(), x.max(), 101)
    bounds = bootstrap_line(x, y, grid)
    axes.fill_between(grid, *bounds, color=COLOURS[0], alpha=0.15, linewidth=0, label="95 % band")
    slope, intercept = np.polyfit(x, y, 1)
    axes.plot(grid, intercept + slope * grid, color=COLOURS[0], linewidth=1.5, label="line through all")
    axes.plot(x, y, "o", color=COLOURS[1], ms=5, label=f"{len(x)} classes")
    residual = np.abs(y - intercept - slope * x)
    named = range(len(x)) if len(x) <= MAX_NAMES else np.argsort(-residual)[:MAX_NAMES]
    middle = (x.min() + x.max()) / 2
    for i in named:
        left = x[i] > middle
        offset = (-7 if left else 7, 0)
        axes.annotate(names[i].replace("_", " "), (x[i], y[i]), offset, textcoords="offset points", fontsize=8,
                      ha="right" if left else "left", va="center")  # fmt: skip
    axes.invert_yaxis()
    axes.margins(0.08)
    low_r, high_r = correlation.interval
    interval = f" (95 %: {low_r:.2f} to {high_r:.2f})" if correlation.n > 3 else ""
    axes.set(
        xlabel="F1 of the class in the last layer (%)",
        ylabel=_minus(f"increase of word error rate, {high:g} → {low:g} dB (points)"),
        title=_minus(
            f"Word errors and recognition of the noise\nr = {correlation.r:.2f}{interval}, all {correlation.n} classes"
        ),
    )
    axes.legend(loc="best", frameon=True, fontsize=9)
    return figure


def draw_best_layers(best: Sequence[int] | np.ndarray, layers: int) -> Figure:
    """Draw figure 3: the number of classes that each layer is the best for; layers count from 1."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(max(4.2, 0.22 * layers + 2), 3.4)
    counts = np.bincount(np.asarray(best), minlength=layers + 1)[1:]
    axes.bar(np.arange(1, layers + 1), counts, width=0.8, color=COLOURS[0])
    step = max(1, round(layers / 16))
    axes.set_xticks(range(1, layers + 1, step))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
    axes.set(xlim=(0.3, layers + 0.7), xlabel="best layer", ylabel="classes", title="Best layer of each class")
    return figure


def _style(i: int) -> tuple[str, dict[str, Any]]:
    """Return the line style and the colour and marker of the i-th curve."""
    colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
    return STYLES[i // len(COLOURS) % len(STYLES)], {"color": colour, "marker": marker, "ms": 5}


def _minus(text: str) -> str:
    """Replace hyphens by the minus sign that axes have."""
    return text.replace("-", "−")

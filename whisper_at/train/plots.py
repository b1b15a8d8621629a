"""Plots of how well a classifier does: precision and recall, reliability, confusion.

The colours can be told apart by the colour-blind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints.files import atomic_write
from .calibration import ReliabilityCurve, expected_calibration_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
"""Palette of Okabe and Ito, in an order in which neighbours differ most."""
STYLES = ("-", "--", ":", "-.")
GREY = "#999999"
_RC_PARAMS: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
}
MAX_CURVES = 16
"""Of more classes than this, mean and spread are drawn."""


def new_figure(
    width: float = 6.0, height: float = 4.2, rows: int = 1, ratios: Sequence[float] | None = None
) -> tuple[Figure, Any]:
    """Return a figure of `width` x `height` inches and its axes; an array of them if there are several `rows`."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_RC_PARAMS):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, 1, sharex=rows > 1, gridspec_kw={"height_ratios": ratios} if ratios else None)
    return figure, axes


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG and return its path."""
    from matplotlib import rc_context

    path = Path(path)
    with atomic_write(path) as temporary, rc_context(_RC_PARAMS):
        figure.savefig(temporary, dpi=144, format="png")
    return path


def draw_precision_recall(
    targets: np.ndarray, scores: np.ndarray, names: Sequence[str], average_precision: np.ndarray
) -> Figure:
    """Draw precision against recall: a curve for each class or, of more than 16, their mean and spread.

    Parameters
    ----------
    targets, scores : ndarray, shape (clips, classes)
        0 and 1; logits or probabilities.
    names : sequence of str
        Names of the classes.
    average_precision : ndarray, shape (classes,)
        For the legend; classes for which it is NaN are left out.
    """
    occurring = np.flatnonzero(np.isfinite(average_precision))
    figure, axes = new_figure(6.4, 4.4)
    if len(occurring) <= MAX_CURVES:
        for place, i in enumerate(occurring[np.argsort(-average_precision[occurring], kind="stable")]):
            axes.step(
                *_step_curve(targets[:, i] > 0.5, scores[:, i]),
                STYLES[place // len(COLOURS) % len(STYLES)],
                where="pre",
                color=COLOURS[place % len(COLOURS)],
                label=f"{average_precision[i]:.3f}  {_truncate(names[i])}",
                linewidth=1.6,
            )
        axes.legend(title="average precision", loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False)
    else:
        grid = np.linspace(0, 1, 201)
        curves = np.array([_interpolate(targets[:, i] > 0.5, scores[:, i], grid) for i in occurring])
        for low, high, alpha in ((10, 90, 0.15), (25, 75, 0.3)):
            bounds = np.percentile(curves, (low, high), axis=0)
            axes.fill_between(
                grid, *bounds, color=COLOURS[0], alpha=alpha, linewidth=0, label=f"{low}–{high} % of them"
            )
        axes.plot(grid, curves.mean(0), color=COLOURS[0], label=f"mean of {len(occurring)} classes")
        axes.legend(loc="lower left", fontsize=9, frameon=False)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", ylabel="precision", title="Precision and recall")
    return figure


def _step_curve(wanted: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision at each hit; the area under these steps is the average precision."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(wanted, scores)
    hit = np.append(recall[:-1] > recall[1:], False)
    return np.append(0, recall[hit][::-1]), np.append(precision[hit][-1], precision[hit][::-1])


def _interpolate(wanted: np.ndarray, scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the greatest precision that reaches each recall of `grid`."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(wanted, scores)  # recall falls
    best = np.maximum.accumulate(precision)[::-1]
    return best[np.searchsorted(recall[::-1], grid, side="left").clip(0, len(best) - 1)]


def draw_reliability(curves: Sequence[tuple[str, ReliabilityCurve]]) -> Figure:
    """Draw observed frequencies against predicted probabilities, and below the number of decisions in each bin."""
    figure, (axes, below) = new_figure(5.2, 5.2, 2, (3, 1))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    for place, (name, curve) in enumerate(curves):
        filled = curve.counts > 0
        error = expected_calibration_error(curve)
        label = f"{name}: mean gap {error:.3f}"
        colour, marker = COLOURS[place % len(COLOURS)], "os^D"[place % 4]
        axes.plot(curve.predicted[filled], curve.observed[filled], marker=marker, color=colour, ms=5, label=label)
        width = np.diff(curve.edges) / (len(curves) + 0.3)
        below.bar(curve.edges[:-1] + width * (place + 0.15), curve.counts, width, align="edge", color=colour)
    axes.set(ylim=(-0.02, 1.03), ylabel="share that was right", title="Reliability")
    axes.legend(loc="upper left", fontsize=9)
    below.set_yscale("log")
    below.set_ylim(bottom=0.7)
    below.set(xlim=(-0.02, 1.02), xlabel="probability that was claimed", ylabel="decisions")
    return figure


def draw_confusion(table: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the clips of each true class (row) by the class decided (column), shaded by share of the row."""
    n = len(names)
    side = min(14.0, 2.6 + 0.45 * n) if n <= 60 else 10.0
    figure, axes = new_figure(side + 0.6, side)
    total = table.sum(axis=1, keepdims=True)
    share = np.divide(table, total, out=np.zeros(table.shape), where=total > 0)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    if n <= 60:
        labels = [_truncate(name, 22) for name in names]
        axes.set_xticks(range(n), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(n), labels, fontsize=8)
    if n <= 25:
        for row, column in zip(*np.nonzero(table)):
            colour = "white" if share[row, column] > 0.55 else "black"
            axes.text(column, row, str(table[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set(xlabel="decided", ylabel="true", title="Confusion: clips, shaded by share of the true class")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    return figure


def _truncate(name: str, width: int = 28) -> str:
    return name if len(name) <= width else name[: width - 1] + "…"

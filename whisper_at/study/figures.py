"""The figures of the paper, drawn from the files of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..train.plots import COLOURS, GREY, STYLES, new_figure
from .probes import AVERAGE, INPUT, layers_only
from .robustness import Correlation, line_band
from .wer import Errors

MARKERS = "os^Dv<>P"
NAMED = 15
"""Of more classes than this, only those that stand out get their names in the plot."""


def draw_errors(curves: Mapping[str, Mapping[float, Errors]]) -> Figure:
    """Figure 1, upper: word error rate against the ratio of speech to noise, which falls to the right.

    ``curves`` is of `whisper_at.study.wer.by_snr`, by recogniser; an infinite ratio is speech alone.
    """
    figure, axes = new_figure(6.2, 4.2)
    ratios = sorted({snr for curve in curves.values() for snr in curve if np.isfinite(snr)}, reverse=True)
    if not ratios:
        raise ValueError("there are no noisy transcriptions to draw")
    apart = ratios[0] + max(5.0, (ratios[0] - ratios[-1]) / 8)  # where speech alone is drawn
    alone = any(np.inf in curve for curve in curves.values())
    for place, (name, curve) in enumerate(curves.items()):
        points = sorted(((snr, 100 * e.rate) for snr, e in curve.items() if np.isfinite(snr)), reverse=True)
        style = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "ms": 5,
            "clip_on": False,
        }
        axes.plot(*zip(*points), STYLES[place // len(COLOURS) % len(STYLES)], label=name, **style)
        if np.inf in curve:
            axes.plot([apart], [100 * curve[np.inf].rate], **(style | {"mfc": "none"}))
    ticks = ([apart] if alone else []) + ratios
    axes.set_xticks(ticks, (["none"] if alone else []) + [_minus(f"{snr:g}") for snr in ratios])
    axes.set_xlim(ticks[0] + 2, ratios[-1] - 2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="speech over noise (dB)", ylabel="word error rate (%)", title="Speech recognition in noise")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def draw_layers(accuracy: Mapping[str, Mapping[str, float]], chance: float | None = None) -> Figure:
    """Figure 1, lower: accuracy of the probes of layers 1 to L, by backbone (see `probes.fold_means`).

    The input and the average over all rows are drawn as open marks at the sides.
    """
    figure, axes = new_figure(6.2, 4.2)
    depth = max(len(layers_only(rows)) for rows in accuracy.values())
    for place, (name, rows) in enumerate(accuracy.items()):
        values = 100 * np.array(layers_only(rows))
        style = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)], "ms": 5}
        line = STYLES[place // len(COLOURS) % len(STYLES)]
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
    axes.set(xlabel="layer", ylabel="accuracy (%)", title="What a linear probe of each layer knows of sounds")
    axes.legend(loc="best", frameon=True, fontsize=9)
    return figure


def draw_robustness(
    names: Sequence[str], f1: np.ndarray, rise: np.ndarray, found: Correlation, low: float, high: float
) -> Figure:
    """Figure 2: how much errors rise in each class of noise (fraction) against how well it is recognised (F1).

    Errors rise downwards, as in the paper; the line is through all classes, its band of classes drawn anew.
    """
    x, y = 100 * np.asarray(f1, float), 100 * np.asarray(rise, float)
    figure, axes = new_figure(6.4, 4.6)
    grid = np.linspace(x.min(), x.max(), 101)
    bounds = line_band(x, y, grid)
    axes.fill_between(grid, *bounds, color=COLOURS[0], alpha=0.15, linewidth=0, label="95 % band")
    slope, intercept = np.polyfit(x, y, 1)
    axes.plot(grid, intercept + slope * grid, color=COLOURS[0], linewidth=1.5, label="line through all")
    axes.plot(x, y, "o", color=COLOURS[1], ms=5, label=f"{len(x)} classes")
    residual = np.abs(y - intercept - slope * x)
    named = range(len(x)) if len(x) <= NAMED else np.argsort(-residual)[:NAMED]
    middle = (x.min() + x.max()) / 2
    for i in named:
        left = x[i] > middle
        offset = (-7 if left else 7, 0)
        axes.annotate(names[i].replace("_", " "), (x[i], y[i]), offset, textcoords="offset points", fontsize=8,
                      ha="right" if left else "left", va="center")  # fmt: skip
    axes.invert_yaxis()
    axes.margins(0.08)
    bracket = f" (95 %: {found.interval[0]:.2f} to {found.interval[1]:.2f})" if found.n > 3 else ""
    axes.set(
        xlabel="F1 of the class in the last layer (%)",
        ylabel=_minus(f"rise of word errors, {high:g} → {low:g} dB (points)"),
        title=_minus(f"Recognised and withstood\nr = {found.r:.2f}{bracket}, all {found.n} classes"),
    )
    axes.legend(loc="best", frameon=True, fontsize=9)
    return figure


def draw_best_layers(best: Sequence[int] | np.ndarray, layers: int) -> Figure:
    """Figure 3: how many classes each layer is the best for; the axis counts from 1, as ``best`` does."""
    figure, axes = new_figure(max(4.2, 0.22 * layers + 2), 3.4)
    counts = np.bincount(np.asarray(best), minlength=layers + 1)[1:]
    axes.bar(np.arange(1, layers + 1), counts, width=0.8, color=COLOURS[0])
    step = max(1, round(layers / 16))
    axes.set_xticks(range(1, layers + 1, step))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(False, axis="x")
    axes.set(xlim=(0.3, layers + 0.7), xlabel="best layer", ylabel="classes", title="Where each class is best known")
    return figure


def _minus(text: str) -> str:
    """With the sign that axes have, not a hyphen."""
    return text.replace("-", "−")

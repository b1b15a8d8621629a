"""Plots of the benchmarks; each function writes one file. matplotlib is imported when they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OUR_COLOR, OTHER_COLOR = "tab:orange", "tab:gray"


def _subplots(width: float, height: float, columns: int = 1) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(1, columns, figsize=(width, height), squeeze=False)
    for axes in grid[0]:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, list(grid[0])


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def bars(tables: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path) -> None:
    """Plot tables of `compare.summarize`, one below the other: medians as bars, with minimum and maximum.

    Each has its own scale of seconds, since modes take very different times.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(table) + 1 for table in tables.values()]
    figure, grid = pyplot.subplots(
        len(tables), 1, figsize=(8, 0.34 * sum(heights) + 0.6), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (name, table) in zip(grid[:, 0], tables.items()):
        longest = max(max(row["seconds"]) for row in table)
        for y, row in enumerate(table):
            low, high = row["median"] - min(row["seconds"]), max(row["seconds"]) - row["median"]
            color = OUR_COLOR if row["label"].startswith("whisper_at") else OTHER_COLOR
            axes.barh(y, row["median"], xerr=[[low], [high]], color=color, capsize=2)
            unequal = "" if row["equal"] else " !"
            text = f"{row['label']}: {row['times']:.2f}×{unequal}"
            axes.text(max(row["seconds"]) + 0.01 * longest, y, text, va="center", fontsize=8)
        axes.set(yticks=[], xlim=(0, 1.5 * longest), ylim=(len(table) - 0.5, -0.5))
        axes.set_title(name, fontsize=9, weight="bold", loc="left", pad=3)
        axes.tick_params(labelsize=7)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    grid[-1, 0].set_xlabel("seconds (median, minimum and maximum)", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    _save(figure, path)


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str, title: str, path: Path) -> None:
    """Plot one bar per row, stacked from its parts in their order."""
    figure, (axes,) = _subplots(9, 0.55 * len(rows) + 1.4)
    longest = max(sum(parts.values()) for parts in rows.values())
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    for y, parts in enumerate(rows.values()):
        start, total = 0.0, sum(parts.values())
        for i, name in enumerate(names):
            value = parts.get(name, 0.0)
            axes.barh(y, value, left=start, color=f"C{i}", label=name if y == 0 else None)
            if value > 0.05 * longest:
                share = f"{100 * value / total:.0f} %"
                axes.text(start + value / 2, y, share, ha="center", va="center", fontsize=7, color="white")
            start += value
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=unit)
    axes.set_title(title, fontsize=9, pad=30)
    axes.invert_yaxis()
    axes.legend(ncols=len(names), fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def intervals(rows: Mapping[str, Mapping[str, Sequence[float]]], unit: str, title: str, path: Path) -> None:
    """Plot a point and its interval for each measure (value, low, high) of each row."""
    figure, (axes,) = _subplots(8, 0.5 * len(rows) + 1.4)
    measures = list(next(iter(rows.values())))
    for i, measure in enumerate(measures):
        for y, row in enumerate(rows.values()):
            value, low, high = row[measure]
            offset = 0.25 * (i - (len(measures) - 1) / 2)
            label = measure if y == 0 else None
            error = [[value - low], [high - value]]
            axes.errorbar(value, y + offset, xerr=error, fmt="o", ms=4, capsize=3, color=f"C{i}", label=label)
    axes.axvline(0, color="black", lw=0.6)
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=unit)
    axes.set_title(title, fontsize=9)
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def lines(panels: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plot panels side by side.

    A panel has ``xlabel``, ``ylabel`` and ``lines``: by label, points (x, median, minimum, maximum).
    """
    figure, grid = _subplots(4.4 * len(panels), 3.4, len(panels))
    for axes, panel in zip(grid, panels):
        for i, (label, points) in enumerate(panel["lines"].items()):
            x, y, low, high = zip(*points)
            error = [[b - a for a, b in zip(low, y)], [b - a for a, b in zip(y, high)]]
            color = OTHER_COLOR if not label.startswith("whisper_at") else f"C{i + 1}"
            axes.errorbar(x, y, yerr=error, fmt="o-", ms=4, lw=1.2, capsize=3, label=label, color=color)
        ticks = sorted({point[0] for points in panel["lines"].values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel(panel["xlabel"], fontsize=8)
        axes.set_ylabel(panel["ylabel"], fontsize=8)
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(title, fontsize=9, y=1.02)
    figure.tight_layout()
    _save(figure, path)

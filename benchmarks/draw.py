"""The pictures of the benchmarks; each function writes one file. matplotlib is needed when they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS, THEIRS = "tab:orange", "tab:gray"


def _axes(width: float, height: float, panels: int = 1) -> tuple[Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(width, height), squeeze=False)
    for one in axes[0]:
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    return figure, list(axes[0])


def _write(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def bars(tables: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path) -> None:
    """A panel for each table of `race.rows`: a bar for the median of each entry, a line from its least to its most.

    Every panel has seconds of its own, since modes take very different times.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(table) + 1 for table in tables.values()]
    figure, panels = pyplot.subplots(
        len(tables), 1, figsize=(8, 0.34 * sum(heights) + 0.6), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, (name, table) in zip(panels[:, 0], tables.items()):
        longest = max(max(row["seconds"]) for row in table)
        for place, row in enumerate(table):
            low, high = row["median"] - min(row["seconds"]), max(row["seconds"]) - row["median"]
            colour = OURS if row["label"].startswith("whisper_at") else THEIRS
            axes.barh(place, row["median"], xerr=[[low], [high]], color=colour, capsize=2)
            unequal = "" if row["equal"] else " !"
            text = f"{row['label']}: {row['times']:.2f}×{unequal}"
            axes.text(max(row["seconds"]) + 0.01 * longest, place, text, va="center", fontsize=8)
        axes.set(yticks=[], xlim=(0, 1.5 * longest), ylim=(len(table) - 0.5, -0.5))
        axes.set_title(name, fontsize=9, weight="bold", loc="left", pad=3)
        axes.tick_params(labelsize=7)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[-1, 0].set_xlabel("seconds (median, least and most)", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    _write(figure, path)


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str, title: str, path: Path) -> None:
    """A bar for each row, made of its parts in the order in which they come."""
    figure, (axes,) = _axes(9, 0.55 * len(rows) + 1.4)
    whole = max(sum(parts.values()) for parts in rows.values())
    names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
    for place, parts in enumerate(rows.values()):
        start, total = 0.0, sum(parts.values())
        for i, name in enumerate(names):
            value = parts.get(name, 0.0)
            axes.barh(place, value, left=start, color=f"C{i}", label=name if place == 0 else None)
            if value > 0.05 * whole:
                share = f"{100 * value / total:.0f} %"
                axes.text(start + value / 2, place, share, ha="center", va="center", fontsize=7, color="white")
            start += value
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=unit)
    axes.set_title(title, fontsize=9, pad=30)
    axes.invert_yaxis()
    axes.legend(ncols=len(names), fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _write(figure, path)


def intervals(rows: Mapping[str, Mapping[str, Sequence[float]]], unit: str, title: str, path: Path) -> None:
    """For each row several measures, each (value, low, high): a point and its interval."""
    figure, (axes,) = _axes(8, 0.5 * len(rows) + 1.4)
    measures = list(next(iter(rows.values())))
    for i, measure in enumerate(measures):
        for place, row in enumerate(rows.values()):
            value, low, high = row[measure]
            at = place + 0.25 * (i - (len(measures) - 1) / 2)
            label = measure if place == 0 else None
            error = [[value - low], [high - value]]
            axes.errorbar(value, at, xerr=error, fmt="o", ms=4, capsize=3, color=f"C{i}", label=label)
    axes.axvline(0, color="black", lw=0.6)
    axes.set(yticks=range(len(rows)), yticklabels=list(rows), xlabel=unit)
    axes.set_title(title, fontsize=9)
    axes.invert_yaxis()
    axes.legend(fontsize=8, frameon=False)
    _write(figure, path)


def lines(panels: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Panels side by side: ``xlabel``, ``ylabel``, and ``lines`` by label, each of points (x, median, least, most)."""
    figure, drawn = _axes(4.4 * len(panels), 3.4, len(panels))
    for axes, panel in zip(drawn, panels):
        for i, (label, points) in enumerate(panel["lines"].items()):
            x, y, low, high = zip(*points)
            error = [[b - a for a, b in zip(low, y)], [b - a for a, b in zip(y, high)]]
            colour = THEIRS if not label.startswith("whisper_at") else f"C{i + 1}"
            axes.errorbar(x, y, yerr=error, fmt="o-", ms=4, lw=1.2, capsize=3, label=label, color=colour)
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
    _write(figure, path)

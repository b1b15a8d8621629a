"""What linear evaluation found, as a table and as curves over the layers."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..files import temporary_beside
from ..train.metrics import mean_interval
from .lineareval import Row


class Score(NamedTuple):
    """Mean over seeds of the mean over divisions, in percent, and half the width of its 95 % confidence interval."""

    mean: float
    half: float
    valid: float


def summarize(rows: Iterable[Row]) -> dict[str, Score]:
    """Score of each probe, in the order in which they come: one value a seed, averaged over its divisions."""
    by_probe: dict[str, dict[int, list[Row]]] = {}
    for row in rows:
        by_probe.setdefault(row.probe, {}).setdefault(row.seed, []).append(row)
    out = {}
    for probe, by_seed in by_probe.items():
        test = [100 * np.mean([row.test for row in of]) for of in by_seed.values()]
        valid = [100 * np.mean([row.valid for row in of]) for of in by_seed.values()]
        out[probe] = Score(*mean_interval(np.array(test)), float(np.mean(valid)))
    return out


def write_scores(cells: Mapping[tuple[str, str], Sequence[Row]], path: str | os.PathLike[str]) -> None:
    """Every classifier's scores as CSV; ``cells`` are rows by task and network."""
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["task", "network", *Row._fields])
            for (task, network), rows in cells.items():
                for row in rows:
                    shown = row._asdict() | {"layers": "+".join(map(str, row.layers))}
                    table.writerow([task, network, *shown.values()])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def as_markdown(cells: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """A table of test scores, one line for each task and network: layers, then fusions, mean ± half interval."""
    summaries = {cell: summarize(rows) for cell, rows in cells.items()}
    probes = sorted({probe for found in summaries.values() for probe in found}, key=_order)
    lines = [f"| task | network | {' | '.join(probes)} |", f"|---|---|{'---|' * len(probes)}"]
    for (task, network), found in summaries.items():
        shown = [f"{found[p].mean:.1f} ± {found[p].half:.1f}" if p in found else "" for p in probes]
        lines.append(f"| {task} | {network} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def _order(probe: str) -> tuple[int, tuple[int, ...], str]:
    kind, _, rest = probe.partition(" ")
    numbers = tuple(int(part) for part in rest.split("+") if part.isdecimal())
    return (0 if kind == "layer" else 1, numbers or (999,), probe)


def draw_curves(cells: Mapping[str, Sequence[Row]], title: str, path: str | os.PathLike[str]) -> None:
    """Draw test scores over layers, a colour for each network: its layers joined, its fusions as lines across.

    ``cells`` are rows by network. Bars show 95 % confidence intervals over seeds.

    Raises
    ------
    RuntimeError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise RuntimeError("curves need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = ("--", ":", "-.")
    ticks: set[int] = set()
    for number, (network, rows) in enumerate(cells.items()):
        colour = f"C{number}"
        found = summarize(rows)
        layers = {row.probe: row.layers[0] for row in rows if row.probe.startswith("layer ")}
        ticks |= set(layers.values())
        points = [(layer, found[probe]) for probe, layer in layers.items()]
        axes.errorbar(
            [layer for layer, _ in points],
            [s.mean for _, s in points],
            yerr=[0.0 if np.isnan(s.half) else s.half for _, s in points],
            color=colour,
            marker="o",
            capsize=3,
            label=network,
        )
        fusions = [probe for probe in found if probe not in layers]
        for probe, style in zip(sorted(fusions, key=_order), styles):
            label = f"{network}, {probe}: {found[probe].mean:.1f} %"
            axes.axhline(found[probe].mean, color=colour, linestyle=style, linewidth=1.2, label=label)
    axes.set(title=title, xlabel="layer, counted from 0", ylabel="test score, %", xticks=sorted(ticks))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", framealpha=0.8)
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        figure.savefig(temporary, dpi=140, format="png")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

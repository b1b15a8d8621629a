"""What linear evaluation found, as a table and as curves over the layers."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checkpoints.files import atomic_write
from ..train.metrics import mean_interval
from ..train.plots import save_figure
from .linear_eval import Row, best_pair


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
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["task", "network", *Row._fields])
        for (task, network), rows in cells.items():
            for row in rows:
                shown = row._asdict() | {"layers": "+".join(map(str, row.layers))}
                table.writerow([task, network, *shown.values()])


def as_markdown(cells: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """A table of test scores, one line for each task and network: layers, then fusions, mean ± half interval.

    Behind it, for each network, the pair of layers that does best on validation over all tasks.
    """
    summaries = {cell: summarize(rows) for cell, rows in cells.items()}
    probes = sorted({probe for found in summaries.values() for probe in found if _is_shown(probe)}, key=_order)
    lines = [f"| task | network | {' | '.join(probes)} |", f"|---|---|{'---|' * len(probes)}"]
    for (task, network), found in summaries.items():
        shown = [_shown(found[probe]) if probe in found else "" for probe in probes]
        lines.append(f"| {task} | {network} | {' | '.join(shown)} |")
    lines.append("")
    for network in dict.fromkeys(network for _, network in cells):
        if best := best_pair([rows for (_, name), rows in cells.items() if name == network]):
            layers, valid = ",".join(map(str, best[0])), 100 * best[1]
            lines.append(f"Best pair of {network} on validation, over all tasks: --layers {layers} ({valid:.1f} %)")
    return "\n".join(lines).rstrip() + "\n"


def _is_shown(probe: str) -> bool:
    """Not the pairs that were tried: there are too many to look at."""
    return not probe.startswith("pair ")


def _shown(found: Score) -> str:
    """One seed alone has no interval."""
    return f"{found.mean:.1f}" if np.isnan(found.half) else f"{found.mean:.1f} ± {found.half:.1f}"


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
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ticks: set[int] = set()
    shown: list[float] = []
    for number, (network, rows) in enumerate(cells.items()):
        found = summarize(rows)
        layers = {row.probe: row.layers[0] for row in rows if row.probe.startswith("layer ")}
        ticks |= set(layers.values())
        # beside each other, so that no bar hides another
        places = [layer + 0.06 * (number - (len(cells) - 1) / 2) for layer in layers.values()]
        means, halves = zip(*((found[probe].mean, np.nan_to_num(found[probe].half)) for probe in layers))
        style: dict[str, Any] = {"color": f"C{number}", "label": network}
        axes.errorbar(places, means, yerr=halves, marker="o", markersize=4, capsize=3, linewidth=1.4, **style)
        shown += [value for mean, half in zip(means, halves) for value in (mean - half, mean + half)]
        fusions = sorted((probe for probe in found if _is_shown(probe) and probe not in layers), key=_order)
        for probe, dash in zip(fusions, ("--", ":", "-.")):
            label = f"{network}, {probe}: {_shown(found[probe])}"
            axes.axhline(found[probe].mean, color=f"C{number}", linestyle=dash, linewidth=1.2, label=label)
            shown.append(found[probe].mean)
    low, high = max(0.0, min(shown)), min(100.0, max(shown))
    room = 0.05 * max(1.0, high - low)
    axes.set(title=title, xlabel="layer, counted from 0", ylabel="test score, %", xticks=sorted(ticks))
    axes.set_ylim(low - room, high + room)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    networks = list(cells)
    order = sorted(range(len(labels)), key=lambda k: (networks.index(labels[k].split(", ")[0]), ", " in labels[k], k))
    figure.legend([handles[k] for k in order], [labels[k] for k in order], loc="outside right center", fontsize="small")
    save_figure(figure, path)

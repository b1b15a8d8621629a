"""Results of linear evaluation as CSV, as a Markdown table, and as curves over the layers."""

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
from .linear_eval import ProbeResult, best_pair


class MeanScore(NamedTuple):
    """Test score in percent: mean over seeds of the mean over splits, half the width of its 95 % confidence interval.

    ``valid`` is the mean validation score.
    """

    mean: float
    half_width: float
    valid: float

    def __str__(self) -> str:
        """Format mean and interval; a single seed has no interval."""
        return f"{self.mean:.1f}" if np.isnan(self.half_width) else f"{self.mean:.1f} ± {self.half_width:.1f}"


def summarize(results: Iterable[ProbeResult]) -> dict[str, MeanScore]:
    """Return the mean score of each probe: one value per seed, the mean over its splits."""
    by_probe: dict[str, dict[int, list[ProbeResult]]] = {}
    for result in results:
        by_probe.setdefault(result.probe, {}).setdefault(result.seed, []).append(result)
    scores = {}
    for probe, by_seed in by_probe.items():
        test = [100 * np.mean([result.test for result in of_seed]) for of_seed in by_seed.values()]
        valid = [100 * np.mean([result.valid for result in of_seed]) for of_seed in by_seed.values()]
        scores[probe] = MeanScore(*mean_interval(np.array(test)), float(np.mean(valid)))
    return scores


def write_scores(results: Mapping[tuple[str, str], Sequence[ProbeResult]], path: str | os.PathLike[str]) -> None:
    """Write the results of each (task, network) as CSV, one line per probe, seed and split."""
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["task", "network", *ProbeResult._fields])
        for (task, network), of_cell in results.items():
            for result in of_cell:
                values = result._asdict() | {"layers": "+".join(map(str, result.layers))}
                table.writerow([task, network, *values.values()])


def to_markdown(results: Mapping[tuple[str, str], Sequence[ProbeResult]]) -> str:
    """Format test scores as a table, a line per (task, network): layers, then fusions, mean ± half interval.

    Below it, for each network, the pair of layers with the best validation score over all tasks, and for each cell the
    probes that were not finished, whose scores are lower bounds.
    """
    summaries = {cell: summarize(of_cell) for cell, of_cell in results.items()}
    probes = sorted({probe for scores in summaries.values() for probe in scores if _is_shown(probe)}, key=_sort_key)
    lines = [f"| task | network | {' | '.join(probes)} |", f"|---|---|{'---|' * len(probes)}"]
    for (task, network), scores in summaries.items():
        cells = [str(scores[probe]) if probe in scores else "" for probe in probes]
        lines.append(f"| {task} | {network} | {' | '.join(cells)} |")
    lines.append("")
    for network in dict.fromkeys(network for _, network in results):
        if best := best_pair([of_cell for (_, name), of_cell in results.items() if name == network]):
            layers, valid = ",".join(map(str, best[0])), 100 * best[1]
            lines.append(f"Best pair of {network} on validation, over all tasks: --layers {layers} ({valid:.1f} %)")
    for (task, network), of_cell in results.items():
        if unfinished := sum(not result.finished for result in of_cell):
            lines.append(
                f"{unfinished} of {len(of_cell)} probes of {network} on {task} were still improving at the last epoch: "
                "its figures are a lower bound"
            )
    return "\n".join(lines).rstrip() + "\n"


def _is_shown(probe: str) -> bool:
    """Leave out single pairs, of which there are too many."""
    return not probe.startswith("pair ")


def _sort_key(probe: str) -> tuple[int, tuple[int, ...], str]:
    kind, _, rest = probe.partition(" ")
    layers = tuple(int(part) for part in rest.split("+") if part.isdecimal())
    return (0 if kind == "layer" else 1, layers or (999,), probe)


def plot_layers(results: Mapping[str, Sequence[ProbeResult]], title: str, path: str | os.PathLike[str]) -> None:
    """Plot test scores over layers, with 95 % confidence intervals over seeds, and fusions as horizontal lines.

    Parameters
    ----------
    results : mapping of str to sequence of ProbeResult
        Results of one task by network; each network has a colour.
    title : str
        Title of the figure.
    path : str or path
        PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    ticks: set[int] = set()
    values: list[float] = []
    for number, (network, of_network) in enumerate(results.items()):
        scores = summarize(of_network)
        layers = {result.probe: result.layers[0] for result in of_network if result.probe.startswith("layer ")}
        ticks |= set(layers.values())
        # side by side, so that error bars do not hide each other
        x = [layer + 0.06 * (number - (len(results) - 1) / 2) for layer in layers.values()]
        means, half_widths = zip(*((scores[probe].mean, np.nan_to_num(scores[probe].half_width)) for probe in layers))
        style: dict[str, Any] = {"color": f"C{number}", "label": network}
        axes.errorbar(x, means, yerr=half_widths, marker="o", markersize=4, capsize=3, linewidth=1.4, **style)
        values += [value for mean, half in zip(means, half_widths) for value in (mean - half, mean + half)]
        fusions = sorted((probe for probe in scores if _is_shown(probe) and probe not in layers), key=_sort_key)
        for probe, dash in zip(fusions, ("--", ":", "-.")):
            label = f"{network}, {probe}: {scores[probe]}"
            axes.axhline(scores[probe].mean, color=f"C{number}", linestyle=dash, linewidth=1.2, label=label)
            values.append(scores[probe].mean)
    low, high = max(0.0, min(values)), min(100.0, max(values))
    margin = 0.05 * max(1.0, high - low)
    axes.set(title=title, xlabel="layer, counted from 0", ylabel="test score, %", xticks=sorted(ticks))
    axes.set_ylim(low - margin, high + margin)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    networks = list(results)
    order = sorted(range(len(labels)), key=lambda k: (networks.index(labels[k].split(", ")[0]), ", " in labels[k], k))
    figure.legend([handles[k] for k in order], [labels[k] for k in order], loc="outside right center", fontsize="small")
    save_figure(figure, path)

"""Compare methods on datasets: a table with scores, their spread, parameters, time and memory, and a plot.

A comparison is a TOML file with ``out``, ``seeds``, a table ``base`` of the fields of `Config`, and several
``[[dataset]]`` and ``[[method]]``, each with a ``label`` and the fields in which it differs; a dataset names the
``score`` to report. Every cell of the table is an experiment of `whisper_at.adapt.experiment`, which is run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..checkpoints.files import write_text
from ..data.toml import read_toml
from ..train.plots import COLOURS, new_figure, save_figure
from .config import Config, apply_changes, build_classifier, make_config
from .experiment import PERCENT_SCORES, folder_name, load_data, run_experiment, summarize, write_csv


class Cell(NamedTuple):
    """One method on one dataset, by their labels; ``score`` is the one to report."""

    dataset: str
    method: str
    score: str
    config: Config


class Comparison(NamedTuple):
    """Cells in the order in which they run, dataset after dataset, and the folder of their table."""

    out: Path
    cells: list[Cell]


def read_comparison(path: str, changes: Iterable[str] = ()) -> Comparison:
    """Read a comparison from a TOML file.

    Changes ``key=value`` are to ``out``, ``seeds`` or, else, to every cell.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_config`, and for two cells of the same name or an unknown score.
    """
    table = read_toml(path)
    for name in ("dataset", "method"):
        if not isinstance(table.get(name), list) or not table[name]:
            raise ValueError(f"{path} compares nothing: it needs at least one [[{name}]]")
    if strange := sorted(table.keys() - {"out", "seeds", "base", "dataset", "method"}):
        raise ValueError(f"{path}: there is no key {strange[0]!r}; settings of all cells stand in [base]")
    changes = list(changes)
    of_out = [change for change in changes if change.startswith("out=")]
    of_cells = [change for change in changes if change not in of_out]
    out = Path(str(apply_changes({"out": table.get("out", "comparison")}, of_out)["out"]))
    cells = []
    for data in table["dataset"]:
        for method in table["method"]:
            merged: dict[str, Any] = {"seeds": table.get("seeds", [0])}
            for part in (table.get("base", {}), data, method):
                part = {k: v for k, v in part.items() if k not in ("label", "score")}
                merged |= part | {"recipe": {**merged.get("recipe", {}), **part.get("recipe", {})}}
            merged = apply_changes(merged, of_cells)
            labels = [str(data.get("label", data.get("dataset"))), str(method.get("label", method.get("method")))]
            merged["out"] = str(Path(out, "cells", *map(folder_name, labels)))
            score = data.get("score", "accuracy")
            if score not in PERCENT_SCORES:
                raise ValueError(f"{path}: score {score!r} of {labels[0]} is none of {', '.join(PERCENT_SCORES)}")
            cells.append(Cell(labels[0], labels[1], score, make_config(merged)))
    if len({cell.config.out for cell in cells}) < len(cells):
        raise ValueError(f"{path}: two cells have the same labels")
    return Comparison(out, cells)


def run_comparison(comparison: Comparison, progress: bool = False) -> list[dict[str, Any]]:
    """Run every cell that has not been run, and write ``table.csv``, ``table.md`` and ``table.png`` after each.

    All data and all methods are checked before the first one runs.
    """
    out, cells = comparison
    classes = {cell.dataset: load_data(cell.config)[0].classes for cell in cells}
    for cell in cells:
        build_classifier(cell.config, classes[cell.dataset], without_weights=True)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        if progress:
            print(f"{cell.dataset}: {cell.method} ({len(rows) + 1} of {len(cells)})", flush=True)
        rows.append(table_row(cell, run_experiment(cell.config, progress)))
        write_csv(out / "table.csv", rows)
        write_text(out / "table.md", "\n".join(markdown_table(rows)) + "\n")
        save_figure(plot_tradeoff(rows), out / "table.png")
    return rows


def table_row(cell: Cell, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row of the table: mean and spread over splits and seeds, parameters, time and memory."""
    score = summarize(runs)[cell.score]
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "score": cell.score,
        "mean": round(100 * score["mean"], 2),
        "std": round(100 * score["std"], 2),
        "runs": len(runs),
        "patch": runs[0]["patch"],
        "trainable": runs[0]["trainable"],
        "frozen": runs[0]["frozen"],
        "seconds_per_run": round(float(np.mean([run["seconds"] for run in runs])), 1),
        "memory_mb": max(run["memory_mb"] for run in runs),
    }


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: a line per method, a column per dataset, scores in per cent, best in bold.

    Memory is that of training, the most over the datasets; see `whisper_at.adapt.experiment.training_megabytes`.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    cells = {(row["method"], row["dataset"]): row for row in rows}
    best = {name: max(row["mean"] for row in rows if row["dataset"] == name) for name in datasets}
    score_names = {row["dataset"]: row["score"] for row in rows}
    columns = [*(f"{name}, {score_names[name]} %" for name in datasets), "s a run", "MB"]
    lines = [
        "| " + " | ".join(["method", "patch", "trainable", *columns]) + " |",
        "|---|--:|--:|" + "--:|" * len(columns),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        of_method = [cells[method, name] for name in datasets if (method, name) in cells]
        scores = []
        for name in datasets:
            row = cells.get((method, name))
            text = "" if row is None else f"{row['mean']:.1f} ± {row['std']:.1f}"
            scores.append(f"**{text}**" if row is not None and row["mean"] == best[name] else text)
        seconds = np.mean([row["seconds_per_run"] for row in of_method])
        memory = max(row["memory_mb"] for row in of_method)
        sizes = [row["trainable"] for row in of_method]
        trainable = "–".join(f"{n:,}" for n in sorted({min(sizes), max(sizes)}))
        values = [method, f"{of_method[0]['patch']:,}", trainable, *scores, f"{seconds:.1f}", f"{memory:.0f}"]
        lines.append("| " + " | ".join(values) + " |")
    return lines


def plot_tradeoff(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot score against trained parameters, a panel for each dataset; bars are one standard deviation.

    Points are numbered in the order of the methods, which are listed beside the panels.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = new_figure(10.0, 3.4 * len(datasets), rows=len(datasets))
    for panel, name in zip(np.atleast_1d(axes), datasets):
        of_dataset = [row for row in rows if row["dataset"] == name]
        for i, row in enumerate(sorted(of_dataset, key=lambda row: (row["trainable"], row["mean"]))):
            point, number = (row["trainable"], row["mean"]), methods.index(row["method"])
            colour = COLOURS[number % len(COLOURS)]
            panel.errorbar(*point, row["std"], fmt="o", color=colour, markersize=4, elinewidth=0.5)
            # alternate sides, so that numbers of neighbours overlap less
            offset, side = ((5, 2), "left") if i % 2 else ((-5, 2), "right")
            options: dict[str, Any] = {"ha": side, "fontsize": 8, "color": colour, "textcoords": "offset points"}
            panel.annotate(str(number + 1), point, offset, **options)
        panel.set_xscale("log")
        panel.set_ylabel(f"{of_dataset[0]['score']}, %")
        panel.set_title(name)
    np.atleast_1d(axes)[-1].set_xlabel("parameters that are trained, with the head")
    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4}
    handles = [
        Line2D([], [], color=COLOURS[i % len(COLOURS)], label=f"{i + 1}  {method}", **style)
        for i, method in enumerate(methods)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure

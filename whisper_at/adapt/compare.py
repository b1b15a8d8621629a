"""Compare methods on datasets: a table with scores, their intervals, parameters, epochs, time and memory, and a plot.

A comparison is a TOML file with ``out``, ``seeds``, a table ``base`` of the fields of `Config`, and several
``[[dataset]]`` and ``[[method]]``, each with a ``label`` and the fields in which it differs; a dataset names the
``score`` to report. The first method is the one that the others are compared with. Every cell of the table is an
experiment of `whisper_at.adapt.experiment`, which is run once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..checkpoints.files import write_text
from ..data.toml import read_toml
from ..train.plots import COLOURS, new_figure, save_figure
from .config import Config, apply_changes, build_classifier, make_config
from .experiment import PERCENT_SCORES, folder_name, load_data, run_experiment, summarize, write_csv
from .intervals import score_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    first_runs: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        if progress:
            print(f"{cell.dataset}: {cell.method} ({len(rows) + 1} of {len(cells)})", flush=True)
        runs = run_experiment(cell.config, progress)
        rows.append(table_row(cell, runs, first_runs.setdefault(cell.dataset, runs)))
        write_csv(out / "table.csv", rows)
        write_text(out / "table.md", "\n".join(markdown_table(rows)) + "\n")
        save_figure(plot_tradeoff(rows), out / "table.png")
    return rows


def table_row(cell: Cell, runs: Sequence[Mapping[str, Any]], first_runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one row of the table, in per cent.

    ``mean`` and ``std`` are over splits and seeds; ``low`` and ``high`` the 95 % interval of the score of all tests
    over ``groups`` (speakers, sources or clips); ``gain`` and ``gain_low`` to ``gain_high`` the same of the difference
    to the first method. ``stopped`` is the number of ``runs`` that validation ended, ``epochs_min`` and ``epochs_max``
    how long the shortest and the longest one were.
    """
    score = summarize(runs)[cell.score]
    row = {
        "dataset": cell.dataset,
        "method": cell.method,
        "score": cell.score,
        "mean": round(100 * score["mean"], 2),
        "std": round(100 * score["std"], 2),
    }
    for prefix, baseline in (("", None), ("gain", first_runs if runs is not first_runs else None)):
        interval = score_interval(runs, cell.score, baseline)
        if interval is None or (prefix and baseline is None):
            continue
        value, half, row["groups"] = 100 * interval.score, 100 * interval.half_width, interval.groups
        row |= {prefix: round(value, 2)} if prefix else {}
        names = ("gain_low", "gain_high") if prefix else ("low", "high")
        row |= {name: round(value + sign * half, 2) for name, sign in zip(names, (-1, 1))}
    epochs = [run["epochs"] for run in runs]
    return row | {
        "runs": len(runs),
        "stopped": sum(run["stopped"] for run in runs),
        "epochs_min": min(epochs),
        "epochs_max": max(epochs),
        "epoch_limit": cell.config.recipe.epochs,
        "patience": cell.config.recipe.patience,
        "patch": runs[0]["patch"],
        "trainable": runs[0]["trainable"],
        "frozen": runs[0]["frozen"],
        "seconds_per_run": round(float(np.mean([run["seconds"] for run in runs])), 1),
        "memory_mb": max(run["memory_mb"] for run in runs),
    }


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table: a line per method, columns per dataset, scores in per cent, best in bold.

    A score is the mean over runs, with its 95 % interval over groups of clips, and the gain over the first method with
    that of the gain; ``≥`` is a lower bound, of runs that validation did not end. Memory is that of training, the most
    over the datasets; see `whisper_at.adapt.experiment.training_megabytes`. Lines of `limit_warnings` follow.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = {(row["method"], row["dataset"]): row for row in rows}
    best = {name: max(row["mean"] for row in rows if row["dataset"] == name) for name in datasets}
    score_names = {row["dataset"]: row["score"] for row in rows}
    columns = [part for name in datasets for part in (f"{name}, {score_names[name]} %", f"gain over {methods[0]}")]
    columns += ["epochs", "s a run", "MB"]
    lines = [
        "| " + " | ".join(["method", "patch", "trainable", *columns]) + " |",
        "|---|--:|--:|" + "--:|" * len(columns),
    ]
    for method in methods:
        of_method = [cells[method, name] for name in datasets if (method, name) in cells]
        scores = []
        for name in datasets:
            row = cells.get((method, name), {})
            text = _score_text(row)
            scores += [f"**{text}**" if row and row["mean"] == best[name] else text, _gain_text(row)]
        seconds = np.mean([row["seconds_per_run"] for row in of_method])
        memory = max(row["memory_mb"] for row in of_method)
        trainable = _range([row["trainable"] for row in of_method])
        epochs = _range([row[name] for row in of_method for name in ("epochs_min", "epochs_max")])
        values = [method, f"{of_method[0]['patch']:,}", trainable, *scores, epochs, f"{seconds:.1f}", f"{memory:.0f}"]
        lines.append("| " + " | ".join(values) + " |")
    if warnings := limit_warnings(rows):
        lines += ["", *(f"- {warning}" for warning in warnings)]
    return lines


def limit_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each row whose runs were not all ended by validation."""
    sentences = []
    for row in rows:
        if unfinished := row["runs"] - row["stopped"]:
            where, n = f"{row['method']}, {row['dataset']}", row["epoch_limit"]
            how = f"still improving at the last epoch ({n})"
            if row["patience"] is None:
                how = f"ended by the fixed number of epochs ({n}), not by validation"
            sentences.append(
                f"{where}: {unfinished} of {row['runs']} runs {'was' if unfinished == 1 else 'were'} {how}: "
                f"figures of {row['method']} are a lower bound"
            )
    return sentences


def _score_text(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    bound = "≥ " if row["stopped"] < row["runs"] else ""
    interval = f" ({row['low']:.1f}–{row['high']:.1f})" if row.get("groups", 0) > 1 else f" ± {row['std']:.1f}"
    return f"{bound}{row['mean']:.1f}{interval}"


def _gain_text(row: Mapping[str, Any]) -> str:
    if "gain" not in row:
        return ""
    interval = f" ({row['gain_low']:+.1f} to {row['gain_high']:+.1f})" if row["groups"] > 1 else ""
    return f"{row['gain']:+.1f}{interval}"


def _range(values: Sequence[int]) -> str:
    return "–".join(f"{n:,}" for n in sorted({min(values), max(values)}))


def plot_tradeoff(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot score against trained parameters, a panel for each dataset; bars are 95 % intervals over groups of clips.

    Without groups they are one standard deviation. Points are numbered in the order of the methods, which are listed
    beside the panels with the epochs that were run; hollow ones are lower bounds, of runs that validation did not end.
    """
    from matplotlib.lines import Line2D

    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = new_figure(10.0, 3.4 * len(datasets), rows=len(datasets))
    for panel, name in zip(np.atleast_1d(axes), datasets):
        of_dataset = [row for row in rows if row["dataset"] == name]
        for i, row in enumerate(sorted(of_dataset, key=lambda row: (row["trainable"], row["mean"]))):
            point, number = (row["trainable"], row["mean"]), methods.index(row["method"])
            colour = COLOURS[number % len(COLOURS)]
            bar: Any = row["std"]
            if row.get("groups", 0) > 1:
                bar = np.clip([[row["mean"] - row["low"]], [row["high"] - row["mean"]]], 0, None)
            fill = "full" if row["stopped"] == row["runs"] else "none"
            panel.errorbar(*point, bar, fmt="o", fillstyle=fill, color=colour, markersize=4, elinewidth=0.5)
            # alternate sides, so that numbers of neighbours overlap less
            offset, side = ((5, 2), "left") if i % 2 else ((-5, 2), "right")
            options: dict[str, Any] = {"ha": side, "fontsize": 8, "color": colour, "textcoords": "offset points"}
            panel.annotate(str(number + 1), point, offset, **options)
        panel.set_xscale("log")
        panel.set_ylabel(f"{of_dataset[0]['score']}, %")
        panel.set_title(name)
    np.atleast_1d(axes)[-1].set_xlabel("parameters that are trained, with the head")
    style: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4}
    handles = []
    for i, method in enumerate(methods):
        of_method = [row for row in rows if row["method"] == method]
        epochs = _range([row[name] for row in of_method for name in ("epochs_min", "epochs_max")])
        style["fillstyle"] = "none" if any(row["stopped"] < row["runs"] for row in of_method) else "full"
        label = f"{i + 1}  {method}, {epochs} epochs"
        handles.append(Line2D([], [], color=COLOURS[i % len(COLOURS)], label=label, **style))
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return figure

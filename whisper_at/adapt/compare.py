"""Methods side by side: a table over methods and datasets, with parameters, spread, time and memory, and a picture.

A comparison is a TOML file with ``out``, ``seeds``, a table ``base`` of the fields of `Config`, and several
``[[dataset]]`` and ``[[method]]``, each with a ``label`` and the fields in which it differs; a dataset names the
``score`` to report. Every cell is a run of `whisper_at.adapt.experiment`, done once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..data.toml import read_toml
from ..train.plots import COLOURS, new_figure, save_figure
from .config import Config, build, changed, make_config
from .experiment import SHARES, folder_name, prepare, run, summary, write_csv, write_text


class Cell(NamedTuple):
    """One method on one dataset."""

    dataset: str
    method: str
    score: str
    config: Config


def read_comparison(path: str, changes: Iterable[str] = ()) -> list[Cell]:
    """The cells of a file, in the order in which they run: dataset after dataset.

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
    cells = []
    for data in table["dataset"]:
        for method in table["method"]:
            merged: dict[str, Any] = {"seeds": table.get("seeds", [0])}
            for part in (table.get("base", {}), data, method):
                part = {k: v for k, v in part.items() if k not in ("label", "score")}
                merged |= part | {"recipe": {**merged.get("recipe", {}), **part.get("recipe", {})}}
            merged = changed(merged, (change for change in changes if not change.startswith("out=")))
            out = changed({"out": table.get("out", "comparison")}, (c for c in changes if c.startswith("out=")))["out"]
            names = [str(data.get("label", data.get("dataset"))), str(method.get("label", method.get("method")))]
            merged["out"] = str(Path(out, "cells", *map(folder_name, names)))
            score = data.get("score", "accuracy")
            if score not in SHARES:
                raise ValueError(f"{path}: score {score!r} of {names[0]} is none of {', '.join(SHARES)}")
            cells.append(Cell(names[0], names[1], score, make_config(merged)))
    if len({cell.config.out for cell in cells}) < len(cells):
        raise ValueError(f"{path}: two cells have the same labels")
    return cells


def compare(cells: Sequence[Cell], out: Path, progress: bool = False) -> list[dict[str, Any]]:
    """Run every cell that has not been run, and write ``table.csv``, ``table.md`` and ``table.png`` after each.

    All data and all methods are looked at before the first one runs.
    """
    classes = {cell.dataset: prepare(cell.config)[0].classes for cell in cells}
    for cell in cells:
        build(cell.config, classes[cell.dataset], count_only=True)
    rows: list[dict[str, Any]] = []
    for cell in cells:
        if progress:
            print(f"{cell.dataset}: {cell.method} ({len(rows) + 1} of {len(cells)})", flush=True)
        found = run(cell.config, progress)
        rows.append(table_row(cell, found))
        write_csv(out / "table.csv", rows)
        write_text(out / "table.md", markdown(rows))
        save_figure(draw_trade(rows), out / "table.png")
    return rows


def table_row(cell: Cell, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the table: mean and spread over divisions and seeds, and what it took."""
    score = summary(found)[cell.score]
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "score": cell.score,
        "mean": round(100 * score["mean"], 2),
        "std": round(100 * score["std"], 2),
        "runs": len(found),
        "patch": found[0]["patch"],
        "trainable": found[0]["trainable"],
        "frozen": found[0]["frozen"],
        "seconds_per_run": round(float(np.mean([row["seconds"] for row in found])), 1),
        "memory_mb": max(row["memory_mb"] for row in found),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as Markdown: a line per method, a column per dataset; scores in percent, the best in bold.

    Memory is that of training, the most over the datasets; see `whisper_at.adapt.experiment.training_megabytes`.
    """
    data = list(dict.fromkeys(row["dataset"] for row in rows))
    of = {(row["method"], row["dataset"]): row for row in rows}
    best = {name: max(row["mean"] for row in rows if row["dataset"] == name) for name in data}
    scores = {row["dataset"]: row["score"] for row in rows}
    lines = [
        "| method | patch | trainable | "
        + " | ".join(f"{name}, {scores[name]} %" for name in data)
        + " | s a run | MB |",
        "|---|--:|--:|" + "--:|" * len(data) + "--:|--:|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [of[method, name] for name in data if (method, name) in of]
        shown = []
        for name in data:
            row = of.get((method, name))
            text = "" if row is None else f"{row['mean']:.1f} ± {row['std']:.1f}"
            shown.append(f"**{text}**" if row is not None and row["mean"] == best[name] else text)
        seconds = np.mean([row["seconds_per_run"] for row in mine])
        memory = max(row["memory_mb"] for row in mine)
        trainable = "–".join(f"{n:,}" for n in sorted({row["trainable"] for row in mine} & _ends(mine)))
        lines.append(
            f"| {method} | {mine[0]['patch']:,} | {trainable} | {' | '.join(shown)} | {seconds:.1f} | {memory:.0f} |"
        )
    return lines


def _ends(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    sizes = [row["trainable"] for row in rows]
    return {min(sizes), max(sizes)}


def draw_trade(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Score against trained parameters, a panel for each dataset, bars one standard deviation.

    Points are numbered in the order of the methods, which are listed beside the panels.
    """
    data = list(dict.fromkeys(row["dataset"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = new_figure(10.0, 3.4 * len(data), rows=len(data))
    for panel, name in zip(np.atleast_1d(axes), data):
        mine = [row for row in rows if row["dataset"] == name]
        for i, row in enumerate(sorted(mine, key=lambda row: (row["trainable"], row["mean"]))):
            place, number = (row["trainable"], row["mean"]), methods.index(row["method"])
            colour = COLOURS[number % len(COLOURS)]
            panel.errorbar(*place, row["std"], fmt="o", color=colour, markersize=4, elinewidth=0.5)
            # neighbours' numbers are less in each other's way on different sides
            beside, side = ((5, 2), "left") if i % 2 else ((-5, 2), "right")
            options: dict[str, Any] = {"ha": side, "fontsize": 8, "color": colour, "textcoords": "offset points"}
            panel.annotate(str(number + 1), place, beside, **options)
        panel.set_xscale("log")
        panel.set_ylabel(f"{mine[0]['score']}, %")
        panel.set_title(name)
    np.atleast_1d(axes)[-1].set_xlabel("parameters that are trained, with the head")
    marks = [
        Line2D(
            [], [], color=COLOURS[i % len(COLOURS)], marker="o", linestyle="", markersize=4, label=f"{i + 1}  {method}"
        )
        for i, method in enumerate(methods)
    ]
    figure.legend(handles=marks, loc="outside right upper", fontsize=8, frameon=False)
    return figure

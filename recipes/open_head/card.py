"""Tables of the heads' card: ``python -m recipes.open_head.card --out DIR --models tiny.en base``."""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from .sources import TABLE


def figures(out: Path, models: list[str]) -> dict[str, dict[str, Any]]:
    """Return what was measured for each model."""
    return {name: json.loads((out / name / "figures.json").read_text(encoding="utf-8")) for name in models}


def summary_table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table with a line per score."""
    names = {
        "known": "classes claimed",
        "mAP": "mAP over them, in context",
        "mAP_alone": "… clips alone, amid silence",
        "mAP_all": "mAP over all classes measured",
        "teacher": "YAMNet over the claimed classes that it has",
        "head_of_teacher": "… the head over the same",
    }
    lines = [f"| | {' | '.join(measured)} |", "|---|" + "--:|" * len(measured)]
    for key, text in names.items():
        values = [one.get(key) for one in measured.values()]
        lines.append(f"| {text} | {' | '.join(_cell(value) for value in values)} |")
    return lines


def class_table(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Return a table with a line per class that any head claims: clips, groups, and average precision."""
    rows: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, one in measured.items():
        for row in one["classes"]:
            rows[row["name"]][name] = row
    lines = [f"| class | clips | groups | of | {' | '.join(measured)} |", "|---|--:|--:|---|" + "--:|" * len(measured)]
    for name in sorted(rows):
        by_model = rows[name]
        any_row = next(iter(by_model.values()))
        if not any(row["claimed"] for row in by_model.values()):
            continue
        cells = [
            f"{by_model[m]['report']:.2f} / {_cell(by_model[m]['alone'])}" if by_model[m]["claimed"] else "–"
            for m in measured
        ]
        sources = ", ".join(any_row["sources"])
        lines.append(f"| {name} | {any_row['clips']} | {any_row['groups']} | {sources} | {' | '.join(cells)} |")
    return lines


def credits_table() -> list[str]:
    """Return a line per source and licence of `recordings.csv`, with the authors."""
    authors: dict[tuple[str, str], set[str]] = defaultdict(set)
    with open(TABLE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            authors[row["source"], row["licence"]].add(row["author"])
    lines = ["| source | licence | by |", "|---|---|---|"]
    for (source, licence), names in sorted(authors.items()):
        lines.append(f"| {source} | {licence} | {', '.join(sorted(filter(None, names), key=str.lower))} |")
    return lines


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.2f}"
    return "–" if value is None else str(value)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    args = parser.parse_args()
    measured = figures(args.out, args.models)
    for table in (summary_table(measured), class_table(measured), credits_table()):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()

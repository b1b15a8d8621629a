"""FSD50K's published tables as one table that `whisper-at train` reads.

    python -m recipes.heads.fsd50k FSD50K fsd50k.csv

The first argument is the folder with ``FSD50K.ground_truth/{dev,eval}.csv`` and the audio folders beside it. In
the tables, labels are separated by commas, files have no ending, and ``split`` is ``train`` or ``val``; ``eval.csv``,
which has no split, is the test part.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from whisper_at.checkpoints.files import atomic_write

PARTS = (("dev", "FSD50K.dev_audio"), ("eval", "FSD50K.eval_audio"))


def rows(root: Path) -> Iterator[dict[str, str]]:
    """Every clip as ``path`` (from ``root``), ``labels`` (separated by ``;``) and ``split``.

    Raises
    ------
    FileNotFoundError
        If a table is not where FSD50K has it.
    ValueError
        If a table has other columns.
    """
    for part, audio in PARTS:
        table = root / "FSD50K.ground_truth" / f"{part}.csv"
        if not table.is_file():
            raise FileNotFoundError(f"no {table}; give the folder that FSD50K was unpacked in")
        with open(table, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if missing := {"fname", "labels"} - set(reader.fieldnames or []):
                raise ValueError(f"{table} has no column {sorted(missing)[0]}: it is not FSD50K's")
            for row in reader:
                split = {"train": "train", "val": "valid"}[row["split"]] if part == "dev" else "test"
                yield {
                    "path": f"{audio}/{row['fname']}.wav",
                    "labels": row["labels"].replace(",", ";"),
                    "split": split,
                }


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table; its files are relative to FSD50K's folder (``--root``)."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    root, out = Path(argv[0]), Path(argv[1])
    found = list(rows(root))
    with atomic_write(out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("path", "labels", "split"))
        writer.writeheader()
        writer.writerows(found)
    print(f"{len(found)} clips in {out}; train with --data {out} --root {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Readers of labelled clips: a folder per class, a CSV table, or the JSON of earlier recipes."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from .clips import AUDIO_SUFFIXES, Clip, Dataset, sort_classes

SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid"} | {
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What splits are called, and what we call them."""
OUTPUT_FILES = frozenset(("features.json", "state.pt", "history.jsonl", "report.md"))
"""Files by which folders of features, of runs and of reports are known: see `features`, `fit` and `report`."""
OUTPUT_SUFFIXES = (".features", ".run")
"""What `whisper-at train` calls its folders, which hold none of these files where it was killed at once."""


def read_dataset(path: str | os.PathLike[str], labels: str | os.PathLike[str] | None = None, **options) -> Dataset:
    """Read labelled recordings from a folder, a ``.csv`` or ``.tsv``, or a ``.json`` of earlier recipes.

    ``labels`` is the class list that a ``.json`` needs; ``options`` go to :func:`read_folders` or
    :func:`read_csv`.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    ValueError
        If it is none of these, or what it holds is not such data.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return read_folders(path, **options)
    if not path.is_file():
        raise FileNotFoundError(f"no such data: {path}; give a folder of classes, a .csv or a .json")
    if path.suffix.lower() in (".csv", ".tsv"):
        return read_csv(path, **options)
    if path.suffix.lower() == ".json":
        if labels is None:
            raise ValueError(f"{path} needs its list of classes: a CSV with columns index, mid, display_name")
        return read_json(path, labels)
    raise ValueError(f"{path} is neither a folder of classes, a .csv nor a .json")


def read_folders(
    root: str | os.PathLike[str], fold: str | re.Pattern | None = None, group: str | re.Pattern | None = None
) -> Dataset:
    """Read a folder whose folders are classes, or ``train``, ``valid`` and ``test`` with the classes in them.

    Files are found at any depth, in the order of their names; hidden ones are passed over, and so are folders without
    recordings beside those of splits, and what this program wrote, see `class_folders`.

    Parameters
    ----------
    root : the folder
    fold, group : regular expressions searched in each file's name, whose first group is the clip's fold or
        group: ``r"^(\\d)-"`` gives the folds of ESC-50

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, no recording in a class's folder, or recordings beside those of splits.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    folders = class_folders(root)
    full = [folder for folder in folders if any(find_audio(folder))]
    split_of = {folder: SPLIT_NAMES[folder.name.lower()] for folder in full if folder.name.lower() in SPLIT_NAMES}
    if len(set(split_of.values())) > 1 and len(split_of) < len(full):
        other = next(folder for folder in full if folder not in split_of)
        raise ValueError(
            f"{root} holds splits ({', '.join(p.name for p in split_of)}) and also {other.name}; move it away"
        )
    if full and len(split_of) == len(full):
        places = [(split, sub) for folder, split in split_of.items() for sub in class_folders(folder)]
    else:
        places = [("", folder) for folder in folders]
    clips = []
    for split, folder in places:
        for path in sorted(find_audio(folder)):
            clips.append(Clip(path, (folder.name,), split, _found(fold, path), _found(group, path)))
    if not clips:
        raise ValueError(f"no recordings in {root}: it wants one folder per class with audio files in it")
    return Dataset(tuple(clips), sort_classes({folder.name for _, folder in places}))


def class_folders(root: Path) -> list[Path]:
    """The folders in one that may be classes, in order: neither hidden nor written by this program.

    Those that it wrote have no recordings, but files of its own (features, runs, reports), or `.features` or `.run` at
    the end of their names. Any other folder without recordings is a class all the same.
    """
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and not _is_own(p))


def _is_own(folder: Path) -> bool:
    if any(find_audio(folder)):
        return False
    return folder.suffix in OUTPUT_SUFFIXES or any(path.name in OUTPUT_FILES for path in folder.rglob("*"))


def find_audio(folder: Path) -> Iterator[Path]:
    """The recordings in a folder at any depth, in no order."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _found(pattern: str | re.Pattern | None, path: Path) -> str:
    if pattern is None:
        return ""
    match = re.search(pattern, path.name)
    if match is None:
        raise ValueError(f"{path.name} does not match {getattr(pattern, 'pattern', pattern)!r}")
    return match.group(1) if match.groups() else match.group()


COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "wav", "audio", "fname"),
    "labels": ("labels", "label", "class", "category", "target_name"),
    "split": ("split", "set", "subset"),
    "fold": ("fold",),
    "group": ("group", "speaker", "speaker_id", "source", "src_file"),
    "start": ("start", "onset"),
    "end": ("end", "offset"),
}
"""The columns that :func:`read_csv` knows, and the names each may have."""


def read_csv(
    path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, classes: Sequence[str] | None = None
) -> Dataset:
    """Read a table with a header: a file and its labels a row (``;`` between several), and what else is known.

    Files are taken as relative to ``root``, by default the table's folder. Columns: see ``COLUMNS``; others are
    passed over. ``classes`` gives the classes' order; by default they are sorted.

    Raises
    ------
    ValueError
        If a column is missing, a number is none, or a label is not among ``classes``.
    """
    path = Path(path).expanduser()
    root = path.parent if root is None else Path(root).expanduser()
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
        column = {
            meaning: next((header[name] for name in names if name in header), None)
            for meaning, names in COLUMNS.items()
        }
        for needed in ("path", "labels"):
            if column[needed] is None:
                raise ValueError(f"{path} has no column {' or '.join(COLUMNS[needed])}; it has {', '.join(header)}")
        clips = [_row(row, column, root, f"{path}, line {reader.line_num}") for row in reader]
    if not clips:
        raise ValueError(f"{path} has no rows")
    found = {label for clip in clips for label in clip.labels}
    if classes is not None and (unknown := sorted(found - set(classes))):
        raise ValueError(f"{path}: {unknown[0]!r} is not among the {len(classes)} classes ({len(unknown)} such)")
    return Dataset(tuple(clips), tuple(classes) if classes is not None else sort_classes(found))


def _row(row: dict[str, str], column: dict[str, str | None], root: Path, place: str) -> Clip:
    def text(meaning: str) -> str:
        name = column[meaning]
        return ((row[name] or "") if name is not None else "").strip()

    def number(meaning: str) -> float | None:
        try:
            return float(text(meaning)) if text(meaning) else None
        except ValueError:
            raise ValueError(f"{place}: {meaning} is {text(meaning)!r}, no number of seconds") from None

    if not text("path"):
        raise ValueError(f"{place}: no file is named")
    labels = tuple(dict.fromkeys(label.strip() for label in text("labels").split(";") if label.strip()))
    split = text("split").lower()
    if split and split not in SPLIT_NAMES:
        raise ValueError(f"{place}: split is {split!r}; it may be {', '.join(SPLIT_NAMES)}")
    return Clip(
        root / text("path"),
        labels,
        SPLIT_NAMES.get(split, ""),
        text("fold"),
        text("group"),
        number("start") or 0.0,
        number("end"),
    )


def read_json(path: str | os.PathLike[str], labels: str | os.PathLike[str]) -> Dataset:
    """Read ``{"data": [{"wav": path, "labels": "/m/…,/m/…"}, …]}`` with its list of classes (spec section 3.2).

    ``labels`` is a CSV ``index,mid,display_name``; the classes are the display names in its order. Relative paths
    are taken as relative to the JSON's folder.

    Raises
    ------
    ValueError
        If either is not such a file, or a label is not in the list.
    """
    path = Path(path).expanduser()
    with open(labels, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"mid", "display_name"} <= rows[0].keys():
        raise ValueError(f"{labels} is no list of classes: a CSV with columns index, mid, display_name")
    name_of = {row["mid"]: row["display_name"] for row in rows}
    try:
        items = json.loads(path.read_text("utf-8"))["data"]
        pairs = [(item["wav"], [mid.strip() for mid in item["labels"].split(",") if mid.strip()]) for item in items]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is not {{"data": [{{"wav": …, "labels": "…,…"}}]}} ({error!r})') from None
    if unknown := next((mid for _, mids in pairs for mid in mids if mid not in name_of), None):
        raise ValueError(f"{path}: label {unknown} is not in {labels}")
    clips = tuple(Clip(path.parent / wav, tuple(name_of[mid] for mid in mids)) for wav, mids in pairs)
    return Dataset(clips, tuple(row["display_name"] for row in rows))

"""Readers of labelled clips: a folder per class, a CSV table, or the JSON of earlier recipes."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .clips import AUDIO_SUFFIXES, Clip, Dataset, sort_classes
from .files import StrPath, check_folder

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Accepted names of splits, and the split that each stands for."""

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "wav", "audio", "fname"),
    "labels": ("labels", "label", "class", "category", "target_name"),
    "split": ("split", "set", "subset"),
    "fold": ("fold",),
    "group": ("group", "speaker", "speaker_id", "source", "src_file"),
    "start": ("start", "onset"),
    "end": ("end", "offset"),
}
"""Fields of a clip, and the column names that `read_csv` accepts for each."""

OUTPUT_FILES = frozenset(("features.json", "state.pt", "history.jsonl", "report.md"))
"""Files that mark a folder as output of this program: stored features, a training run or a report."""
OUTPUT_SUFFIXES = (".features", ".run")
"""Suffixes of the output folders of ``whisper-at train``; an interrupted run may leave them without such files."""


def read_dataset(path: StrPath, labels: StrPath | None = None, **options: Any) -> Dataset:
    """Read labelled clips from a folder, a ``.csv`` or ``.tsv``, or a ``.json`` of earlier recipes.

    Parameters
    ----------
    path : path
        Folder or file.
    labels : path, optional
        List of classes, needed for ``.json``.
    **options
        Options of `read_folders` or `read_csv`.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        If ``path`` does not exist.
    ValueError
        If ``path`` is none of these, or its contents are invalid.
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
    root: StrPath, fold: str | re.Pattern[str] | None = None, group: str | re.Pattern[str] | None = None
) -> Dataset:
    r"""Read a folder of one subfolder per class, or of ``train``, ``valid`` and ``test`` with such subfolders.

    Audio files are found at any depth and sorted by path. Hidden files and output folders of this program
    (`class_folders`) are ignored, as are folders without audio next to the splits.

    Parameters
    ----------
    root : path
        The folder.
    fold, group : str or re.Pattern, optional
        Regular expression searched in each file name; its first group, or the whole match, becomes the clip's fold or
        group. ``r"^(\d)-"`` gives the folds of ESC-50.

    Returns
    -------
    Dataset

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it has no audio, or audio next to the splits, or a file name does not match.
    """
    root = check_folder(root)
    folders = class_folders(root)
    with_audio = [folder for folder in folders if any(find_audio(folder))]
    split_of = {folder: SPLIT_NAMES[folder.name.lower()] for folder in with_audio if folder.name.lower() in SPLIT_NAMES}
    if len(set(split_of.values())) > 1 and len(split_of) < len(with_audio):
        other = next(folder for folder in with_audio if folder not in split_of)
        raise ValueError(
            f"{root} holds splits ({', '.join(p.name for p in split_of)}) and also {other.name}; move it away"
        )
    if with_audio and len(split_of) == len(with_audio):
        class_dirs = [(split, sub) for folder, split in split_of.items() for sub in class_folders(folder)]
    else:
        class_dirs = [("", folder) for folder in folders]
    clips = []
    for split, folder in class_dirs:
        for path in sorted(find_audio(folder)):
            clips.append(Clip(path, (folder.name,), split, _search(fold, path), _search(group, path)))
    if not clips:
        raise ValueError(f"no recordings in {root}: expected one folder per class with audio files in it")
    return Dataset(tuple(clips), sort_classes({folder.name for _, folder in class_dirs}))


def class_folders(root: Path) -> list[Path]:
    """Return the subfolders that may be classes, sorted: neither hidden nor output of this program.

    A folder without audio is output if it holds one of `OUTPUT_FILES` or its name ends in one of `OUTPUT_SUFFIXES`;
    any other folder without audio is an empty class.
    """
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and not _is_output(p))


def _is_output(folder: Path) -> bool:
    if any(find_audio(folder)):
        return False
    return folder.suffix in OUTPUT_SUFFIXES or any(path.name in OUTPUT_FILES for path in folder.rglob("*"))


def find_audio(folder: Path) -> Iterator[Path]:
    """Yield the audio files in a folder at any depth, in no particular order."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _search(pattern: str | re.Pattern[str] | None, path: Path) -> str:
    """Return the first group of a pattern in a file name, or the whole match; empty without a pattern."""
    if pattern is None:
        return ""
    match = re.search(pattern, path.name)
    if match is None:
        raise ValueError(f"{path.name} does not match {getattr(pattern, 'pattern', pattern)!r}")
    return match.group(1) if match.groups() else match.group()


def read_csv(path: StrPath, root: StrPath | None = None, classes: Sequence[str] | None = None) -> Dataset:
    """Read a CSV or TSV with a header and one clip per row; several labels are separated by ``;``.

    Parameters
    ----------
    path : path
        The table. `COLUMNS` lists the columns that are read; others are ignored.
    root : path, optional
        Folder that file names are relative to; the table's folder by default.
    classes : sequence of str, optional
        Classes in their order; sorted by default.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If a column is missing, a start or end is not a number, or a label is not in ``classes``.
    """
    path = Path(path).expanduser()
    root = path.parent if root is None else Path(root).expanduser()
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = {(name or "").strip().lower(): name for name in reader.fieldnames or []}
        column = {
            field: next((header[name] for name in names if name in header), None) for field, names in COLUMNS.items()
        }
        for needed in ("path", "labels"):
            if column[needed] is None:
                raise ValueError(f"{path} has no column {' or '.join(COLUMNS[needed])}; it has {', '.join(header)}")
        clips = [_parse_row(row, column, root, f"{path}, line {reader.line_num}") for row in reader]
    if not clips:
        raise ValueError(f"{path} has no rows")
    found = {label for clip in clips for label in clip.labels}
    if classes is not None and (unknown := sorted(found - set(classes))):
        raise ValueError(f"{path}: {unknown[0]!r} is not among the {len(classes)} classes ({len(unknown)} such)")
    return Dataset(tuple(clips), tuple(classes) if classes is not None else sort_classes(found))


def _parse_row(row: dict[str, str], column: dict[str, str | None], root: Path, place: str) -> Clip:
    def text(field: str) -> str:
        name = column[field]
        return ((row[name] or "") if name is not None else "").strip()

    def number(field: str) -> float | None:
        try:
            return float(text(field)) if text(field) else None
        except ValueError:
            raise ValueError(f"{place}: {field} is {text(field)!r}, not a number of seconds") from None

    if not text("path"):
        raise ValueError(f"{place}: the file name is missing")
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


def read_json(path: StrPath, labels: StrPath) -> Dataset:
    """Read ``{"data": [{"wav": path, "labels": "/m/…,/m/…"}, …]}`` and its list of classes (spec section 3.2).

    Parameters
    ----------
    path : path
        The JSON; audio paths may be relative to its folder.
    labels : path
        CSV ``index,mid,display_name``. The classes are the display names, in its order.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If either file has another format, or a label is not in the list.
    """
    path = Path(path).expanduser()
    with open(labels, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"mid", "display_name"} <= rows[0].keys():
        raise ValueError(f"{labels} is not a list of classes: a CSV with columns index, mid, display_name")
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

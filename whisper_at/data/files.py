"""Helpers of the readers of public data sets: folders, tables and lists of files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .clips import Clip, Dataset, sort_classes

StrPath = str | os.PathLike[str]


def check_folder(folder: StrPath) -> Path:
    """Return a folder as a path, ``~`` expanded; raise FileNotFoundError if it does not exist."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    return folder


def check_file(path: Path) -> Path:
    """Return the path of a file that belongs to a data set; raise FileNotFoundError if it does not exist."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; give the data set's folder as it was unpacked")
    return path


def first_file(*paths: Path) -> Path:
    """Return the first of the audio files that exists; raise FileNotFoundError if none does."""
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no such recording: {paths[0]}")


def read_rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """Yield the values of the given columns of a CSV, stripped; raise ValueError if a column is missing."""
    with open(check_file(path), newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in columns if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or [])}")
        for row in reader:
            yield {name: (row[name] or "").strip() for name in columns}


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped, without empty ones."""
    return [line.strip() for line in check_file(path).read_text("utf-8").splitlines() if line.strip()]


def make_dataset(clips: Iterable[Clip], root: Path, classes: Iterable[str] | None = None) -> Dataset:
    """Return the clips as a data set, its classes sorted unless given; raise ValueError if there are no clips."""
    clips = tuple(clips)
    if not clips:
        raise ValueError(f"no recordings in {root}: is it the folder that the data set was unpacked to?")
    return Dataset(clips, tuple(classes) if classes is not None else sort_classes({n for c in clips for n in c.labels}))

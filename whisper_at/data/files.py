"""Helpers of the readers of published data sets: folders, tables and lists of files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .clips import Clip, Dataset, sort_classes

StrPath = str | os.PathLike[str]


def make_dataset(clips: Iterable[Clip], root: Path, classes: Iterable[str] | None = None) -> Dataset:
    """A dataset of these clips, its classes sorted unless given; ValueError if there are none."""
    clips = tuple(clips)
    if not clips:
        raise ValueError(f"no recordings in {root}: is it the folder that the collection was unpacked to?")
    return Dataset(clips, tuple(classes) if classes is not None else sort_classes({n for c in clips for n in c.labels}))


def check_folder(root: StrPath) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return root


def read_rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV whose header must name ``needed``, its values stripped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the collection's own layout is wanted, as it was unpacked")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or [])}")
        for row in reader:
            yield {name: (row[name] or "").strip() for name in needed}


def read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the collection's own layout is wanted, as it was unpacked")
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def first_file(*paths: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no such recording: {paths[0]}")

"""Labelled recordings: read from folders, CSV or the JSON of earlier recipes, divided into folds and splits."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

AUDIO_SUFFIXES = frozenset(
    ".wav .flac .ogg .oga .opus .mp3 .m4a .aac .wma .aif .aiff .au .webm .mp4 .mkv .mov .3gp".split()
)
SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid"} | {
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What splits are called, and what we call them."""
OWN_FILES = frozenset(("features.json", "state.pt", "history.jsonl", "report.md"))
"""Files by which folders of features, of runs and of reports are known: see `features`, `fit` and `report`."""
OWN_ENDINGS = (".features", ".run")
"""What `whisper-at train` calls its folders, which hold none of these files where it was killed at once."""


@dataclass(frozen=True)
class Clip:
    """One labelled recording, or a part of one.

    Attributes
    ----------
    path : its file
    labels : names of what sounds in it; none is allowed
    split : ``train``, ``valid`` or ``test``; empty where the data do not say
    fold : name of its fold, or empty
    group : what must not stand on both sides of a division (a speaker, a source recording), or empty
    start, end : the part that is meant, in seconds; None for the end of the file
    """

    path: Path
    labels: tuple[str, ...]
    split: str = ""
    fold: str = ""
    group: str = ""
    start: float = 0.0
    end: float | None = None

    @property
    def key(self) -> str:
        """Text that names this clip and no other."""
        part = "" if self.start == 0 and self.end is None else f"#{self.start:g}-{'' if self.end is None else self.end}"
        return f"{self.path}{part}"


@dataclass(frozen=True)
class Dataset:
    """Clips, and the classes in the order of a head's outputs."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def multi_label(self) -> bool:
        """Whether any clip has several labels or none, so that classes are decided one by one."""
        return any(len(set(clip.labels)) != 1 for clip in self.clips)

    def targets(self) -> np.ndarray:
        """float32 ``(clips, classes)``: 1 where a class sounds."""
        index = {name: i for i, name in enumerate(self.classes)}
        out = np.zeros((len(self.clips), len(self.classes)), np.float32)
        for row, clip in enumerate(self.clips):
            out[row, [index[name] for name in clip.labels]] = 1.0
        return out

    def where(self, wanted: Callable[[Clip], bool]) -> Dataset:
        """The clips for which ``wanted`` holds, in order, with the same classes."""
        return replace(self, clips=tuple(clip for clip in self.clips if wanted(clip)))

    def split(self, name: str) -> Dataset:
        """The clips of a split: ``train``, ``valid`` or ``test``."""
        return self.where(lambda clip: clip.split == name)

    def take(self, indices: Iterable[int]) -> Dataset:
        """The clips at ``indices``."""
        return replace(self, clips=tuple(self.clips[int(i)] for i in indices))


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
    full = [folder for folder in folders if any(recordings(folder))]
    split_of = {folder: SPLITS[folder.name.lower()] for folder in full if folder.name.lower() in SPLITS}
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
        for path in sorted(recordings(folder)):
            clips.append(Clip(path, (folder.name,), split, _found(fold, path), _found(group, path)))
    if not clips:
        raise ValueError(f"no recordings in {root}: it wants one folder per class with audio files in it")
    return Dataset(tuple(clips), _ordered({folder.name for _, folder in places}))


def class_folders(root: Path) -> list[Path]:
    """The folders in one that may be classes, in order: neither hidden nor written by this program.

    Those that it wrote have no recordings, but files of its own (features, runs, reports), or `.features` or `.run` at
    the end of their names. Any other folder without recordings is a class all the same.
    """
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and not _is_own(p))


def _is_own(folder: Path) -> bool:
    if any(recordings(folder)):
        return False
    return folder.suffix in OWN_ENDINGS or any(path.name in OWN_FILES for path in folder.rglob("*"))


def recordings(folder: Path) -> Iterator[Path]:
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


def _ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in order: numbers by value, the rest by letters."""
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


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
    return Dataset(tuple(clips), tuple(classes) if classes is not None else _ordered(found))


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
    if split and split not in SPLITS:
        raise ValueError(f"{place}: split is {split!r}; it may be {', '.join(SPLITS)}")
    return Clip(
        root / text("path"),
        labels,
        SPLITS.get(split, ""),
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


# --- divisions ----------------------------------------------------------------------------------------------


def folds(dataset: Dataset, k: int | None = None, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: for each fold the indices outside and inside of it.

    The data's own folds where every clip has one and ``k`` is None or their number; else ``k`` (5) folds with about
    equal shares of each class, a group never on both sides.

    Raises
    ------
    ValueError
        If there are too few clips or groups for so many folds.
    """
    own = sorted({clip.fold for clip in dataset.clips})
    if "" not in own and len(own) > 1 and k in (None, len(own)):
        of = np.array([clip.fold for clip in dataset.clips])
        return [(np.flatnonzero(of != name), np.flatnonzero(of == name)) for name in own]
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.array([clip.group or clip.key for clip in dataset.clips])
    k = k or 5
    if len(set(groups)) < k:
        raise ValueError(f"{len(set(groups))} clips or groups cannot be cut into {k} folds")
    first = np.array([clip.labels[0] if clip.labels else "" for clip in dataset.clips])
    return list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(first, first, groups))


def hold_out(dataset: Dataset, share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to validate on: about ``share`` of each class, a group never on both sides.

    The last clip or group of a class stays in training.
    """
    r = np.random.default_rng(seed)
    group_of = [clip.group or clip.key for clip in dataset.clips]
    classes_of: dict[str, set[str]] = {}  # of a group
    by_class: dict[str, dict[str, list[int]]] = {}
    for i, (clip, group) in enumerate(zip(dataset.clips, group_of)):
        classes_of.setdefault(group, set()).update(clip.labels or ("",))
        by_class.setdefault(clip.labels[0] if clip.labels else "", {}).setdefault(group, []).append(i)
    left = Counter(name for names in classes_of.values() for name in names)  # groups of a class in training
    out: set[str] = set()
    for members in by_class.values():
        names = [name for name in members if name not in out]
        wanted = share * sum(map(len, members.values())) - sum(len(members[n]) for n in members if n in out)
        for name in r.permutation(np.array(names, dtype=object)) if names else []:
            if wanted < 0.5:
                break
            if all(left[of] > 1 for of in classes_of[name]):
                out.add(name)
                left.subtract(classes_of[name])
                wanted -= len(members[name])
    held = {i for i, name in enumerate(group_of) if name in out}
    everything = range(len(dataset.clips))
    return np.array([i for i in everything if i not in held], int), np.array(sorted(held), int)


def few_shot(dataset: Dataset, k: int, seed: int | None = 0) -> np.ndarray:
    """Indices of ``k`` clips of each class, in order; the first ``k`` where ``seed`` is None."""
    kept: list[int] = []
    for name in dataset.classes:
        of = np.array([i for i, clip in enumerate(dataset.clips) if name in clip.labels], int)
        if seed is not None:
            of = np.random.default_rng([seed, len(kept)]).permutation(of)
        kept += of[:k].tolist()
    return np.array(sorted(set(kept)), int)

"""Readers of data sets of environmental sounds."""

from __future__ import annotations

import re

from .clips import Clip, Dataset
from .files import StrPath, check_folder, make_dataset, read_lines, read_rows
from .readers import read_folders


def read_esc50(root: StrPath, esc10: bool = False) -> Dataset:
    """Read ESC-50 (Piczak, 2015): ``meta/esc50.csv`` and ``audio/``; only the classes of ESC-10 if ``esc10`` is true.

    There are five folds; clips of one Freesound recording form a group and are in the same fold.
    """
    root = check_folder(root)
    clips = []
    for row in read_rows(root / "meta" / "esc50.csv", "filename", "fold", "category", "esc10", "src_file"):
        if not esc10 or row["esc10"].lower() == "true":
            path = root / "audio" / row["filename"]
            clips.append(Clip(path, (row["category"],), fold=row["fold"], group=row["src_file"]))
    return make_dataset(clips, root)


def read_esc10(root: StrPath) -> Dataset:
    """Read ESC-10: one folder per class with files ``<fold>-<source>-<take>.ogg``, or the layout of ESC-50."""
    root = check_folder(root)
    if (root / "meta" / "esc50.csv").is_file():
        return read_esc50(root, esc10=True)
    return read_folders(root, fold=r"^(\d+)-", group=r"^\d+-(\d+)")


def read_urbansound8k(root: StrPath) -> Dataset:
    """Read UrbanSound8K (Salamon et al., 2014): ``metadata/UrbanSound8K.csv`` and ``audio/fold1`` … ``fold10``.

    The classes are in the order of ``classID``.
    """
    root = check_folder(root)
    table = root / "metadata" / "UrbanSound8K.csv"
    clips = []
    for row in read_rows(table, "slice_file_name", "fsID", "fold", "classID", "class"):
        path = root / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        clips.append((int(row["classID"]), Clip(path, (row["class"],), fold=row["fold"], group=row["fsID"])))
    name_of = dict(sorted((class_id, clip.labels[0]) for class_id, clip in clips))
    return make_dataset([clip for _, clip in clips], root, name_of.values())


def read_birdclef(root: StrPath, secondary: bool = False) -> Dataset:
    """Read BirdCLEF 2022: ``train_metadata.csv`` and ``train_audio/``.

    The label is the bird in the foreground; if ``secondary`` is true, birds in the background are labels, too.
    """
    root = check_folder(root)
    rows = list(read_rows(root / "train_metadata.csv", "primary_label", "secondary_labels", "filename"))
    known = {row["primary_label"] for row in rows}
    clips = []
    for row in rows:
        more = re.findall(r"'([^']+)'", row["secondary_labels"]) if secondary else []
        labels = dict.fromkeys([row["primary_label"], *(name for name in more if name in known)])
        clips.append(Clip(root / "train_audio" / row["filename"], tuple(labels)))
    return make_dataset(clips, root)


def read_fsd50k(root: StrPath) -> Dataset:
    """Read FSD50K (Fonseca et al., 2022): ``FSD50K.ground_truth/*.csv`` and ``FSD50K.{dev,eval}_audio/``.

    Clips have several labels. ``dev.csv`` says what is for training and validation, ``eval.csv`` is the test; the
    classes are in the order of ``vocabulary.csv``.
    """
    root = check_folder(root)
    truth = root / "FSD50K.ground_truth"
    classes = [line.split(",")[1] for line in read_lines(truth / "vocabulary.csv")]
    clips = []
    for part in ("dev", "eval"):
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        for row in read_rows(truth / f"{part}.csv", *columns):
            split = "test" if part == "eval" else {"train": "train", "val": "valid"}[row["split"]]
            path = root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            clips.append(Clip(path, tuple(row["labels"].split(",")), split))
    return make_dataset(clips, root, classes)

"""Readers of published collections of recordings, from the layouts that they come in, to labelled clips.

Sounds, commands and birds are here, speech emotion in `emotion`; how each paper divides them is in `protocols`.
Every reader gives clips in an order that does not depend on the file system.
"""

from __future__ import annotations

import csv
import difflib
import os
import re
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .clips import Clip, Dataset, _ordered, read_csv, read_dataset, read_folders
from .validation import typed, unknown

Root = str | os.PathLike[str]

ALIASES = {"speechcommandsv2": "gsc", "speechcommands": "gsc", "spcv2": "gsc", "us8k": "urbansound8k"} | {
    "googlespeechcommands": "gsc",
    "googlespeechcommandsv2": "gsc",
    "fluentspeechcommands": "fsc",
    "birdclef": "birdclef2022",
}
"""Other names of collections, without capitals, spaces and hyphens."""


def read(name: str, root: Root, /, **options) -> Dataset:
    """Read a collection by the name it has in the papers (``FSC``, ``ESC-50``, ``iemocap`` …; see `names`).

    ``files`` stands for a folder of classes, a ``.csv`` or a ``.json`` of your own. ``options`` go to the reader.

    Raises
    ------
    FileNotFoundError
        If ``root``, or a file that the layout needs, is not there.
    ValueError
        If there is no such collection, what is there is not in its layout, or the reader has no such option.
    """
    reader = _readers()[canonical_name(name)]
    known = _options(reader, Path(root).expanduser())
    for key in options:
        if key not in known:
            raise ValueError(unknown(f"the reader of {name} ({root}) has no option", key, known))
    return reader(root, **{key: typed(value, known[key], f"reader.{key}") for key, value in options.items()})


def _options(reader: Callable[..., Dataset], root: Path) -> dict[str, Any]:
    """Names and types of what a reader takes beside the root."""
    hints = typing.get_type_hints(reader)
    if reader is read_dataset and not (root.is_file() and root.suffix.lower() == ".json"):
        hints = typing.get_type_hints(read_folders if root.is_dir() else read_csv)
    first = next(iter(hints))
    return {key: hint for key, hint in hints.items() if key not in (first, "return")}


def canonical_name(name: str) -> str:
    """``esc50`` for ``ESC-50``; raises ValueError, with the nearest one, for a name that no collection has."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    key = ALIASES.get(key, key)
    if key not in _readers():
        near = difflib.get_close_matches(key, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no reader of a dataset {name!r}: {hint}There are {', '.join(names())}")
    return key


def names() -> list[str]:
    """What `read` knows, as it is written there (capitals and hyphens do not matter)."""
    return sorted(_readers())


def _readers() -> dict[str, Callable[..., Dataset]]:
    from . import (
        emotion,
        protocols,  # which read with what is defined below
    )

    return {
        "files": read_dataset,
        "esc50": read_esc50,
        "esc10": read_esc10,
        "urbansound8k": read_urbansound8k,
        "fsc": read_fluent_speech_commands,
        "gsc": read_speech_commands,
        "birdclef2022": read_birdclef,
        "fsdd": read_fsdd,
        "iemocap": emotion.read_iemocap,
        "mspimprov": emotion.read_msp_improv,
        "msppodcast": emotion.read_msp_podcast,
        "cremad": emotion.read_crema_d,
        "meld": emotion.read_meld,
        "ravdess": emotion.read_ravdess,
        "emodb": emotion.read_emodb,
        "peftserrelease": protocols.read_peft_ser_release,
    }


# --- sounds ---------------------------------------------------------------------------------------------------


def read_esc50(root: Root, esc10: bool = False) -> Dataset:
    """ESC-50 (Piczak, 2015): ``meta/esc50.csv`` and ``audio/``; five folds, clips of one source in one fold.

    With ``esc10``, only its ten classes of the ESC-10 subset.
    """
    root = _folder(root)
    clips = []
    for row in _rows(root / "meta" / "esc50.csv", "filename", "fold", "category", "esc10", "src_file"):
        if not esc10 or row["esc10"].lower() == "true":
            path = root / "audio" / row["filename"]
            clips.append(Clip(path, (row["category"],), fold=row["fold"], group=row["src_file"]))
    return dataset_of(clips, root)


def read_esc10(root: Root) -> Dataset:
    """ESC-10 as one folder per class with files ``<fold>-<source>-<take>.ogg``, or in the layout of ESC-50."""
    root = _folder(root)
    if (root / "meta" / "esc50.csv").is_file():
        return read_esc50(root, esc10=True)
    return read_folders(root, fold=r"^(\d+)-", group=r"^\d+-(\d+)")


def read_urbansound8k(root: Root) -> Dataset:
    """UrbanSound8K (Salamon et al., 2014): ``metadata/UrbanSound8K.csv`` and ``audio/fold1`` … ``fold10``.

    Several channels become their mean when they are decoded.
    """
    root = _folder(root)
    table = root / "metadata" / "UrbanSound8K.csv"
    clips = []
    for row in _rows(table, "slice_file_name", "fsID", "fold", "classID", "class"):
        path = root / "audio" / f"fold{row['fold']}" / row["slice_file_name"]
        clips.append((int(row["classID"]), Clip(path, (row["class"],), fold=row["fold"], group=row["fsID"])))
    by_id = dict(sorted((i, clip.labels[0]) for i, clip in clips))
    return dataset_of([clip for _, clip in clips], root, by_id.values())


def read_birdclef(root: Root, secondary: bool = False) -> Dataset:
    """BirdCLEF 2022: ``train_metadata.csv`` and ``train_audio/``; the label is the bird in the foreground.

    With ``secondary``, birds in the background are labels, too.
    """
    root = _folder(root)
    rows = list(_rows(root / "train_metadata.csv", "primary_label", "secondary_labels", "filename"))
    known = {row["primary_label"] for row in rows}
    clips = []
    for row in rows:
        more = re.findall(r"'([^']+)'", row["secondary_labels"]) if secondary else []
        labels = dict.fromkeys([row["primary_label"], *(name for name in more if name in known)])
        clips.append(Clip(root / "train_audio" / row["filename"], tuple(labels)))
    return dataset_of(clips, root)


# --- speech ---------------------------------------------------------------------------------------------------


def read_fluent_speech_commands(root: Root) -> Dataset:
    """Fluent Speech Commands: ``data/{train,valid,test}_data.csv``; the label is ``action+object+location``.

    31 of them occur (spec section 1.4). A speaker stands in one split only.
    """
    root = _folder(root)
    clips = []
    for split in ("train", "valid", "test"):
        table = root / "data" / f"{split}_data.csv"
        for row in _rows(table, "path", "speakerId", "action", "object", "location"):
            label = "+".join(row[part] for part in ("action", "object", "location"))
            clips.append(Clip(root / row["path"], (label,), split, group=row["speakerId"]))
    return dataset_of(clips, root)


def read_speech_commands(root: Root) -> Dataset:
    """Google Speech Commands V2: a folder per word, ``validation_list.txt`` and ``testing_list.txt``.

    What neither list names is training, in the order of names (spec section 1.4: in that of the file system,
    "the first K" would be other clips on every machine). ``_background_noise_`` is left out.
    """
    root = _folder(root)
    split_of: dict[str, str] = {}
    for split, file in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (root / file).is_file():
            raise FileNotFoundError(f"{root / file} is missing: it says which clips are for {split}")
        split_of |= {line.strip(): split for line in (root / file).read_text("utf-8").splitlines() if line.strip()}
    clips = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))):
        for path in sorted(folder.glob("*.wav")):
            name = f"{folder.name}/{path.name}"
            clips.append(Clip(path, (folder.name,), split_of.get(name, "train"), group=path.name.split("_")[0]))
    return dataset_of(clips, root)


def read_fsdd(root: Root, task: str = "digit") -> Dataset:
    """Free Spoken Digit Dataset: ``<digit>_<speaker>_<take>.wav``, in the folder or in ``recordings/``.

    ``task`` is ``digit``, with the speaker as the group, or ``speaker``, with the take in one of five folds.
    """
    root = _folder(root)
    if task not in ("digit", "speaker"):
        raise ValueError(f"task must be digit or speaker, not {task!r}")
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    clips = []
    for path in sorted(folder.glob("*.wav")):
        if match := re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem):
            digit, speaker, take = match.groups()
            clips.append(
                Clip(path, (digit,), group=speaker)
                if task == "digit"
                else Clip(path, (speaker,), fold=str(int(take) % 5 + 1))
            )
    return dataset_of(clips, root)


# --- shared -----------------------------------------------------------------------------------------------------


def dataset_of(clips: Iterable[Clip], root: Path, classes: Iterable[str] | None = None) -> Dataset:
    """A dataset of these clips, its classes sorted unless given; ValueError if there are none."""
    clips = tuple(clips)
    if not clips:
        raise ValueError(f"no recordings in {root}: is it the folder that the collection was unpacked to?")
    return Dataset(clips, tuple(classes) if classes is not None else _ordered({n for c in clips for n in c.labels}))


def _folder(root: Root) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return root


def _rows(path: Path, *needed: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV whose header must name ``needed``, its values stripped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the collection's own layout is wanted, as it was unpacked")
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in needed if name not in (reader.fieldnames or [])]:
            raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or [])}")
        for row in reader:
            yield {name: (row[name] or "").strip() for name in needed}

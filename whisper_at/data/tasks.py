"""Tasks of the linear evaluation: readers of music, language, speaker and pitch collections by their layouts.

Sounds, commands and emotions are read by `datasets`; `read_task` knows them all, and `SECONDS` the length that the
evaluation cuts clips of each to (spec section 4.4).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path

from . import datasets
from .clips import AUDIO_SUFFIXES, Clip, Dataset, read_csv
from .datasets import Root, dataset_of

SECONDS = {
    "urbansound8k": 4.0,
    "esc50": 5.0,
    "esc10": 5.0,
    "gsc": 1.0,
    "voxceleb1": 8.2,
    "voxforge": 5.8,
    "cremad": 2.5,
    "gtzan": 30.0,
    "nsynth": 4.0,
    "surge": 4.0,
    "fsd50k": 7.6358,
}
"""Unit length in seconds by the name of the collection."""


def read_task(name: str, root: Root, **options) -> Dataset:
    """Read a collection by name: those below, and all that `datasets.read` knows.

    Raises
    ------
    FileNotFoundError
        If ``root``, or a file that the layout needs, is not there.
    ValueError
        If there is no such collection, or what is there is not in its layout.
    """
    key = task_name(name)
    return READERS[key](root, **options) if key in READERS else datasets.read(key, root, **options)


def task_name(name: str) -> str:
    """``voxceleb1`` for ``VC1``, ``urbansound8k`` for ``US8K``; raises ValueError for a name that no collection has."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    key = {"vc1": "voxceleb1", "nspitch": "nsynth", "vf": "voxforge", "crmd": "cremad"}.get(key, key)
    if key in READERS:
        return key
    try:
        return datasets.canonical_name(key)
    except ValueError:
        known = sorted([*READERS, *datasets.names()])
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no task {name!r}: {hint}There are {', '.join(known)}") from None


def read_gtzan(root: Root) -> Dataset:
    """GTZAN (Tzanetakis & Cook, 2002): ``<genre>/<genre>.<number>.wav`` or ``.au``, perhaps in a folder ``genres``.

    With the fault-filtered lists ``train_filtered.txt``, ``valid_filtered.txt`` and ``test_filtered.txt`` (paths a
    line) beside, those are the splits, and what they leave out is left out.

    Raises
    ------
    FileNotFoundError
        If some of the lists are there and others not, or a clip that one names is not.
    """
    root = _folder(root)
    genres = root / "genres" if (root / "genres").is_dir() else root
    lists = {split: root / f"{split}_filtered.txt" for split in ("train", "valid", "test")}
    if not any(path.is_file() for path in lists.values()):
        files = [p for p in sorted(genres.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
        return dataset_of([Clip(path, (path.parent.name,)) for path in files], root)
    clips = []
    for split, path in lists.items():
        for line in _lines(path):
            file = _either(genres / line, genres / Path(line).with_suffix(".au"))
            clips.append(Clip(file, (line.split("/")[0],), split))
    return dataset_of(clips, root)


def read_nsynth(root: Root, label: str = "family") -> Dataset:
    """NSynth (Engel et al., 2017): ``nsynth-{train,valid,test}/examples.json`` and ``audio/*.wav``.

    ``label`` is ``family`` for the instrument's family, or ``pitch`` for the MIDI note.
    """
    if label not in ("family", "pitch"):
        raise ValueError(f"label must be family or pitch, not {label!r}")
    root = _folder(root)
    key = "instrument_family_str" if label == "family" else "pitch"
    clips = []
    for split in ("train", "valid", "test"):
        table = root / f"nsynth-{split}" / "examples.json"
        if not table.is_file():
            raise FileNotFoundError(f"{table} is missing; NSynth comes with one for train, valid and test")
        for name, facts in sorted(json.loads(table.read_text("utf-8")).items()):
            path = table.parent / "audio" / f"{name}.wav"
            clips.append(Clip(path, (str(facts[key]),), split, group=facts["instrument_str"]))
    return dataset_of(clips, root)


def read_voxforge(root: Root, table: Root | None = None) -> Dataset:
    """VoxForge: one folder a language with ``<user>-<date>-…/wav/*.wav`` in it; a user is a group.

    There are no splits then, and folds are cut that keep users together. ``table`` is a CSV ``file_name, label,
    split`` that fixes them, as the evaluation of the paper ships one.
    """
    if table is not None:
        return read_csv(table, root)
    root = _folder(root)
    clips = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in AUDIO_SUFFIXES and len(parts) > 1:
            user = parts[1].split("-")[0] if len(parts) > 2 else ""
            # every anonymous upload is somebody else's, as far as anybody knows
            group = parts[1] if user.lower().startswith("anonymous") else f"{parts[0]}/{user}"
            clips.append(Clip(path, (parts[0],), group=group if user else ""))
    return dataset_of(clips, root)


def read_voxceleb1(root: Root) -> Dataset:
    """VoxCeleb1 (Nagrani et al., 2017), speaker identification: ``iden_split.txt`` and the speakers' folders.

    Lines are ``<1, 2 or 3 for train, valid, test> <speaker>/<video>/<clip>.wav``; the folders lie in ``root``, or in
    ``wav``, ``dev/wav`` or ``test/wav`` there.
    """
    root = _folder(root)
    split_of = {"1": "train", "2": "valid", "3": "test"}
    places = [place for place in (root, root / "wav", root / "dev" / "wav", root / "test" / "wav") if place.is_dir()]
    clips = []
    for line in _lines(root / "iden_split.txt"):
        number, _, name = line.partition(" ")
        if number not in split_of or not name:
            raise ValueError(f"{root / 'iden_split.txt'}: {line!r} is not a split, 1 to 3, and a file")
        path = _either(*(place / name.strip() for place in places))
        clips.append(Clip(path, (path.parts[-3],), split_of[number], group=path.parts[-2]))
    return dataset_of(clips, root)


def read_surge(root: Root, table: Root | None = None) -> Dataset:
    """Surge pitch: one folder a patch of the synthesizer, with a recording of each note named by its MIDI number.

    A patch is a group, so that folds keep it together; ``table`` is a CSV ``file_name, label, split`` that fixes
    splits, as the evaluation of the paper ships one.
    """
    if table is not None:
        return read_csv(table, root)
    root = _folder(root)
    clips = []
    for path in sorted(root.rglob("*")):
        note = re.fullmatch(r"(?:.*\D)?(\d{1,3})", path.stem)
        if path.suffix.lower() in AUDIO_SUFFIXES and note and int(note[1]) < 128:
            clips.append(Clip(path, (str(int(note[1])),), group=str(path.parent.relative_to(root))))
    return dataset_of(clips, root)


def read_fsd50k(root: Root) -> Dataset:
    """FSD50K (Fonseca et al., 2022): ``FSD50K.ground_truth/{dev,eval,vocabulary}.csv`` and the folders of audio.

    Several labels a clip, scored by mean average precision; ``val`` of dev.csv validates, eval.csv tests. The classes
    stand in the order of vocabulary.csv.
    """
    root = _folder(root)
    truth = root / "FSD50K.ground_truth"
    classes = [line.split(",")[1] for line in _lines(truth / "vocabulary.csv")]
    clips = []
    for part in ("dev", "eval"):
        columns = ("fname", "labels", "split") if part == "dev" else ("fname", "labels")
        for row in datasets._rows(truth / f"{part}.csv", *columns):
            split = "test" if part == "eval" else {"train": "train", "val": "valid"}[row["split"]]
            path = root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            clips.append(Clip(path, tuple(row["labels"].split(",")), split))
    return dataset_of(clips, root, classes)


READERS: dict[str, Callable[..., Dataset]] = {
    "gtzan": read_gtzan,
    "nsynth": read_nsynth,
    "voxforge": read_voxforge,
    "voxceleb1": read_voxceleb1,
    "surge": read_surge,
    "fsd50k": read_fsd50k,
}


def _folder(root: Root) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return root


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the collection's own layout is wanted, as it was unpacked")
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _either(*paths: Path) -> Path:
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no such recording: {paths[0]}")

"""Readers of data sets of music: genres, instruments and notes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .clips import AUDIO_SUFFIXES, Clip, Dataset
from .files import StrPath, check_file, check_folder, first_file, make_dataset, read_lines
from .readers import read_csv


def read_gtzan(root: StrPath) -> Dataset:
    """Read GTZAN (Tzanetakis & Cook, 2002): ``<genre>/<genre>.<number>.wav`` or ``.au``, there or in ``genres/``.

    The fault-filtered lists ``{train,valid,test}_filtered.txt``, one path per line, define splits if they are in
    ``root``; clips in none of them are left out.
    """
    root = check_folder(root)
    genres = root / "genres" if (root / "genres").is_dir() else root
    lists = {split: root / f"{split}_filtered.txt" for split in ("train", "valid", "test")}
    if not any(path.is_file() for path in lists.values()):
        files = [p for p in sorted(genres.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
        return make_dataset([Clip(path, (path.parent.name,)) for path in files], root)
    clips = []
    for split, path in lists.items():
        for line in read_lines(path):
            file = first_file(genres / line, genres / Path(line).with_suffix(".au"))
            clips.append(Clip(file, (line.split("/")[0],), split))
    return make_dataset(clips, root)


def read_nsynth(root: StrPath, label: str = "family") -> Dataset:
    """Read NSynth (Engel et al., 2017): ``nsynth-{train,valid,test}/examples.json`` and ``audio/*.wav``.

    ``label`` is ``family`` for the instrument family or ``pitch`` for the MIDI note; the group is the instrument.
    """
    if label not in ("family", "pitch"):
        raise ValueError(f"label must be family or pitch, not {label!r}")
    root = check_folder(root)
    key = "instrument_family_str" if label == "family" else "pitch"
    clips = []
    for split in ("train", "valid", "test"):
        table = check_file(root / f"nsynth-{split}" / "examples.json")
        for name, note in sorted(json.loads(table.read_text("utf-8")).items()):
            path = table.parent / "audio" / f"{name}.wav"
            clips.append(Clip(path, (str(note[key]),), split, group=note["instrument_str"]))
    return make_dataset(clips, root)


def read_surge(root: StrPath, table: StrPath | None = None) -> Dataset:
    """Read Surge pitch: one folder per patch of the synthesizer, a file per note, named by its MIDI number.

    The group is the patch. The data set has no splits; ``table`` is a CSV ``file_name, label, split`` that defines
    them.
    """
    if table is not None:
        return read_csv(table, root)
    root = check_folder(root)
    clips = []
    for path in sorted(root.rglob("*")):
        note = re.fullmatch(r"(?:.*\D)?(\d{1,3})", path.stem)
        if path.suffix.lower() in AUDIO_SUFFIXES and note and int(note[1]) < 128:
            clips.append(Clip(path, (str(int(note[1])),), group=str(path.parent.relative_to(root))))
    return make_dataset(clips, root)

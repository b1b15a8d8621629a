"""Readers of data sets of spoken commands, digits, languages and speakers."""

from __future__ import annotations

import re

from .clips import AUDIO_SUFFIXES, Clip, Dataset
from .files import StrPath, check_folder, first_file, make_dataset, read_lines, read_rows
from .readers import read_csv


def read_fluent_speech_commands(root: StrPath) -> Dataset:
    """Fluent Speech Commands: ``data/{train,valid,test}_data.csv``; the label is ``action+object+location``.

    31 of them occur (spec section 1.4). A speaker stands in one split only.
    """
    root = check_folder(root)
    clips = []
    for split in ("train", "valid", "test"):
        table = root / "data" / f"{split}_data.csv"
        for row in read_rows(table, "path", "speakerId", "action", "object", "location"):
            label = "+".join(row[part] for part in ("action", "object", "location"))
            clips.append(Clip(root / row["path"], (label,), split, group=row["speakerId"]))
    return make_dataset(clips, root)


def read_speech_commands(root: StrPath) -> Dataset:
    """Google Speech Commands V2: a folder per word, ``validation_list.txt`` and ``testing_list.txt``.

    What neither list names is training, in the order of names (spec section 1.4: in that of the file system,
    "the first K" would be other clips on every machine). ``_background_noise_`` is left out.
    """
    root = check_folder(root)
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
    return make_dataset(clips, root)


def read_fsdd(root: StrPath, task: str = "digit") -> Dataset:
    """Free Spoken Digit Dataset: ``<digit>_<speaker>_<take>.wav``, in the folder or in ``recordings/``.

    ``task`` is ``digit``, with the speaker as the group, or ``speaker``, with the take in one of five folds.
    """
    root = check_folder(root)
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
    return make_dataset(clips, root)


def read_voxforge(root: StrPath, table: StrPath | None = None) -> Dataset:
    """VoxForge: one folder a language with ``<user>-<date>-…/wav/*.wav`` in it; a user is a group.

    There are no splits then, and folds are cut that keep users together. ``table`` is a CSV ``file_name, label,
    split`` that fixes them, as the evaluation of the paper ships one.
    """
    if table is not None:
        return read_csv(table, root)
    root = check_folder(root)
    clips = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in AUDIO_SUFFIXES and len(parts) > 1:
            user = parts[1].split("-")[0] if len(parts) > 2 else ""
            # every anonymous upload is somebody else's, as far as anybody knows
            group = parts[1] if user.lower().startswith("anonymous") else f"{parts[0]}/{user}"
            clips.append(Clip(path, (parts[0],), group=group if user else ""))
    return make_dataset(clips, root)


def read_voxceleb1(root: StrPath) -> Dataset:
    """VoxCeleb1 (Nagrani et al., 2017), speaker identification: ``iden_split.txt`` and the speakers' folders.

    Lines are ``<1, 2 or 3 for train, valid, test> <speaker>/<video>/<clip>.wav``; the folders lie in ``root``, or in
    ``wav``, ``dev/wav`` or ``test/wav`` there.
    """
    root = check_folder(root)
    split_of = {"1": "train", "2": "valid", "3": "test"}
    places = [place for place in (root, root / "wav", root / "dev" / "wav", root / "test" / "wav") if place.is_dir()]
    clips = []
    for line in read_lines(root / "iden_split.txt"):
        number, _, name = line.partition(" ")
        if number not in split_of or not name:
            raise ValueError(f"{root / 'iden_split.txt'}: {line!r} is not a split, 1 to 3, and a file")
        path = first_file(*(place / name.strip() for place in places))
        clips.append(Clip(path, (path.parts[-3],), split_of[number], group=path.parts[-2]))
    return make_dataset(clips, root)

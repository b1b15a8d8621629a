"""Readers of data sets of spoken commands, digits, languages and speakers."""

from __future__ import annotations

import re

from .clips import AUDIO_SUFFIXES, Clip, Dataset
from .files import StrPath, check_folder, first_file, make_dataset, read_lines, read_rows
from .readers import read_csv


def read_fluent_speech_commands(root: StrPath) -> Dataset:
    """Read Fluent Speech Commands: ``data/{train,valid,test}_data.csv``; labels are ``action+object+location``.

    There are 31 such labels (spec section 1.4); each speaker is in one split only.
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
    """Read Google Speech Commands V2: a folder per word, ``validation_list.txt`` and ``testing_list.txt``.

    Clips in neither list are for training. They are sorted, so that the first k clips are the same on every machine
    (spec section 1.4). ``_background_noise_`` is left out.
    """
    root = check_folder(root)
    split_of: dict[str, str] = {}
    for split, file in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        split_of |= dict.fromkeys(read_lines(root / file), split)
    clips = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(("_", "."))):
        for path in sorted(folder.glob("*.wav")):
            name = f"{folder.name}/{path.name}"
            clips.append(Clip(path, (folder.name,), split_of.get(name, "train"), group=path.name.split("_")[0]))
    return make_dataset(clips, root)


def read_fsdd(root: StrPath, task: str = "digit") -> Dataset:
    """Read the Free Spoken Digit Dataset: ``<digit>_<speaker>_<take>.wav``, in the folder or in ``recordings/``.

    With the task ``digit`` the label is the digit and the group is the speaker; with ``speaker`` the label is the
    speaker, and takes are divided into five folds.
    """
    root = check_folder(root)
    if task not in ("digit", "speaker"):
        raise ValueError(f"task must be digit or speaker, not {task!r}")
    folder = root / "recordings" if (root / "recordings").is_dir() else root
    clips = []
    for path in sorted(folder.glob("*.wav")):
        if match := re.fullmatch(r"(\d)_([a-z]+)_(\d+)", path.stem):
            digit, speaker, take = match.groups()
            if task == "digit":
                clips.append(Clip(path, (digit,), group=speaker))
            else:
                clips.append(Clip(path, (speaker,), fold=str(int(take) % 5 + 1)))
    return make_dataset(clips, root)


def read_voxforge(root: StrPath, table: StrPath | None = None) -> Dataset:
    """Read VoxForge, language identification: ``<language>/<user>-<date>-…/wav/*.wav``; the group is the user.

    The data set has no splits; ``table`` is a CSV ``file_name, label, split`` that defines them.
    """
    if table is not None:
        return read_csv(table, root)
    root = check_folder(root)
    clips = []
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.suffix.lower() in AUDIO_SUFFIXES and len(parts) > 1:
            user = parts[1].split("-")[0] if len(parts) > 2 else ""
            # anonymous uploads may be by different users
            group = parts[1] if user.lower().startswith("anonymous") else f"{parts[0]}/{user}"
            clips.append(Clip(path, (parts[0],), group=group if user else ""))
    return make_dataset(clips, root)


def read_voxceleb1(root: StrPath) -> Dataset:
    """Read VoxCeleb1 (Nagrani et al., 2017), speaker identification: ``iden_split.txt`` and a folder per speaker.

    Lines are ``<split> <speaker>/<video>/<clip>.wav``, the split being 1, 2 or 3 for training, validation and test.
    The folders are in ``root`` or in its subfolders ``wav``, ``dev/wav`` and ``test/wav``. The group is the video.
    """
    root = check_folder(root)
    split_of = {"1": "train", "2": "valid", "3": "test"}
    folders = (root, root / "wav", root / "dev" / "wav", root / "test" / "wav")
    clips = []
    for line in read_lines(root / "iden_split.txt"):
        number, _, name = line.partition(" ")
        if number not in split_of or not name:
            raise ValueError(f"{root / 'iden_split.txt'}: {line!r} is not a split, 1 to 3, and a file")
        path = first_file(*(folder / name.strip() for folder in folders))
        clips.append(Clip(path, (path.parts[-3],), split_of[number], group=path.parts[-2]))
    return make_dataset(clips, root)

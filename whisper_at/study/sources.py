"""What the study listens to: sentences with their words, and clips of noise by class."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..audio import SAMPLE_RATE, load_audio
from ..data.clips import Clip, Dataset
from ..data.readers import read_csv, read_folders

Load = Callable[[], np.ndarray]
"""Gives float32 ``(samples,)`` at 16 kHz."""


class Utterance(NamedTuple):
    """Speech with its words; ``name`` is its own among those of a study."""

    name: str
    text: str
    load: Load


def read_librispeech(folder: str | os.PathLike[str], count: int | None = None, spread: bool = False) -> list[Utterance]:
    """Sentences of a LibriSpeech folder (``*.flac``, and ``*.trans.txt`` with their words), in the order of names.

    Parameters
    ----------
    count : the first so many, as in the paper, which are of very few speakers; None for all
    spread : take them at even distances over the whole list instead

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no transcripts, lacks a recording, or has fewer sentences than ``count``.
    """
    root = _folder(folder)
    lines: dict[Path, str] = {}
    for transcript in sorted(root.rglob("*.trans.txt")):
        for line in transcript.read_text("utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                lines[transcript.parent / f"{name}.flac"] = text
    if not lines:
        raise ValueError(f"{root} holds no *.trans.txt: it is no LibriSpeech")
    if missing := [path for path in lines if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} such), though its words are there")
    paths = _choose(sorted(lines, key=lambda path: path.stem), count, spread, root)
    return [Utterance(path.stem, lines[path], _loader(path)) for path in paths]


def read_digit_strings(
    folder: str | os.PathLike[str],
    count: int,
    takes: tuple[int, int] = (0, 49),
    digits: tuple[int, int] = (4, 8),
    gap: tuple[float, float] = (0.05, 0.3),
    seed: int = 0,
) -> list[Utterance]:
    """Strings of spoken digits of the Free Spoken Digit Dataset (``<digit>_<speaker>_<take>.wav``).

    Each is of one speaker; speakers take turns. The words are digits, ``"3 1 4"``. The same arguments give the same
    strings, and a greater ``count`` begins with those of a smaller one.

    Parameters
    ----------
    takes : first and last take to use; nano.en was not trained on 45 to 49
    digits : least and most digits in a string
    gap : least and most seconds between two

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or no such takes in it.
    """
    root = _folder(folder)
    by_speaker: dict[str, dict[int, list[Path]]] = {}
    for path in sorted(root.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+?)_(\d+)", path.stem)
        if match and takes[0] <= int(match[3]) <= takes[1]:
            by_speaker.setdefault(match[2], {}).setdefault(int(match[1]), []).append(path)
    if not by_speaker:
        raise ValueError(f"{root} holds no takes {takes[0]} to {takes[1]}: it wants <digit>_<speaker>_<take>.wav")
    speakers = sorted(by_speaker)
    out = []
    for i in range(count):
        speaker = speakers[i % len(speakers)]
        r = random.Random(f"{seed} {i}")
        said = r.choices(sorted(by_speaker[speaker]), k=r.randint(*digits))
        paths = [r.choice(by_speaker[speaker][digit]) for digit in said]
        gaps = [r.uniform(*gap) for _ in said[1:]]
        name = f"{i:03d}-{speaker}-{''.join(map(str, said))}"
        out.append(Utterance(name, " ".join(map(str, said)), _joiner(paths, gaps)))
    return out


def read_sounds(folder: str | os.PathLike[str], only: str | None = None) -> Dataset:
    """Sounds by class: ESC-50 (``audio/`` and ``meta/esc50.csv``), or a folder of classes' folders.

    Folds are the table's or, where the names of all files begin like ESC-50's (``1-100032-…``), the first digit.

    Parameters
    ----------
    only : regular expression; only clips whose file name it matches are kept

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such folder, or nothing in it.
    """
    root = _folder(folder)
    table = root / "meta" / "esc50.csv"
    if table.is_file():
        found = read_csv(table, root / "audio")
    else:
        found = read_folders(root)
        if all(re.match(r"\d-\d+-", clip.path.name) for clip in found.clips):
            found = read_folders(root, fold=r"^(\d)-", group=r"^\d-(\d+)-")
    if only is not None:
        try:
            pattern = re.compile(only)
        except re.error as error:
            raise ValueError(f"{only!r} is no regular expression: {error}") from None
        found = found.filter(lambda clip: pattern.match(clip.path.name) is not None)
        if not found.clips:
            shown = only if len(only) < 60 else f"{only[:57]}…"
            raise ValueError(f"no file in {root} has a name that begins with {shown!r}")
    return found


def noises_of(sounds: Dataset) -> dict[str, list[Clip]]:
    """The clips of each class, sorted by name: the pairing with sentences must not hang on the order of a disk."""
    found = {
        name: sorted((clip for clip in sounds.clips if name in clip.labels), key=lambda clip: clip.path.name)
        for name in sorted(sounds.classes)
    }
    if empty := [name for name, clips in found.items() if not clips]:
        raise ValueError(f"class {empty[0]!r} has no clips ({len(empty)} such): nothing to mix with")
    return found


def _folder(folder: str | os.PathLike[str]) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no such folder: {root}")
    return root


def _choose(paths: Sequence[Path], count: int | None, spread: bool, root: Path) -> Sequence[Path]:
    if count is None:
        return paths
    if count > len(paths):
        raise ValueError(f"{root} has {len(paths)} sentences, fewer than the {count} that are wanted")
    return [paths[i * len(paths) // count] for i in range(count)] if spread else paths[:count]


def _loader(path: Path) -> Load:
    return cache(lambda: load_audio(path))  # a sentence is mixed with many noises


def _joiner(paths: Sequence[Path], gaps: Sequence[float]) -> Load:
    @cache
    def load() -> np.ndarray:
        pieces = [load_audio(paths[0])]
        for path, gap in zip(paths[1:], gaps):
            pieces += [np.zeros(round(gap * SAMPLE_RATE), np.float32), load_audio(path)]
        return np.concatenate(pieces)

    return load

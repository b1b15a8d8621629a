"""Readers of transcribed speech: LibriSpeech, a table, and strings of spoken digits."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..audio import SAMPLE_RATE, load_audio
from .files import StrPath, check_folder, read_rows


class Utterance(NamedTuple):
    """Transcribed speech.

    Attributes
    ----------
    name : str
        Unique identifier.
    text : str
        Reference transcript.
    load : callable
        Returns the audio, float32 ``(samples,)`` at 16 kHz.
    """

    name: str
    text: str
    load: Callable[[], np.ndarray]


def read_librispeech(folder: StrPath, count: int | None = None, spread: bool = False) -> list[Utterance]:
    """Read utterances of a LibriSpeech folder (``*.flac`` and ``*.trans.txt``), sorted by name.

    Parameters
    ----------
    folder : path
        A subset, such as ``LibriSpeech/test-clean``.
    count : int, optional
        Number of utterances; all by default.
    spread : bool
        Take them at even distances from the sorted list. The first ``count``, as in the paper, are by few speakers.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds no transcripts, lacks a recording, or has fewer than ``count`` utterances.
    """
    root = check_folder(folder)
    text_of: dict[Path, str] = {}
    for transcript in sorted(root.rglob("*.trans.txt")):
        for line in transcript.read_text("utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                text_of[transcript.parent / f"{name}.flac"] = text
    if not text_of:
        raise ValueError(f"{root} is not a LibriSpeech folder: it holds no *.trans.txt")
    return _select(text_of, root, count, spread)


def read_transcripts(
    path: StrPath, count: int | None = None, spread: bool = False, max_seconds: float | None = None
) -> list[Utterance]:
    """Read the utterances of a CSV with the columns ``file``, relative to the table, and ``text``, sorted by name.

    Parameters
    ----------
    path : path
        The table.
    count, spread
        As of `read_librispeech`.
    max_seconds : float, optional
        Leave longer utterances out, by the column ``seconds``.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError
        If there is no such table.
    ValueError
        If a column or a recording is missing, or there are fewer than ``count`` utterances.
    """
    table = Path(path).expanduser()
    columns = ("file", "text") if max_seconds is None else ("file", "text", "seconds")
    text_of = {
        table.parent / row["file"]: row["text"]
        for row in read_rows(table, *columns)
        if row["text"].strip() and (max_seconds is None or float(row["seconds"]) <= max_seconds)
    }
    return _select(text_of, table, count, spread)


def _select(text_of: Mapping[Path, str], source: Path, count: int | None, spread: bool) -> list[Utterance]:
    """Return ``count`` utterances, the first by name or at even distances."""
    if missing := [path for path in text_of if not path.is_file()]:
        raise ValueError(f"{missing[0]} is missing ({len(missing)} such), though it has a transcript")
    paths = sorted(text_of, key=lambda path: path.stem)
    if count is not None:
        if count > len(paths):
            raise ValueError(f"{source} has {len(paths)} sentences, fewer than the requested {count}")
        paths = [paths[i * len(paths) // count] for i in range(count)] if spread else paths[:count]
    return [Utterance(path.stem, text_of[path], _cached_audio([path])) for path in paths]


def read_digit_strings(
    folder: StrPath,
    count: int,
    takes: tuple[int, int] = (0, 49),
    digits: tuple[int, int] = (4, 8),
    gap: tuple[float, float] = (0.05, 0.3),
    seed: int = 0,
) -> list[Utterance]:
    """Join recordings of the Free Spoken Digit Dataset (``<digit>_<speaker>_<take>.wav``) to strings of digits.

    Each string is of one speaker; speakers alternate. The transcript is ``"3 1 4"``. A larger ``count`` only adds
    strings: the first ones stay the same.

    Parameters
    ----------
    folder : path
        Folder of the recordings.
    count : int
        Number of strings.
    takes : (int, int)
        First and last take to use; 45 to 49 are not in the training data of nano.en.
    digits : (int, int)
        Minimum and maximum number of digits in a string.
    gap : (float, float)
        Minimum and maximum pause between digits, in seconds.
    seed : int
        Seed of all random choices.

    Returns
    -------
    list of Utterance

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it holds none of the takes.
    """
    root = check_folder(folder)
    recordings: dict[str, dict[int, list[Path]]] = {}  # by speaker and digit
    for path in sorted(root.glob("*.wav")):
        match = re.fullmatch(r"(\d)_(\w+?)_(\d+)", path.stem)
        if match and takes[0] <= int(match[3]) <= takes[1]:
            recordings.setdefault(match[2], {}).setdefault(int(match[1]), []).append(path)
    if not recordings:
        raise ValueError(f"{root} has no takes {takes[0]} to {takes[1]}: files must be <digit>_<speaker>_<take>.wav")
    speakers = sorted(recordings)
    utterances = []
    for i in range(count):
        speaker = speakers[i % len(speakers)]
        rng = random.Random(f"{seed} {i}")
        string = rng.choices(sorted(recordings[speaker]), k=rng.randint(*digits))
        paths = [rng.choice(recordings[speaker][digit]) for digit in string]
        gaps = [rng.uniform(*gap) for _ in string[1:]]
        name = f"{i:03d}-{speaker}-{''.join(map(str, string))}"
        utterances.append(Utterance(name, " ".join(map(str, string)), _cached_audio(paths, gaps)))
    return utterances


def _cached_audio(paths: Sequence[Path], gaps: Sequence[float] = ()) -> Callable[[], np.ndarray]:
    """Return a function that loads files, joined with gaps in seconds, once and keeps the result."""

    @cache
    def load() -> np.ndarray:
        pieces = [load_audio(paths[0])]
        for path, gap in zip(paths[1:], gaps):
            pieces += [np.zeros(round(gap * SAMPLE_RATE), np.float32), load_audio(path)]
        return np.concatenate(pieces)

    return load

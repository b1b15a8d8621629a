"""Targets from a teacher: what a tagger that exists says of recordings that nobody has labelled.

The recordings are cut into clips of ten seconds. A head that learns a teacher's probabilities instead of labels
(distillation: Hinton et al., "Distilling the knowledge in a neural network", 2015) needs no labelled data.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
import wave
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from ..audio import SAMPLE_RATE, stream_audio
from ..checkpoints.files import size_and_mtime, temporary_beside
from ..data.clips import AUDIO_SUFFIXES, Clip, Dataset
from ..features.encode import describe_features
from ..features.extract import extract_features
from ..features.store import Features
from ..tagging.classes import ClassSet
from ..tagging.heads import Head
from ..tagging.labels import audioset_classes
from .recipe import compute_logits

if TYPE_CHECKING:
    from ..model import WhisperAT

CLIP_SECONDS = 10.0
MIN_SECONDS = 1.0
"""A rest at the end of a recording that is shorter is left out."""
TABLE_COLUMNS = ("file", "start", "end")
"""Columns of a teacher's table before those of its classes; the last two may be absent."""


def cut_recordings(
    source: Path, folder: Path, progress: bool = False, warn: Callable[[str], object] = lambda line: None
) -> tuple[Clip, ...]:
    """Cut every recording in a folder, at any depth, into clips of ten seconds.

    Parameters
    ----------
    source : Path
        Folder of recordings.
    folder : Path
        Where the clips are kept, 16 kHz WAV; a recording that was cut before, and has not changed, is not read again.
    progress : bool
        Whether to show a progress bar.
    warn : callable
        Takes a line on each file that cannot be read; the others go on.

    Returns
    -------
    tuple of Clip
        Without labels; the group of each is the path of its recording.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If no recording in it can be read.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no such folder: {source}; --teacher takes a folder of recordings as data")
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    clips: list[Clip] = []
    for path in tqdm(files, unit="file", desc="cut", disable=not progress):
        size, mtime = size_and_mtime(path)
        identity = hashlib.sha256(f"{path.resolve()} {size} {mtime}".encode()).hexdigest()[:12]
        target = folder / f"{path.stem[:60]}-{identity}"
        try:
            if not target.is_dir():
                _cut(path, target)
        except (RuntimeError, OSError) as error:
            warn(f"{path} is left out: {str(error).partition(chr(10))[0]}")
            continue
        clips += [Clip(part, (), group=str(path)) for part in sorted(target.glob("*.wav"))]
    if not clips:
        raise ValueError(f"{source} holds no recording of {MIN_SECONDS:g} s or more that can be read")
    return tuple(clips)


def _cut(path: Path, target: Path) -> None:
    """Write the clips of a recording to a folder, which gets its name once they are complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    temporary.mkdir()
    try:
        for i, samples in enumerate(stream_audio(path, seconds=CLIP_SECONDS)):
            if len(samples) >= MIN_SECONDS * SAMPLE_RATE:
                with wave.open(str(temporary / f"{i:06}.wav"), "wb") as file:
                    file.setnchannels(1)
                    file.setsampwidth(2)
                    file.setframerate(SAMPLE_RATE)
                    file.writeframes(np.round(samples * 32768).astype("<i2").tobytes())
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def teach_by_model(
    model: WhisperAT,
    name: str,
    clips: Sequence[Clip],
    folder: Path,
    workers: int = 0,
    progress: bool = False,
    log: Callable[[str], object] = lambda line: None,
) -> tuple[ClassSet, np.ndarray]:
    """Return the classes of a model's head, and their probabilities for clips.

    Parameters
    ----------
    model : WhisperAT
        With exactly one head.
    name : str
        Its name.
    clips : sequence of Clip
        What to tag.
    folder : Path
        Where the teacher's features are kept.
    workers, progress, log
        As of `extract_features`.

    Returns
    -------
    classes : ClassSet
        The head's.
    targets : ndarray, shape (clips, classes)
        float32 probabilities, calibrated if the head is; NaN for classes that it does not know, and for clips that
        could not be encoded.

    Raises
    ------
    ValueError
        If the model has no head, several, or one that does not read its encoder's states.
    """
    if len(model.heads) != 1:
        heads = ", ".join(model.heads) or f"none ({model.head_missing})"
        raise ValueError(f"a teacher has one head, but {name} has {heads}: choose one with --teacher_head")
    (head,) = model.heads.values()
    if not isinstance(head, Head) or head.classes is None:
        raise ValueError(f"the head of {name} does not read pooled states, so it cannot teach: give its table")
    published = head.classes == audioset_classes()  # Whisper-AT's were trained on clips of 10 s alone
    metadata = describe_features(name, model, "10" if published else "30")
    extract_features(clips, folder, model, metadata, workers=workers, progress=progress, log=log)
    features = Features.open(folder)
    found = features.find(clips)
    targets = np.full((len(clips), len(head.classes)), np.nan, np.float32)
    logits = compute_logits(head, features, found[found >= 0], max_steps=25)
    targets[found >= 0] = head.classes.probabilities(head.classes.mask(torch.from_numpy(logits))).numpy()
    return head.classes, targets


def teach_by_table(path: Path, clips: Sequence[Clip], source: Path) -> tuple[ClassSet, np.ndarray]:
    """Return the classes of a table of another tagger, and their probabilities for clips.

    Parameters
    ----------
    path : Path
        CSV with a column ``file`` (a path relative to the recordings' folder, or a name), ``start`` and ``end`` in
        seconds for rows of a recording (absent: the whole file), and a column of probabilities for each class. If all
        names are AudioSet's, or MIDs, the classes are AudioSet's 527, of which the table's are known.
    clips : sequence of Clip
        What `cut_recordings` returned.
    source : Path
        Folder of the recordings.

    Returns
    -------
    classes : ClassSet
        The table's classes.
    targets : ndarray, shape (clips, classes)
        float32: the mean of the rows that a clip overlaps, by how much; NaN where there is none.

    Raises
    ------
    ValueError
        If a column is missing, a value is no probability, or no clip has a row.
    """
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name not in TABLE_COLUMNS]
        if "file" not in (reader.fieldnames or ()) or not names:
            raise ValueError(f"{path} needs a column file and a column for each class; it has {reader.fieldnames}")
        rows: dict[str, list[tuple[float, float, list[float]]]] = {}
        for line in reader:
            try:
                values = [float(line[name]) for name in names]
                start, end = float(line.get("start") or 0), float(line.get("end") or np.inf)
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {reader.line_num}: not numbers") from None
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{path}, line {reader.line_num}: probabilities lie between 0 and 1")
            rows.setdefault(line["file"], []).append((start, end, values))
    targets = np.full((len(clips), len(names)), np.nan, np.float32)
    for i, clip in enumerate(clips):
        first = int(clip.path.stem) * CLIP_SECONDS
        recording = Path(clip.group)
        names_of_recording = (str(recording), recording.relative_to(source).as_posix(), recording.name, recording.stem)
        found = next((rows[name] for name in names_of_recording if name in rows), [])
        overlaps = np.array([min(end, first + CLIP_SECONDS) - max(start, first) for start, end, _ in found])
        if (overlaps > 0).any():
            overlapping = np.array([values for *_, values in found])[overlaps > 0]
            targets[i] = np.average(overlapping, axis=0, weights=overlaps[overlaps > 0])
    if np.isnan(targets).all():
        raise ValueError(f"{path} has no row for any of the {len(clips)} clips: are its files named as in {source}?")
    return _as_audioset(names, targets)


def _as_audioset(names: Sequence[str], targets: np.ndarray) -> tuple[ClassSet, np.ndarray]:
    """Return classes and targets of AudioSet's 527, if all names are of these; else as they are."""
    classes = audioset_classes()
    try:
        indices = classes.indices(list(names))
    except ValueError:
        return ClassSet(tuple(names)), targets
    out = np.full((len(targets), len(classes)), np.nan, np.float32)
    out[:, indices] = targets
    return classes, out


def taught_dataset(clips: Sequence[Clip], classes: ClassSet, targets: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """Return clips labelled with what a teacher is rather sure of, and their targets; of clips it said something of.

    Raises
    ------
    ValueError
        If it was sure of nothing.
    """
    kept = np.flatnonzero(np.isfinite(targets).any(1)).tolist()
    thresholds = 0.5 if classes.thresholds is None else np.minimum(np.array(classes.thresholds), 1.0)
    sure = targets[kept] >= thresholds
    if not sure.any():
        raise ValueError("the teacher is sure of no class in these recordings: are they what it was made for?")
    labels = [tuple(classes.names[j] for j in np.flatnonzero(row)) for row in sure]
    labelled = tuple(replace(clips[i], labels=names) for i, names in zip(kept, labels))
    return Dataset(labelled, classes.names), targets[kept]

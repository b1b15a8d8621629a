"""All recordings decoded to one array, with their levels and what is heard in every step of 0.4 s."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from whisper_at.audio import load_audio
from whisper_at.tagging.labels import N_CLASSES, ancestors

from .sources import Recording, all_recordings
from .teacher import HOP, Yamnet

RATE = 16_000
MAX_SECONDS = 90
FULL_SCALE = 32767.0
AUDIBLE = 30.0
"""A labelled sound is audible in the steps that are at most this many dB below its loudest."""
TEACHER_LOW, TEACHER_HIGH = 0.08, 0.6
"""YAMNet's scores of 0 and of 1 as targets: it is sure long before its score is 1."""


@dataclass(frozen=True)
class Item:
    """A recording in the pool: where its samples and steps lie, and what is known about it."""

    path: str
    source: str
    group: str
    labels: tuple[int, ...]
    held_out: bool
    start: int
    samples: int
    first_step: int

    @property
    def steps(self) -> int:
        """Number of steps that it touches."""
        return max(1, -(-self.samples // HOP))


class Pool:
    """Recordings in memory.

    Parameters
    ----------
    folder : Path
        Folder that `build` wrote.
    """

    def __init__(self, folder: Path) -> None:
        rows = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        self.items = [Item(**{**row, "labels": tuple(row["labels"])}) for row in rows]
        self._samples = np.load(folder / "samples.npy", mmap_mode="r")
        self._scores = np.load(folder / "scores.npy", mmap_mode="r")

    def audio(self, item: Item) -> np.ndarray:
        """Return the samples of a recording, float32 from -1 to 1."""
        return self._samples[item.start : item.start + item.samples].astype(np.float32) / FULL_SCALE

    def targets(self, item: Item) -> np.ndarray:
        """Return how surely each class is heard in each step of a recording, float32 of shape (steps, 527).

        What its labels say holds where it is loud; for other classes, what the teacher hears.
        """
        scores = self._scores[item.first_step : item.first_step + item.steps].astype(np.float32) / 255
        targets = with_parents(np.clip((scores - TEACHER_LOW) / (TEACHER_HIGH - TEACHER_LOW), 0, 1))
        if item.labels:
            levels = step_levels(self.audio(item))
            loud = levels > max(levels.max() - AUDIBLE, -70)
            targets[np.ix_(loud, np.array(item.labels))] = 1.0
        return targets

    @cached_property
    def by_class(self) -> dict[int, list[int]]:
        """Class → indices of the recordings that are labelled with it."""
        out: dict[int, list[int]] = {}
        for i, item in enumerate(self.items):
            for label in item.labels:
                out.setdefault(label, []).append(i)
        return out


def step_levels(audio: np.ndarray) -> np.ndarray:
    """Return the level of every step in dB of full scale, float32 of shape (steps,)."""
    padded = np.pad(audio, (0, -len(audio) % HOP)).reshape(-1, HOP).astype(np.float64)
    return 10 * np.log10((padded**2).mean(1) + 1e-12)


def with_parents(targets: np.ndarray) -> np.ndarray:
    """Raise the targets of classes to those of the classes that they contain, in place; shape (steps, 527)."""
    for child in range(N_CLASSES):
        for parent in ancestors(child):
            np.maximum(targets[:, parent], targets[:, child], out=targets[:, parent])
    return targets


def _decode(recording: Recording) -> np.ndarray:
    audio = load_audio(recording.path)[: MAX_SECONDS * RATE]
    loud = np.flatnonzero(np.abs(audio) > 10 ** (-60 / 20))
    if not len(loud):
        return audio[:0]
    return audio[max(0, loud[0] - RATE // 10) : loud[-1] + RATE // 5]  # files often begin or end in digital silence


def build(data: Path, folder: Path) -> None:
    """Decode all recordings, ask the teacher, and write ``samples.npy``, ``scores.npy`` and ``pool.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher = Yamnet(data / "yamnet")
    rows, samples, scores, position, step = [], [], [], 0, 0
    for recording in tqdm(all_recordings(data, folder / "rendered"), desc="recordings"):
        audio = _decode(recording)
        if len(audio) < RATE // 20:
            continue
        peak = np.abs(audio).max()
        audio = audio * (0.9 / peak)  # levels are those of the scenes; YAMNet hears all at the same one
        scores.append(np.rint(teacher.scores(audio) * 255).astype(np.uint8))
        samples.append(np.rint(audio * FULL_SCALE).astype(np.int16))
        rows.append(
            {
                "path": str(recording.path.name),
                "source": recording.source,
                "group": recording.group,
                "labels": recording.labels,
                "held_out": recording.held_out,
                "start": position,
                "samples": len(audio),
                "first_step": step,
            }
        )
        position, step = position + len(audio), step + len(scores[-1])
    np.save(folder / "samples.npy", np.concatenate(samples))
    np.save(folder / "scores.npy", np.concatenate(scores))
    (folder / "pool.json").write_text(json.dumps(rows), encoding="utf-8")

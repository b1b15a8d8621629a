"""Figures on recordings of other sources than those trained on, and which classes a head may claim to know."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from whisper_at.audio import load_audio
from whisper_at.features.concat_clips import states_in_context
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import Head
from whisper_at.tagging.labels import N_CLASSES, audioset_labels
from whisper_at.train.metrics import average_precision

from .head import classify_rows
from .pool import RATE
from .sources import TABLE, class_indices, is_free, librispeech, share
from .states import States, encode
from .teacher import Yamnet

MIN_CLIPS, MIN_GROUPS = 6, 3
"""Least number of clips of a class, and of recordings that they were cut from, for its figures to count."""
CLAIMED_AP = 0.45
"""Average precision on the first half of the unseen recordings from which a class is claimed."""
CONTEXT = 40
"""Clips that share a recording."""
CLIPS_PER_CLASS = 16
"""Clips of each class of ESC-50, of 32."""


@dataclass(frozen=True)
class Clip:
    """A clip of an unseen source: file, collection, original recording or speaker, and AudioSet classes."""

    path: Path
    source: str
    group: str
    labels: tuple[int, ...]

    @property
    def selects(self) -> bool:
        """Whether it is of the half by which classes are selected; the other half is reported."""
        return share(self.group + "half") < 0.5


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def trained_ids(data: Path) -> set[str]:
    """Return Freesound's numbers of what was trained on: clips of ESC-10, and what `TABLE` links to."""
    linked = {m for row in _rows(TABLE) for m in re.findall(r"/(?:s|sounds)/(\d+)", row["url"])}
    return linked | {path.stem.split("-")[1] for path in (data / "esc10").glob("*/*.ogg") if path.stem[0] != "4"}


def esc50(data: Path) -> Iterator[Clip]:
    """Return clips of ESC-50 whose original recordings were not trained on."""
    seen = trained_ids(data)
    counts: dict[str, int] = {}
    for row in sorted(_rows(data / "esc50/index.csv"), key=lambda row: share(row["file"])):
        identifier = row["file"].split("-")[1]
        if identifier in seen or not row["audioset"] or counts.get(row["class"], 0) >= CLIPS_PER_CLASS:
            continue
        counts[row["class"]] = counts.get(row["class"], 0) + 1
        yield Clip(data / "esc50" / row["file"], "esc50", f"esc50/{identifier}", class_indices(row["audioset"]))


def unseen_sounds(data: Path) -> Iterator[Clip]:
    """Return the recordings of the table of sounds whose licence keeps them from training."""
    counts: dict[tuple[str, str], int] = {}
    for row in sorted(_rows(data / "sounds/index.csv"), key=lambda row: share(row["file"])):
        key = (row["set"], row["label"])
        if is_free(row["licence"]) or counts.get(key, 0) >= 20:
            continue
        counts[key] = counts.get(key, 0) + 1
        names = row["audioset"]
        yield Clip(data / "sounds" / row["file"], row["set"], f"{row['set']}/{row['group']}", class_indices(names))


def speech(data: Path) -> Iterator[Clip]:
    """Return held-out speakers of LibriSpeech."""
    for recording in librispeech(data):
        if recording.held_out:
            yield Clip(recording.path, recording.source, recording.group, recording.labels)


def all_clips(data: Path) -> list[Clip]:
    """Return all clips that figures are taken on."""
    clips = [*esc50(data), *unseen_sounds(data), *speech(data)]
    return sorted(clips, key=lambda clip: share(f"{clip.path.name} order"))


def encode_clips(
    clips: Sequence[Clip], model: WhisperAT, alone: float = 0.1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode all clips in context of others, then a share of them amid silence; return what `write` takes.

    Clips follow one another in an order that has nothing to do with their classes.
    """
    audio = [load_audio(clip.path)[: 25 * RATE] for clip in clips]
    for first in tqdm(range(0, len(clips), CONTEXT), desc="clips", mininterval=10):
        part = range(first, min(first + CONTEXT, len(clips)))
        states = states_in_context([audio[i] for i in part], lambda sound: torch.from_numpy(encode(model, sound)), 1)[0]
        yield from ((one.numpy(), clip_targets(clips[i], one.shape[1])) for i, one in zip(part, states))
    for i in range(round(alone * len(clips))):
        states = encode(model, audio[i])
        yield states, clip_targets(clips[i], states.shape[1])


def clip_targets(clip: Clip, steps: int) -> np.ndarray:
    """Return the classes of a clip for each of its steps, float32 (steps, 527)."""
    targets = np.zeros((steps, N_CLASSES), np.float32)
    targets[:, list(clip.labels)] = 1.0
    return targets


def scores(head: Head, states: States) -> tuple[np.ndarray, np.ndarray]:
    """Return logits of whole clips and what they hold, both ``(clips, 527)``."""
    rows = [states.row(i, 0, states.steps(i)) for i in range(len(states))]
    logits, targets = classify_rows(head, [(row, wanted[0].astype(np.float32) / 255) for row, wanted in rows])
    return logits, targets > 0.5


def class_figures(clips: Sequence[Clip], logits: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    """Return a row for each class with enough clips: average precision on both halves, and on clips alone.

    Parameters
    ----------
    clips : sequence of Clip
        The clips in context; those alone are the first of them again.
    logits, targets : ndarray, shape (views, 527)
        Of the clips in context, then of those alone.
    """
    n = len(clips)
    first = np.array([clip.selects for clip in clips])
    halves = [average_precision(targets[:n][half], logits[:n][half]) for half in (first, ~first)]
    both = average_precision(targets[:n], logits[:n])
    alone = average_precision(targets[n:], logits[n:]) if len(logits) > n else np.full(N_CLASSES, np.nan)
    table = []
    for index, label in enumerate(audioset_labels()):
        members = [clip for clip in clips if index in clip.labels]
        counts = [len({clip.group for clip in members if clip.selects == half}) for half in (True, False)]
        if len(members) < MIN_CLIPS or min(counts) < MIN_GROUPS // 2 or sum(counts) < MIN_GROUPS:
            continue
        table.append(
            {
                "index": index,
                "name": label.name,
                "clips": len(members),
                "groups": sum(counts),
                "sources": sorted({clip.source for clip in members}),
                "select": float(halves[0][index]),
                "report": float(halves[1][index]),
                "both": float(both[index]),
                "alone": float(alone[index]),
            }
        )
    return table


def teacher_scores(clips: Sequence[Clip], yamnet: Yamnet) -> np.ndarray:
    """Return YAMNet's largest score of each class in each clip, float32 (clips, 527)."""
    return np.stack([yamnet.scores(load_audio(clip.path)[: 25 * RATE]).max(0) for clip in clips])


def claim(table: Sequence[dict[str, Any]]) -> list[int]:
    """Return the classes that a head may claim to know: good enough on the first half of the unseen recordings."""
    return [row["index"] for row in table if row["select"] >= CLAIMED_AP]

r"""Events of long mixtures with known times, by event F1 and PSDS: ``python -m recipes.open_head.events``.

    python -m recipes.open_head.events --data data --out runs/events --models tiny.en base

The mixtures are those of `mixtures`. Events are found by rows of one length, and by rows that decide together with rows
of 0.4 s that place (`whisper_at.tagging.event_times`), with the head's own thresholds and with thresholds that are the
best for rows of that length on other mixtures. They are scored as ``whisper-at evaluate`` does. Pooled states are kept
in ``--out``, so that a run that was stopped goes on; writes ``events.json`` there, and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import whisper_at
from whisper_at import checkpoints
from whisper_at.checkpoints.files import atomic_write
from whisper_at.data.events import LabelledEvent
from whisper_at.model import WhisperAT
from whisper_at.tagging.classes import ClassSet
from whisper_at.tagging.heads import Head
from whisper_at.tagging.labels import N_CLASSES, find_class
from whisper_at.tagging.rows import AUDIOSET, audioset_values
from whisper_at.train.event_scores import COLLAR, PROBABILITIES, EventScores, detect_events, score_events

from .detection import Span
from .evaluate import Clip, all_clips
from .head import classify_rows
from .mixtures import MIN_EVENTS, SECONDS, Mixture, activity, by_second, mix, tune
from .pool import RATE
from .states import encode

SETTINGS: dict[str, tuple[float, ...]] = {
    "0.4 s": (0.4,),
    "1.2 s": (1.2,),
    "2 s": (2.0,),
    "10 s": (10.0,),
    "1.2 s, placed by 0.4 s": (0.4, 1.2),
    "2 s, placed by 0.4 s": (0.4, 2.0),
}
"""Lengths of rows; of two, the longer ones decide and the shorter ones place."""


@dataclass
class EncodedMixture:
    """Pooled states (layers, steps, dim) of a mixture, and by class when it is heard."""

    states: np.ndarray
    events: dict[int, list[Span]]


class Encoder:
    """Mixes recordings and encodes them, and keeps both.

    Parameters
    ----------
    folder : Path
        Where they are kept.
    name : str
        Of the model.
    clips : sequence of Clip
        What is mixed.
    drawn : sequence of int
        Classes that come more often.
    """

    def __init__(self, folder: Path, name: str, clips: Sequence[Clip], drawn: Sequence[int]) -> None:
        self.folder, self.name, self.clips, self.drawn = folder, name, clips, drawn
        self._model: WhisperAT | None = None

    @property
    def model(self) -> WhisperAT:
        """The model with its head, loaded when it is needed."""
        if self._model is None:
            self._model = whisper_at.load_model(self.name, head=f"open.{self.name}")
        return self._model

    def mixtures(self, selects: bool, count: int) -> list[EncodedMixture]:
        """Return the mixtures of one half of the clips."""
        part = [clip for clip in self.clips if clip.selects == selects]
        return [self._mixture(part, selects, i) for i in tqdm(range(count), desc=self.name)]

    def _mixture(self, part: Sequence[Clip], selects: bool, i: int) -> EncodedMixture:
        states = self.folder / f"{self.name}-{int(selects)}-{i}.npy"
        events = self.folder / f"events-{int(selects)}-{i}.json"
        if not states.exists() or not events.exists():
            mixture = mix(part, self.drawn, 2 * i + selects)
            with atomic_write(states) as temporary, open(temporary, "wb") as file:
                np.save(file, encode(self.model, mixture.audio))
            with atomic_write(events) as temporary:
                Path(temporary).write_text(json.dumps(mixture.events), encoding="utf-8")
        spans = json.loads(events.read_text(encoding="utf-8"))
        return EncodedMixture(
            np.load(states), {int(index): [tuple(s) for s in found] for index, found in spans.items()}
        )


def known_classes(name: str) -> set[int]:
    """Return the classes that the open head of a model knows."""
    metadata = checkpoints.open_head(checkpoints.find_head(f"open.{name}"))[1]
    return set(json.loads(metadata["known"]))


def row_logits(head: Head, states: np.ndarray, seconds: float) -> np.ndarray:
    """Return logits (rows, 527) of rows of so many seconds."""
    steps = round(seconds / 0.4)
    rows = [states[:, i : i + steps] for i in range(0, states.shape[1] - steps + 1, steps)]
    return classify_rows(head, [(row, np.zeros(N_CLASSES, np.float32)) for row in rows])[0].astype(np.float64)


def score(
    mixtures: Sequence[EncodedMixture],
    rows: Sequence[dict[float, np.ndarray]],
    setting: Sequence[float],
    classes: ClassSet,
    indices: Sequence[int],
    probabilities: Sequence[float],
) -> EventScores:
    """Return scores of the events that `find_events` finds in rows of some lengths; PSDS by these thresholds."""
    names = [classes.names[index] for index in indices]
    reference, detections = {}, {}
    for i, (mixture, logits) in enumerate(zip(mixtures, rows)):
        result = {
            "at_time_res": list(setting),
            "duration": float(SECONDS),
            "language": "en",
            **audioset_values(classes),
        }
        result[AUDIOSET] = {seconds: logits[seconds] for seconds in setting}
        reference[str(i)] = [
            LabelledEvent(*span, classes.names[index]) for index in indices for span in mixture.events.get(index, [])
        ]
        detections[str(i)] = detect_events(result, indices, probabilities=probabilities)
    return score_events(reference, detections, names)


def measure(encoder: Encoder, minutes: int, tuning_minutes: int) -> list[dict[str, Any]]:
    """Return a row of figures for each setting and kind of thresholds."""
    tuning, mixtures = parts = [
        encoder.mixtures(selects, max(1, length * 60 // SECONDS))
        for selects, length in ((True, tuning_minutes), (False, minutes))
    ]
    head = encoder.model.head
    lengths = sorted({seconds for setting in SETTINGS.values() for seconds in setting})
    of_parts = [
        [{seconds: row_logits(head, one.states, seconds) for seconds in lengths} for one in tqdm(part, desc="rows")]
        for part in parts
    ]
    own: ClassSet = head.classes
    numbers = {index: sum(len(m.events.get(index, [])) for m in mixtures) for index in own.known or range(N_CLASSES)}
    indices = sorted(index for index, number in numbers.items() if number >= MIN_EVENTS)
    heard = activity([Mixture(np.zeros(SECONDS * RATE, np.float32), one.events) for one in tuning], 1.0)
    table = []
    for label, setting in SETTINGS.items():
        deciding = max(setting)
        of_seconds = np.concatenate([by_second(one[deciding], deciding, SECONDS) for one in of_parts[0]])
        for thresholds, classes in (("own", own), ("tuned", tune(own, heard, of_seconds))):
            probabilities = PROBABILITIES if thresholds == "own" else ()  # which are tried whatever the thresholds are
            found = score(mixtures, of_parts[1], setting, classes, indices, probabilities)
            row = {"model": encoder.name, "rows": label, "thresholds": thresholds, "classes": len(indices)}
            row |= {"events": sum(numbers[index] for index in indices), "F1": found.f1, "overall F1": found.overall_f1}
            row |= {"precision": found.precision, "recall": found.recall, **found.psds}
            table.append(row)
            print(row, flush=True)
    return table


def format_table(table: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures in Markdown: F1 by tuned thresholds, in brackets by the head's own; PSDS tries all."""
    lines = [f"| | rows | event F1, ±{COLLAR:g} s | PSDS1 | PSDS2 |", "|---|---|--:|--:|--:|"]
    for own in (row for row in table if row["thresholds"] == "own"):
        tuned = next(r for r in table if (r["model"], r["rows"]) == (own["model"], own["rows"]) and r is not own)
        psds = " | ".join(f"{own[name]:.2f}" for name in ("PSDS1", "PSDS2"))
        lines.append(f"| {own['model']} | {own['rows']} | {tuned['F1']:.2f} ({own['F1']:.2f}) | {psds} |")
    return lines


def main() -> None:
    """Mix, tag and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for states and figures")
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--minutes", type=int, default=60, help="of mixtures to measure on (default: %(default)s)")
    parser.add_argument("--tuning_minutes", type=int, default=30, help="of mixtures that give thresholds")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = sorted(set().union(*map(known_classes, ("tiny.en", "base"))) - {find_class("Speech")})
    clips = all_clips(args.data)
    table = []
    for name in args.models:
        table += measure(Encoder(args.out, name, clips, drawn), args.minutes, args.tuning_minutes)
    (args.out / "events.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    print("\n".join(format_table(table)))


if __name__ == "__main__":
    main()

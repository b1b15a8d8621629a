r"""Tags of long mixtures with known times, by length of the rows: ``python -m recipes.open_head.mixtures``.

    python -m recipes.open_head.mixtures --data data --out runs/mixtures --models tiny.en base

Recordings of five minutes are mixed from the unseen recordings of `evaluate`: sounds, one every few seconds, in noise
and with speech for half of the time. Those of the half by which classes were selected give thresholds, those of the
other half the figures. The heads see what transcription shows them, and events are those of `find_events`. YAMNet,
which was trained on AudioSet, hears the same mixtures. Writes ``mixtures.json`` and prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import whisper_at
from whisper_at.audio import load_audio
from whisper_at.tagging.classes import ClassSet, logit
from whisper_at.tagging.events import find_events
from whisper_at.tagging.labels import N_CLASSES, audioset_classes, find_class
from whisper_at.tagging.rows import AUDIOSET, audioset_values
from whisper_at.train.metrics import average_precision

from .detection import Counts, Span, active_segments, join_spans, match_events, match_segments
from .evaluate import Clip, all_clips
from .head import classify_rows
from .pool import AUDIBLE, RATE
from .scenes import NOISE_POLES, coloured_noise, decibels, loud_rms
from .states import encode
from .teacher import HOP, Yamnet

SECONDS = 300
"""Length of a mixture."""
RESOLUTIONS = (0.4, 1.2, 2.0, 4.0, 10.0)
"""Seconds of a row; all of them divide `SECONDS`."""
COLLARS = (0.2, 0.4, 1.0)
LONGEST = 6.0
"""Seconds of a recording that are taken at most."""
FRAME = 0.02
"""Seconds by which it is said where a sound is audible."""
JOINED = 0.5
"""Seconds between events of a class under which they are one."""
KNOWN_SHARE = 0.7
"""How often a sound is of a class that a head knows, all of them drawn alike; the others are any recordings."""
MIN_EVENTS = 5
"""Events of a class from which its figures count."""


@dataclass
class Mixture:
    """A mixture: float32 samples at 16 kHz, and by class when it is heard."""

    audio: np.ndarray
    events: dict[int, list[Span]]


def audible_spans(audio: np.ndarray) -> list[Span]:
    """Return when a sound is at most `AUDIBLE` dB below its loudest frame; short pauses count as heard."""
    size = round(FRAME * RATE)
    frames = np.pad(audio, (0, -len(audio) % size)).reshape(-1, size).astype(np.float64)
    power = (frames**2).mean(1)
    loud = np.flatnonzero(power > max(power.max() * 10 ** (-AUDIBLE / 10), 1e-10))
    return join_spans([(i * FRAME, (i + 1) * FRAME) for i in loud.tolist()], JOINED)


def mix(clips: Sequence[Clip], classes: Sequence[int], seed: int, seconds: int = SECONDS) -> Mixture:
    """Mix a recording: a noise floor, speech for half of the time, and a sound every few seconds.

    Parameters
    ----------
    clips : sequence of Clip
        What to take.
    classes : sequence of int
        Classes whose recordings come more often, speech left out.
    seed : int
        Of all random choices.
    seconds : int
        Length.
    """
    rng = np.random.default_rng(seed)
    speech = [clip for clip in clips if clip.source == "librispeech"]
    sounds = [clip for clip in clips if clip.source != "librispeech"]
    members = [found for index in classes if (found := [clip for clip in sounds if index in clip.labels])]
    n = seconds * RATE
    audio = coloured_noise(n, float(rng.choice(NOISE_POLES)), rng) * decibels(rng.uniform(-75, -50))
    heard: dict[int, list[Span]] = {}

    def add(clip: Clip, at: float, level: float, longest: float) -> float:
        sound = load_audio(clip.path)
        loud = np.flatnonzero(np.abs(sound) > 1e-3)
        sound = sound[max(0, loud[0] - RATE // 20) :] if len(loud) else sound
        start = round(at * RATE)
        sound = sound[: min(round(longest * RATE), n - start)]
        spans = audible_spans(sound)
        if not spans:
            return at
        audio[start : start + len(sound)] += sound / (loud_rms(sound) + 1e-6) * decibels(level)
        for index in clip.labels:
            heard.setdefault(index, []).extend((at + onset, at + offset) for onset, offset in spans)
        return at + spans[-1][1]

    at = rng.uniform(0, 4)
    while at < seconds - 1:
        known = rng.random() < KNOWN_SHARE
        pool = members[int(rng.integers(len(members)))] if known else sounds
        end = add(pool[int(rng.integers(len(pool)))], at, rng.uniform(-32, -17), LONGEST)
        at = max(at + 0.2, end + (rng.uniform(-2, 0) if rng.random() < 0.2 else rng.uniform(0.2, 6)))
    at = rng.uniform(0, 20)
    while speech and at < seconds - 1:
        end = add(speech[int(rng.integers(len(speech)))], at, rng.uniform(-29, -20), 15.0)
        at = end + (rng.uniform(0.2, 1.5) if rng.random() < 0.6 else rng.uniform(10, 40))
    audio *= min(1.0, 0.98 / np.abs(audio).max())
    return Mixture(audio.astype(np.float32), {index: join_spans(spans, JOINED) for index, spans in heard.items()})


def activity(mixtures: Sequence[Mixture], seconds: float) -> np.ndarray:
    """Return which classes are heard in each row of so many seconds, bool (mixtures × rows, 527)."""
    out = []
    for mixture in mixtures:
        rows = np.zeros((round(len(mixture.audio) / RATE / seconds), N_CLASSES), bool)
        for index, spans in mixture.events.items():
            rows[:, index] = active_segments(spans, len(rows), seconds)
        out.append(rows)
    return np.concatenate(out)


class HeadSystem:
    """A Whisper and its head.

    Parameters
    ----------
    name : str
        The model's name; its head is ``open.NAME``.
    compute_type : str
        Of the encoder.
    """

    def __init__(self, name: str, compute_type: str) -> None:
        self.model = whisper_at.load_model(name, head=f"open.{name}", compute_type=compute_type)
        self.head = self.model.head
        self.classes: ClassSet = self.head.classes

    def logits(self, audio: np.ndarray) -> dict[float, np.ndarray]:
        """Return logits of rows by their length, each (rows, 527)."""
        states, out = encode(self.model, audio), {}
        for seconds in RESOLUTIONS:
            steps = round(seconds / 0.4)
            rows = [states[:, i : i + steps] for i in range(0, states.shape[1] - steps + 1, steps)]
            out[seconds] = classify_rows(self.head, [(row, np.zeros(N_CLASSES, np.float32)) for row in rows])[0]
        return out


class YamnetSystem:
    """YAMNet: in rows of several steps of 0.4 s its largest score of each class."""

    def __init__(self, folder: Path) -> None:
        self.yamnet = Yamnet(folder)
        self.classes = replace(audioset_classes(), known=tuple(self.yamnet.classes.tolist()))

    def logits(self, audio: np.ndarray) -> dict[float, np.ndarray]:
        """Return logits of rows by their length, each (rows, 527)."""
        scores = logit(np.clip(self.yamnet.scores(audio)[: len(audio) // HOP].astype(np.float64), 1e-6, 1 - 1e-6))
        return {s: scores.reshape(-1, round(s / 0.4), N_CLASSES).max(1) for s in RESOLUTIONS}


def by_second(rows: np.ndarray, seconds: float, length: int) -> np.ndarray:
    """Return for every second the largest logit of the rows that it touches, (length, 527)."""
    first = (np.arange(length) / seconds + 1e-6).astype(int)
    last = np.ceil((np.arange(length) + 1) / seconds - 1e-6).astype(int)
    return np.stack([rows[a : max(b, a + 1)].max(0) for a, b in zip(first, last)])


def tune(classes: ClassSet, targets: np.ndarray, logits: np.ndarray) -> ClassSet:
    """Return classes with the thresholds of the best F1 on mixtures for it; of rows' seconds, both (seconds, 527)."""
    thresholds = np.array(classes.thresholds if classes.thresholds is not None else [0.5] * len(classes))
    p = 1 / (1 + np.exp(-classes.log_odds(logits)))
    for index in np.flatnonzero(targets.any(0)):
        order = np.argsort(-p[:, index])
        right = np.cumsum(targets[order, index])
        f1 = 2 * right / (np.arange(1, len(order) + 1) + targets[:, index].sum())
        last = int(f1.argmax())  # the threshold lies between it and the next
        thresholds[index] = p[order[last : last + 2], index].mean()
    return replace(classes, thresholds=tuple(np.clip(thresholds, 1e-6, 1 - 1e-6).tolist()))


def events_of(rows: np.ndarray, seconds: float, classes: ClassSet, indices: Sequence[int]) -> dict[int, list[Span]]:
    """Return the events that a result with these rows has, by class."""
    duration = len(rows) * seconds
    result = {"at_time_res": seconds, AUDIOSET: rows, "duration": duration, "language": "en"}
    found: dict[int, list[Span]] = {index: [] for index in indices}
    for event in find_events({**result, **audioset_values(classes)}, include_class_list=indices, specific=False):
        found[event["index"]].append((event["start"], event["end"]))
    return found


def detection_figures(
    mixtures: Sequence[Mixture],
    rows: Sequence[np.ndarray],
    seconds: float,
    classes: ClassSet,
    indices: Sequence[int],
) -> dict[str, float]:
    """Return F1 of 1 s segments, and of events by collar, means over the classes."""
    totals: dict[str, dict[int, Counts]] = {}

    def add(name: str, index: int, counts: Counts) -> None:
        totals.setdefault(name, {}).setdefault(index, Counts(0, 0, 0))
        totals[name][index] += counts

    for mixture, logits in zip(mixtures, rows):
        length = len(mixture.audio) // RATE
        for index, found in events_of(logits, seconds, classes, indices).items():
            wanted = mixture.events.get(index, [])
            segments = (active_segments(spans, length, 1.0) for spans in (wanted, found))
            add("segment_f1", index, match_segments(*segments))
            for collar in COLLARS:
                add(f"onset_f1_{collar:g}", index, match_events(wanted, found, collar))
                add(f"event_f1_{collar:g}", index, match_events(wanted, found, collar, offsets=True))
    return {name: float(np.mean([counts.f1 for counts in each.values()])) for name, each in totals.items()}


def measure(
    system: HeadSystem | YamnetSystem,
    tuning: Sequence[Mixture],
    mixtures: Sequence[Mixture],
    sets: dict[str, list[int]],
    name: str,
) -> list[dict[str, Any]]:
    """Return a row of figures for every resolution, set of classes and kind of thresholds."""
    found = [[system.logits(m.audio) for m in tqdm(part, desc=name)] for part in (tuning, mixtures)]
    table = []
    for seconds in RESOLUTIONS:
        rows = [one[seconds].astype(np.float64) for one in found[1]]
        seconds_of = [
            np.concatenate([by_second(one[seconds].astype(np.float64), seconds, SECONDS) for one in part])
            for part in found
        ]
        tuned = tune(system.classes, activity(tuning, 1.0), seconds_of[0])
        targets = {seconds: activity(mixtures, seconds), 1.0: activity(mixtures, 1.0)}
        for which, indices in sets.items():
            row = {"system": name, "seconds": seconds, "set": which, "classes": len(indices)}
            row["mAP"] = float(np.mean(average_precision(targets[seconds], np.concatenate(rows))[indices]))
            row["mAP_1s"] = float(np.mean(average_precision(targets[1.0], seconds_of[1])[indices]))
            row["tuned"] = detection_figures(mixtures, rows, seconds, tuned, indices)
            if system.classes.thresholds is not None:
                row["own"] = detection_figures(mixtures, rows, seconds, system.classes, indices)
            table.append(row)
    return table


def format_table(table: Sequence[dict[str, Any]]) -> list[str]:
    """Return the figures in Markdown."""
    heads = ["system", "classes", "row", "mAP of rows", "mAP of seconds", "segment F1"]
    heads += ["onset F1 ±0.4 s", "±1 s", "event F1 ±0.4 s", "segment F1, own thresholds", "onset F1 ±0.4 s, own"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for row in table:
        own, tuned = row.get("own", {}), row["tuned"]
        values = [row["mAP"], row["mAP_1s"], tuned["segment_f1"], tuned["onset_f1_0.4"], tuned["onset_f1_1"]]
        values += [tuned["event_f1_0.4"], own.get("segment_f1"), own.get("onset_f1_0.4")]
        cells = " | ".join("" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"| {row['system']} | {row['classes']} ({row['set']}) | {row['seconds']:g} s | {cells} |")
    return lines


def main() -> None:
    """Mix, tag and score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--models", nargs="+", default=["tiny.en", "base"])
    parser.add_argument("--minutes", type=int, default=60, help="of mixtures to measure on (default: %(default)s)")
    parser.add_argument("--tuning_minutes", type=int, default=60, help="of mixtures that give thresholds")
    parser.add_argument("--compute_type", default="float32", help="of the encoders; bfloat16 takes half of the time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    systems: dict[str, HeadSystem | YamnetSystem] = {name: HeadSystem(name, args.compute_type) for name in args.models}
    systems["YAMNet"] = YamnetSystem(args.data / "yamnet")
    known = {name: set(system.classes.known or range(N_CLASSES)) for name, system in systems.items()}
    drawn = sorted(set.union(*(known[name] for name in args.models)) - {find_class("Speech")})
    clips = all_clips(args.data)
    parts = []
    for selects, minutes in ((True, args.tuning_minutes), (False, args.minutes)):
        part = [clip for clip in clips if clip.selects == selects]
        count = max(1, minutes * 60 // SECONDS)
        parts.append([mix(part, drawn, 2 * seed + selects) for seed in tqdm(range(count), desc="mixtures")])
    tuning, mixtures = parts
    numbers = {index: sum(len(m.events.get(index, [])) for m in mixtures) for index in range(N_CLASSES)}
    enough = {index for index, number in numbers.items() if number >= MIN_EVENTS}
    shared = sorted(set.intersection(*known.values()) & enough)
    table = []
    for name, system in systems.items():
        sets = {"shared": shared}
        if name != "YAMNet":
            sets["own"] = sorted(known[name] & enough)
        table += measure(system, tuning, mixtures, sets, name)
    args.out.mkdir(parents=True, exist_ok=True)
    names = audioset_classes().names
    content = {
        "minutes": args.minutes,
        "events": {names[i]: numbers[i] for i in sorted(enough & set(drawn) | {find_class("Speech")})},
        "shared": [names[i] for i in shared],
        "figures": table,
    }
    (args.out / "mixtures.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"{sum(content['events'].values())} events of {len(content['events'])} classes")
    print("\n".join(format_table(table)))


if __name__ == "__main__":
    main()

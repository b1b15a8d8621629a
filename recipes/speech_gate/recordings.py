"""The recordings that the gate is measured on: sounds without speech, music, silence, and speech, in noise too.

Thresholds are settled on one part and figures are those of the other: ESC-50's folds 1 to 3 and fold 4; halves of the
notes of each instrument and of the street musicians; speakers that the open heads were trained on and others that they
were not.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from recipes.open_head.evaluate import trained_ids
from recipes.open_head.mixtures import audible_spans
from recipes.open_head.pool import RATE
from recipes.open_head.sources import share

STEADY = ("airplane", "crickets", "engine", "rain", "sea_waves", "train", "vacuum_cleaner", "washing_machine", "wind")
"""Classes of ESC-50 that speech is mixed with."""
ANIMALS = "cat chirping_birds cow crickets crow dog frog hen insects pig rooster sheep"
PEOPLE = "breathing coughing crying_baby laughing sneezing snoring"
VOICES = frozenset(f"{ANIMALS} {PEOPLE}".split())
"""Classes of ESC-50 that are voices without words, of animals and people."""
COLOURS = {"white": 0.0, "pink": 0.5, "brown": 1.0}
"""Noises, by how far their amplitude falls with the frequency."""
NOISE_LEVELS = (-50, -30)
"""Of noises and hum, in dB below full scale."""
NOISE_SECONDS = 30
RATIOS = (10, 0)
"""Speech to noise or music, in dB."""
PHRASE_SECONDS = 10
"""Length of the recordings that notes of an instrument are joined to."""
SPEECH_SECONDS = 100
"""Least length of the recordings that utterances are joined to."""
FLOOR = 3e-4
"""Amplitude of the noise in the pauses between utterances."""


@dataclass(frozen=True)
class Recording:
    """A recording.

    Attributes
    ----------
    kind : str
        Row of the tables that it belongs to.
    name : str
        Different for all recordings.
    audio : ndarray
        Float32 samples at 16 kHz.
    text : str
        What is said; empty where nobody speaks.
    spoken : list of (float, float)
        When, in seconds.
    """

    kind: str
    name: str
    audio: np.ndarray
    text: str = ""
    spoken: Sequence[tuple[float, float]] = ()


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: share(row["file"]))


def _read(path: Path) -> np.ndarray:
    audio, rate = soundfile.read(path, dtype="float32")
    if rate != RATE or audio.ndim > 1:
        raise ValueError(f"{path} must be mono at {RATE} Hz")
    return audio


def environment(data: Path, part: str, per_class: int) -> Iterator[Recording]:
    """Return clips of ESC-50, five seconds long, so many of each class, none of them from a recording trained on."""
    seen = trained_ids(data)
    counts: dict[str, int] = {}
    for row in _rows(data / "esc50/index.csv"):
        is_wanted = (row["fold"] == "4") == (part == "report") and row["file"].split("-")[1] not in seen
        if is_wanted and counts.get(row["class"], 0) < per_class:
            counts[row["class"]] = counts.get(row["class"], 0) + 1
            kind = "voices without words" if row["class"] in VOICES else "other sounds"
            yield Recording(kind, f"{row['class']}/{row['file']}", _read(data / "esc50" / row["file"]))


def instruments(data: Path, part: str, per_label: int) -> Iterator[Recording]:
    """Return notes of the Philharmonia Orchestra, those of an instrument joined to recordings of ten seconds."""
    notes: dict[str, list[Path]] = {}
    for row in _rows(data / "sounds/index.csv"):
        if row["set"] == "philharmonia" and "instrument" in row["audioset"]:
            notes.setdefault(row["label"], []).append(data / "sounds" / row["file"])
    for label, paths in sorted(notes.items()):
        half = paths[len(paths) // 2 :] if part == "report" else paths[: len(paths) // 2]
        audio = np.concatenate([_read(path) for path in half]) if half else np.zeros(0, np.float32)
        for i in range(min(per_label, len(audio) // (PHRASE_SECONDS * RATE))):
            phrase = audio[i * PHRASE_SECONDS * RATE : (i + 1) * PHRASE_SECONDS * RATE]
            yield Recording("instruments", f"{label}/{i}", phrase)


def street_music(data: Path, part: str) -> Iterator[Recording]:
    """Return street musicians of UrbanSound8K, four seconds each; some may sing."""
    for row in _rows(data / "sounds/index.csv"):
        is_wanted = (share(row["group"]) < 0.5) == (part == "report")
        if row["set"] == "urbansound8k" and row["audioset"] == "Music" and is_wanted:
            yield Recording("street music", row["file"], _read(data / "sounds" / row["file"]))


def silence(part: str) -> Iterator[Recording]:
    """Return digital silence, its least dither, noises and a hum of 50 Hz, half a minute each."""
    rng = np.random.default_rng(int(part == "report"))
    n_samples = NOISE_SECONDS * RATE
    sounds = {"hum": np.arange(n_samples) % (RATE // 50) / (RATE // 50) - 0.5}
    for colour, slope in COLOURS.items():
        spectrum = np.fft.rfft(rng.normal(size=n_samples))
        frequencies = np.maximum(np.fft.rfftfreq(n_samples, 1 / RATE), 20)
        sounds[colour] = np.fft.irfft(spectrum * frequencies**-slope, n_samples)
    yield Recording("silence and noise", "silence/digital", np.zeros(n_samples, np.float32))
    dither = (rng.integers(-1, 2, n_samples) / 32768).astype(np.float32)
    yield Recording("silence and noise", "silence/dither", dither)
    for name, sound in sounds.items():
        for level in NOISE_LEVELS:
            audio = _at_level(sound) * 10 ** (level / 20)
            yield Recording("silence and noise", f"silence/{name} {level} dB", audio.astype(np.float32))


def speech(data: Path, part: str, utterances: int) -> Iterator[Recording]:
    """Return utterances of LibriSpeech, one a speaker, joined with pauses: clean, in noise, and with music."""
    rows = [row for row in _rows(data / "librispeech/index.csv") if (share(row["speaker"]) < 0.2) == (part == "report")]
    steady = [clip for clip in environment(data, part, 2) if clip.name.split("/")[0] in STEADY]
    music = list(instruments(data, part, 2))
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    texts: list[str] = []
    made = 0
    for i, row in enumerate(rows[:utterances]):
        parts += [_read(data / "librispeech" / row["file"]), np.zeros(round(rng.uniform(0.5, 3) * RATE))]
        texts.append(row["text"])
        if sum(map(len, parts)) < SPEECH_SECONDS * RATE and i + 1 < min(utterances, len(rows)):
            continue
        clean = np.concatenate(parts)
        spoken = audible_spans(clean)
        clean = (clean + rng.normal(0, FLOOR, len(clean))).astype(np.float32)
        text = " ".join(texts)
        yield Recording("speech", f"speech/{made}", clean, text, spoken)
        for kind, sources in (("noise", steady), ("music", music)):
            order = rng.permutation(len(sources))
            other = np.concatenate([_at_level(sources[k].audio) for k in order])
            for ratio in RATIOS:
                audio = mix(clean, other, ratio)
                yield Recording(f"speech, {kind} {ratio} dB", f"{kind}{ratio}/{made}", audio, text, spoken)
        made, parts, texts = made + 1, [], []


def _at_level(audio: np.ndarray) -> np.ndarray:
    return audio / max(float(np.sqrt(np.mean(audio**2))), 1e-4)


def mix(speech: np.ndarray, other: np.ndarray, ratio: float) -> np.ndarray:
    """Mix speech and something else, which is repeated, at a ratio in dB; float32, not louder than 1."""
    other = np.resize(other, len(speech))
    level = np.sqrt(np.mean(speech**2) / np.mean(other**2)) * 10 ** (-ratio / 20)
    mixed = speech + level * other
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def all_recordings(data: Path, part: str, per_class: int, utterances: int) -> list[Recording]:
    """Return the recordings of a part, ``tune`` or ``report``."""
    parts = (
        environment(data, part, per_class),
        instruments(data, part, 2),
        street_music(data, part),
        silence(part),
        speech(data, part, utterances),
    )
    return [recording for recordings in parts for recording in recordings]

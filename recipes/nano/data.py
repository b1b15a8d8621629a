"""Pools of speech and sounds (int16 at 16 kHz) that training windows are mixed from, made once and cached in a file.

Held out for the evaluation: takes 45 to 49 of every FSDD speaker and digit; about four clips of fold 4 of every ESC-10
class, all clips of a Freesound recording together; two `espeak-ng` voice variants; one sentence in ten.
"""

from __future__ import annotations

import multiprocessing
import pickle
import random
import zlib
from dataclasses import dataclass, field
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from .espeak import RATE, Espeak, Utterance, speech_bounds
from .text import is_held_out, random_sentence

SOUNDS = {  # folders of ESC-10, and the AudioSet classes of their clips
    "chainsaw": ["Chainsaw"],
    "clock_tick": ["Tick-tock", "Tick"],
    "crackling_fire": ["Fire", "Crackle"],
    "crying_baby": ["Baby cry, infant cry"],
    "dog": ["Dog", "Bark"],
    "helicopter": ["Helicopter"],
    "rain": ["Rain"],
    "rooster": ["Crowing, cock-a-doodle-doo"],
    "sea_waves": ["Waves, surf"],
    "sneezing": ["Sneeze"],
}
SPEEDS = (0.85, 0.92, 1.0, 1.0, 1.08, 1.16)
HELD_OUT_TAKES = range(45, 50)
HELD_OUT_FILE = "held_out.pkl"


@dataclass
class Take:
    """A spoken digit of FSDD; the speech is from sample ``first`` to ``last``."""

    audio: np.ndarray
    digit: int
    speaker: str
    take: int
    first: int
    last: int


@dataclass
class Clip:
    """A clip of ESC-10 with its class (folder name) and Freesound recording."""

    audio: np.ndarray
    sound: str
    source: str


@dataclass
class Pools:
    """Material for windows, for training and for the evaluation (``test_``); ``takes`` are by speed and speaker."""

    takes: list[dict[str, list[Take]]] = field(default_factory=list)
    test_takes: list[Take] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    test_clips: list[Clip] = field(default_factory=list)
    sentences: list[Utterance] = field(default_factory=list)
    digits: list[Utterance] = field(default_factory=list)
    test_sentences: list[Utterance] = field(default_factory=list)
    test_digits: list[Utterance] = field(default_factory=list)


def _to_int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.round(audio), -32768, 32767).astype(np.int16)


def read_audio(path: Path, rate: int = RATE) -> np.ndarray:
    """Read a file as mono int16 at a sample rate in Hz."""
    audio, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
    common = gcd(rate, source_rate)
    return _to_int16(resample_poly(audio.mean(1), rate // common, source_rate // common) * 32767)


def read_fsdd(folder: Path) -> tuple[list[dict[str, list[Take]]], list[Take]]:
    """Read the training takes, resampled to several speeds, and the held-out takes at their original speed."""
    training: list[dict[str, list[Take]]] = [{} for _ in SPEEDS]
    test = []
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        audio = read_audio(path)
        if int(take) in HELD_OUT_TAKES:
            test.append(Take(audio, int(digit), speaker, int(take), *speech_bounds(audio)))
            continue
        for by_speaker, speed in zip(training, SPEEDS):
            faster = audio
            if speed != 1.0:
                faster = _to_int16(resample_poly(audio.astype(np.float32), 100, round(100 * speed)))
            bounds = speech_bounds(faster)
            by_speaker.setdefault(speaker, []).append(Take(faster, int(digit), speaker, int(take), *bounds))
    if not test:
        raise FileNotFoundError(f"no takes of the Free Spoken Digit Dataset in {folder}")
    return training, test


def read_esc10(folder: Path) -> tuple[list[Clip], list[Clip]]:
    """Read the training clips and the held-out clips."""
    training, test = [], []
    for sound in SOUNDS:
        paths = sorted((folder / sound).glob("*.ogg"))
        if not paths:
            raise FileNotFoundError(f"no clips of ESC-10 in {folder / sound}")
        source_of = {path: path.stem.split("-")[1] for path in paths}
        fold_4 = {source for path, source in source_of.items() if path.stem.startswith("4-")}
        held_out: set[str] = set()
        for source in sorted(fold_4, key=lambda name: zlib.crc32(name.encode())):
            if sum(name in held_out for name in source_of.values()) >= 4:
                break
            held_out.add(source)
        for path, source in source_of.items():
            (test if source in held_out else training).append(Clip(read_audio(path), sound, source))
    return training, test


def _synthesise(job: tuple[int, int, int, bool]) -> tuple[list[Utterance], list[Utterance]]:
    """Return sentences and digit strings; a job is (seed, number of sentences, number of strings, held out)."""
    seed, n_sentences, n_digits, held_out = job
    rng, espeak = random.Random(seed), Espeak()
    sentences, digits = [], []
    while len(sentences) < n_sentences:
        words = random_sentence(rng)
        if is_held_out(words) == held_out:
            utterance = espeak.synthesise(words, *espeak.random_voice(rng, held_out))
            if utterance:
                sentences.append(utterance)
    while len(digits) < n_digits:
        words = [str(rng.randrange(10)) for _ in range(rng.choice([1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]))]
        separator = rng.choice([" ", " ", ", ", ", "])
        if utterance := espeak.synthesise(words, *espeak.random_voice(rng, held_out), separator):
            digits.append(utterance)
    return sentences, digits


def make_pools(fsdd: Path, esc10: Path, cache: Path, seed: int = 0, processes: int = 2) -> Pools:
    """Read the recordings and synthesise speech, or read ``cache`` if it exists.

    The held-out part is also written to ``held_out.pkl`` next to the cache.
    """
    if cache.exists():
        return read_pools(cache)
    pools = Pools()
    jobs = [(seed * 1000 + i, 600, 300, False) for i in range(20)] + [(seed * 1000 + 900, 150, 150, True)]
    with multiprocessing.Pool(processes) as pool:
        parts = pool.map_async(_synthesise, jobs, chunksize=1)
        pools.takes, pools.test_takes = read_fsdd(fsdd)
        pools.clips, pools.test_clips = read_esc10(esc10)
        for (_, _, _, held_out), (sentences, digits) in zip(jobs, parts.get()):
            (pools.test_sentences if held_out else pools.sentences).extend(sentences)
            (pools.test_digits if held_out else pools.digits).extend(digits)
    cache.parent.mkdir(parents=True, exist_ok=True)
    test = Pools(
        test_takes=pools.test_takes,
        test_clips=pools.test_clips,
        test_sentences=pools.test_sentences,
        test_digits=pools.test_digits,
    )
    for content, path in ((test, cache.with_name(HELD_OUT_FILE)), (pools, cache)):
        temporary = path.with_suffix(".part")
        temporary.write_bytes(pickle.dumps(content, protocol=5))
        temporary.rename(path)
    return pools


def read_pools(path: Path) -> Pools:
    """Read pools that `make_pools` has written."""
    return pickle.loads(path.read_bytes())

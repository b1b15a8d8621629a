"""Pools of 16 kHz int16 sound that the windows are mixed from, made once and kept in a cache file.

Held out for the evaluation: takes 45–49 of every FSDD speaker and digit; about four clips of fold 4 of every ESC-10
class, whole Freesound sources at a time; two `espeak-ng` voice variants; one sentence in ten.
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
from .text import held_out, sentence

SOUNDS = {  # folder of ESC-10 → classes of AudioSet that its clips show
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
HELD_OUT = "held_out.pkl"


@dataclass
class Take:
    """One spoken digit of FSDD; `first`, `last` bound the speech in samples."""

    audio: np.ndarray
    digit: int
    speaker: str
    take: int
    first: int
    last: int


@dataclass
class Clip:
    """One sound of ESC-10 with its class (folder name) and Freesound source."""

    audio: np.ndarray
    sound: str
    source: str


@dataclass
class Pools:
    """All that windows are made of. `takes[speed][speaker]` holds takes of that speaker at that speed."""

    takes: list[dict[str, list[Take]]] = field(default_factory=list)
    test_takes: list[Take] = field(default_factory=list)
    clips: list[Clip] = field(default_factory=list)
    test_clips: list[Clip] = field(default_factory=list)
    sentences: list[Utterance] = field(default_factory=list)
    digits: list[Utterance] = field(default_factory=list)
    test_sentences: list[Utterance] = field(default_factory=list)
    test_digits: list[Utterance] = field(default_factory=list)


def _int16(audio: np.ndarray) -> np.ndarray:
    return np.clip(np.round(audio), -32768, 32767).astype(np.int16)


def read(path: Path, rate: int = RATE) -> np.ndarray:
    """Mono int16 sound at `rate` Hz."""
    audio, source_rate = soundfile.read(path, dtype="float32", always_2d=True)
    common = gcd(rate, source_rate)
    return _int16(resample_poly(audio.mean(1), rate // common, source_rate // common) * 32767)


def read_fsdd(folder: Path) -> tuple[list[dict[str, list[Take]]], list[Take]]:
    """Training takes by speed and speaker, and the held-out takes at their own speed."""
    training: list[dict[str, list[Take]]] = [{} for _ in SPEEDS]
    test = []
    for path in sorted(folder.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        audio = read(path)
        if int(take) in HELD_OUT_TAKES:
            test.append(Take(audio, int(digit), speaker, int(take), *speech_bounds(audio)))
            continue
        for by_speaker, speed in zip(training, SPEEDS):
            changed = (
                audio if speed == 1.0 else _int16(resample_poly(audio.astype(np.float32), 100, round(100 * speed)))
            )
            by_speaker.setdefault(speaker, []).append(
                Take(changed, int(digit), speaker, int(take), *speech_bounds(changed))
            )
    if not test:
        raise FileNotFoundError(f"no takes of the Free Spoken Digit Dataset in {folder}")
    return training, test


def read_esc10(folder: Path) -> tuple[list[Clip], list[Clip]]:
    """Training clips and held-out clips."""
    training, test = [], []
    for sound in SOUNDS:
        paths = sorted((folder / sound).glob("*.ogg"))
        if not paths:
            raise FileNotFoundError(f"no clips of ESC-10 in {folder / sound}")
        sources = sorted(
            {p.stem.split("-")[1] for p in paths if p.stem.startswith("4-")}, key=lambda s: zlib.crc32(s.encode())
        )
        chosen: set[str] = set()
        for source in sources:
            if sum(p.stem.split("-")[1] in chosen for p in paths) >= 4:
                break
            chosen.add(source)
        for path in paths:
            source = path.stem.split("-")[1]
            (test if source in chosen else training).append(Clip(read(path), sound, source))
    return training, test


def _synthesise(job: tuple[int, int, int, bool]) -> tuple[list[Utterance], list[Utterance]]:
    """Sentences and digit strings of one process: job = (seed, number of sentences, of strings, held out)."""
    seed, n_sentences, n_digits, test = job
    r, espeak = random.Random(seed), Espeak()
    sentences, digits = [], []
    while len(sentences) < n_sentences:
        words = sentence(r)
        if held_out(words) == test and (said := espeak.say(words, *espeak.random_voice(r, test))):
            sentences.append(said)
    while len(digits) < n_digits:
        words = [str(r.randrange(10)) for _ in range(r.choice([1, 1, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8]))]
        joint = r.choice([" ", " ", ", ", ", "])
        if said := espeak.say(words, *espeak.random_voice(r, test), joint=joint):
            digits.append(said)
    return sentences, digits


def make_pools(fsdd: Path, esc10: Path, cache: Path, seed: int = 0, processes: int = 2) -> Pools:
    """Reads the recordings, synthesises speech, and keeps everything in `cache`, what is held out
    in `held_out.pkl` beside it; later calls only read.
    """
    if cache.exists():
        return read_pools(cache)
    pools = Pools()
    jobs = [(seed * 1000 + i, 600, 300, False) for i in range(20)] + [(seed * 1000 + 900, 150, 150, True)]
    with multiprocessing.Pool(processes) as pool:
        parts = pool.map_async(_synthesise, jobs, chunksize=1)
        pools.takes, pools.test_takes = read_fsdd(fsdd)
        pools.clips, pools.test_clips = read_esc10(esc10)
        for (_, _, _, test), (sentences, digits) in zip(jobs, parts.get()):
            (pools.test_sentences if test else pools.sentences).extend(sentences)
            (pools.test_digits if test else pools.digits).extend(digits)
    cache.parent.mkdir(parents=True, exist_ok=True)
    test = Pools(
        test_takes=pools.test_takes,
        test_clips=pools.test_clips,
        test_sentences=pools.test_sentences,
        test_digits=pools.test_digits,
    )
    for content, path in ((test, cache.with_name(HELD_OUT)), (pools, cache)):
        temporary = path.with_suffix(".part")
        temporary.write_bytes(pickle.dumps(content, protocol=5))
        temporary.rename(path)
    return pools


def read_pools(path: Path) -> Pools:
    """Pools that `make_pools` has written."""
    return pickle.loads(path.read_bytes())

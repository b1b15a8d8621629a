"""Random speech streams, sounds and noise, from the pools."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from .data import Pools, Take
from .espeak import RATE, Utterance

QUIET = 30  # int16 samples below this count as silence


@dataclass
class Word:
    """A written word (or final "." or "?") with its start and end in seconds of the window."""

    text: str
    start: float
    end: float

    @property
    def is_mark(self) -> bool:
        """Whether this is a full stop or a question mark."""
        return self.text in ".?"


def decibels(db: float) -> float:
    """Return the amplitude factor of a level in dB."""
    return 10 ** (db / 20)


class Mixer:
    """Source of random audio; all choices depend on the seed.

    Parameters
    ----------
    pools : Pools
        Recordings and synthetic speech.
    seed : int
        Seed of the random generators.
    """

    def __init__(self, pools: Pools, seed: int) -> None:
        self.pools = pools
        self.rng = random.Random(seed)
        generator = np.random.default_rng(seed)
        self._noise = [_coloured_noise(generator, power) for power in (0.0, 1.0, 2.0)]
        self._by_sound: dict[str, list[np.ndarray]] = {}
        for clip in self.pools.clips:
            self._by_sound.setdefault(clip.sound, []).append(clip.audio)

    # --- speech ------------------------------------------------------------------------------------------------

    def _digit_burst(self, n_digits: int, mixed_speakers: bool, max_gap: float) -> Utterance:
        """Join takes of FSDD with pauses of up to ``max_gap`` seconds."""
        rng = self.rng
        by_speaker = rng.choice(self.pools.takes)
        speaker = rng.choice(list(by_speaker))
        normalise = rng.random() < 0.6
        repeat = rng.random() < 0.06  # sometimes the same digit over and over
        pieces: list[np.ndarray] = []
        spans, words, at = [], [], 0
        take: Take | None = None
        for i in range(n_digits):
            if mixed_speakers:
                by_speaker = rng.choice(self.pools.takes)
                speaker = rng.choice(list(by_speaker))
            if not (repeat and take is not None and rng.random() < 0.7):
                take = rng.choice(by_speaker[speaker])
            margin = rng.choice([160, 480, 960, 8000])
            low, high = max(0, take.first - margin), min(len(take.audio), take.last + margin)
            audio = take.audio[low:high].astype(np.float32)
            if normalise:
                audio *= 2500 / (np.sqrt((audio**2).mean()) + 1) * decibels(rng.uniform(-3, 3))
            pieces.append(audio)
            spans.append((at + take.first - low, at + take.last - low))
            words.append(str(take.digit))
            at += len(audio)
            if i + 1 < n_digits:
                silence = int(rng.uniform(0, max_gap) * RATE)
                pieces.append(np.zeros(silence, np.float32))
                at += silence
        return Utterance(np.concatenate(pieces), words, spans, speaker)

    def speech(self, seconds: float) -> tuple[np.ndarray, list[list[Word]]]:
        """Return a stream of utterances and pauses.

        Returns
        -------
        audio : ndarray of float32, shape (samples,)
            Speech in the range of int16.
        utterances : list of list of Word
            The first may start before 0, the last may end after ``seconds``.
        """
        rng = self.rng
        audio = np.zeros(int(seconds * RATE), np.float32)
        utterances: list[list[Word]] = []
        style = rng.choices(["bursts", "strings", "sentences", "mixed", "running"], [38, 14, 28, 12, 8])[0]
        min_pause, max_pause = rng.choice([(0.55, 0.9), (0.55, 1.6), (0.6, 2.5), (0.6, 2.5), (0.8, 4.0), (1.0, 6.5)])
        max_gap = rng.choice([0.03, 0.1, 0.2, 0.3, 0.4])
        max_digits = rng.choice([1, 2, 4, 6, 8, 8])
        mixed_speakers = rng.random() < 0.25
        level_range = rng.choice([0.0, 2.0, 6.0])  # dB
        draw = rng.random()
        if draw < 0.25:
            at = rng.uniform(0, 0.12)
        else:
            at = rng.uniform(0, max_pause) if draw < 0.85 else rng.uniform(0, 0.8 * seconds)
        starts_inside = 0.85 <= draw < 0.93
        while at < seconds:
            kind = rng.choice(["bursts", "strings", "sentences"]) if style == "mixed" else style
            if kind == "sentences":
                utterance = rng.choice(self.pools.sentences)
            elif kind == "strings":
                utterance = rng.choice(self.pools.digits)
            else:
                n_digits = rng.randrange(9, 40) if kind == "running" else rng.randint(1, max_digits)
                utterance = self._digit_burst(n_digits, mixed_speakers, max_gap)
            if starts_inside:
                at, starts_inside = -rng.uniform(0, len(utterance.audio) / RATE), False
            gain = decibels(rng.uniform(-level_range, level_range))
            first = int(at * RATE)
            piece = utterance.audio[max(0, -first) : len(audio) - first].astype(np.float32)
            audio[max(0, first) : max(0, first) + len(piece)] += gain * piece
            words = [Word(w, at + a / RATE, at + b / RATE) for w, (a, b) in zip(utterance.words, utterance.spans)]
            utterances.append(words)
            at = max(words[-1].end, at + len(utterance.audio) / RATE) + rng.uniform(min_pause, max_pause)
        return audio, utterances

    # --- sounds: each returns float32 (samples,) with a root mean square of about 1 ------------------------------

    def noise(self, n: int, random_start: bool = False) -> np.ndarray:
        """Return white, pink or brown noise, at most 60 s."""
        noise = self.rng.choice(self._noise)
        at = self.rng.randrange(0, len(noise) - n + 1) if random_start else 0
        return noise[at : at + n]

    def sounds(self, n: int) -> np.ndarray:
        """Return environmental sounds in a row, or noise."""
        rng = self.rng
        if rng.random() < 0.22:
            noise = rng.choice(self._noise)
            at = rng.randrange(0, len(noise) - n) if n < len(noise) else 0
            return noise[at : at + n].copy()
        out, at = np.zeros(n, np.float32), 0
        sound = rng.choice(list(self._by_sound))
        while at < n:
            if rng.random() < 0.4:
                sound = rng.choice(list(self._by_sound))
            audio = rng.choice(self._by_sound[sound])
            loud = np.flatnonzero(np.abs(audio) > QUIET)
            if len(loud) > RATE // 4:
                audio = audio[loud[0] : loud[-1]]
            start = rng.randrange(0, max(1, len(audio) // 2)) if rng.random() < 0.3 else 0
            piece = audio[start:].astype(np.float32)
            if rng.random() < 0.6:  # there are few clips: vary their speed
                positions = np.arange(0, len(piece) - 1, rng.uniform(0.75, 1.3))
                piece = np.interp(positions, np.arange(len(piece)), piece).astype(np.float32)
            piece = piece[: n - at]
            piece /= np.sqrt((piece**2).mean()) + 1
            if rng.random() < 0.5:
                piece *= decibels(rng.uniform(-6, 6))
            out[at : at + len(piece)] = piece
            at += len(piece) + (int(rng.uniform(0, 2) * RATE) if rng.random() < 0.3 else 0)
        return out

    def tones(self, n: int) -> np.ndarray:
        """Return notes, chords, sweeps and clicks."""
        rng, out, at = self.rng, np.zeros(n, np.float32), 0
        base, sweep = rng.uniform(80, 900), rng.random() < 0.2
        while at < n:
            length = min(n - at, int(rng.uniform(0.08, 1.5) * RATE))
            t = np.arange(length, dtype=np.float32) / RATE
            note = np.zeros(length, np.float32)
            for ratio in rng.choice([(1,), (1, 2, 3), (1, 1.25, 1.5), (1, 2, 3, 4, 5, 6)]):
                frequency = base * ratio * 2 ** (rng.randrange(0, 13) / 12 if ratio == 1 else 0)
                note += np.sin(6.2832 * (frequency * t + (rng.uniform(-300, 300) * t * t if sweep else 0))) / ratio
            out[at : at + length] = note * np.exp(-t * rng.choice([0.0, 2.0, 8.0, 40.0]))
            at += length + (int(rng.uniform(0, 0.6) * RATE) if rng.random() < 0.3 else 0)
        return out

    def vary_spectrum(self, audio: np.ndarray) -> np.ndarray:
        """Tilt the spectrum of the audio at random, or leave it as it is."""
        if self.rng.random() >= 0.4:
            return audio
        return lfilter([1.0, -self.rng.uniform(-0.6, 0.85)], [1.0], audio).astype(np.float32)


def _coloured_noise(generator: np.random.Generator, power: float, seconds: int = 60) -> np.ndarray:
    """Return noise whose power falls with frequency to the given exponent, with a standard deviation of 1."""
    spectrum = np.fft.rfft(generator.standard_normal(seconds * RATE))
    spectrum /= np.maximum(np.arange(len(spectrum)), 20 * seconds) ** (power / 2)
    noise = np.fft.irfft(spectrum)
    return (noise / noise.std()).astype(np.float32)

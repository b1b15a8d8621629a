"""Audio for the evaluation, made from held-out recordings and synthetic speech."""

from __future__ import annotations

import random

import numpy as np

from .data import Pools, Take
from .espeak import RATE, Utterance


def digit_string(rng: random.Random, takes: list[Take], gap: tuple[float, float]) -> Utterance:
    """Join takes with random pauses between a minimum and a maximum in seconds."""
    pieces, spans, at = [], [], 0
    for i, take in enumerate(takes):
        pieces.append(take.audio)
        spans.append((at + take.first, at + take.last))
        at += len(take.audio)
        silence = int(rng.uniform(*gap) * RATE) if i + 1 < len(takes) else 0
        pieces.append(np.zeros(silence, np.int16))
        at += silence
    return Utterance(np.concatenate(pieces), [str(t.digit) for t in takes], spans, takes[0].speaker)


def random_digit_string(rng: random.Random, pools: Pools, least: int = 3, most: int = 8) -> Utterance:
    """Return a string of ``least`` to ``most`` digits of one speaker."""
    speaker = rng.choice(sorted({t.speaker for t in pools.test_takes}))
    takes = [t for t in pools.test_takes if t.speaker == speaker]
    return digit_string(rng, [rng.choice(takes) for _ in range(rng.randint(least, most))], (0.05, 0.3))


def long_recording(rng: random.Random, pools: Pools, seconds: float, sentences: bool) -> Utterance:
    """Return sentences or digit strings with pauses of 0.5 to 4 s, for at least ``seconds``."""
    pieces: list[np.ndarray] = []
    words: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    while at < seconds * RATE:
        utterance = rng.choice(pools.test_sentences) if sentences else random_digit_string(rng, pools, 1, 8)
        pieces += [utterance.audio, np.zeros(int(rng.uniform(0.5, 4.0) * RATE), np.int16)]
        words += utterance.words
        spans += [(at + a, at + b) for a, b in utterance.spans]
        at += sum(map(len, pieces[-2:]))
    return Utterance(np.concatenate(pieces), words, spans, "")


def to_float(audio: np.ndarray) -> np.ndarray:
    """Convert int16 audio to float32 in −1 … 1."""
    return audio.astype(np.float32) / 32768


def add_noise(
    rng: random.Random, pools: Pools, audio: np.ndarray, snr: float, noise: np.ndarray | None = None
) -> np.ndarray:
    """Return speech (int16) with a noise, by default a random clip, as float32 in −1 … 1.

    The ratio in dB is between the power of the speech without its pauses and that of the noise.
    """
    speech = to_float(audio)
    if noise is None:
        noise = rng.choice(pools.test_clips).audio
        noise = noise[np.abs(noise) > 0]
    noise = noise.astype(np.float32)
    noise = np.tile(noise, len(speech) // len(noise) + 1)[: len(speech)]
    power = np.mean(speech[np.abs(speech) > 1e-3] ** 2)
    return np.clip(speech + noise * np.sqrt(power / (np.mean(noise**2) + 1e-12) * 10 ** (-snr / 10)), -1, 1)

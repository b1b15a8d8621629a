"""Random scenes of at most 30 s, and what is heard in every step of 0.4 s."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from scipy.signal import lfilter

from whisper_at.tagging.labels import N_CLASSES, find_class
from whisper_at.tagging.timeline import WINDOW_STEPS

from .pool import RATE, Item, Pool
from .teacher import HOP

SPEECH_SOURCES = ("librispeech", "voices")
SHORT = (3, 5, 8, 12, 13, 13, 13, 20, 25, 25, 40)
"""Numbers of steps of the scenes that are shorter than a window."""
KINDS = {"clip": 22, "sounds": 34, "both": 26, "speech": 6, "music": 8, "quiet": 4}
"""How often a scene is one sound alone, sounds one after another, these under speech, speech, music, or noise."""
MUSIC, SILENCE = find_class("Music"), find_class("Silence")
NOISE_POLES = (0.0, 0.0, 0.7, 0.95, 0.99)
"""Of the noise floors: white twice as often as each of the darker ones."""
MASKED = 15.0
"""A sound that is this many dB below the rest of the scene has half its target left."""


@dataclass
class Scene:
    """A scene: float32 samples at 16 kHz, and targets from 0 to 1, float32 of shape (steps, 527)."""

    audio: np.ndarray
    targets: np.ndarray


def decibels(value: float) -> float:
    """Return the factor of an amplitude."""
    return float(10 ** (value / 20))


def loud_rms(audio: np.ndarray) -> float:
    """Return the RMS of the loudest third of a sound, by frames of 10 ms."""
    power = audio**2
    if len(audio) >= 160:
        power = np.sort(power[: len(audio) // 160 * 160].reshape(-1, 160).mean(1))
    return float(np.sqrt(power[-max(1, len(power) // 3) :].mean()))


def coloured_noise(n: int, pole: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise at an RMS of 1, float32 (n,): white for a pole of 0, darker the nearer it is to 1."""
    white = rng.standard_normal(n).astype(np.float32)
    if pole == 0:
        return white
    noise = lfilter([1.0], [1.0, -pole], white).astype(np.float32)
    return noise / (noise.std() + 1e-9)


class SceneMaker:
    """Maker of scenes.

    Parameters
    ----------
    pool : Pool
        The recordings.
    held_out : bool
        Whether to take those that are held out, or the others.
    seed : int
        Seed of all random choices.
    """

    def __init__(self, pool: Pool, held_out: bool, seed: int) -> None:
        self.pool, self.rng = pool, random.Random(seed)
        self.noise_rng = np.random.default_rng(seed)
        items = [item for item in pool.items if item.held_out == held_out]
        self.speech = [item for item in items if item.source in SPEECH_SOURCES]
        self.others = [item for item in items if item.source not in SPEECH_SOURCES]
        self.music = [item for item in self.others if MUSIC in item.labels]
        members: dict[int, list[Item]] = {}
        for item in self.others:
            for label in item.labels or (-1,):
                members.setdefault(label, []).append(item)
        self.members = list(members.values())
        self.recorded = [item for item in self.others if item.source != "soundfont"] or self.others

    def scene(self) -> Scene:
        """Return a random scene."""
        rng = self.rng
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        steps = WINDOW_STEPS if kind != "clip" and rng.random() < 0.8 else rng.choice(SHORT)
        tracks: list[tuple[np.ndarray, np.ndarray]] = []
        level = rng.uniform(-34, -14)
        if kind == "clip":
            item = self._sound()
            steps = min(steps, max(2, item.steps)) if rng.random() < 0.7 else steps
            tracks.append(self._placed([(0, item)], steps, level))
        if kind in ("sounds", "both"):
            tracks.append(self._sequence(steps, level))
        if kind == "sounds" and rng.random() < 0.25:
            tracks.append(self._sequence(steps, level - rng.uniform(0, 15)))
        if kind == "music":
            tracks.append(self._placed([(0, rng.choice(self.music))], steps, level, repeat=True))
        if kind in ("speech", "both") or (kind == "music" and rng.random() < 0.4):
            over = rng.uniform(-10, 20) if tracks else 0.0
            tracks.append(self._speech(steps, level + over))
        return self._mix(tracks, steps)

    def _sound(self) -> Item:
        """Return a sound: of a class, all of which are drawn alike, or any recording."""
        return self.rng.choice(self.rng.choice(self.members) if self.rng.random() < 0.5 else self.recorded)

    def _sequence(self, steps: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Return sounds one after another, with gaps, some of them overlapping."""
        rng, at, placed = self.rng, self.rng.choice([0, 0, 1, 3]), []
        while at < steps:
            item = self._sound()
            placed.append((at, item))
            at += min(item.steps, rng.choice([4, 8, 13, 13, 25])) + rng.choice([0, 0, 0, 1, 3, 8])
            if rng.random() < 0.1:
                at = max(0, at - 3)
        return self._placed(placed, steps, level)

    def _speech(self, steps: int, level: float) -> tuple[np.ndarray, np.ndarray]:
        rng, at, placed = self.rng, self.rng.choice([0, 0, 2, 6, 12]), []
        while at < steps:
            item = rng.choice(self.speech)
            placed.append((at, item))
            at += item.steps + rng.choice([0, 1, 4, 12])
        return self._placed(placed, steps, level, spread=2.0, longest=60)

    def _placed(
        self,
        placed: list[tuple[int, Item]],
        steps: int,
        level: float,
        spread: float = 8.0,
        longest: int = 26,
        repeat: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a track with recordings at the given steps: audio, and targets of each step."""
        rng, n = self.rng, steps * HOP
        audio, targets = np.zeros(n, np.float32), np.zeros((steps, N_CLASSES), np.float32)
        for at, item in placed:
            sound, wanted = self._varied(item, longest if not repeat else steps)
            if repeat:
                sound = np.resize(sound, max(len(sound), n))
                wanted = np.resize(wanted, (max(len(wanted), steps), N_CLASSES))
            offset = 0 if repeat else rng.randrange(HOP)  # sounds do not begin on steps
            sound = sound[: n - at * HOP - offset]
            audio[at * HOP + offset : at * HOP + offset + len(sound)] += sound * decibels(
                level + rng.uniform(-spread, spread)
            )
            for shift in (0, 1) if offset > HOP // 4 else (0,):  # what begins late in a step is heard in the next too
                part = wanted[: max(0, steps - at - shift)]
                np.maximum(
                    targets[at + shift : at + shift + len(part)], part, out=targets[at + shift : at + shift + len(part)]
                )
        return audio, targets

    def _varied(self, item: Item, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a part of a recording with varied speed and spectrum, at an RMS of about 1 where it is loud."""
        rng = self.rng
        audio, targets = self.pool.audio(item), self.pool.targets(item)
        if len(targets) > longest:
            first = rng.randrange(len(targets) - longest + 1)
            audio, targets = audio[first * HOP : (first + longest) * HOP], targets[first : first + longest]
        if rng.random() < 0.5:
            speed = rng.uniform(0.85, 1.18)
            audio = np.interp(np.arange(0, len(audio) - 1, speed), np.arange(len(audio)), audio).astype(np.float32)
            steps = max(1, -(-len(audio) // HOP))
            targets = targets[np.minimum((np.arange(steps) * speed).astype(int), len(targets) - 1)]
        if rng.random() < 0.4:
            audio = lfilter([1.0, -rng.uniform(-0.5, 0.8)], [1.0], audio).astype(np.float32)
        return audio / (loud_rms(audio) + 1e-6), targets

    def _noise(self, n: int) -> np.ndarray:
        """Return white, pink or brown noise at an RMS of 1."""
        return coloured_noise(n, self.rng.choice(NOISE_POLES), self.noise_rng)

    def _mix(self, tracks: list[tuple[np.ndarray, np.ndarray]], steps: int) -> Scene:
        """Add the tracks and a noise floor; a sound that the rest covers is heard less."""
        rng, n = self.rng, steps * HOP
        floor = self._noise(n) * decibels(rng.uniform(-90, -52)) if rng.random() < 0.6 else np.zeros(n, np.float32)
        powers = [(audio.reshape(steps, HOP).astype(np.float64) ** 2).mean(1) for audio, _ in tracks]
        total = sum(powers, np.full(steps, (floor.astype(np.float64) ** 2).mean() + 1e-12))
        targets = np.zeros((steps, N_CLASSES), np.float32)
        for power, (_, wanted) in zip(powers, tracks):
            below = 10 * np.log10(total / (power + 1e-12))  # of this track, in dB
            heard = 1 / (1 + np.exp((below - MASKED) / 3))
            np.maximum(targets, wanted * heard[:, None].astype(np.float32), out=targets)
        audio = sum((audio for audio, _ in tracks), floor)
        audio *= min(1.0, 0.98 / (np.abs(audio).max() + 1e-9))
        if not tracks:
            targets[:, SILENCE] = 1.0
        return Scene(audio.astype(np.float32), targets)


def audible_seconds(scene: Scene) -> float:
    """Return the length of a scene in seconds."""
    return len(scene.audio) / RATE

"""Random 30 s scenes of sounds, speech and silence, with the classes that are audible in every step of 0.4 s."""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import lfilter
from whisper.audio import log_mel_spectrogram

from whisper_at.tagging.labels import ancestors, find_class

from .data import SOUNDS, Pools
from .espeak import RATE
from .mixer import QUIET, Mixer, decibels

STEP = int(0.4 * RATE)
CLASS_NAMES = [*SOUNDS, "Speech", "Silence"]
SPEECH, SILENCE = len(SOUNDS), len(SOUNDS) + 1


def audioset_targets() -> torch.Tensor:
    """Return the AudioSet classes of each class of `CLASS_NAMES` and their ancestors, float32 ``(12, 527)``."""
    targets = torch.zeros(len(CLASS_NAMES), 527)
    for row, name in enumerate(CLASS_NAMES):
        for class_name in SOUNDS.get(name, [name]):
            index = find_class(class_name)
            targets[row, [index, *ancestors(index)]] = 1.0
    return targets


def _step_levels(audio: np.ndarray) -> np.ndarray:
    """Return the level of every complete step in dB of full scale."""
    steps = audio[: len(audio) // STEP * STEP].reshape(-1, STEP)
    return 10 * np.log10((steps.astype(np.float64) ** 2).mean(1) + 1e-12)


class SceneGenerator:
    """Generator of scenes.

    Parameters
    ----------
    pools : Pools
        Recordings and synthetic speech.
    seed : int
        Seed of all random choices.
    """

    def __init__(self, pools: Pools, seed: int) -> None:
        self.mixer = Mixer(pools, seed)
        self.rng = self.mixer.rng
        self.by_sound: list[list[np.ndarray]] = [[c.audio for c in pools.clips if c.sound == s] for s in SOUNDS]

    def scene(self) -> tuple[torch.Tensor, np.ndarray, int]:
        """Return a random scene.

        Returns
        -------
        mel : Tensor of float32, shape (80, 3000)
            Log-mel spectrogram.
        labels : ndarray of float32, shape (75, classes)
            1 where a class is audible.
        n_steps : int
            Number of steps with audio; the rest is padding.
        """
        rng = self.rng
        n_steps = 75 if rng.random() < 0.5 else rng.choice([2, 3, 5, 8, 12, 13, 13, 13, 20, 25, 40])
        length, level = n_steps * STEP, rng.uniform(-36, -16)
        tracks = np.zeros((len(CLASS_NAMES), length), np.float32)
        kind = rng.choices(["sounds", "both", "speech", "silence"], [46, 42, 8, 4])[0]
        if kind in ("sounds", "both"):
            self._add_sounds(tracks, level)
        if kind in ("both", "speech"):
            tracks[SPEECH] = self._speech(length, level, with_sounds=kind == "both")
        floor = rng.uniform(-90, -58)
        audio = tracks.sum(0)
        if rng.random() < 0.5:
            audio = audio + self.mixer.noise(length, random_start=True) * decibels(floor)
        scale = min(1.0, 0.99 / (np.abs(audio).max() + 1e-9))
        labels = np.zeros((75, len(CLASS_NAMES)), np.float32)
        for i, track in enumerate(tracks):
            if track.any():
                levels = _step_levels(track * scale)
                labels[:n_steps, i] = levels > max(-62.0, levels.max() - 32.0)
        labels[:n_steps, SILENCE] = (labels[:n_steps].sum(1) == 0) & (_step_levels(audio * scale) < -55)
        mel = log_mel_spectrogram(torch.from_numpy((audio * scale).astype(np.float32)), padding=RATE)
        mel = torch.cat([mel[:, : n_steps * 40], torch.zeros(80, 3000 - n_steps * 40)], 1)
        return mel, labels, n_steps

    def _add_sounds(self, tracks: np.ndarray, level: float) -> None:
        """Fill the tracks with clips one after another, some of them overlapping."""
        rng, length = self.rng, tracks.shape[1]
        at = int(rng.uniform(0, 1.5) * RATE) if rng.random() < 0.4 else 0
        sound = rng.randrange(len(SOUNDS))
        while at < length:
            sound = sound if rng.random() < 0.35 else rng.randrange(len(SOUNDS))
            clip = self._clip(sound) * decibels(level + rng.uniform(-8, 8))
            piece = clip[: length - at]
            tracks[sound, at : at + len(piece)] += piece
            draw = rng.random()
            if draw < 0.12:
                at += int(len(piece) * 0.6)
            else:
                at += len(piece) + (int(rng.uniform(0.4, 4) * RATE) if draw > 0.75 else 0)

    def _clip(self, sound: int) -> np.ndarray:
        """Return a clip of a class with varied speed and spectrum, at an RMS of 1 where it is loud."""
        rng = self.rng
        audio = rng.choice(self.by_sound[sound]).astype(np.float32)
        if rng.random() < 0.7:
            speed = rng.uniform(0.82, 1.2)
            audio = np.interp(np.arange(0, len(audio) - 1, speed), np.arange(len(audio)), audio).astype(np.float32)
        if rng.random() < 0.4:
            audio = lfilter([1.0, -rng.uniform(-0.5, 0.8)], [1.0], audio).astype(np.float32)
        if rng.random() < 0.3:
            audio = audio[int(rng.uniform(0, 0.5) * len(audio)) :]
        levels = _step_levels(audio) if len(audio) > STEP else np.array([-60.0])
        return audio / 10 ** (np.sort(levels)[-max(1, len(levels) // 3) :].mean() / 20 + 1e-9)

    def _speech(self, length: int, level: float, with_sounds: bool) -> np.ndarray:
        """Return a stream of speech; ``level`` in dB is that of the sounds."""
        rng = self.rng
        speech, _ = self.mixer.speech(length / RATE)
        active = speech[np.abs(speech) > QUIET]
        if len(active):
            sounds_over_speech = rng.uniform(-15, 12) if with_sounds else 0.0  # dB
            speech *= decibels(level - sounds_over_speech) / np.sqrt((active**2).mean())
        if rng.random() < 0.3:
            speech[: rng.randrange(length)] = 0
        return speech

"""Windows of sounds, speech and silence for the head, with the classes that are audible in every step of 0.4 s."""

from __future__ import annotations

import numpy as np
import torch
from scipy.signal import lfilter
from whisper.audio import log_mel_spectrogram

from whisper_at.tagging.labels import ancestors, find_class

from .data import SOUNDS
from .espeak import RATE
from .windows import Mixer

STEP = int(0.4 * RATE)
SPEECH, SILENCE = len(SOUNDS), len(SOUNDS) + 1
NAMES = [*SOUNDS, "Speech", "Silence"]


def label_table() -> torch.Tensor:
    """float (12, 527): the AudioSet classes of every trained one, itself and its ancestors."""
    table = torch.zeros(len(NAMES), 527)
    for row, name in enumerate(NAMES):
        for class_name in SOUNDS.get(name, [name]):
            index = find_class(class_name)
            table[row, [index, *ancestors(index)]] = 1.0
    return table


def _levels(audio: np.ndarray) -> np.ndarray:
    """RMS of every whole step of 0.4 s, in dB of full scale."""
    steps = audio[: len(audio) // STEP * STEP].reshape(-1, STEP)
    return 10 * np.log10((steps.astype(np.float64) ** 2).mean(1) + 1e-12)


class Scenes:
    """Random 30 s scenes: `next()` gives a mel (80, 3000), audible classes (75, 12), and the steps with sound."""

    def __init__(self, mixer: Mixer) -> None:
        self.mixer, self.r = mixer, mixer.r
        self.by_sound: list[list[np.ndarray]] = [[c.audio for c in mixer.pools.clips if c.sound == s] for s in SOUNDS]

    def _clip(self, sound: int) -> np.ndarray:
        """A clip at another speed and colour, at an RMS of 1 where it is loud."""
        r = self.r
        audio = r.choice(self.by_sound[sound]).astype(np.float32)
        if r.random() < 0.7:
            speed = r.uniform(0.82, 1.2)
            audio = np.interp(np.arange(0, len(audio) - 1, speed), np.arange(len(audio)), audio).astype(np.float32)
        if r.random() < 0.4:
            audio = lfilter([1.0, -r.uniform(-0.5, 0.8)], [1.0], audio).astype(np.float32)
        audio = audio[int(r.uniform(0, 0.5) * len(audio)) :] if r.random() < 0.3 else audio
        levels = _levels(audio) if len(audio) > STEP else np.array([-60.0])
        return audio / 10 ** (np.sort(levels)[-max(1, len(levels) // 3) :].mean() / 20 + 1e-9)

    def next(self) -> tuple[torch.Tensor, np.ndarray, int]:
        r = self.r
        n = 75 if r.random() < 0.5 else r.choice([2, 3, 5, 8, 12, 13, 13, 13, 20, 25, 40])
        length, level = n * STEP, r.uniform(-36, -16)
        tracks = np.zeros((len(NAMES), length), np.float32)
        kind = r.choices(["sounds", "both", "speech", "silence"], [46, 42, 8, 4])[0]
        if kind in ("sounds", "both"):
            at = int(r.uniform(0, 1.5) * RATE) if r.random() < 0.4 else 0
            sound = r.randrange(len(SOUNDS))
            while at < length:
                sound = sound if r.random() < 0.35 else r.randrange(len(SOUNDS))
                clip = self._clip(sound) * 10 ** ((level + r.uniform(-8, 8)) / 20)
                piece = clip[: length - at]
                tracks[sound, at : at + len(piece)] += piece
                draw = r.random()
                at += (
                    int(len(piece) * 0.6)
                    if draw < 0.12
                    else len(piece) + (int(r.uniform(0.4, 4) * RATE) if draw > 0.75 else 0)
                )
        if kind in ("both", "speech"):
            speech, _ = self.mixer.stream(length / RATE)
            active = speech[np.abs(speech) > 30]
            if len(active):
                snr = r.uniform(-15, 12) if kind == "both" else 0.0  # of the sounds over the speech
                speech *= 10 ** ((level - snr) / 20) / np.sqrt((active**2).mean())
            if r.random() < 0.3:
                speech[: r.randrange(length)] = 0
            tracks[SPEECH] = speech
        floor = r.uniform(-90, -58)
        audio = tracks.sum(0)
        if r.random() < 0.5:
            audio = audio + self.mixer.coloured(length) * 10 ** (floor / 20)
        peak = np.abs(audio).max()
        scale = min(1.0, 0.99 / (peak + 1e-9))
        labels = np.zeros((75, len(NAMES)), np.float32)
        for i, track in enumerate(tracks):
            if track.any():
                levels = _levels(track * scale)
                labels[:n, i] = levels > max(-62.0, levels.max() - 32.0)
        labels[:n, SILENCE] = (labels[:n].sum(1) == 0) & (_levels(audio * scale) < -55)
        mel = log_mel_spectrogram(torch.from_numpy((audio * scale).astype(np.float32)), padding=RATE)[:, : n * 40]
        mel = torch.cat([mel, torch.zeros(80, 3000 - n * 40)], 1)
        return mel, labels, n

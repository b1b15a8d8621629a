"""Made audio, labelled clips and layers for the tests of the noise study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import wavfile

from whisper_at.data import Clip, Dataset

RATE = 16000
CLASSES = ("dog", "rain", "wind")


def tone(seconds: float, frequency: float = 440.0, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def write_wav(path, audio: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, RATE, (audio * 32767).astype(np.int16))


def dataset(per_fold: int = 12, n_folds: int = 3) -> Dataset:
    clips = [
        Clip(Path(f"{fold}-{i}.wav"), (CLASSES[i % 3],), fold=str(fold))
        for fold in range(1, n_folds + 1)
        for i in range(per_fold)
    ]
    return Dataset(tuple(clips), CLASSES)


def states_of(data: Dataset, seed: int = 0) -> np.ndarray:
    """Input and two layers: noise, all classes, and one class against the rest."""
    r = np.random.default_rng(seed)
    truth = data.targets()
    states = r.normal(0, 0.1, (len(data), 3, 8))
    states[:, 1, : truth.shape[1]] += truth
    states[:, 2, 0] += truth[:, 0]
    return 5 + 3 * states.astype(np.float32)

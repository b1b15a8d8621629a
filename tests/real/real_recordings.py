"""Real recordings for tests on real weights: speech with its text, other voices, sounds, mixtures, pauses."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, ROOT, SAMPLE_RATE

import whisper_at


@cache
def _texts() -> dict[str, str]:
    """Texts of the utterances of LibriSpeech, by the names of their files without suffix."""
    with open(find("librispeech/index.csv"), encoding="utf-8", newline="") as file:
        return {row["file"].removesuffix(".flac"): row["text"] for row in csv.DictReader(file)}


def find(path: str | Path) -> Path:
    """A file in the folder of data, or one of the project's own, by its absolute path; skips where it is not."""
    path = DATA / path
    if not path.is_file():
        pytest.skip(f"{path.name} is not here; WHISPER_AT_DATA names the folder of real recordings")
    return path


def load(path: str | Path) -> np.ndarray:
    """Samples of a file as `find` takes it: an array, because upstream's ffmpeg need not be here."""
    return whisper_at.load_audio(str(find(path)))


def sample(name: str, start: float = 0, end: float | None = None) -> np.ndarray:
    """Part of one of the project's own recordings, in seconds."""
    audio = load(ROOT / "sample" / name)
    return audio[round(start * SAMPLE_RATE) : None if end is None else round(end * SAMPLE_RATE)]


def speech(*utterances: str, pause: float = 0) -> np.ndarray:
    """Utterances of LibriSpeech, one after the other, with silence between them."""
    parts: list[np.ndarray] = []
    for name in utterances:
        parts += [load(f"librispeech/{name}.flac"), silence(pause)]
    return np.concatenate(parts[:-1])


def text(utterance: str) -> str:
    """What is said in an utterance of LibriSpeech."""
    return _texts()[utterance]


def voice(name: str) -> np.ndarray:
    return load(f"voices/{name}.ogg")


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def in_noise(audio: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech and noise, which repeats, at a ratio in dB."""
    noise = np.resize(noise, len(audio))
    ratio = np.sqrt(np.mean(audio**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return (audio + ratio * noise).astype(np.float32)


UTTERANCES = [
    *("2764-36616-0000", "6081-41997-0000", "201-122255-0000", "481-123719-0000", "6880-216547-0000"),
    *("1183-124566-0000", "1963-142393-0000", "3607-135982-0000", "8629-261139-0000", "1455-134435-0000"),
]
"""Ten utterances of LibriSpeech, 3 to 8 s, of ten speakers."""

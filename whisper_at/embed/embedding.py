"""Embeddings of many recordings: decoded by threads while the network works, in batches, one file after another."""

from __future__ import annotations

import os
import wave
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..audio import load_audio
from ..data.clips import AUDIO_SUFFIXES
from .frames import pool_frames
from .fusion import Fusion

LEVELS = ("clip", "frame")
BATCH_SECONDS = 320.0  # of audio that pass together at most, unless one recording is longer


class Embedding(NamedTuple):
    """One vector, float32 ``(width,)``, of a recording from ``start`` to ``end`` in seconds."""

    path: str
    start: float
    end: float
    vector: np.ndarray


class Failure(NamedTuple):
    """A recording that could not be embedded, and why."""

    path: str
    reason: str


def embed(
    paths: Iterable[str | os.PathLike[str]],
    model: Fusion,
    level: str = "clip",
    batch: int = 32,
    workers: int | None = None,
) -> Iterator[Embedding | Failure]:
    """Embed recordings, in order; what cannot be read is given as a `Failure`, and the rest go on.

    Memory does not depend on how many there are: two batches are held decoded ahead.

    Parameters
    ----------
    paths : files; folders stand for the recordings in them, at any depth
    model : from `load_fusion`
    level : ``clip`` for one vector a file, ``frame`` for one every ``model.frame_seconds`` (AST: every 10.24 s)
    batch : files that pass together at most
    workers : threads that decode; as many as there are processors by default

    Raises
    ------
    ValueError
        If there is no such level.

    Examples
    --------
    >>> model = load_fusion("nano.en")
    >>> [(e.path, e.vector.shape) for e in embed(["sample/speech.flac"], model)]
    [('sample/speech.flac', (256,))]
    """
    if level not in LEVELS:
        raise ValueError(f"level must be {' or '.join(LEVELS)}, not {level!r}")
    return _embedded(recordings(paths), model, level, max(1, batch), workers or os.cpu_count() or 1)


def recordings(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Files as they are; for folders the recordings in them, by name, hidden ones left out."""
    for path in map(Path, paths):
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith("."))
            yield from sorted(inside)
        else:
            yield path


def read_samples(path: Path, rate: int) -> np.ndarray:
    """As `load_audio`, without starting ffmpeg for a WAV that needs no conversion; the same samples."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (rate, 1, 2):
                data = file.readframes(file.getnframes())
                return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768.0
    except (wave.Error, EOFError, OSError):
        pass  # another kind of file, or a damaged one, on which ffmpeg has the last word
    return load_audio(path, rate)


def _embedded(
    paths: Iterator[Path], model: Fusion, level: str, batch: int, workers: int
) -> Iterator[Embedding | Failure]:
    waiting: deque[tuple[Path, Future]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        group: list[tuple[Path, np.ndarray | Failure]] = []
        seconds = 0.0
        while True:
            while len(waiting) < 2 * batch and (path := next(paths, None)) is not None:
                waiting.append((path, pool.submit(_decoded, path, model.sample_rate)))
            if not waiting:
                break
            path, future = waiting.popleft()
            found = future.result()
            length = 0.0 if isinstance(found, Failure) else len(found) / model.sample_rate
            if group and (len(group) >= batch or seconds + length > BATCH_SECONDS):
                yield from _encoded(group, model, level)
                group, seconds = [], 0.0
            group.append((path, found))
            seconds += length
        yield from _encoded(group, model, level)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decoded(path: Path, rate: int) -> np.ndarray | Failure:
    try:
        samples = read_samples(path, rate)
    except (OSError, RuntimeError) as error:
        return Failure(str(path), str(error))
    return samples if len(samples) else Failure(str(path), f"{path} holds no samples")


def _encoded(
    group: list[tuple[Path, np.ndarray | Failure]], model: Fusion, level: str
) -> Iterator[Embedding | Failure]:
    """Rows of a group, in its order."""
    waveforms = [torch.from_numpy(found) for _, found in group if not isinstance(found, Failure)]
    frames = iter(model.encode_each(waveforms) if waveforms else [])
    for path, found in group:
        if isinstance(found, Failure):
            yield found
            continue
        heard, seconds = next(frames), len(found) / model.sample_rate
        if level == "clip":
            yield Embedding(str(path), 0.0, seconds, pool_frames(heard, model.pooling).cpu().numpy())
            continue
        step = model.frame_seconds or model.network.piece_seconds
        for i, vector in enumerate(heard.T.contiguous().cpu().numpy()):
            start, end = round(i * step, 6), round((i + 1) * step, 6)
            yield Embedding(str(path), start, max(start, min(end, seconds)), vector)

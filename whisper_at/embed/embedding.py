"""Embed many recordings: threads decode them while the network works, in batches."""

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
MAX_BATCH_SECONDS = 320.0  # of audio in a batch, unless a single recording is longer


class Embedding(NamedTuple):
    """A vector, float32, shape (width,), of a recording from ``start`` to ``end`` in seconds."""

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
    """Embed recordings, in order; a file that cannot be read yields a `Failure`, and the rest go on.

    Memory does not depend on the number of files: two batches are decoded ahead.

    Parameters
    ----------
    paths : iterable of str or path
        Files; a folder stands for the recordings in it, at any depth.
    model : Fusion
        From `load_fusion`.
    level : {"clip", "frame"}
        One vector per file, or one every ``model.frame_seconds`` (AST: every 10.24 s).
    batch : int
        Maximum number of files in a batch.
    workers : int, optional
        Threads that decode; as many as there are processors by default.

    Yields
    ------
    Embedding or Failure
        Vectors of the files, or the reason why there are none.

    Raises
    ------
    ValueError
        If there is no such level.

    Examples
    --------
    >>> from whisper_at.embed import load_fusion
    >>> model = load_fusion("nano.en")
    >>> [(e.path, e.vector.shape) for e in embed(["sample/speech.flac"], model)]
    [('sample/speech.flac', (256,))]
    """
    if level not in LEVELS:
        raise ValueError(f"level must be {' or '.join(LEVELS)}, not {level!r}")
    return _embed_files(find_recordings(paths), model, level, max(1, batch), workers or os.cpu_count() or 1)


def find_recordings(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield files as they are, and for folders the recordings in them by name, without hidden ones."""
    for path in map(Path, paths):
        if path.is_dir():
            inside = (p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES and not p.name.startswith("."))
            yield from sorted(inside)
        else:
            yield path


def load_waveform(path: Path, sample_rate: int) -> np.ndarray:
    """Load audio as `load_audio` does, but without ffmpeg for a WAV that needs no conversion (the same samples)."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            if (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (sample_rate, 1, 2):
                data = file.readframes(file.getnframes())
                return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768.0
    except (wave.Error, EOFError, OSError):
        pass  # another format, or a damaged file: ffmpeg decides
    return load_audio(path, sample_rate)


_Decoded = tuple[Path, "np.ndarray | Failure"]


def _embed_files(
    paths: Iterator[Path], model: Fusion, level: str, batch_size: int, workers: int
) -> Iterator[Embedding | Failure]:
    pending: deque[tuple[Path, Future[np.ndarray | Failure]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        batch: list[_Decoded] = []
        batch_seconds = 0.0
        while True:
            while len(pending) < 2 * batch_size and (path := next(paths, None)) is not None:
                pending.append((path, pool.submit(_decode, path, model.sample_rate)))
            if not pending:
                break
            path, future = pending.popleft()
            decoded = future.result()
            seconds = 0.0 if isinstance(decoded, Failure) else len(decoded) / model.sample_rate
            if batch and (len(batch) >= batch_size or batch_seconds + seconds > MAX_BATCH_SECONDS):
                yield from _encode_batch(batch, model, level)
                batch, batch_seconds = [], 0.0
            batch.append((path, decoded))
            batch_seconds += seconds
        yield from _encode_batch(batch, model, level)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(path: Path, sample_rate: int) -> np.ndarray | Failure:
    try:
        samples = load_waveform(path, sample_rate)
    except (OSError, RuntimeError) as error:
        return Failure(str(path), str(error))
    return samples if len(samples) else Failure(str(path), f"{path} holds no samples")


def _encode_batch(batch: list[_Decoded], model: Fusion, level: str) -> Iterator[Embedding | Failure]:
    """Yield the results of a batch, in its order."""
    waveforms = [torch.from_numpy(decoded) for _, decoded in batch if not isinstance(decoded, Failure)]
    encoded = iter(model.encode_waveforms(waveforms) if waveforms else [])
    for path, decoded in batch:
        if isinstance(decoded, Failure):
            yield decoded
            continue
        frames, seconds = next(encoded), len(decoded) / model.sample_rate
        if level == "clip":
            yield Embedding(str(path), 0.0, seconds, pool_frames(frames, model.pooling).cpu().numpy())
            continue
        step = model.frame_seconds or model.network.chunk_seconds
        for i, vector in enumerate(frames.T.contiguous().cpu().numpy()):
            start, end = round(i * step, 6), round((i + 1) * step, 6)
            yield Embedding(str(path), start, max(start, min(end, seconds)), vector)

"""Waveforms of labelled clips: decoded once, kept by content, gathered in batches, and varied for training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..audio import load_audio
from ..checkpoints.files import atomic_write
from ..data.clips import Clip

FADE_SECONDS = 0.01


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/whisper-at/audio``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root, "whisper-at", "audio")


class Waves:
    """The waveforms of clips, at one rate, decoded and resampled once.

    They are kept as 16-bit ``.npy`` in a folder, under the hash of the file's bytes and the rate: a file that has
    changed is decoded anew, one that was moved is not.

    Parameters
    ----------
    clips : what to read
    rate : samples per second
    cache : folder to keep them in; `default_cache` if None
    seconds : cut longer clips to this, from their start
    least : shorter clips are filled with zeros up to so many samples

    Raises
    ------
    RuntimeError
        If files cannot be decoded or hold no samples; all are tried first, and one message names the first and
        their number.
    ValueError
        If ``seconds`` is not above 0, or a clip begins behind its file's end or its own.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        rate: int = 16000,
        cache: str | os.PathLike[str] | None = None,
        seconds: float | None = None,
        least: int = 1,
        progress: bool = False,
    ) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be more than 0, not {seconds!r}")
        self.clips, self.rate, self.least = tuple(clips), rate, least
        self.most = None if seconds is None else round(seconds * rate)
        self.cache = Path(cache).expanduser() if cache is not None else default_cache()
        self.cache.mkdir(parents=True, exist_ok=True)
        paths = sorted({clip.path for clip in self.clips})
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(pool.map(self._kept, paths), "decoding", len(paths), disable=not progress, leave=False)
            kept = dict(zip(paths, bar))
        if failed := [found for found in kept.values() if isinstance(found, Exception)]:
            more = f" ({len(failed)} of {len(paths)} files cannot be read)" if len(failed) > 1 else ""
            raise RuntimeError(f"{failed[0]}{more}")
        self._files = {path: found for path, found in kept.items() if isinstance(found, Path)}
        parts = [clip for clip in self.clips if clip.start or clip.end is not None]
        seconds_of = {path: len(np.load(self._files[path], mmap_mode="r")) / rate for path in {c.path for c in parts}}
        for clip in parts:
            length = seconds_of[clip.path]
            end = length if clip.end is None else min(clip.end, length)
            if not 0 <= round(clip.start * rate) < round(end * rate):
                until = "its end" if clip.end is None else f"{clip.end:g} s"
                raise ValueError(
                    f"{clip.path} lasts {length:.2f} s and has no part from {clip.start:g} s to {until}; mend the table"
                )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> np.ndarray:
        """Float32 ``(samples,)`` between -1 and 1."""
        clip = self.clips[i]
        samples = np.load(self._files[clip.path])
        end = None if clip.end is None else round(clip.end * self.rate)
        samples = samples[round(clip.start * self.rate) : end][: self.most].astype(np.float32) / 32768
        return np.pad(samples, (0, max(0, self.least - len(samples))))

    def batch(self, indices: Sequence[int], random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Waveforms ``(batch, samples)``, padded with zeros, and lengths; varied if a generator is given."""
        clips = [self[int(i)] for i in indices]
        if random is not None:
            clips = [mask_time(add_noise(clip, random), random, self.rate) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])
        waveforms = torch.zeros(len(clips), int(lengths.max()))
        for row, clip in zip(waveforms, clips):
            row[: len(clip)] = torch.from_numpy(clip)
        return waveforms, lengths

    def _kept(self, path: Path) -> Path | Exception:
        """Where a file's samples are kept, after decoding it if need be; an error is returned, not raised."""
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            kept = self.cache / f"{digest}-{self.rate}.npy"
            if not kept.is_file():
                samples = (load_audio(path, self.rate) * 32768).astype(np.int16)
                if not len(samples):
                    return RuntimeError(f"{path} holds no samples")
                with atomic_write(kept) as temporary, open(temporary, "wb") as file:
                    np.save(file, samples)
            return kept
        except (OSError, RuntimeError) as error:
            return error


# --- variations -------------------------------------------------------------------------------------------------


def add_noise(
    samples: np.ndarray, random: np.random.Generator, decibels: tuple[float, float] = (10.0, 30.0)
) -> np.ndarray:
    """White noise at a signal-to-noise ratio drawn between these (PEFT-SER, spec section 2.4)."""
    ratio = 10 ** (random.uniform(*decibels) / 20)
    power = np.sqrt(np.mean(samples.astype(np.float64) ** 2))
    return samples + (random.standard_normal(len(samples)) * power / ratio).astype(np.float32)


def mask_time(
    samples: np.ndarray, random: np.random.Generator, rate: int = 16000, share: tuple[float, float] = (0.1, 0.15)
) -> np.ndarray:
    """Silence over a share of the samples drawn between these, with fades of 10 ms (PEFT-SER, spec section 2.4)."""
    width = int(len(samples) * random.uniform(*share))
    start = int(random.integers(0, len(samples) - width + 1))
    fade = min(round(FADE_SECONDS * rate), width // 2)
    gain = np.zeros(width, np.float32)
    gain[:fade] = np.linspace(1, 0, fade, endpoint=False)
    gain[width - fade :] = np.linspace(0, 1, fade + 1)[1:]
    out = samples.copy()
    out[start : start + width] *= gain
    return out


def mask_spectrogram(mel: Tensor, frequency: int, time: int) -> Tensor:
    """SpecAugment: of each ``(batch, …, mels, frames)`` one band of channels and one of frames become 0.

    Widths are uniform from 0 up to ``frequency`` and ``time`` (without these), as `torchaudio.transforms` draws them.
    """
    mel = mel.clone()
    for dim, most in ((-2, frequency), (-1, time)):
        size = mel.shape[dim]
        width = torch.rand(len(mel)) * min(most, size)
        start = torch.rand(len(mel)) * (size - width)
        place = torch.arange(size)
        masked = (place >= start[:, None].floor()) & (place < (start[:, None].floor() + width[:, None].floor()))
        shape = [len(mel)] + [1] * (mel.dim() - 1)
        shape[dim] = size
        mel = mel.masked_fill(masked.view(shape).to(mel.device), 0.0)
    return mel


@contextmanager
def spec_augment(front: nn.Module, widths: tuple[int, int] | None) -> Iterator[None]:
    """Mask what the first convolution of a spectrogram's front end reads, as long as this lasts.

    ``widths`` are those of `mask_spectrogram`; None for nothing.

    Raises
    ------
    ValueError
        If the front end computes no spectrogram.
    """
    if widths is None:
        yield
        return
    first = first_convolution(front)
    handle = first.register_forward_pre_hook(lambda _module, inputs: (mask_spectrogram(inputs[0], *widths),))
    try:
        yield
    finally:
        handle.remove()


def first_convolution(front: nn.Module) -> nn.Module:
    """The module of a front end that reads its spectrogram; ValueError where there is none."""
    for name in ("conv1", "projection"):
        if isinstance(found := getattr(front, name, None), (nn.Conv1d, nn.Conv2d)):
            return found
    raise ValueError("SpecAugment masks spectrograms, and this backbone reads samples; leave spec_augment out")

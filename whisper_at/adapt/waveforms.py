"""Waveforms of labelled clips: decoded once, cached by content, batched with padding, and augmented for training."""

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


def default_cache_dir() -> Path:
    """Return ``$XDG_CACHE_HOME/whisper-at/audio``, by default below ``~/.cache``."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root, "whisper-at", "audio")


class WaveformDataset:
    """Waveforms of clips at one sample rate, each file decoded and resampled once.

    Decoded files are cached as 16-bit ``.npy``, named by the hash of the file's bytes and the rate: a file that has
    changed is decoded again, a file that was moved is not.

    Parameters
    ----------
    clips : sequence of Clip
        Files, or parts of files.
    sample_rate : int
        Samples per second.
    cache : path, optional
        Cache folder; `default_cache_dir` by default.
    seconds : float, optional
        Longer clips are cut to their first ``seconds``.
    min_samples : int
        Shorter clips are padded with zeros to this length.
    progress : bool
        Show a progress bar while decoding.
    augment : bool
        Add noise and mask time in training batches, see `batch`.

    Attributes
    ----------
    lengths : list of int
        Samples of each clip.

    Raises
    ------
    RuntimeError
        If files cannot be decoded or hold no samples; all are tried first, and the message names the first one and
        their number.
    ValueError
        If ``seconds`` is not above 0, or a clip starts after the end of its file or after its own end.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        sample_rate: int = 16000,
        cache: str | os.PathLike[str] | None = None,
        seconds: float | None = None,
        min_samples: int = 1,
        progress: bool = False,
        augment: bool = False,
    ) -> None:
        if seconds is not None and not seconds > 0:
            raise ValueError(f"seconds must be more than 0, not {seconds!r}")
        self.clips, self.sample_rate, self.min_samples, self.augment = tuple(clips), sample_rate, min_samples, augment
        self.cache = Path(cache).expanduser() if cache is not None else default_cache_dir()
        self.cache.mkdir(parents=True, exist_ok=True)
        paths = sorted({clip.path for clip in self.clips})
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            bar = tqdm(pool.map(self._decode, paths), "decoding", len(paths), disable=not progress, leave=False)
            decoded = dict(zip(paths, bar))
        if failed := [result for result in decoded.values() if isinstance(result, Exception)]:
            more = f" ({len(failed)} of {len(paths)} files cannot be read)" if len(failed) > 1 else ""
            raise RuntimeError(f"{failed[0]}{more}")
        self._files = {path: result for path, result in decoded.items() if isinstance(result, Path)}
        n_samples = {path: len(np.load(file, mmap_mode="r")) for path, file in self._files.items()}
        max_samples = None if seconds is None else round(seconds * sample_rate)
        self._ranges = [self._sample_range(clip, n_samples[clip.path], max_samples) for clip in self.clips]
        self.lengths = [max(end - start, min_samples) for start, end in self._ranges]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> np.ndarray:
        """Return a clip, float32 ``(samples,)`` between -1 and 1."""
        start, end = self._ranges[i]
        samples = np.load(self._files[self.clips[i].path])[start:end].astype(np.float32) / 32768
        return np.pad(samples, (0, max(0, self.min_samples - len(samples))))

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return some clips, padded with zeros.

        Parameters
        ----------
        indices : sequence of int
            Which clips.
        rng : numpy Generator, optional
            Given for training batches: augments them if the data set was made with ``augment``.

        Returns
        -------
        waveforms : Tensor, shape (batch, samples)
        lengths : Tensor, shape (batch,)
        """
        clips = [self[int(i)] for i in indices]
        if self.augment and rng is not None:
            clips = [mask_time(add_noise(clip, rng), rng, self.sample_rate) for clip in clips]
        lengths = torch.tensor([len(clip) for clip in clips])
        waveforms = torch.zeros(len(clips), int(lengths.max()))
        for row, clip in zip(waveforms, clips):
            row[: len(clip)] = torch.from_numpy(clip)
        return waveforms, lengths

    def _decode(self, path: Path) -> Path | Exception:
        """Return the cached samples of a file, decoding it if necessary; errors are returned, not raised."""
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            cached = self.cache / f"{digest}-{self.sample_rate}.npy"
            if not cached.is_file():
                samples = (load_audio(path, self.sample_rate) * 32768).astype(np.int16)
                if not len(samples):
                    return RuntimeError(f"{path} holds no samples")
                with atomic_write(cached) as temporary, open(temporary, "wb") as file:
                    np.save(file, samples)
            return cached
        except (OSError, RuntimeError) as error:
            return error

    def _sample_range(self, clip: Clip, n_samples: int, max_samples: int | None) -> tuple[int, int]:
        """Return first and last sample (exclusive) of a clip in a file of ``n_samples``."""
        start = round(clip.start * self.sample_rate)
        end = n_samples if clip.end is None else min(round(clip.end * self.sample_rate), n_samples)
        if not 0 <= start < end:
            until = "its end" if clip.end is None else f"{clip.end:g} s"
            raise ValueError(
                f"{clip.path} lasts {n_samples / self.sample_rate:.2f} s and has no part from {clip.start:g} s to "
                f"{until}; correct the table"
            )
        return start, end if max_samples is None else min(end, start + max_samples)


# --- augmentation -------------------------------------------------------------------------------------------------


def add_noise(samples: np.ndarray, rng: np.random.Generator, snr_db: tuple[float, float] = (10.0, 30.0)) -> np.ndarray:
    """Add white noise at a signal-to-noise ratio drawn from a range in dB (PEFT-SER, spec section 2.4)."""
    ratio = 10 ** (rng.uniform(*snr_db) / 20)
    rms = np.sqrt(np.mean(samples.astype(np.float64) ** 2))
    return samples + (rng.standard_normal(len(samples)) * rms / ratio).astype(np.float32)


def mask_time(
    samples: np.ndarray, rng: np.random.Generator, sample_rate: int = 16000, fraction: tuple[float, float] = (0.1, 0.15)
) -> np.ndarray:
    """Silence one stretch, with fades of 10 ms; its share of the clip is drawn from a range (PEFT-SER, section 2.4)."""
    width = int(len(samples) * rng.uniform(*fraction))
    start = int(rng.integers(0, len(samples) - width + 1))
    fade = min(round(FADE_SECONDS * sample_rate), width // 2)
    gain = np.zeros(width, np.float32)
    gain[:fade] = np.linspace(1, 0, fade, endpoint=False)
    gain[width - fade :] = np.linspace(0, 1, fade + 1)[1:]
    out = samples.copy()
    out[start : start + width] *= gain
    return out


def mask_spectrogram(mel: Tensor, max_channels: int, max_frames: int) -> Tensor:
    """Set one band of channels and one of frames to 0 in each item (SpecAugment).

    Widths are uniform from 0 up to the limits, exclusive, as `torchaudio.transforms` draws them.

    Parameters
    ----------
    mel : Tensor, shape (batch, …, mels, frames)
        Spectrograms.
    max_channels, max_frames : int
        Limits of the widths.

    Returns
    -------
    Tensor
        Masked copy of ``mel``.
    """
    mel = mel.clone()
    for dim, max_width in ((-2, max_channels), (-1, max_frames)):
        size = mel.shape[dim]
        width = torch.rand(len(mel)) * min(max_width, size)
        start = torch.rand(len(mel)) * (size - width)
        position = torch.arange(size)
        masked = (position >= start[:, None].floor()) & (position < (start[:, None].floor() + width[:, None].floor()))
        shape = [len(mel)] + [1] * (mel.dim() - 1)
        shape[dim] = size
        mel = mel.masked_fill(masked.view(shape).to(mel.device), 0.0)
    return mel


@contextmanager
def spec_augment(front: nn.Module, widths: tuple[int, int] | None) -> Iterator[None]:
    """Mask the spectrogram that a front end reads, within a ``with`` block.

    Parameters
    ----------
    front : nn.Module
        Front end of a backbone.
    widths : pair of int, optional
        Limits for `mask_spectrogram`; None masks nothing.

    Raises
    ------
    ValueError
        If the front end computes no spectrogram.
    """
    if widths is None:
        yield
        return
    conv = spectrogram_conv(front)
    handle = conv.register_forward_pre_hook(lambda _module, inputs: (mask_spectrogram(inputs[0], *widths),))
    try:
        yield
    finally:
        handle.remove()


def spectrogram_conv(front: nn.Module) -> nn.Module:
    """Return the convolution of a front end that reads its spectrogram; ValueError if there is none."""
    for name in ("conv1", "projection"):
        if isinstance(module := getattr(front, name, None), (nn.Conv1d, nn.Conv2d)):
            return module
    raise ValueError("SpecAugment masks spectrograms, and this backbone reads samples; leave spec_augment out")

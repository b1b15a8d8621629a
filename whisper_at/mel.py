"""The log-mel spectrogram of a recording of any length, in memory that does not grow with it.

:func:`whisper_at.audio.log_mel_spectrogram` returns the whole spectrogram: 115 MB an hour, and several times that
while it is computed. :class:`LogMel` stores the same numbers in memory or on disk, and returns windows of them.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Generator, Iterable
from contextlib import closing, suppress
from typing import IO

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT, N_FRAMES, N_SAMPLES, SAMPLE_RATE, mel_filters

from .audio import Recording, check_finite, readable, stream_audio

BLOCK_FRAMES = N_FRAMES  # 30 s: 5 MB of complex numbers at a time
MAX_MEMORY = 128 << 20  # bytes: 70 minutes of 80 mels; the whole of a longer recording is on disk


class LogMel:
    """Whisper's log-mel spectrogram of a recording and of 30 s of silence after it, window by window.

    The numbers are those of ``whisper.log_mel_spectrogram(audio, n_mels, padding=480000)``: upstream's arithmetic on
    blocks that overlap by what the analysis window needs. The loudest frame decides where all others are clipped, and
    is known only at the end; so frames are stored unclipped, float32 in a temporary file, and clipped and scaled when
    read. The file is in memory until it holds `in_memory` bytes.

    Use it in a ``with`` statement, or call :meth:`close`; at the latest it is closed when nothing refers to it.

    Parameters
    ----------
    audio : str, path, bytes, binary file, array, Tensor, shape (samples,), or generator of arrays
        A file for `load_audio`, or one channel at 16 kHz in float32 (or float16, bfloat16). A tensor is processed on
        its device. Arrays of a generator follow one another, as those of `stream_audio`.
    n_mels : {80, 128}
    block_frames : int
        Frames of 10 ms computed at once. Blocks of 100 frames or more give upstream's numbers to the last bit where the
        FFT and matrix product of their columns do not depend on how many there are.
    in_memory : int
        Bytes held in memory before the file goes to disk.

    Attributes
    ----------
    n_frames : int
        Frames of 10 ms: those of the recording and 3000 of silence.
    content_frames : int
        Whole frames of the recording, ``samples // 160``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        As `load_audio`; or if the samples are of another type or shape, or the disk is full.
    ValueError
        If a sample is NaN or infinite, or too large to be squared.

    Examples
    --------
    >>> with LogMel("sample/speech.flac") as mel:
    ...     mel.content_frames, mel.window(0, 3000).shape
    (1600, torch.Size([80, 3000]))
    """

    def __init__(
        self,
        audio: Recording | np.ndarray | Tensor | Generator[np.ndarray, None, None],
        n_mels: int = 80,
        *,
        block_frames: int = BLOCK_FRAMES,
        in_memory: int = MAX_MEMORY,
    ) -> None:
        if block_frames * HOP_LENGTH < N_FFT:
            raise ValueError(f"block_frames must be at least {-(-N_FFT // HOP_LENGTH)}, not {block_frames}")
        size = block_frames * HOP_LENGTH
        self.n_mels = n_mels
        self.n_frames = 0
        self._loudest = torch.tensor(-torch.inf)
        self._file = tempfile.SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115 - closed by `close`
        self._close = weakref.finalize(self, _discard, self._file)
        try:
            # nothing else refers to the samples' generator: closing the blocks ends the ffmpeg that they come from
            with closing(_log_mel_blocks(_sample_blocks(audio, size), n_mels, size)) as blocks:
                for block in blocks:
                    self._append(block.cpu())
        except BaseException:
            self.close()
            raise

    @property
    def content_frames(self) -> int:
        """Whole frames of the recording."""
        return self.n_frames - N_FRAMES

    def window(self, start: int, end: int) -> Tensor:
        """Return a copy of ``mel[:, start:end]`` of the whole spectrogram.

        Returns
        -------
        float32 Tensor, shape (n_mels, frames)
            On the CPU; without the frames past the last one.

        Raises
        ------
        ValueError
            If it is closed.
        """
        start, end, _ = slice(start, end).indices(self.n_frames)
        shape = max(0, end - start), self.n_mels
        row = self.n_mels * np.dtype(np.float32).itemsize
        self._file.seek(start * row)
        stored = np.frombuffer(self._file.read(shape[0] * row), np.float32).reshape(shape)
        log_spec = torch.from_numpy(stored.T.copy())
        log_spec = torch.maximum(log_spec, self._loudest - 8.0)
        return (log_spec + 4.0) / 4.0

    def close(self) -> None:
        """Delete the spectrogram and its file; a second call does nothing."""
        self._close()

    def __enter__(self) -> LogMel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, block: Tensor) -> None:
        """Store a block ``(n_mels, frames)``."""
        self._loudest = torch.maximum(self._loudest, block.max())
        if not self._loudest.isfinite():
            seconds = (self.n_frames + int((~block.isfinite()).any(0).nonzero()[0])) * HOP_LENGTH / SAMPLE_RATE
            raise ValueError(f"audio must be float32 between -1 and 1: that at {seconds:.2f} s is too large")
        try:
            self._file.write(block.T.contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            reason = f"cannot store the mel spectrogram on disk: {error.strerror or error}"
            raise RuntimeError(f"{reason}; make room, or name another folder in TMPDIR") from error
        self.n_frames += block.shape[1]


def _discard(file: IO[bytes]) -> None:
    """Close a file whose content is not needed, even if a full disk cannot take the rest of it."""
    with suppress(OSError):
        file.close()


def _sample_blocks(
    audio: Recording | np.ndarray | Tensor | Generator[np.ndarray, None, None], size: int
) -> Iterable[Tensor]:
    """Return the samples, ``size`` at a time, where they are not blocks already; only the last one is shorter."""
    if isinstance(audio, Generator):
        return (torch.from_numpy(block) for block in audio)
    audio = readable(audio)
    if isinstance(audio, (str, os.PathLike)):
        return (torch.from_numpy(block) for block in stream_audio(audio, seconds=size / SAMPLE_RATE))
    if not isinstance(audio, Tensor):
        audio = torch.from_numpy(audio)
    if audio.ndim != 1:
        shape = tuple(audio.shape)
        raise RuntimeError(f"audio must be one channel of shape (samples,), not {shape}; mix or choose channels first")
    if audio.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        kind = str(audio.dtype).removeprefix("torch.")
        raise RuntimeError(f"audio must be float32 between -1 and 1, not {kind}; convert it (int16: divide by 32768)")
    check_finite(audio)
    return audio.detach().split(size)


def _log_mel_blocks(samples: Iterable[Tensor], n_mels: int, size: int) -> Generator[Tensor, None, None]:
    """Yield log10 of the mel power of every frame of the samples and 30 s of silence, float32 ``(n_mels, frames)``.

    Each is computed from ``size`` samples or more. The analysis windows are centred on their frames: the first starts
    in a mirror image of the first samples, as in ``torch.stft(center=True)``.
    """
    buffer = torch.zeros(0)
    is_padded = False
    for block in samples:
        buffer = torch.cat([buffer.to(block), block])
        if len(buffer) >= size:
            buffer = buffer if is_padded else reflect_pad(buffer)
            is_padded = True
            yield log_mel_frames(buffer, n_mels)
            n_frames = (len(buffer) - N_FFT) // HOP_LENGTH + 1
            buffer = buffer[n_frames * HOP_LENGTH :].clone()
    # upstream drops the last window, which is centred on the end of the silence
    buffer = torch.cat([buffer, buffer.new_zeros(N_SAMPLES + N_FFT // 2 - HOP_LENGTH)])
    yield log_mel_frames(buffer if is_padded else reflect_pad(buffer), n_mels)


def reflect_pad(samples: Tensor) -> Tensor:
    """Prepend the mirror image of the first half window, without the sample it is mirrored at."""
    return torch.cat([samples[1 : N_FFT // 2 + 1].flip(0), samples])


@torch.no_grad()
def log_mel_frames(samples: Tensor, n_mels: int) -> Tensor:
    """Compute log10 of the mel power, ``(n_mels, frames)``, of all windows that lie within the samples.

    The steps are those of ``whisper.log_mel_spectrogram``, up to where it needs the whole recording.
    """
    window = torch.hann_window(N_FFT).to(samples.device)
    stft = torch.stft(samples, N_FFT, HOP_LENGTH, window=window, center=False, return_complex=True)
    magnitudes = stft.abs() ** 2
    mel_spec = mel_filters(samples.device, n_mels) @ magnitudes
    return torch.clamp(mel_spec, min=1e-10).log10()

"""The log-mel spectrogram of the last seconds of a stream."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, N_FFT

from ..mel import log_mel_frames, reflect_pad

QUIET_FRAMES = 5
LOUDEST_FRAMES = 6000
"""The loudest of the last 60 s decides where quiet sounds are clipped; in a file it is that of the whole."""


class StreamingLogMel:
    """Frames of `whisper_at.mel.LogMel`, computed as sound comes in, and dropped when nobody needs them.

    Parameters
    ----------
    n_mels : {80, 128}
    first_frame : int
        Number of the first frame (10 ms).

    Attributes
    ----------
    start, end : int
        Frames that are held, by their numbers.
    """

    def __init__(self, n_mels: int, first_frame: int) -> None:
        self.start = self.end = first_frame
        self._frames = torch.zeros(n_mels, 0)
        self._samples = torch.zeros(0)  # of the analysis windows to come
        self._is_padded = False
        self._loudest: deque[tuple[int, float]] = deque()  # last frame of a block, and its loudest number

    def append(self, samples: np.ndarray) -> None:
        """Take the next samples, float32, shape (samples,); the last 12.5 ms wait for what follows."""
        self._samples = torch.cat([self._samples, torch.from_numpy(samples)])
        if len(self._samples) < N_FFT:
            return
        if not self._is_padded:
            self._samples, self._is_padded = reflect_pad(self._samples), True
        frames = log_mel_frames(self._samples, len(self._frames))
        self._samples = self._samples[frames.shape[1] * HOP_LENGTH :].clone()
        self._frames = torch.cat([self._frames, frames], dim=1)
        self.end += frames.shape[1]
        self._loudest.append((self.end, float(frames.max())))
        while self._loudest[0][0] < self.end - LOUDEST_FRAMES:
            self._loudest.popleft()

    def drop_before(self, frame: int) -> None:
        """Forget the frames before one."""
        if frame > self.start:
            self._frames = self._frames[:, frame - self.start :].clone()
            self.start = frame

    def window(self, start: int, end: int) -> Tensor:
        """Return the frames from `start` to before `end`, float32 ``(n_mels, frames)``, clipped and scaled."""
        frames = self._frames[:, start - self.start : end - self.start]
        loudest = max(loudness for _, loudness in self._loudest)
        return (torch.maximum(frames, torch.tensor(loudest - 8.0)) + 4.0) / 4.0

    def quietest(self, start: int, end: int) -> int:
        """Return the frame in the middle of the quietest 50 ms between two frames; the last of several."""
        frames = self._frames[:, max(start, self.start) - self.start : end - self.start].mean(0)
        if len(frames) < QUIET_FRAMES:
            return end
        loudness = frames.unfold(0, QUIET_FRAMES, 1).mean(1)
        return max(start, self.start) + int((loudness <= loudness.min()).nonzero()[-1]) + QUIET_FRAMES // 2

    def loudness(self, start: int, end: int) -> float:
        """Return the loudness of the loudest 0.1 s between two frames: the mean of log10 of mel powers."""
        frames = self._frames[:, max(start, self.start) - self.start : end - self.start].mean(0)
        if len(frames) < 10:
            return float(frames.mean()) if len(frames) else -10.0
        return float(frames.unfold(0, 10, 5).mean(1).max())

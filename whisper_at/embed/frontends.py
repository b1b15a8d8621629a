"""Front ends of VGGish and CNN14: 16 kHz samples to log-mel spectrograms as the published weights expect them.

Both give ``(frames, 64)``, one frame every 10 ms. Spec sections 4.1 and 4.2; the filter banks are computed in float64
from the definitions of the HTK and Slaney mel scales.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 16000
HOP = 160  # samples: 10 ms
N_FFT = 512
N_MELS = 64
VGGISH_WINDOW = 400  # samples: 25 ms
EXAMPLE_FRAMES = 96  # of a VGGish example: 0.96 s
EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP + VGGISH_WINDOW  # what 96 frames need: 0.975 s

SLANEY_KNEE = 1000.0  # Hz: the Slaney scale is linear below and logarithmic above
SLANEY_LINEAR = 200 / 3  # Hz per mel below the knee
SLANEY_STEP = np.log(6.4) / 27  # of ln(Hz) per mel above it


def vggish_log_mel(waveform: Tensor) -> Tensor:
    """VGGish's log-mel: ``(samples,)`` at 16 kHz to ``(frames, 64)``.

    Frames of 25 ms every 10 ms, as many as fit whole; periodic Hann window; **magnitude** of the 512-point FFT; 64
    triangles on the HTK mel scale over 125 – 7500 Hz; ``ln(mel + 0.01)``.
    """
    if len(waveform) < VGGISH_WINDOW:
        return waveform.new_zeros(0, N_MELS)
    frames = waveform.unfold(0, VGGISH_WINDOW, HOP)
    window = torch.hann_window(VGGISH_WINDOW, periodic=True, dtype=waveform.dtype, device=waveform.device)
    magnitude = torch.fft.rfft(frames * window, N_FFT).abs()
    return torch.log(magnitude @ _filters("htk", waveform) + 0.01)


def vggish_examples(waveform: Tensor) -> Tensor:
    """The 0.96 s examples of a recording: ``(samples,)`` to ``(examples, 1, 96, 64)``.

    They follow each other without overlap, and what is left at the end is dropped. A recording shorter than one
    example is followed by silence, so that there is always one.
    """
    if len(waveform) < EXAMPLE_SAMPLES:
        waveform = F.pad(waveform, (0, EXAMPLE_SAMPLES - len(waveform)))
    log_mel = vggish_log_mel(waveform)
    count = len(log_mel) // EXAMPLE_FRAMES
    return log_mel[: count * EXAMPLE_FRAMES].reshape(count, 1, EXAMPLE_FRAMES, N_MELS)


def cnn14_log_mel(waveform: Tensor) -> Tensor:
    """CNN14's log-mel: ``(samples,)`` at 16 kHz to ``(1 + samples // 160, 64)``, in dB.

    Power of a 512-point transform with a periodic Hann window of 512, centred on multiples of 160 samples in a
    recording mirrored at its ends; 64 triangles of equal area (Slaney) over 50 – 8000 Hz;
    ``10 * log10(max(power, 1e-10))``.

    Raises
    ------
    ValueError
        If there are fewer than 257 samples, which cannot be mirrored.
    """
    if len(waveform) <= N_FFT // 2:
        raise ValueError(f"CNN14 needs {N_FFT // 2 + 1} samples or more (16 ms), not {len(waveform)}")
    window = torch.hann_window(N_FFT, periodic=True, dtype=waveform.dtype, device=waveform.device)
    stft = torch.stft(waveform, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = stft.abs().square().T @ _filters("slaney", waveform)
    return 10 * torch.log10(power.clamp(min=1e-10))


def htk_filters() -> np.ndarray:
    """VGGish's filter bank, float64 ``(257, 64)``: triangles in mel, 1 at their centre; the bin at 0 Hz counts nothing.

    ``mel = 1127 * ln(1 + f / 700)``.
    """
    bins = 1127 * np.log1p(np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1) / 700)
    low, high = 1127 * np.log1p(np.array([125, 7500]) / 700)
    filters = _triangles(bins, np.linspace(low, high, N_MELS + 2))
    filters[0] = 0.0
    return filters


def slaney_filters() -> np.ndarray:
    """CNN14's filter bank, float64 ``(257, 64)``: triangles in Hz between points of the Slaney scale, of area 1."""
    low, high = _slaney_mel(np.array([50.0, 8000.0]))
    edges = _slaney_hz(np.linspace(low, high, N_MELS + 2))
    return _triangles(np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1), edges) * (2 / (edges[2:] - edges[:-2]))


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """``(bins, bands)``: each band rises from its left neighbour's centre to its own and falls to the next one's."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _slaney_mel(hertz: np.ndarray) -> np.ndarray:
    above = SLANEY_KNEE / SLANEY_LINEAR + np.log(np.maximum(hertz, SLANEY_KNEE) / SLANEY_KNEE) / SLANEY_STEP
    return np.where(hertz < SLANEY_KNEE, hertz / SLANEY_LINEAR, above)


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
    knee = SLANEY_KNEE / SLANEY_LINEAR
    return np.where(mel < knee, mel * SLANEY_LINEAR, SLANEY_KNEE * np.exp(SLANEY_STEP * (np.maximum(mel, knee) - knee)))


@lru_cache(maxsize=8)
def _cached_filters(kind: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    filters = htk_filters() if kind == "htk" else slaney_filters()
    return torch.from_numpy(filters).to(device, dtype)


def _filters(kind: str, like: Tensor) -> Tensor:
    return _cached_filters(kind, like.dtype, like.device)

"""Front ends of VGGish and CNN14: 16 kHz samples to log-mel spectrograms as the published weights expect them.

Both give a frame of 64 bands every 10 ms (spec sections 4.1 and 4.2). The filter banks are computed in float64 from the
definitions of the HTK and Slaney mel scales.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLE_RATE = 16000
HOP_LENGTH = 160  # samples: 10 ms
N_FFT = 512
N_MELS = 64
VGGISH_WIN_LENGTH = 400  # samples: 25 ms
EXAMPLE_FRAMES = 96  # of a VGGish example: 0.96 s
EXAMPLE_SAMPLES = (EXAMPLE_FRAMES - 1) * HOP_LENGTH + VGGISH_WIN_LENGTH  # what 96 frames need: 0.975 s

MIN_LOG_HZ = 1000.0  # the Slaney scale is linear below and logarithmic above
HZ_PER_MEL = 200 / 3  # below MIN_LOG_HZ
LOG_STEP = np.log(6.4) / 27  # ln(Hz) per mel above MIN_LOG_HZ
MIN_LOG_MEL = MIN_LOG_HZ / HZ_PER_MEL


def vggish_log_mel(waveform: Tensor) -> Tensor:
    """Compute VGGish's log-mel spectrogram.

    Frames of 25 ms every 10 ms, as many as fit whole; periodic Hann window; **magnitude** of the 512-point FFT; 64
    triangles on the HTK mel scale over 125 – 7500 Hz; ``ln(mel + 0.01)``.

    Parameters
    ----------
    waveform : Tensor, shape (samples,)
        Samples at 16 kHz.

    Returns
    -------
    Tensor, shape (frames, 64)
        Log-mel spectrogram.
    """
    if len(waveform) < VGGISH_WIN_LENGTH:
        return waveform.new_zeros(0, N_MELS)
    frames = waveform.unfold(0, VGGISH_WIN_LENGTH, HOP_LENGTH)
    window = torch.hann_window(VGGISH_WIN_LENGTH, periodic=True, dtype=waveform.dtype, device=waveform.device)
    magnitude = torch.fft.rfft(frames * window, N_FFT).abs()
    return torch.log(magnitude @ _mel_filters("htk", waveform.dtype, waveform.device) + 0.01)


def vggish_examples(waveform: Tensor) -> Tensor:
    """Cut a recording's log-mel spectrogram into examples of 0.96 s.

    Examples do not overlap, and a rest at the end is dropped. A recording shorter than one example is padded with
    silence, so that there is always one.

    Parameters
    ----------
    waveform : Tensor, shape (samples,)
        Samples at 16 kHz.

    Returns
    -------
    Tensor, shape (examples, 1, 96, 64)
        Log-mel spectrograms.

    Examples
    --------
    >>> vggish_examples(torch.zeros(48000)).shape
    torch.Size([3, 1, 96, 64])
    """
    if len(waveform) < EXAMPLE_SAMPLES:
        waveform = F.pad(waveform, (0, EXAMPLE_SAMPLES - len(waveform)))
    log_mel = vggish_log_mel(waveform)
    count = len(log_mel) // EXAMPLE_FRAMES
    return log_mel[: count * EXAMPLE_FRAMES].reshape(count, 1, EXAMPLE_FRAMES, N_MELS)


def cnn14_log_mel(waveform: Tensor) -> Tensor:
    """Compute CNN14's log-mel spectrogram, in dB.

    Power of a 512-point STFT with a periodic Hann window, centred, reflected at the ends; 64 triangles of equal area
    (Slaney) over 50 – 8000 Hz; ``10 * log10(max(power, 1e-10))``.

    Parameters
    ----------
    waveform : Tensor, shape (samples,)
        Samples at 16 kHz.

    Returns
    -------
    Tensor, shape (1 + samples // 160, 64)
        Log-mel spectrogram.

    Raises
    ------
    ValueError
        If there are fewer than 257 samples, too few to be reflected.
    """
    if len(waveform) <= N_FFT // 2:
        raise ValueError(f"CNN14 needs {N_FFT // 2 + 1} samples or more (16 ms), not {len(waveform)}")
    window = torch.hann_window(N_FFT, periodic=True, dtype=waveform.dtype, device=waveform.device)
    stft = torch.stft(waveform, N_FFT, HOP_LENGTH, window=window, center=True, pad_mode="reflect", return_complex=True)
    power = stft.abs().square().T @ _mel_filters("slaney", waveform.dtype, waveform.device)
    return 10 * torch.log10(power.clamp(min=1e-10))


@lru_cache(maxsize=8)
def _mel_filters(scale: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    filters = htk_mel_filters() if scale == "htk" else slaney_mel_filters()
    return torch.from_numpy(filters).to(device, dtype)


def htk_mel_filters() -> np.ndarray:
    """Compute VGGish's filter bank, float64, shape (257, 64): triangles in mel that peak at 1.

    ``mel = 1127 * ln(1 + f / 700)``; the bin at 0 Hz has no weight.
    """
    bins = 1127 * np.log1p(np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1) / 700)
    low, high = 1127 * np.log1p(np.array([125, 7500]) / 700)
    filters = _triangles(bins, np.linspace(low, high, N_MELS + 2))
    filters[0] = 0.0
    return filters


def slaney_mel_filters() -> np.ndarray:
    """Compute CNN14's filter bank, float64, shape (257, 64): triangles in Hz of area 1, on the Slaney mel scale.

    The transpose of ``librosa.filters.mel(sr=16000, n_fft=512, n_mels=64, fmin=50, fmax=8000)``.
    """
    low, high = _hz_to_mel(np.array([50.0, 8000.0]))
    edges = _mel_to_hz(np.linspace(low, high, N_MELS + 2))
    return _triangles(np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1), edges) * (2 / (edges[2:] - edges[:-2]))


def _triangles(bins: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return weights (bins, bands): a band rises from its left neighbour's centre to its own, and falls to the next."""
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Convert Hz to Slaney's mel scale."""
    above = MIN_LOG_MEL + np.log(np.maximum(hz, MIN_LOG_HZ) / MIN_LOG_HZ) / LOG_STEP
    return np.where(hz < MIN_LOG_HZ, hz / HZ_PER_MEL, above)


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Convert Slaney's mel scale to Hz."""
    above = MIN_LOG_HZ * np.exp(LOG_STEP * (np.maximum(mel, MIN_LOG_MEL) - MIN_LOG_MEL))
    return np.where(mel < MIN_LOG_MEL, mel * HZ_PER_MEL, above)

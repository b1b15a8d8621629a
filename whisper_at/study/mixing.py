"""Mixtures of speech and noise at a given signal-to-noise ratio (spec section 4.1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SNRS = (-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
"""The paper's signal-to-noise ratios in dB."""
MIN_NOISE_POWER = 1e-10  # of a silent noise clip, to avoid division by zero


class Mixture(NamedTuple):
    """Noisy speech, float32 ``(samples,)``, and the factor that scaled it to prevent clipping (1 if none did)."""

    audio: np.ndarray
    factor: float


def power(audio: np.ndarray) -> float:
    """Return the mean square of a clip."""
    return float(np.mean(np.square(audio, dtype=np.float64)))


def mix_at_snr(speech: np.ndarray, noise: np.ndarray, snr: float, prevent_clipping: bool = False) -> Mixture:
    """Add noise to speech at a signal-to-noise ratio.

    As in the paper, powers are means over whole clips, pauses and silence included, and the noise is repeated or cut
    to the length of the speech. Noise with long silence is therefore louder where it is audible than ``snr`` says.

    Parameters
    ----------
    speech, noise : ndarray of float, shape (samples,)
        Clips with the same sample rate.
    snr : float
        Ratio in dB; infinite for speech alone.
    prevent_clipping : bool
        Scale the mixture to stay within −1 … 1, which the paper does not do. The ratio stays the same.

    Returns
    -------
    Mixture
        As long as ``speech``.

    Raises
    ------
    ValueError
        If either clip is empty.
    """
    if not len(speech) or not len(noise):
        raise ValueError(f"{'the speech' if not len(speech) else 'the noise'} has no samples")
    mixture = np.asarray(speech, np.float64)
    if not np.isposinf(snr):
        scale = 10 ** (-snr / 20) * np.sqrt(power(speech)) / np.sqrt(max(power(noise), MIN_NOISE_POWER))
        repeated = np.tile(noise, -(-len(speech) // len(noise)))[: len(speech)]
        mixture = mixture + scale * repeated
    factor = clipping_factor(mixture) if prevent_clipping else 1.0
    return Mixture((mixture * factor).astype(np.float32), factor)


def clipping_factor(audio: np.ndarray) -> float:
    """Return the largest factor, at most 1, that keeps the audio within −1 … 1."""
    return min(1.0, 1.0 / max(float(np.abs(audio).max()), 1e-12))

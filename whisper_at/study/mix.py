"""Noisy speech at a wanted ratio of speech to noise, as the paper mixes it (spec section 4.1)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SNRS = (-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0, 15.0, 20.0)
"""The paper's ratios in dB."""
QUIETEST = 1e-10  # power that a silent noise clip is taken to have


class Mixed(NamedTuple):
    """Noisy speech ``(samples,)``, and the factor by which speech and noise were both multiplied against clipping."""

    audio: np.ndarray
    factor: float


def power(audio: np.ndarray) -> float:
    """Mean of squares over the whole clip."""
    return float(np.mean(np.square(audio, dtype=np.float64)))


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, guard: bool = False) -> Mixed:
    """Speech with noise ``snr`` dB below it.

    Powers are means of squares over the whole clips as they are, pauses and silence included; the noise is repeated or
    cut to the length of the speech. Where a noise clip has long silence, what is heard is therefore louder than
    ``snr`` says.

    Parameters
    ----------
    speech, noise : float ``(samples,)`` at the same rate
    snr : dB; infinite for the speech alone
    guard : multiply the sum so that it stays within −1 … 1; the paper does not. The ratio is the same

    Returns
    -------
    Mixed : float32 audio as long as ``speech``; the factor is 1 without ``guard``

    Raises
    ------
    ValueError
        If either clip is empty.
    """
    if not len(speech) or not len(noise):
        raise ValueError(f"{'the speech' if not len(speech) else 'the noise'} has no samples")
    if np.isposinf(snr):
        mixed = np.asarray(speech, np.float64)
    else:
        scale = 10 ** (-snr / 20) * np.sqrt(power(speech)) / np.sqrt(max(power(noise), QUIETEST))
        repeated = np.tile(noise, -(-len(speech) // len(noise)))[: len(speech)]
        mixed = np.asarray(speech, np.float64) + scale * repeated
    factor = min(1.0, 1.0 / max(float(np.abs(mixed).max()), 1e-12)) if guard else 1.0
    return Mixed((mixed * factor).astype(np.float32), factor)

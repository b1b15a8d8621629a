"""Sound as realtime clients send it, base64 of PCM or of telephone's eight bits, as samples at 16 kHz."""

from __future__ import annotations

import base64
import binascii
import math

import numpy as np
from whisper.audio import SAMPLE_RATE

PCM_RATES = (8000, 16000, 24000, 48000)
TELEPHONE_RATE = 8000
HALF_WIDTH = 16
"""Zero crossings of the filter on each side."""


class AudioFormat:
    """A format of sound, and the place in a stream of it.

    Parameters
    ----------
    name : str
        ``audio/pcm`` (int16, little-endian), ``audio/pcmu`` or ``audio/pcma`` (G.711).
    rate : int
        Samples per second, of PCM.

    Raises
    ------
    ValueError
        If there is no such format.
    """

    def __init__(self, name: str = "audio/pcm", rate: int = 24000) -> None:
        if name not in ("audio/pcm", "audio/pcmu", "audio/pcma"):
            raise ValueError(f"format: audio/pcm, audio/pcmu or audio/pcma, not {name!r}")
        rate = rate if name == "audio/pcm" else TELEPHONE_RATE
        if rate not in PCM_RATES:
            raise ValueError(f"format: a rate of {', '.join(map(str, PCM_RATES))}, not {rate!r}")
        self.name, self.rate = name, rate
        self._table = {"audio/pcmu": _mu_law, "audio/pcma": _a_law}.get(name, _mu_law)(np.arange(256))
        self._resample = Resampler(rate)

    @property
    def bytes_per_second(self) -> int:
        """Of sound as it is sent, base64 taken off."""
        return self.rate * (2 if self.name == "audio/pcm" else 1)

    def decode(self, audio: object) -> bytes:
        """Return the bytes of whole samples that base64 holds.

        Raises
        ------
        ValueError
            If it is no base64, or half a sample is missing.
        """
        try:
            content = base64.b64decode(audio, validate=True)  # type: ignore[arg-type]
        except (binascii.Error, TypeError, ValueError):
            raise ValueError("audio: it is no base64") from None
        if self.name == "audio/pcm" and len(content) % 2:
            raise ValueError(f"audio: samples are of two bytes each, and these are {len(content)} bytes")
        return content

    def read(self, content: bytes) -> np.ndarray:
        """Return the next samples, float32 at 16 kHz ``(samples,)``, of what `decode` returned or a part of it."""
        if self.name != "audio/pcm":
            return self._resample(self._table[np.frombuffer(content, np.uint8)])
        return self._resample(np.frombuffer(content, "<i2").astype(np.float32) / 32768.0)


class Resampler:
    """Brings a stream of samples to 16 kHz, in pieces of any length, with a filter of constant delay.

    What the filter needs of the future, 2 ms or less, comes with the next piece.
    """

    def __init__(self, rate: int) -> None:
        shared = math.gcd(rate, SAMPLE_RATE)
        self.up, self.down = SAMPLE_RATE // shared, rate // shared
        widest = max(self.up, self.down)
        half = HALF_WIDTH * widest * self.up // math.gcd(widest, self.up)
        places = np.arange(-half, half + 1) / widest
        taps = np.sinc(places) * np.kaiser(len(places), 9.0)
        self.taps = (taps * self.up / taps.sum()).astype(np.float32)
        self.kept = np.zeros(half // self.up, np.float32)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return what can be told of all samples so far and was not told before."""
        if self.up == self.down:
            return samples
        self.kept = np.concatenate([self.kept, samples])
        n_outputs = max(0, len(self.kept) * self.up - len(self.taps) + 1) // self.down
        n_outputs -= n_outputs % self.up
        if not n_outputs:
            return np.zeros(0, np.float32)
        stuffed = np.zeros(len(self.kept) * self.up, np.float32)
        stuffed[:: self.up] = self.kept
        filtered = np.convolve(stuffed, self.taps, "valid")[:: self.down][:n_outputs]
        self.kept = self.kept[n_outputs * self.down // self.up :]
        return filtered.astype(np.float32)


def _mu_law(codes: np.ndarray) -> np.ndarray:
    """Return the samples of codes of G.711's μ-law."""
    inverted = ~codes & 0xFF
    magnitudes = (((inverted & 0x0F) << 3) + 0x84) << ((inverted >> 4) & 7)
    values = np.where(inverted & 0x80, 0x84 - magnitudes, magnitudes - 0x84)
    return (values / 32768.0).astype(np.float32)


def _a_law(codes: np.ndarray) -> np.ndarray:
    """Return the samples of codes of G.711's A-law."""
    inverted = codes ^ 0x55
    exponents, mantissas = (inverted >> 4) & 7, (inverted & 0x0F) << 4
    magnitudes = np.where(exponents == 0, mantissas + 8, (mantissas + 0x108) << np.maximum(exponents - 1, 0))
    values = np.where(inverted & 0x80, magnitudes, -magnitudes)
    return (values / 32768.0).astype(np.float32)

"""What a downmix to one channel loses: channels of opposite polarity cancel each other.

A cable or a telephone system turns the polarity of one channel, for a whole recording or whenever one of its speakers
talks. Where the channels hold the same sound, their mean is then next to silent, and one of them takes its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing

import numpy as np

FRAME_SECONDS = 0.1
"""Length of the frames in which channels are compared with their downmix: shorter than a word."""
FADE_SECONDS = 0.01
"""From one source to the other, so that there is no click."""
QUIET = 0.02
"""Root mean square up to which a downmix may be what is left of channels that cancel each other: -34 dB."""
CANCELLED = 6.0
"""How many times as loud as their downmix channels are that cancel each other: 16 dB. Two equal channels are as loud as
it, a channel beside a silent one twice as loud. In six hours of stereo music no frame came to 6, and 22 came to 4."""
STILL_CANCELLED = 3.0
"""As before, in the frames that follow such a frame: sounds that fade out, and what codecs leave of them."""
SILENT = 5e-4
"""Root mean square of a channel in which there is nothing to be heard."""
MERGED_SECONDS = 2.0
"""Pause between stretches that are told as one."""
MAX_TOLD = 5
"""Stretches that a warning names one by one."""


def restore_cancelled(
    mixed: Iterable[np.ndarray],
    decode_channels: Callable[[], Generator[np.ndarray, None, None]],
    sr: int,
    name: str,
    seconds: Callable[[int], float],
) -> Iterator[np.ndarray]:
    """Put a channel in the place of a downmix wherever the channels cancel each other in it.

    Parameters
    ----------
    mixed : iterable of int16 array, shape (samples,)
        The downmix, block by block. All blocks but the last have whole frames (`frame_length`).
    decode_channels : callable
        Starts a generator of all channels, int16, ``(samples, channels)``, in the same blocks. It is called when the
        downmix is first quiet, and what it returns is closed once it turns out to be a single channel.
    sr : int
        Sample rate in Hz.
    name : str
        What the warning calls the recording.
    seconds : callable
        From a sample's number to when it sounds, in seconds.

    Yields
    ------
    int16 array, shape (samples,)
        The blocks of the downmix, untouched but for the frames in which channels cancel each other, and the first
        10 ms after them.

    Warns
    -----
    UserWarning
        At the end, where that was.
    """
    restorer = _Restorer(sr, seconds)
    with ExitStack() as stack:
        channels: Iterator[np.ndarray] | None = None
        is_mono = False
        for number, block in enumerate(mixed):
            levels = root_mean_square(block[:, None], restorer.frame)[:, 0]
            if channels is None and not is_mono and (levels <= QUIET).any():
                channels = stack.enter_context(closing(decode_channels()))
                for _ in range(number):  # what has passed
                    next(channels, None)
            of_channels = None if channels is None else next(channels, None)
            if of_channels is not None and of_channels.shape[1] == 1:
                stack.close()
                channels, of_channels, is_mono = None, None, True
            yield restorer.restore(block, levels, of_channels)
    if restorer.spans.count:
        where = f"at {restorer.spans}: one of them is taken there"
        warnings.warn(f"{name}: its channels cancel each other when they are mixed, {where}")


def frame_length(sr: int) -> int:
    """Return the samples of a frame."""
    return max(round(sr * FRAME_SECONDS), 1)


def root_mean_square(samples: np.ndarray, frame: int) -> np.ndarray:
    """Return the root mean square of every frame and channel, in [0, 1].

    Parameters
    ----------
    samples : int16 array, shape (samples, channels)
    frame : int
        Samples in a frame; the last one may have fewer.

    Returns
    -------
    float32 array, shape (frames, channels)
    """
    starts = np.arange(0, len(samples), frame)
    if not len(starts):
        return np.zeros((0, samples.shape[1]), np.float32)
    squares = np.add.reduceat(np.square(samples, dtype=np.float32), starts, axis=0)
    lengths = np.diff(starts, append=len(samples))
    return np.asarray(np.sqrt(squares / lengths[:, None]) / 32768.0, np.float32)


class _Restorer:
    """What carries over from one block of a recording to the next.

    Parameters
    ----------
    sr : int
        Sample rate in Hz.
    seconds : callable
        From a sample's number to when it sounds, in seconds.

    Attributes
    ----------
    spans : _Spans
        Where a channel took the place of the downmix.
    """

    def __init__(self, sr: int, seconds: Callable[[int], float]) -> None:
        self.frame = frame_length(sr)
        self._sr = sr
        self.spans = _Spans()
        self._ramp = np.linspace(0, 1, max(round(sr * FADE_SECONDS), 1), endpoint=False, dtype=np.float32)
        self._channel: int | None = None  # that takes the downmix's place; None is the downmix
        self._seconds = seconds
        self._samples = 0  # of all blocks before

    def restore(self, mixed: np.ndarray, levels: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
        """Return a block of the downmix with what is cancelled in it restored.

        Parameters
        ----------
        mixed : int16 array, shape (samples,)
        levels : array, shape (frames,)
            Root mean square of its frames.
        channels : int16 array, shape (samples, channels), or None
            None where they are not known.
        """
        restored = mixed
        if channels is not None:
            of_channels = root_mean_square(channels, self.frame)
            if self._channel is not None or _is_cancelled(levels[: len(of_channels)], of_channels, CANCELLED).any():
                restored = self._restore_frames(mixed, levels, channels, of_channels)
        self._samples += len(mixed)
        return restored

    def _restore_frames(
        self, mixed: np.ndarray, levels: np.ndarray, channels: np.ndarray, of_channels: np.ndarray
    ) -> np.ndarray:
        restored = mixed.copy()
        for i, (level, of_each) in enumerate(zip(levels, of_channels)):
            before = self._channel
            self._channel = self._choose(level, of_each)
            if before is None and self._channel is None:
                continue
            start, stop = i * self.frame, min((i + 1) * self.frame, len(mixed), len(channels))
            new = (mixed if self._channel is None else channels[:, self._channel])[start:stop]
            restored[start:stop] = new
            if before != self._channel and self._samples + start:  # at the beginning nothing was heard before
                old = (mixed if before is None else channels[:, before])[start:stop]
                ramp = self._ramp[: len(new)]
                faded = (1 - ramp) * old[: len(ramp)] + ramp * new[: len(ramp)]
                restored[start : start + len(ramp)] = np.rint(faded)
            if self._channel is not None:
                begin, end = self._seconds(self._samples + start), self._seconds(self._samples + stop - 1)
                self.spans.add(begin, end + 1 / self._sr)
        return restored

    def _choose(self, level: np.float32, of_each: np.ndarray) -> int | None:
        """Return the channel to be heard in a frame, or None for the downmix."""
        ratio = CANCELLED if self._channel is None else STILL_CANCELLED
        if not _is_cancelled(level, of_each, ratio).all():
            return None
        if self._channel is not None and of_each[self._channel] > of_each.max() / 2:
            return self._channel  # as channels are equally loud, it would change all the time
        equally_loud = np.flatnonzero(of_each > of_each.max() / 2)
        return int(equally_loud[0])


def _is_cancelled(level: np.ndarray | np.float32, of_channels: np.ndarray, ratio: float) -> np.ndarray:
    """Return whether channels of some loudness, ``(..., channels)``, cancel each other in a downmix of another."""
    return np.asarray((level <= QUIET) & (of_channels.max(-1) > np.maximum(ratio * level, SILENT)))


class _Spans:
    """Stretches of a recording, as many as there are, in memory that does not grow."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[list[float]] = []
        self._last_end = 0.0
        self._seconds = 0.0

    def add(self, start: float, end: float) -> None:
        """Add one that comes after all others; in seconds."""
        self._seconds += end - start
        continues = self.count > 0 and start - self._last_end <= MERGED_SECONDS
        if not continues:
            self.count += 1
            if self.count <= MAX_TOLD:
                self._first.append([start, end])
        elif self.count <= MAX_TOLD:
            self._first[-1][1] = end
        self._last_end = end

    def __str__(self) -> str:
        told = [f"{start:.1f}-{end:.1f} s" for start, end in self._first]
        if self.count > MAX_TOLD:
            told.append(f"{self.count - MAX_TOLD} later places ({self._seconds:.0f} s in all)")
        return " and ".join(filter(None, [", ".join(told[:-1]), told[-1]]))

"""Which parts of a recording the encoder is given: windows of up to 30 s, clips, and cuts where it is quiet."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from whisper.audio import FRAMES_PER_SECOND, N_FRAMES

from .mel import LogMel

T = TypeVar("T")

SEARCH_FRAMES = 1000
"""A window that is cut ends in the last ten of its thirty seconds."""
PAUSE_FRAMES = 30
"""Length of the quiet place that `quiet_cuts` looks for."""


class Window(NamedTuple):
    """The mel that one encoder pass sees.

    The encoder always gets 3000 frames; those past ``size`` are padding.

    Attributes
    ----------
    seek : int
        First mel frame (10 ms), counted from the start of the file.
    size : int
        Number of frames of audio.
    """

    seek: int
    size: int = N_FRAMES

    @property
    def end(self) -> int:
        """The frame after the last one."""
        return self.seek + self.size


def parse_clip_timestamps(clip_timestamps: Any) -> list[tuple[float, float]]:
    """Return the clips of a recording that are to be transcribed, in order of time, overlapping ones as one.

    Parameters
    ----------
    clip_timestamps : str, number, mapping, or sequence of numbers, pairs or mappings
        Starts and ends in seconds, ``"0,10,25,30"`` or ``[0, 10, 25, 30]``; or a clip each, ``(0, 10)`` or
        ``{"start": 0, "end": 10}``. The last end, and that of any mapping, may be left out: the clip lasts to the
        end of the recording.

    Returns
    -------
    list of (float, float)
        Start and end of each clip in seconds; infinity is the end of the recording.

    Raises
    ------
    ValueError
        If something is no number of seconds, is negative, or a clip ends before it starts.

    Examples
    --------
    >>> parse_clip_timestamps("20,30,0,5")
    [(0.0, 5.0), (20.0, 30.0)]
    >>> parse_clip_timestamps([{"start": 2, "end": 4}, {"start": 3}])
    [(2.0, inf)]
    """
    if isinstance(clip_timestamps, str):
        clip_timestamps = clip_timestamps.split(",") if clip_timestamps.strip() else []
    elif clip_timestamps is None:
        clip_timestamps = []
    elif isinstance(clip_timestamps, Mapping) or not hasattr(clip_timestamps, "__iter__"):
        clip_timestamps = [clip_timestamps]
    items = list(clip_timestamps) or [0.0]
    whole = [isinstance(item, Mapping) or _is_pair(item) for item in items]
    if all(whole):
        clips = [_read_clip(item) for item in items]
    elif any(whole):
        raise ValueError(f"clip_timestamps mixes times and clips: {items}; give one or the other")
    else:
        times = [_seconds(item) for item in items]
        clips = list(zip(times[::2], [*times[1::2], math.inf]))  # the last end may be left out
    for start, end in clips:
        if end < start:
            raise ValueError(f"clip_timestamps: a clip ends at {end:g} s, before it starts at {start:g} s")
        if math.isinf(start):
            raise ValueError("clip_timestamps: a clip cannot start at infinity")
    joined: list[tuple[float, float]] = []
    for start, end in sorted(clips):
        if joined and start < joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined


def clip_frames(clips: Sequence[tuple[float, float]], content_frames: int) -> list[tuple[int, int]]:
    """Return clips as pairs of frames, none past the end of a recording of so many.

    A clip that starts past the end is left out, with a warning.

    Parameters
    ----------
    clips : sequence of (float, float)
        As `parse_clip_timestamps` returns them.
    content_frames : int
        Length of the recording in mel frames.

    Raises
    ------
    ValueError
        If all clips start past the end.
    """
    seconds = content_frames / FRAMES_PER_SECOND
    inside = [(start, end) for start, end in clips if start < seconds or start == 0]
    if not inside:
        raise ValueError(f"clip_timestamps: the recording has {seconds:g} s, and every clip starts after that")
    if len(inside) < len(clips):
        after = f"{len(clips) - len(inside)} of {len(clips)} clips start after it"
        warnings.warn(f"clip_timestamps: the recording has {seconds:g} s, and {after}")
    return [(_frame(start, content_frames), _frame(end, content_frames)) for start, end in inside]


def _frame(seconds: float, content_frames: int) -> int:
    return content_frames if seconds * FRAMES_PER_SECOND >= content_frames else round(seconds * FRAMES_PER_SECOND)


def _is_pair(item: object) -> bool:
    return not isinstance(item, (str, bytes)) and getattr(item, "ndim", 1) > 0 and hasattr(item, "__len__")


def _read_clip(clip: Any) -> tuple[float, float]:
    """Return start and end of a mapping or pair."""
    if isinstance(clip, Mapping):
        if "start" not in clip:
            raise ValueError(f"clip_timestamps: a clip has start and end, not {', '.join(map(str, clip)) or 'nothing'}")
        clip = clip["start"], clip.get("end")
    if len(clip) != 2:
        raise ValueError(f"clip_timestamps: a clip is a pair of start and end, not {clip}")
    start, end = clip
    return _seconds(start), math.inf if end is None else _seconds(end)


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if math.isnan(seconds):
        raise ValueError(f"clip_timestamps are seconds, START,END,START,…: {value!r} is no number")
    if seconds < 0:
        raise ValueError(f"clip_timestamps must not be negative: {seconds:g}")
    return seconds


def quiet_cuts(mel: LogMel, start: int, end: int) -> list[Window]:
    """Cut the frames `start` to `end` into windows of at most 30 s, each ending where it is quietest.

    A window ends in the middle of the quietest 0.3 s of its last ten seconds; of several that are equally quiet, the
    last. Windows follow each other without gaps.
    """
    windows = []
    while end - start > N_FRAMES:
        region = mel.window(start + N_FRAMES - SEARCH_FRAMES, start + N_FRAMES)
        loudness = region.mean(0).unfold(0, PAUSE_FRAMES, 1).mean(1)
        quietest = int((loudness <= loudness.min() + 1e-6).nonzero()[-1])
        stop = start + N_FRAMES - SEARCH_FRAMES + quietest + PAUSE_FRAMES // 2
        stop -= stop % 2  # an encoder position is two frames
        windows.append(Window(start, stop - start))
        start = stop
    if end > start:
        windows.append(Window(start, end - start))
    return windows


def sound_end(mel: Tensor) -> int:
    """Return the frame behind the last one that is nearer in loudness to the loud parts of a window than to the quiet.

    ``mel`` is a log-mel spectrogram ``(n_mels, frames)``.
    """
    loudness = mel.mean(0)
    quiet, loud = loudness.quantile(torch.tensor([0.05, 0.95], device=mel.device))
    return int((loudness >= (quiet + loud) / 2).nonzero()[-1]) + 1


def run_to_end(steps: Generator[Any, None, T]) -> T:
    """Run a generator, whatever it yields, and return what it returns.

    Examples
    --------
    >>> def count():
    ...     yield 1
    ...     return "done"
    >>> run_to_end(count())
    'done'
    """
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(T, end.value)

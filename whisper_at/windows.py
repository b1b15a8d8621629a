"""Which parts of a recording the encoder is given: windows of up to 30 s, clips, and cuts where it is quiet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from whisper.audio import FRAMES_PER_SECOND, N_FRAMES

from .mel import LogMel

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


def parse_clip_timestamps(clip_timestamps: str | Sequence[float], content_frames: int) -> list[tuple[int, int]]:
    """Return the clips to transcribe, as pairs of frames, in the order given and none past the end.

    Parameters
    ----------
    clip_timestamps : str or sequence of float
        Starts and ends in seconds, ``"0,10,25,30"``; the last end may be left out.
    content_frames : int
        Length of the recording in mel frames.

    Raises
    ------
    ValueError
        For a time before the beginning, where upstream transcribes nothing but padding.
    """
    if isinstance(clip_timestamps, str):
        clip_timestamps = [float(seconds) for seconds in clip_timestamps.split(",") if clip_timestamps]
    if any(seconds < 0 for seconds in clip_timestamps):
        raise ValueError(f"clip_timestamps must not be negative: {list(clip_timestamps)}")
    points = [round(seconds * FRAMES_PER_SECOND) for seconds in clip_timestamps] or [0]
    if len(points) % 2:
        points.append(content_frames)
    return [(start, min(end, content_frames)) for start, end in zip(points[::2], points[1::2])]


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

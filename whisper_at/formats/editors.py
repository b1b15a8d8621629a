"""What sound and video editors import: labels of Audacity, markers of Reaper, markers as Premiere writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from .options import FormatOptions
from .spans import clock, timeline
from .video import frame_rate

DEFAULT_FRAME_RATE = 25.0
"""Frames a second of recordings without a picture."""


def audacity_labels(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return a label track: start and end in seconds, and words (segments, if no words were timed) or ``[sound]``."""
    spans = timeline(result, options.tags, words=True)
    return "".join(f"{span.start:.6f}\t{span.end:.6f}\t{span.text}\n" for span in spans)


def reaper_markers(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return segments and events as the regions that Reaper's Region/Marker Manager imports."""
    rows = (
        (f"R{i}", span.text, clock(span.start), clock(span.end), clock(span.end - span.start))
        for i, span in enumerate(timeline(result, options.tags), 1)
    )
    return table([("#", "Name", "Start", "End", "Length"), *rows])


def premiere_markers(result: Mapping[str, Any], filename: str, options: FormatOptions) -> str:
    """Return segments and events as comment markers, with timecode in frames of the recording's video.

    The columns are those of Premiere's own export of markers, parted by tabs. Rates with a fraction (29.97) are counted
    without dropped frames.
    """
    rate = frame_rate(options.audio) or DEFAULT_FRAME_RATE
    rows = []
    for span in timeline(result, options.tags):
        start, end = round(span.start * rate), round(span.end * rate)
        description = "" if span.probability is None else f"probability {span.probability:.2f}"
        codes = [timecode(frame, round(rate)) for frame in (start, end, end - start)]
        rows.append((span.text, description, *codes, "Comment"))
    header = ("Marker Name", "Description", "In", "Out", "Duration", "Marker Type")
    return "".join("\t".join(row) + "\n" for row in [header, *rows])


def timecode(frame: int, frames_per_second: int) -> str:
    """Return the number of a frame as ``HH:MM:SS:FF``.

    Examples
    --------
    >>> timecode(90_011, 25)
    '01:00:00:11'
    """
    seconds, frame = divmod(frame, frames_per_second)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}:{frame:02d}"


def table(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()

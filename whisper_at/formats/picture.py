"""A picture of a recording: its waveform, what is said, and lanes of what else is heard, strip below strip."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..audio import SAMPLE_RATE, stream_audio
from ..tagging.named_rows import result_events
from ..tagging.rows import read_rows
from .options import FormatOptions
from .spans import one_line, text_spans
from .subtitles import result_cues

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEAK_SECONDS = 0.01
"""Seconds of audio of which the loudest sample is kept."""
STRIP_SECONDS = (30, 60, 120, 300, 600, 1200, 3600)
"""Lengths that a strip may have: the first that needs no more than `MAX_STRIPS`."""
MAX_STRIPS = 12
MAX_LANES = 10
"""Classes that have a lane: those that sound most."""
WIDTH, LABELS_WIDTH = 14.0, 1.9
"""Inches, of the picture and of the names of lanes."""
WAVE_HEIGHT, TEXT_HEIGHT, LANE_HEIGHT = 0.8, 0.42, 0.2
"""Inches, of the parts of a strip."""
FONT_SIZE, MIN_FONT_SIZE = 7.0, 4.2
"""Points."""
FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic"),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS"),
)
"""Fonts that together have most scripts; those that are installed are taken."""


def png(result: Mapping[str, Any], filename: str, options: FormatOptions) -> bytes:
    """Return the picture as PNG, at 110 dots an inch."""
    return _saved(draw(result, filename, options), "png", dpi=110)


def svg(result: Mapping[str, Any], filename: str, options: FormatOptions) -> bytes:
    """Return the picture as SVG, with text as text."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "whisper_at"}):
        return _saved(draw(result, filename, options), "svg", metadata={"Date": None})


def pdf(result: Mapping[str, Any], filename: str, options: FormatOptions) -> bytes:
    """Return the picture as PDF, of one page."""
    import matplotlib

    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType: text can be searched for
        return _saved(draw(result, filename, options), "pdf", metadata={"CreationDate": None})


def _saved(figure: Figure, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # scripts of which no font is installed are boxes, which can be seen; a line for each character says no more
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(file, format=format, **options)
    return file.getvalue()


def draw(result: Mapping[str, Any], filename: str, options: FormatOptions) -> Figure:
    """Draw a result.

    Parameters
    ----------
    result : dict
        What `transcribe` or `tag` returned; without tags there are no lanes.
    filename : str
        The title.
    options : FormatOptions
        Without ``audio``, there is no waveform.

    Returns
    -------
    Figure
        Of matplotlib.
    """
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    peaks = None if options.audio is None else audio_peaks(options.audio)
    events = result_events(result, options.tags) if read_rows(result) else []
    ends = [float(result.get("duration") or 0), *(span["end"] for span in [*result["segments"], *events])]
    duration = max(*ends, PEAK_SECONDS * (0 if peaks is None else len(peaks)), 1.0)
    seconds = next((float(s) for s in STRIP_SECONDS if duration <= s * MAX_STRIPS), duration / MAX_STRIPS)
    seconds = min(seconds, duration)
    n_strips = math.ceil(duration / seconds - 1e-9)
    lanes = loudest_classes(events)
    cues = result_cues({**result, "task": "transcribe"}, "plain", options.tags)
    words = text_spans(result, words=True) if any(segment.get("words") for segment in result["segments"]) else []

    lane_height = LANE_HEIGHT * len(lanes)
    strip_height = WAVE_HEIGHT * (peaks is not None) + TEXT_HEIGHT + lane_height
    pitch, top = strip_height + 0.38, 0.4
    height = n_strips * pitch + top + 0.1
    installed = set(font_manager.get_font_names())
    with rc_context({"font.family": [name for name in FONTS if name in installed] or ["sans-serif"]}):
        figure = Figure(figsize=(WIDTH, height))
        figure.text(
            LABELS_WIDTH / WIDTH, 1 - 0.26 / height, one_line(filename), fontsize=10, weight="bold", parse_math=False
        )
        for i in range(n_strips):
            bottom = height - top - i * pitch - strip_height
            place = (LABELS_WIDTH / WIDTH, bottom / height, 1 - (LABELS_WIDTH + 0.2) / WIDTH, strip_height / height)
            axes = figure.add_axes(place)
            _frame(axes, i * seconds, seconds, strip_height, lanes)
            if peaks is not None:
                _draw_wave(axes, peaks, i * seconds, seconds, lane_height + TEXT_HEIGHT + WAVE_HEIGHT / 2)
            _draw_text(axes, cues, words, lane_height, i * seconds, seconds)
            _draw_events(axes, events, lanes, i * seconds, seconds)
    return figure


def audio_peaks(audio: Any) -> np.ndarray:
    """Return the loudest sample, without its sign, of every hundredth of a second; the audio is never held whole."""
    size = round(PEAK_SECONDS * SAMPLE_RATE)
    parts = []
    for block in stream_audio(audio):
        padded = np.pad(np.abs(block), (0, -len(block) % size))
        parts.append(padded.reshape(-1, size).max(1))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def loudest_classes(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return head and name of the classes that sound most, by time and probability, in order of their first event."""
    amounts: dict[tuple[str, str], float] = {}
    for event in events:
        key = event["head"], event["name"]
        amounts[key] = amounts.get(key, 0.0) + event["probability"] * (event["end"] - event["start"])
    kept = set(sorted(amounts, key=lambda key: -amounts[key])[:MAX_LANES])
    return [key for key in amounts if key in kept]


def _frame(axes: Axes, start: float, seconds: float, height: float, lanes: Sequence[tuple[str, str]]) -> None:
    """Set limits (seconds and inches), ticks and names of lanes."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set(xlim=(start, start + seconds), ylim=(0, height))
    axes.xaxis.set_major_locator(MaxNLocator(15, steps=[1, 2, 3, 5, 6, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{int(t) // 60}:{t % 60:02.0f}"))
    axes.tick_params(labelsize=FONT_SIZE, length=2, pad=2)
    ys = [LANE_HEIGHT * (len(lanes) - 0.5 - i) for i in range(len(lanes))]
    axes.set_yticks(ys, [_shortened(one_line(name), 34) for _, name in lanes], parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=FONT_SIZE)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for i in range(0, len(lanes), 2):
        axes.axhspan(ys[i] - LANE_HEIGHT / 2, ys[i] + LANE_HEIGHT / 2, color="0.955", lw=0, zorder=0)


def _draw_wave(axes: Axes, peaks: np.ndarray, start: float, seconds: float, middle: float) -> None:
    part = peaks[round(start / PEAK_SECONDS) : round((start + seconds) / PEAK_SECONDS)]
    if not len(part):
        return
    group = max(1, round(seconds / PEAK_SECONDS / 1300))  # as many as there are dots
    part = np.pad(part, (0, -len(part) % group)).reshape(-1, group).max(1)
    heights = 0.48 * WAVE_HEIGHT * part / max(float(peaks.max()), 1e-3)
    times = start + group * PEAK_SECONDS * (np.arange(len(part)) + 0.5)
    axes.fill_between(times, middle - heights, middle + heights, color="0.45", lw=0)


def _draw_text(
    axes: Axes, cues: Sequence[Mapping[str, Any]], words: Sequence[Any], bottom: float, start: float, seconds: float
) -> None:
    """Draw captions in boxes, in type as large as fits, and a tick where each word begins."""
    inches = (WIDTH - LABELS_WIDTH - 0.2) / seconds
    for cue in cues:
        left, right = max(cue["start"], start), min(cue["end"], start + seconds)
        if right <= left:
            continue
        box = [(left, right - left)]
        axes.broken_barh(box, (bottom + 0.04, TEXT_HEIGHT - 0.08), facecolor="tab:cyan", alpha=0.25, lw=0)
        if cue["start"] < start and right - left < (cue["end"] - cue["start"]) / 2:
            continue  # its text is in the strip that has more of it
        lines = [one_line(line) for line in cue["text"].split("\n")]
        if len(lines) == 1 and " " in lines[0]:
            lines = textwrap.wrap(lines[0], max(20, len(lines[0]) // 2 + 4))
        width = (right - left) * inches * 72 / 0.61  # of all characters of a line, in points
        size = min(FONT_SIZE, width / max(map(len, lines)))
        if size < MIN_FONT_SIZE:
            size = MIN_FONT_SIZE
            lines = [_shortened(line, int(width / size)) for line in lines]
        text = "\n".join(lines).strip()
        if len(text) > 1:
            y = bottom + TEXT_HEIGHT / 2
            axes.text(left, y, text, fontsize=size, va="center", linespacing=1.0, parse_math=False, clip_on=True)
    times = [word.start for word in words if start <= word.start < start + seconds]
    axes.vlines(times, bottom + 0.01, bottom + 0.05, color="tab:cyan", lw=0.8)


def _draw_events(
    axes: Axes, events: Sequence[Mapping[str, Any]], lanes: Sequence[tuple[str, str]], start: float, seconds: float
) -> None:
    """Draw events as bars, the darker the likelier."""
    for event in events:
        key = event["head"], event["name"]
        if key not in lanes or event["end"] <= start or event["start"] >= start + seconds:
            continue
        lane = lanes.index(key)
        y = LANE_HEIGHT * (len(lanes) - 1 - lane) + 0.03
        alpha = min(1.0, 0.15 + 0.85 * event["probability"])
        axes.broken_barh(
            [(event["start"], event["end"] - event["start"])],
            (y, LANE_HEIGHT - 0.06),
            facecolor=f"C{lane % 10}",
            alpha=alpha,
            lw=0,
        )


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: max(length - 1, 0)] + "…"

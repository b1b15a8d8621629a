"""`WhisperAT.tag`: what sounds in a recording, without its text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tqdm
from torch import Tensor
from whisper.audio import N_FRAMES, pad_or_trim

from ..audio import Recording, readable
from ..mel import LogMel
from ..windows import Window, clip_frames, parse_clip_timestamps, run_to_end
from .progress import Progress, ProgressReporter
from .tagger import Tagger, encode_windows, resolve_resolutions

if TYPE_CHECKING:
    from ..model import WhisperAT

GPU_BATCH = 8
"""Windows that a GPU encodes at once, if nothing else is asked for."""


def tag_recording(
    model: WhisperAT,
    audio: Recording | np.ndarray | Tensor,
    *,
    at_time_res: float | Iterable[float] | str = "auto",
    clip_timestamps: Any = "0",
    batch_size: int | None = None,
    verbose: bool | None = None,
    audio_track: int | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    event_rows: bool = False,
) -> dict[str, Any]:
    """Tag what sounds in a recording: the encoder and the heads run, the decoder does not.

    Windows follow one another every 30 s, and memory does not grow with the recording. Where `transcribe` begins its
    windows elsewhere, because of what is said, the rows of both differ a little.

    Parameters
    ----------
    audio : str, path, bytes, binary file, array or Tensor, shape (samples,)
        As of `transcribe`.
    at_time_res : float, iterable of float or "auto"
        Seconds per row of tags, or several, as of `transcribe`; ``"auto"`` is 10.
    clip_timestamps : str, number, or sequence of numbers, pairs or mappings
        What to listen to, as of `transcribe`.
    batch_size : int, optional
        Windows encoded at once; by default one on a CPU, whose caches it fills, and eight on a GPU.
    verbose : bool, optional
        False shows a progress bar.
    audio_track : int or str, optional
        Which of a video's audio tracks, as of `transcribe`.
    on_progress : callable, optional
        Called before each batch of windows, as of `transcribe`.
    event_rows : bool
        Keep rows for events, as of `transcribe`.

    Returns
    -------
    dict
        What `transcribe` returns, with ``task`` ``"tag"`` and neither text, segments nor language: `find_events`,
        `parse_at_label`, `captions` and the writers take it.

    Raises
    ------
    ValueError
        If a resolution is not a positive multiple of 0.4 s, the model has no head, `batch_size` is not
        positive, or there is no such track.
    """
    steps = tag_in_order(
        model,
        audio,
        at_time_res=at_time_res,
        clip_timestamps=clip_timestamps,
        batch_size=batch_size,
        verbose=verbose,
        audio_track=audio_track,
        on_progress=on_progress,
        event_rows=event_rows,
    )
    return run_to_end(steps)


def tag_in_order(
    model: WhisperAT,
    audio: Recording | np.ndarray | Tensor,
    *,
    at_time_res: float | Iterable[float] | str = "auto",
    clip_timestamps: Any = "0",
    batch_size: int | None = None,
    verbose: bool | None = None,
    audio_track: int | str | None = None,
    on_progress: Callable[[Progress], object] | None = None,
    event_rows: bool = False,
) -> Generator[list[dict[str, Any]], None, dict[str, Any]]:
    """Tag a recording as `tag_recording` does, which says what is taken and returned.

    Yields, as `transcribe_in_order` does, once before the first windows and after each batch of them; as there is no
    text, lists without segments.
    """
    if at_time_res is None or not model.heads:
        reason = model.head_missing if not model.heads else "give at_time_res, in seconds"
        raise ValueError(f"cannot tag sounds: {reason}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    if not isinstance(at_time_res, str) and isinstance(at_time_res, Iterable):
        at_time_res = list(at_time_res)  # read more than once
    source = readable(audio, audio_track)
    resolve_resolutions(model, at_time_res, source)
    wanted = parse_clip_timestamps(clip_timestamps)
    on_cpu = model.device.type == "cpu"
    half = not on_cpu and model.compute_type in (None, "float16")
    batch_size = batch_size or (1 if on_cpu else GPU_BATCH)
    with LogMel(source, model.dims.n_mels) as mel:
        clips = clip_frames(wanted, mel.content_frames)
        tagger = Tagger(model, at_time_res, mel.content_frames, event_rows)
        windows = [window for clip in clips for window in _windows(*clip)]
        total = sum(window.size for window in windows)
        report_progress = ProgressReporter(on_progress, tagger, None, "tag")
        with tqdm.tqdm(total=total, unit="frames", disable=verbose is not False) as progress:
            yield []
            for first in range(0, len(windows), batch_size):
                batch = windows[first : first + batch_size]
                report_progress(batch[0].seek, [])
                _tag_windows(model, mel, tagger, batch, torch.float16 if half else torch.float32)
                progress.update(sum(window.size for window in batch))
                yield []
    return {"text": "", "segments": [], "language": None} | tagger.result("tag", source, [], [])


def _windows(start: int, end: int) -> list[Window]:
    return [Window(seek, min(N_FRAMES, end - seek)) for seek in range(start, end, N_FRAMES)]


def _tag_windows(model: WhisperAT, mel: LogMel, tagger: Tagger, windows: Sequence[Window], dtype: torch.dtype) -> None:
    if not tagger.rows:  # all classifiers read the waveform
        return
    parts = [pad_or_trim(mel.window(window.seek, window.end), N_FRAMES) for window in windows]
    _, states = encode_windows(model, torch.stack(parts).to(model.device).to(dtype), windows, [tagger])
    for window, item in zip(windows, states):
        tagger.add_window(window, item, settled_before=window.seek)  # clips are in order of time

"""Recordings that are being transcribed, one step at a time: a window, or windows of several in a batch."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..audio import readable
from ..batched import BatchDecoder, OpenRecording, PreparedRecording, WindowJob, batch_decoder
from ..mel import LogMel
from ..model import WhisperAT
from ..options import TranscribeOptions
from ..tagging.progress import Progress, ProgressReporter
from ..tagging.tag_recording import tag_in_order
from ..transcribe import transcribe_in_order

Segments = list[dict[str, Any]]


class Opened(NamedTuple):
    """A recording has been read, and has so many seconds."""

    seconds: float


class Finished(NamedTuple):
    """What `transcribe` or `tag` returned."""

    result: dict[str, Any]


Message = Opened | Segments | Progress | Finished | Exception
"""What is told of a recording: that it was opened, segments in order, new rows of tags if they are asked for, and at
last its result or what went wrong."""


@dataclass(eq=False)
class Recording:
    """A recording that a client sent.

    Attributes
    ----------
    client : str
        Whose turn it takes.
    model : WhisperAT
        What transcribes it.
    options : dict
        Keyword arguments of `transcribe`, or of `tag` if `tag_only`.
    notify : callable
        Called with each `Message`, by any thread.
    tells_progress : bool
        Whether `Progress` is among the messages.
    keep_as : str, optional
        The id under which its result, and its file, are kept.
    """

    client: str
    model: WhisperAT
    options: dict[str, Any]
    notify: Callable[[Message], None]
    tag_only: bool = False
    name: str = "the file"
    tells_progress: bool = False
    keep_as: str | None = None
    cancelled: bool = False
    closed: bool = False
    seconds: float = 0.0
    steps: BatchedSteps | InOrderSteps | None = None
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="whisper-at-", ignore_cleanup_errors=True)
    )

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.folder.name, "recording")

    def open(self, samples: Generator[np.ndarray, None, None]) -> None:
        """Compute its spectrogram, of blocks of 30 s of samples, and find out which language is spoken."""
        options = None if self.tag_only else TranscribeOptions.from_keywords(**self.options)
        on_progress = self.notify if self.tells_progress else None
        if options is not None and options.batch_size is not None:
            self.steps = BatchedSteps(batch_decoder(self.model, options), self.path, samples, on_progress)
            return
        for _ in samples:  # what reads windows in order opens the file by itself: this is whether it can be read
            pass
        if options is None:
            self.steps = InOrderSteps(tag_in_order(self.model, str(self.path), **self.options))
        else:
            options = replace(options, on_progress=on_progress)
            self.steps = InOrderSteps(transcribe_in_order(self.model, str(self.path), options))

    def close(self, keep_file: bool = False) -> None:
        """Delete everything about it, but for its file where that is kept."""
        if self.steps is not None:
            self.steps.close()
        if not keep_file:
            self.folder.cleanup()


Outcome = tuple[Recording, Segments | Finished | Exception]
"""What came of a step for a recording."""


class InOrderSteps:
    """A recording whose windows follow one another, each with the text before it as a prompt."""

    n_windows = 1

    def __init__(self, generator: Generator[Segments, None, dict[str, Any]]) -> None:
        self.generator = generator
        next(generator)

    def advance(self) -> Segments | Finished:
        """Transcribe the next window; return its segments, or the result where there was none left."""
        try:
            return next(self.generator)
        except StopIteration as end:
            return Finished(end.value)

    def close(self) -> None:
        """Forget it."""
        self.generator.close()


class BatchedSteps:
    """A recording whose windows go into batches with those of others: of all that have the same ``batch_key``."""

    def __init__(
        self,
        decoder: BatchDecoder,
        path: Path,
        samples: Generator[np.ndarray, None, None],
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.decoder = decoder
        source = readable(str(path), decoder.options.audio_track)
        prepared = PreparedRecording(source, LogMel(samples, decoder.model.dims.n_mels))
        self.recording = OpenRecording(decoder.model, prepared, decoder.options, decoder.dtype)
        self.jobs: deque[WindowJob] = deque(self.recording.jobs)
        self.n_told = 0
        of_recording = on_progress, self.recording.tagger, self.recording.language, decoder.options.task
        self.report_progress = ProgressReporter(*of_recording)
        of_tags: dict[str, Any] = {"at_time_res": None, "event_rows": False}
        shared = replace(decoder.options, **of_tags, audio_track=None, decode_options=_shared(decoder.options))
        self.batch_key: object = id(decoder.model), self.recording.language, repr(shared)

    @property
    def n_windows(self) -> int:
        """Windows that are left."""
        return len(self.jobs)

    def new_segments(self) -> Segments:
        """Return the segments before the first window that is left which have not been returned yet, in order."""
        frontier = min((job.window.seek for job in self.jobs), default=None)
        segments = sorted(self.recording.segments, key=lambda segment: segment["start"])
        settled = [one for one in segments if frontier is None or one["seek"] < frontier]
        new, self.n_told = settled[self.n_told :], len(settled)
        if frontier is not None:
            self.report_progress(frontier, settled)
        return new

    def finish(self) -> Finished | Exception:
        """Return the result."""
        result = self.decoder.finish(self.recording)
        return result if isinstance(result, Exception) else Finished(result)

    def close(self) -> None:
        """Forget it."""
        self.recording.mel.close()


def _shared(options: TranscribeOptions) -> dict[str, Any]:
    """Options of decoding that windows of a batch share, beside their language, which may have been detected."""
    return {name: value for name, value in options.decode_options.items() if name != "language"}


def transcribe_batch(recordings: Sequence[Recording]) -> list[Outcome]:
    """Transcribe the next window of each of these, of which one may be there several times, in one batch.

    Returns for each what came of it: its next segments, its result, or what went wrong.

    Raises
    ------
    torch.OutOfMemoryError
        If so many windows are too much. They are left as they were.
    """
    steps = [one.steps for one in recordings if isinstance(one.steps, BatchedSteps)]
    jobs = [one.jobs.popleft() for one in steps]
    try:
        remainders, failures = steps[0].decoder.process_batch(jobs)
    except BaseException:
        for one, job in reversed(list(zip(steps, jobs))):
            one.jobs.appendleft(job)
        raise
    by_recording = {id(one.recording): one for one in steps}
    for job in reversed(remainders):
        by_recording[id(job.recording)].jobs.appendleft(job)
    outcomes: list[Outcome] = []
    for recording in dict.fromkeys(recordings):
        assert isinstance(recording.steps, BatchedSteps)
        one = recording.steps
        if (failure := failures.get(id(one.recording))) is not None:
            outcomes.append((recording, failure[1]))
            continue
        if new := one.new_segments():
            outcomes.append((recording, new))
        if not one.jobs:
            outcomes.append((recording, one.finish()))
    return outcomes

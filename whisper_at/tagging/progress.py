"""What is known of a recording while it is transcribed or tagged, window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whisper.audio import HOP_LENGTH, SAMPLE_RATE

from .rows import HeadRows, read_rows
from .tagger import Tagger, head_values
from .timeline import steps_to_seconds


@dataclass(frozen=True)
class Progress:
    """What has become final since the window before.

    Attributes
    ----------
    seconds, duration : float
        How far the recording is transcribed, and how long it is.
    segments : list of dict
        The new segments.
    rows : dict of str to HeadRows
        The new rows of tags, by the name of the head; of several resolutions, each has got as far as it has.
    settled_before : float
        Nothing that is still to come begins before so many seconds.
    withheld : list of dict
        What `whisper_at.speech_gate` has withheld of the text since.
    language : str, optional
        Of the text.
    task : str
        ``transcribe``, ``translate`` or ``tag``.
    """

    seconds: float
    duration: float
    segments: list[dict[str, Any]]
    rows: dict[str, HeadRows]
    settled_before: float
    withheld: list[dict[str, Any]]
    language: str | None
    task: str


class ProgressReporter:
    """Calls `on_progress`, if there is one, with what is new.

    Parameters
    ----------
    on_progress : callable, optional
        Given a `Progress` before each window.
    tagger : Tagger
        Of the recording.
    language, task
        As of `Progress`.
    """

    def __init__(
        self, on_progress: Callable[[Progress], object] | None, tagger: Tagger, language: str | None, task: str
    ) -> None:
        self.on_progress, self.tagger = on_progress, tagger
        self.language, self.task = language, task
        self._n_segments = self._n_withheld = 0
        self._first_row = dict.fromkeys(tagger.row_steps, 0)

    def __call__(self, seek: int, segments: Sequence[dict[str, Any]], withheld: Sequence[dict[str, Any]] = ()) -> None:
        """Report the segments and rows that are new, of which all windows to come start at or after frame `seek`."""
        if self.on_progress is None:
            return
        self.tagger.settle(seek)
        seconds = seek * HOP_LENGTH / SAMPLE_RATE
        new_segments = list(segments[self._n_segments :])
        new_withheld = list(withheld[self._n_withheld :])
        self._n_segments, self._n_withheld = len(segments), len(withheld)
        rows = self._new_rows()
        settled = min([seconds, *(steps_to_seconds(steps * first) for steps, first in self._first_row.items())])
        if self.tagger.waveform_classifiers:  # which run when all windows are done
            settled = 0.0
        seconds_in_all, about = self.tagger.seconds, (self.language, self.task)
        self.on_progress(Progress(seconds, seconds_in_all, new_segments, rows, settled, new_withheld, *about))

    def _new_rows(self) -> dict[str, HeadRows]:
        """Rows of all heads that read states, in the shape that a result has them in."""
        first_row = {steps_to_seconds(steps): first for steps, first in self._first_row.items()}
        result: dict[str, Any] = {"at_time_res": list(first_row), "duration": self.tagger.seconds}
        ends: dict[int, int] = {}
        for name, by_steps in self.tagger.rows.items():
            classes = self.tagger.classes[name]
            logits = {
                steps_to_seconds(steps): classes.mask(by_steps[steps].settled_logits(first))
                for steps, first in self._first_row.items()
            }
            result |= head_values(name, classes, logits)
            ends = {steps: by_steps[steps].settled_rows for steps in self._first_row}  # the same for all heads
        self._first_row |= ends
        return {name: replace(found, first_row=first_row) for name, found in read_rows(result).items()}

"""The tags of one recording, from the states of its windows, by every head of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, SAMPLE_RATE

from ..windows import Window
from .classes import ClassSet
from .listeners import WaveformClassifier, check_sample_rate, class_set, classify_spans, span_logits
from .rows import AUDIOSET, EVENT_ROWS, audioset_values
from .timeline import STEP_SECONDS, Classifier, TagRows, is_single, pool_steps, resolutions, row_spans, steps_to_seconds

if TYPE_CHECKING:
    from ..model import WhisperAT

AUTO_RESOLUTION = 10.0
"""Seconds per row of tags when none is asked for: the length of the clips that AudioSet is labelled by."""

EVENT_STEPS = (1, 3)
"""Steps of the rows that events are made of: those of 1.2 s say whether a class sounds, those of 0.4 s when."""


def resolve_resolutions(
    model: WhisperAT,
    at_time_res: float | Iterable[float] | str | None,
    audio: str | os.PathLike[str] | np.ndarray | Tensor = "",
) -> list[int]:
    """Return the steps per row of each resolution asked for; none where nothing is to be tagged.

    Raises
    ------
    ValueError
        If a resolution is not a positive multiple of 0.4 s, the model has no head for them, or one of its classifiers
        cannot take such `audio`.
    """
    if isinstance(at_time_res, str) and at_time_res == "auto":
        at_time_res = AUTO_RESOLUTION if model.heads else None
    if at_time_res is None:
        return []
    row_steps = resolutions(at_time_res)  # type: ignore[arg-type]  # no other string is a resolution
    if not model.heads:
        raise ValueError(f"cannot tag sounds: {model.head_missing}")
    for head in model.heads.values():
        if isinstance(head, WaveformClassifier):
            check_sample_rate(audio, head.sample_rate)
    return row_steps


class Tagger:
    """Collects what the heads of a model find in one recording, at every resolution asked for.

    Parameters
    ----------
    model : WhisperAT
        With its heads.
    at_time_res : float, iterable of float, "auto" or None
        Seconds per row; raises ValueError as `resolve_resolutions`.
    content_frames : int
        Length of the recording in mel frames.
    event_rows : bool
        Whether to collect rows for events besides.
    needs_states : bool
        Whether the states of its windows are read by others, too.
    """

    def __init__(
        self,
        model: WhisperAT,
        at_time_res: float | Iterable[float] | str | None,
        content_frames: int,
        event_rows: bool = False,
        *,
        needs_states: bool = False,
    ) -> None:
        self.row_steps = resolve_resolutions(model, at_time_res)
        self.several = not is_single(at_time_res)
        self.seconds = content_frames * HOP_LENGTH / SAMPLE_RATE
        heads = model.heads if self.row_steps else {}
        self.classes = {name: class_set(head) for name, head in heads.items()}
        self.waveform_classifiers = {name: h for name, h in heads.items() if isinstance(h, WaveformClassifier)}
        self.classifiers, self.needs_final_norm = state_classifiers(heads)
        self.has_event_rows = event_rows and not set(EVENT_STEPS) <= set(self.row_steps)
        all_steps = dict.fromkeys([*self.row_steps, *(EVENT_STEPS if self.has_event_rows else ())])
        self.rows = {
            name: {steps: TagRows(steps, content_frames, classify, len(self.classes[name])) for steps in all_steps}
            for name, classify in self.classifiers.items()
        }
        self.segments: dict[str, list[Tensor]] = {name: [] for name in self.classifiers if name in model.attached}
        self.needs_states = needs_states or bool(self.rows)

    def add_window(self, window: Window, states: Tensor, settled_before: int) -> None:
        """Take a window's states; no window to come starts before the frame `settled_before`."""
        self.settle(settled_before)
        for rows in (rows for by_steps in self.rows.values() for rows in by_steps.values()):
            rows.add_window(window, states)

    def settle(self, settled_before: int) -> None:
        """Classify the rows that no window to come can change, none of which starts before that frame."""
        for rows in (rows for by_steps in self.rows.values() for rows in by_steps.values()):
            rows.flush(settled_before)

    def add_segment(self, window: Window, states: Tensor, segment: dict[str, Any]) -> None:
        """Take the next segment of the transcript, and the window that it comes from."""
        for name, found in self.segments.items():
            classify, n_classes = self.classifiers[name], len(self.classes[name])
            found.append(span_logits(classify, n_classes, window, states, segment["start"], segment["end"]))

    def result(
        self,
        task: str,
        audio: str | os.PathLike[str] | np.ndarray | Tensor,
        segments: list[dict[str, Any]],
        order: list[int],
    ) -> dict[str, Any]:
        """Return what `transcribe` returns beside the transcript; nothing if no tags were asked for.

        `order` says which of the segments given to `add_segment` each of `segments` was.
        """
        if not self.row_steps:
            return {}
        seconds = [steps_to_seconds(steps) for steps in self.row_steps]

        def by_resolution(found: list[Tensor]) -> Any:
            return dict(zip(seconds, found)) if self.several else found[0]

        found: dict[str, dict[str, Any]] = {}  # head → logits of rows, and of segments
        coverage: list[Tensor] = []
        event_rows: dict[str, Any] = {"at_time_res": list(map(steps_to_seconds, EVENT_STEPS)), "duration": self.seconds}
        for name, by_steps in self.rows.items():
            finished = {steps: rows.finish() for steps, rows in by_steps.items()}
            logits = {steps: self.classes[name].mask(logits) for steps, (logits, _) in finished.items()}
            found[name] = {"logits": by_resolution([logits[steps] for steps in self.row_steps])}
            coverage = coverage or [finished[steps][1] for steps in self.row_steps]  # the same for all heads
            if self.has_event_rows:
                of_events = {steps_to_seconds(steps): logits[steps] for steps in EVENT_STEPS}
                event_rows |= head_values(name, self.classes[name], of_events)
            if name in self.segments:
                n_classes = len(self.classes[name])
                ordered = [self.segments[name][i] for i in order]
                found[name]["segments"] = torch.stack(ordered) if ordered else torch.zeros(0, n_classes)
        for name, classifier in self.waveform_classifiers.items():
            total = math.ceil(round(self.seconds / STEP_SECONDS, 6))
            spans = [row_spans(-(-total // steps), steps, self.seconds) for steps in self.row_steps]
            spans.append([(segment["start"], segment["end"]) for segment in segments])
            logits_of_spans = classify_spans(classifier, audio, [span for part in spans for span in part])
            *rows, of_segments = logits_of_spans.split([len(part) for part in spans])
            found[name] = {"logits": by_resolution(rows), "segments": of_segments}

        out: dict[str, Any] = {"at_time_res": seconds if self.several else seconds[0]}
        if AUDIOSET in found:
            out["audio_tag"] = found.pop(AUDIOSET)["logits"]
            out |= audioset_values(self.classes[AUDIOSET])
        if coverage:
            out["audio_tag_coverage"] = by_resolution(coverage)
        out |= {"duration": self.seconds, "task": task}
        if self.has_event_rows and self.rows:
            out[EVENT_ROWS] = event_rows
        return out | {name: self.classes[name].values() | parts for name, parts in found.items()}


def head_values(name: str, classes: ClassSet, logits: Any) -> dict[str, Any]:
    """Return what a result says of a head: its rows, and what they mean."""
    if name == AUDIOSET:
        return {AUDIOSET: logits, **audioset_values(classes)}
    return {name: classes.values() | {"logits": logits}}


def state_classifiers(heads: Mapping[str, Any]) -> tuple[dict[str, Classifier], bool]:
    """Return those of some heads that read the states of a pass, and whether these must hold those after the last norm.

    Where one head needs them, the others are made to leave them out.
    """
    state_heads = {name: head for name, head in heads.items() if not isinstance(head, WaveformClassifier)}
    needs = {name: getattr(head, "needs_final_norm", False) for name, head in state_heads.items()}
    needed = any(needs.values())
    return {
        name: head if needs[name] == needed else _without_final_norm(head) for name, head in state_heads.items()
    }, needed


def _without_final_norm(head: Classifier) -> Classifier:
    """Return a head that reads the blocks alone, for states that hold those after the last norm too."""
    return lambda states: head(states[:, :-1])


def encode_windows(
    model: WhisperAT,
    mel: Tensor,
    windows: Sequence[Window],
    taggers: Sequence[Tagger],
    unfused_attention: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return features ``(batch, 1500, dim)`` of windows, and the states that the heads of their recordings read.

    There are no states where nothing reads them. ``unfused_attention`` is as of `WhisperAT.encode`.
    """
    if not any(tagger.needs_states for tagger in taggers):
        with torch.no_grad():
            # as upstream's is called, where it may have been replaced
            features = model.embed_audio(mel, unfused_attention=True) if unfused_attention else model.embed_audio(mel)
            return features, torch.empty(len(mel), 0)
    features, states = model.encode(mel, windows, unfused_attention=unfused_attention)
    if any(tagger.needs_final_norm for tagger in taggers):
        states = torch.cat([states, pool_steps(features, windows)[:, None]], dim=1)
    return features, states

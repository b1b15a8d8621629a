"""The tags of one recording, from the states of its windows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from whisper.audio import HOP_LENGTH, SAMPLE_RATE

from ..windows import Window
from .classes import ClassSet
from .heads import TLTR, Head, LayerPoolHead
from .listeners import StateClassifier, WaveformClassifier, listen, require_rate, row_spans, span_logits
from .timeline import STEP_SECONDS, Classifier, TagRows, is_single, pool_steps, resolutions, steps_to_seconds

if TYPE_CHECKING:
    from ..model import WhisperAT

AUTO_RESOLUTION = 10.0
"""Seconds per tag row when none is asked for: the length of the clips that AudioSet is labelled by."""


class Tagger:
    """The tag rows of one recording at all resolutions asked for, of the AudioSet head and of attached ones.

    Raises ValueError if a resolution is not a positive multiple of 0.4 s, the model has no head for them, or one that
    listens by itself cannot hear such ``audio``.
    """

    def __init__(
        self,
        model: WhisperAT,
        at_time_res: float | Iterable[float] | None,
        content_frames: int,
        audio: str | os.PathLike[str] | np.ndarray | Tensor = "",
    ) -> None:
        if isinstance(at_time_res, str) and at_time_res == "auto":
            at_time_res = None if model.head is None and not model.attached else AUTO_RESOLUTION
        self.row_steps = [] if at_time_res is None else resolutions(at_time_res)
        if self.row_steps and model.head is None and not model.attached:
            raise ValueError(f"cannot tag sounds: {model.head_missing}")
        self.several = not is_single(at_time_res)
        self.seconds = content_frames * HOP_LENGTH / SAMPLE_RATE
        attached = model.attached if self.row_steps else {}
        heads = (TLTR, LayerPoolHead)
        self.own = {name: head for name, head in attached.items() if isinstance(head, (*heads, StateClassifier))}
        self.listeners = {
            name: cast(WaveformClassifier, head) for name, head in attached.items() if name not in self.own
        }
        for listener in self.listeners.values():
            require_rate(audio, listener.sample_rate)
        self.needs_features = any(isinstance(head, StateClassifier) for head in self.own.values())
        self.classifiers: dict[str, tuple[Classifier, int]] = {}
        for name, head in (self.own if model.head is None else {"audio_tag": model.head, **self.own}).items():
            # readers see one state more than heads
            plain = isinstance(head, StateClassifier) or not self.needs_features
            self.classifiers[name] = head if plain else _Without(head), head.label_dim  # type: ignore[assignment, arg-type]
        self.rows = {
            name: {steps: TagRows(steps, content_frames, *classifier) for steps in self.row_steps}
            for name, classifier in self.classifiers.items()
            if self.row_steps
        }
        self.segments: dict[str, list[Tensor]] = {name: [] for name in self.own}

    def add(self, window: Window, states: Tensor, before: int) -> None:
        """Take a window's states; no window to come starts before the frame ``before``."""
        for by_steps in self.rows.values():
            for rows in by_steps.values():
                rows.flush(before)
                rows.add(window, states)

    def add_segment(self, window: Window, states: Tensor, segment: dict) -> None:
        """Take the next segment of the transcript, and the window that it was heard in."""
        for name, found in self.segments.items():
            found.append(span_logits(*self.classifiers[name], window, states, segment["start"], segment["end"]))

    def result(
        self, task: str, audio: str | os.PathLike[str] | np.ndarray | Tensor, segments: list[dict], order: list[int]
    ) -> dict:
        """What `transcribe` returns beside the transcript; nothing if no tags were asked for.

        ``order`` says which of the segments given to `add_segment` each of ``segments`` was.
        """
        if not self.row_steps:
            return {}
        seconds = [steps_to_seconds(steps) for steps in self.row_steps]

        def by_resolution(found: list) -> Any:
            return dict(zip(seconds, found)) if self.several else found[0]

        out: dict[str, Any] = {"at_time_res": seconds if self.several else seconds[0]}
        finished = {name: [rows.finish() for rows in by_steps.values()] for name, by_steps in self.rows.items()}
        if "audio_tag" in finished:
            out["audio_tag"] = by_resolution([logits for logits, _ in finished["audio_tag"]])
        for found in list(finished.values())[:1]:  # all heads heard the same
            out["audio_tag_coverage"] = by_resolution([coverage for _, coverage in found])
        out |= {"duration": self.seconds, "task": task}
        for name, head in self.own.items():
            spoken = [self.segments[name][i] for i in order]
            out[name] = _described(head.classes) | {
                "logits": by_resolution([logits for logits, _ in finished[name]]),
                "segments": torch.stack(spoken) if spoken else torch.zeros(0, head.label_dim),
            }
        for name, listener in self.listeners.items():
            total = math.ceil(round(self.seconds / STEP_SECONDS, 6))
            spans = [row_spans(-(-total // steps), steps, self.seconds) for steps in self.row_steps]
            spans.append([(segment["start"], segment["end"]) for segment in segments])
            heard = listen(listener, audio, [span for part in spans for span in part])
            *tag_rows, of_segments = heard.split(list(map(len, spans)))
            classes = ClassSet(tuple(listener.classes), listener.kind)
            out[name] = _described(classes) | {"logits": by_resolution(tag_rows), "segments": of_segments}
        return out


class _Without:
    """A head that is handed one state more than it reads."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def __call__(self, states: Tensor) -> Tensor:
        return self.head(states[:, :-1])


def encode(
    model: WhisperAT, mel: Tensor, windows: Sequence[Window], tagging: Sequence[Tagger]
) -> tuple[Tensor, Tensor]:
    """Features ``(batch, 1500, dim)`` of windows, and the states that their recordings' heads and readers are to see.

    No states are made where nobody is to see them.
    """
    if not any(each.rows for each in tagging):
        with torch.no_grad():
            return model.embed_audio(mel), torch.empty(len(mel), 0)
    features, states = model.encode(mel, windows)
    if any(each.needs_features for each in tagging):
        states = torch.cat([states, pool_steps(features, windows)[:, None]], dim=1)
    return features, states


def _described(classes: ClassSet | None) -> dict[str, Any]:
    assert classes is not None  # `attach` sees to it
    return {
        "classes": list(classes.names),
        "kind": classes.kind,
        "temperature": classes.temperature,
        "thresholds": None if classes.thresholds is None else list(classes.thresholds),
    }

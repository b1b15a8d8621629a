"""Rows of tags and events of a stream, from the states of its passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..speech_tagger import vocal_classes
from ..tagging.classes import ClassSet
from ..tagging.labels import display_names, is_audioset
from ..tagging.listeners import class_set
from ..tagging.rows import AUDIOSET, TagOptions, select_tags
from ..tagging.tagger import resolve_resolutions, state_classifiers
from ..tagging.timeline import (
    STEP_FRAMES,
    STEP_POSITIONS,
    WINDOW_STEPS,
    first_step,
    pool_steps,
    position_mask,
    steps_to_seconds,
)
from ..windows import Window
from .events import EventTracker
from .messages import Message, Row

if TYPE_CHECKING:
    from ..model import WhisperAT

VOICE_STEPS = 5


class SoundTracker:
    """Classifies what was heard as soon as a row is over.

    A step is read from the latest pass that heard as much of it as any: that one knows most of what came after it.

    Parameters
    ----------
    model : WhisperAT
        With its heads; classifiers that read samples (`WaveformClassifier`) are left out.
    at_time_res : float, iterable of float, "auto" or None
        As of `transcribe`, up to 30 s.
    first_frame : int
        Where the stream starts, in frames of 10 ms.
    language : str
        Of the names of AudioSet's classes.
    options : TagOptions
        Which tags rows name.
    """

    def __init__(
        self,
        model: WhisperAT,
        at_time_res: float | Iterable[float] | str | None,
        first_frame: int,
        options: TagOptions,
        language: str = "en",
    ) -> None:
        self.row_steps = resolve_resolutions(model, at_time_res)
        if self.row_steps and max(self.row_steps) > WINDOW_STEPS:
            raise ValueError(f"rows of a stream have 30 s at most, not {steps_to_seconds(max(self.row_steps)):g}")
        self.options = options
        self.classifiers, self.needs_final_norm = state_classifiers(model.heads)
        self.classes = {name: class_set(model.heads[name]) for name in self.classifiers}
        self.names = {name: display_names(classes, language) for name, classes in self.classes.items()}
        self.voices = self._known_voices()
        self.first_frame = first_frame
        first = first_frame // STEP_FRAMES
        self._next_row = {steps: first // steps for steps in self.row_steps}
        self._states: dict[int, tuple[int, Tensor]] = {}  # step → positions that were heard, (layers, dim)
        self.events = {
            name: EventTracker(name, self.classes[name], self.names[name], options.p_threshold, self._wanted(name))
            for name in (self.classifiers if self.row_steps else ())
        }

    @property
    def needs_states(self) -> bool:
        """Whether anything reads the states of passes."""
        return bool(self.row_steps) or self.voices is not None

    def _wanted(self, name: str) -> list[int]:
        return self.classes[name].indices(self.options.include_classes if name == AUDIOSET else None)

    def _known_voices(self) -> list[int] | None:
        """Return the classes of voices that AudioSet's head can tell, or None."""
        classes = self.classes.get(AUDIOSET)
        if classes is None or not is_audioset(classes):
            return None
        return vocal_classes(classes) or None

    def add_window(self, window: Window, states: Tensor, features: Tensor) -> list[Message]:
        """Take a pass: pooled states ``(layers, steps, dim)`` and features ``(1500, dim)``; return finished rows."""
        if self.needs_final_norm:
            states = torch.cat([states, pool_steps(features[None], [window])])
        heard = position_mask(window, features.shape[0]).view(-1, STEP_POSITIONS).sum(1).tolist()
        for i, positions in enumerate(heard):
            step = first_step(window) + i
            if positions and positions >= self._states.get(step, (0, None))[0]:
                self._states[step] = positions, states[:, i]
        return self._finished_rows(window.end)

    def finish(self, end: int) -> list[Message]:
        """Return what is left at the end of the stream, at a frame."""
        messages = self._finished_rows(end, with_last=True)
        for tracker in self.events.values():
            messages += tracker.finish(end / 100)
        return messages

    @torch.no_grad()
    def voice_probability(self, start: int, end: int) -> float | None:
        """Return the probability of a voice in the first or last 2 s between two frames; None if no head can tell."""
        if self.voices is None:
            return None
        steps = [step for step in range(start // STEP_FRAMES, -(-end // STEP_FRAMES)) if step in self._states]
        if not steps:
            return 0.0
        classes = self.classes[AUDIOSET]
        states = torch.stack([self._states[step][1] for step in steps], dim=1)
        parts = states[None]
        if len(steps) > VOICE_STEPS:
            parts = torch.stack([states[:, :VOICE_STEPS], states[:, -VOICE_STEPS:]])
        return float(classes.probabilities(self.classifiers[AUDIOSET](parts))[:, self.voices].max())

    def drop_before(self, frame: int) -> None:
        """Forget the states of steps that neither a row to come nor `voice_probability` from a frame on needs."""
        needed = min([frame // STEP_FRAMES, *(row * steps for steps, row in self._next_row.items())])
        for step in [step for step in self._states if step < needed]:
            del self._states[step]

    def _finished_rows(self, end: int, with_last: bool = False) -> list[Message]:
        messages: list[Message] = []
        for steps in self.row_steps:
            while (row := self._next_row[steps]) * steps * STEP_FRAMES < end:
                if (row + 1) * steps * STEP_FRAMES > end and not with_last:
                    break
                messages += self._classify(row, steps, min(end, (row + 1) * steps * STEP_FRAMES))
                self._next_row[steps] = row + 1
        return messages

    @torch.no_grad()
    def _classify(self, row: int, steps: int, end: int) -> list[Message]:
        first = row * steps
        heard = [step for step in range(first, first + steps) if step in self._states]
        if not heard:
            return []
        states = torch.stack([self._states[step][1] for step in heard], dim=1)[None]
        begin = max(first * STEP_FRAMES, self.first_frame)
        coverage = (end - begin) / (steps * STEP_FRAMES)
        seconds = steps_to_seconds(first), min(steps_to_seconds(first + steps), end / 100)
        messages: list[Message] = []
        for name, classify in self.classifiers.items():
            classes = self.classes[name]
            logits = classes.mask(classify(states)[0].float().cpu()).numpy()
            messages.append(Row(*seconds, name, steps, coverage, self._tags(name, classes, logits), logits))
            if steps == min(self.row_steps):
                messages += self.events[name].add_row(*seconds, logits)
        return messages

    def _tags(self, name: str, classes: ClassSet, logits: np.ndarray) -> list[dict[str, object]]:
        (tags,) = select_tags(
            classes,
            logits[None].astype(np.float64),
            self.options.top_k,
            self.options.p_threshold,
            self._wanted(name),
            self.names[name],
        )
        return tags

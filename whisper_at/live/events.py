"""Events of a stream, told when they begin and when they end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tagging.classes import ClassSet, sigmoid
from ..tagging.events import event_thresholds
from ..tagging.labels import class_ancestors
from .messages import EventEnd, EventStart, Message

HYSTERESIS = 1.0
"""An event goes on while its class is no more than so much below its threshold, in logits: as of `find_events`."""


class EventTracker:
    """Finds the events of one head, row by row, by the rule of `whisper_at.find_events`.

    A class that another one explains begins no event: Animal where Dog sounds already, or begins in the same row.

    Parameters
    ----------
    head : str
        Its name.
    classes : ClassSet
        Its classes.
    names : sequence of str
        What they are called.
    p_threshold : float, optional
        As of `find_events`.
    wanted : sequence of int
        Indices of the classes that can be events.
    """

    def __init__(
        self, head: str, classes: ClassSet, names: Sequence[str], p_threshold: float | None, wanted: Sequence[int]
    ) -> None:
        self.head, self.classes, self.names = head, classes, names
        self.thresholds = event_thresholds(classes, p_threshold)
        self.ancestors = class_ancestors(classes)
        self.wanted = np.zeros(len(classes), bool)
        self.wanted[list(wanted)] = True
        self._active: dict[int, _Active] = {}
        self._heard_until: float | None = None

    def add_row(self, start: float, end: float, logits: np.ndarray) -> list[Message]:
        """Take the logits ``(classes,)`` of the next row, from `start` to `end` in seconds."""
        messages: list[Message] = []
        if self._heard_until is not None and start > self._heard_until + 1e-6:
            messages += self.finish(self._heard_until)  # nothing goes on through what was not heard
        self._heard_until = end
        log_odds = self.classes.log_odds(logits[None].astype(np.float64))[0]
        with np.errstate(invalid="ignore"):  # NaN is of classes that the head does not know
            active = np.flatnonzero((log_odds >= self.thresholds - HYSTERESIS) & self.wanted).tolist()
        for index in sorted(self._active.keys() - set(active)):
            messages += self._end(index, start)
        for index in active:
            state = self._active.setdefault(index, _Active(start))
            state.peak = max(state.peak, float(log_odds[index]))
        sounding = [i for i, state in self._active.items() if state.begun or state.peak >= self.thresholds[i]]
        explained = {above for index in sounding for above in self.ancestors[index]}
        for index in sounding:
            state = self._active[index]
            if not state.begun and index not in explained:
                state.begun = True
                messages.append(EventStart(state.start, *self._about(index, state)))
        return messages

    def finish(self, end: float) -> list[Message]:
        """End all events at `end` seconds."""
        return [message for index in sorted(self._active) for message in self._end(index, end)]

    def _end(self, index: int, end: float) -> list[Message]:
        state = self._active.pop(index)
        return [EventEnd(state.start, end, *self._about(index, state))] if state.begun else []

    def _about(self, index: int, state: _Active) -> tuple[str, int, str | None, float, str]:
        mid = None if self.classes.mids is None else self.classes.mids[index]
        return self.names[index], index, mid, sigmoid(state.peak), self.head


@dataclass
class _Active:
    """A class that is near its threshold or above, since `start`; `peak` is the highest log odds so far."""

    start: float
    peak: float = -math.inf
    begun: bool = False

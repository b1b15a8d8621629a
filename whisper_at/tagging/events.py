"""Rows of tags → events: a class, from when to when, and how sure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .classes import ClassSet, logit, sigmoid
from .event_times import Span, choose_rows, place_event, touching
from .groups import group_classes, group_name
from .labels import class_ancestors, display_names, tag_language
from .rows import AUDIOSET, EVENT_ROWS, HeadRows, read_rows


def find_events(
    result: Mapping[str, Any],
    p_threshold: float | None = None,
    hysteresis: float = 1.0,
    include_class_list: Iterable[int | str] | int | str | None = None,
    *,
    head: str | None = None,
    language: str = "follow_asr",
    gap: float = 0.0,
    shortest: float = 0.0,
    specific: bool = True,
    groups: bool | Iterable[int | str] | int | str = False,
) -> list[dict[str, Any]]:
    """Join rows of tags to events.

    An event begins where a class reaches its threshold and lasts, before and after, while it is no more than
    `hysteresis` below. Where the result has rows of 0.4 s and longer ones of up to 4 s (``at_time_res=[0.4, 1.2]``, or
    ``event_rows=True``), the longer ones say whether there is an event, and the short ones when
    (`whisper_at.tagging.event_times`). Else the finest rows say both, and an event is as sharp in time as they are. No
    event goes on through rows without audio.

    Parameters
    ----------
    result : dict
        What `transcribe` returned with tags.
    p_threshold : float, optional
        A logit; None is the head's own thresholds, or 0 (a probability of one half) where it has none.
    hysteresis : float
        In logits, from 0.
    include_class_list : optional
        The wanted classes of `head`, or of AudioSet's: indices, names and MIDs.
    head : str, optional
        ``"audio_tag"`` for AudioSet's alone, or the name of an attached head; None for all there are.
    language : str
        Language of AudioSet's names, as of `parse_at_label`.
    gap : float
        Events of a class with no more than so many seconds between them are one.
    shortest : float
        Leave shorter events out, in seconds.
    specific : bool
        Leave out classes that a class below them explains: Animal and Dog where Bark sounds for more than half of the
        time.
    groups : bool, int, str or iterable of int or str
        Make one event, named after the group, of all classes that belong to it: True for animals, music, human voice,
        vehicles and the like (`whisper_at.tagging.groups.EVENT_GROUPS`), or AudioSet classes that stand for all below
        them. Classes of no group stay as they are.

    Returns
    -------
    list of dict
        Events by their start, of those that start together the likelier first:
        ``{"start", "end", "name", "index", "mid", "probability", "head"}``. Times are in seconds; the probability is
        the highest of the rows that decide, calibrated; ``mid`` is there for AudioSet's classes. The event of a group
        also has ``classes``, the names of those that sound, and ``indices``, theirs; it has an ``index`` if the group
        is a class of the head.

    Raises
    ------
    ValueError
        If the result carries no tags, or none of that head; a class does not exist; or a number is below 0.
    """
    for name, value in (("hysteresis", hysteresis), ("gap", gap), ("shortest", shortest)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
    rows_of = {**read_rows(result), **read_rows(result.get(EVENT_ROWS, {}))}
    if not rows_of or (head is not None and head not in rows_of):
        available = f"it has those of {', '.join(rows_of)}" if rows_of else "transcribe with at_time_res=2, say"
        raise ValueError(f"this result carries no tags{'' if head is None else f' of {head!r}'}: {available}")
    events = []
    for found in rows_of.values() if head is None else [rows_of[head]]:
        classes = found.classes
        wanted = sorted(set(classes.indices(include_class_list if found.head == (head or AUDIOSET) else None)))
        name_language = tag_language(result, language)
        names = display_names(classes, name_language)
        rows = _ActiveRows(found, p_threshold, hysteresis, gap)
        for group in group_classes(classes, groups):
            members = sorted({*group.members} & {*wanted})
            wanted = [index for index in wanted if index not in members]
            facts: dict[str, Any] = {"name": group_name(group.mid, name_language)}
            facts |= {"mid": group.mid} if group.index is None else {"index": group.index, "mid": group.mid}
            for event in rows.events(members, shortest):
                sounding = [index for index in members if rows.active[event.first : event.last + 1, index].any()]
                group_facts = {"classes": [names[index] for index in sounding], "indices": sounding}
                events.append(_to_dict(event, facts, found.head) | group_facts)
        explained = _explained_by_child(rows.active, classes, wanted) if specific else {}
        for index in wanted:
            facts = {"name": names[index], "index": index}
            if classes.mids is not None:
                facts["mid"] = classes.mids[index]
            for event in rows.events([index], shortest):
                span = slice(event.first, event.last + 1)
                if index not in explained or 2 * explained[index][span].sum() <= event.last + 1 - event.first:
                    events.append(_to_dict(event, facts, found.head))
    return sorted(events, key=lambda event: (event["start"], -event["probability"]))


class _Event(NamedTuple):
    start: float
    end: float
    first: int  # row that decides
    last: int
    log_odds: float


def _to_dict(event: _Event, facts: Mapping[str, Any], head: str) -> dict[str, Any]:
    times = {"start": event.start, "end": event.end}
    return {**times, **facts, "probability": sigmoid(event.log_odds), "head": head}


class _ActiveRows:
    """The rows of a head that decide where its classes sound, and those that say when."""

    def __init__(self, found: HeadRows, p_threshold: float | None, hysteresis: float, gap: float) -> None:
        self.seconds, fine_seconds = choose_rows(found.logits)
        self.gap = gap
        self.log_odds = found.classes.log_odds(found.logits[self.seconds])
        self.times = found.times(self.seconds)
        self.active = _with_hysteresis(self.log_odds, event_thresholds(found.classes, p_threshold), hysteresis)
        self.fine: np.ndarray | None = None
        if fine_seconds is not None:
            self.fine = found.classes.log_odds(found.logits[fine_seconds])
            self.duration = found.times(fine_seconds)[-1][1] if len(self.fine) else 0.0

    def events(self, columns: list[int], shortest: float) -> Iterator[_Event]:
        """Yield where any of some classes sounds."""
        active = np.asarray(self.active[:, columns].any(axis=1))
        if not active.any():
            return
        log_odds = _highest(self.log_odds[:, columns])
        fine = None if self.fine is None else _highest(self.fine[:, columns])
        runs = list(_runs(active, self.gap / self.seconds, np.isnan(log_odds)))
        spans = [Span(self.times[first][0], self.times[last][1]) for first, last in runs]
        together: Iterable[tuple[int, int]] = ((i, i) for i in range(len(runs)))
        if fine is not None:
            spans = [place_event(span, fine, self.duration) for span in spans]
            together = touching(spans)
        for first, last in together:
            start = min(span.start for span in spans[first : last + 1])
            end = max(span.end for span in spans[first : last + 1])
            rows = (runs[first][0], runs[last][1])
            if end - start >= shortest:
                yield _Event(start, end, *rows, float(np.nanmax(log_odds[rows[0] : rows[1] + 1])))


def _highest(log_odds: np.ndarray) -> np.ndarray:
    """Return the highest of the columns of each row; NaN if all are."""
    return log_odds[:, 0] if log_odds.shape[1] == 1 else np.fmax.reduce(log_odds, axis=1)


def event_thresholds(classes: ClassSet, p_threshold: float | None) -> np.ndarray:
    """Return the logits ``(classes,)`` from which classes begin an event."""
    if p_threshold is None and classes.thresholds is not None:
        return logit(np.array(classes.thresholds))
    return np.full(len(classes), p_threshold or 0.0)


def _with_hysteresis(log_odds: np.ndarray, thresholds: np.ndarray, hysteresis: float) -> np.ndarray:
    """Bool ``(rows, classes)``: where a class that reaches its threshold is no more than `hysteresis` below."""
    active, reached = log_odds >= thresholds - hysteresis, log_odds >= thresholds  # false for NaN
    for index in np.flatnonzero(active.any(0)):
        for first, last in _runs(active[:, index]):
            active[first : last + 1, index] = reached[first : last + 1, index].any()
    return active


def _explained_by_child(active: np.ndarray, classes: ClassSet, wanted: list[int]) -> dict[int, np.ndarray]:
    """For every class that contains wanted ones: in which rows any of those sounds."""
    ancestors = class_ancestors(classes)
    explained: dict[int, np.ndarray] = {}
    for index in wanted:
        for above in ancestors[index] if active[:, index].any() else ():
            explained[above] = explained[above] | active[:, index] if above in explained else active[:, index]
    return explained


def _runs(active: np.ndarray, gap: float = 0.0, empty: np.ndarray | None = None) -> Iterator[tuple[int, int]]:
    """First and last row of every run; runs with no more than `gap` rows between them, all with audio, are one."""
    rows = np.flatnonzero(active)
    if len(rows):
        apart = np.diff(rows) - 1 > gap + 1e-6
        if empty is not None:
            apart |= np.diff(np.cumsum(empty)[rows]) > 0
        breaks = np.flatnonzero(apart)
        yield from zip(rows[[0, *(breaks + 1)]].tolist(), rows[[*breaks, -1]].tolist())

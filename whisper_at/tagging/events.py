"""Rows of tags → events: a class, from when to when, and how sure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .classes import ClassSet, logit, sigmoid
from .labels import class_ancestors, display_names, tag_language
from .rows import AUDIOSET, read_rows


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
) -> list[dict[str, Any]]:
    """Join rows of tags to events.

    An event begins where a class reaches its threshold and lasts, before and after, while it is no more than
    `hysteresis` below. It is as sharp in time as rows are: ask `transcribe` for short ones (``at_time_res`` of 0.4
    to 2). Of several resolutions the finest is taken. No event goes on through rows without audio.

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

    Returns
    -------
    list of dict
        Events by their start, of those that start together the likelier first:
        ``{"start", "end", "name", "index", "mid", "probability", "head"}``. Times are in seconds; the probability is
        the highest of the rows, calibrated; ``mid`` is there for AudioSet's classes.

    Raises
    ------
    ValueError
        If the result carries no tags, or none of that head; a class does not exist; or a number is below 0.
    """
    for name, value in (("hysteresis", hysteresis), ("gap", gap), ("shortest", shortest)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
    rows_of = read_rows(result)
    if not rows_of or (head is not None and head not in rows_of):
        available = f"it has those of {', '.join(rows_of)}" if rows_of else "transcribe with at_time_res=2, say"
        raise ValueError(f"this result carries no tags{'' if head is None else f' of {head!r}'}: {available}")
    events = []
    for found in rows_of.values() if head is None else [rows_of[head]]:
        classes = found.classes
        wanted = sorted(set(classes.indices(include_class_list if found.head == (head or AUDIOSET) else None)))
        names = display_names(classes, tag_language(result, language))
        seconds, logits = found.finest()
        log_odds = classes.log_odds(logits)
        active = _with_hysteresis(log_odds, event_thresholds(classes, p_threshold), hysteresis)
        explained = _explained_by_child(active, classes, wanted) if specific else {}
        times = found.times(seconds)
        for index in wanted:
            for first, last in _runs(active[:, index], gap / seconds, np.isnan(log_odds[:, index])):
                start, end = times[first][0], times[last][1]
                n_explained = explained[index][first : last + 1].sum() if index in explained else 0
                if end - start >= shortest and 2 * n_explained <= last + 1 - first:
                    event = {"start": start, "end": end, "name": names[index], "index": index}
                    if classes.mids is not None:
                        event["mid"] = classes.mids[index]
                    event["probability"] = sigmoid(float(np.nanmax(log_odds[first : last + 1, index])))
                    events.append({**event, "head": found.head})
    return sorted(events, key=lambda event: (event["start"], -event["probability"]))


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

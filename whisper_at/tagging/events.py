"""Rows of tags → events: a class, from when to when, and how sure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .labels import (
    ancestors,
    audioset_labels,
    find_classes,
    label_names,
    row_logits,
    row_times,
    sigmoid,
    tag_language,
)
from .listeners import attached_names, calibrated, own_classes

AUDIOSET = "audio_tag"


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
    ``hysteresis`` below. It is as sharp in time as rows are: ask `transcribe` for short ones (``at_time_res`` of 0.4
    to 2). Of several resolutions the finest is taken.

    Parameters
    ----------
    result : what `transcribe` returned with tags
    p_threshold : a logit; None is 0 (a probability of one half) or, for a head of one's own, its own thresholds
    hysteresis : in logits, from 0
    include_class_list : the wanted classes of AudioSet's head, or of ``head``: indices, names, and for AudioSet MIDs
    head : ``"audio_tag"`` for AudioSet's alone, or the name of an attached head; None for all there are
    language : of AudioSet's names, as of `parse_at_label`
    gap : events of a class with no more than so many seconds between them are one
    shortest : leave shorter events out, in seconds
    specific : leave out what a part of it tells better: Animal and Dog where Bark sounds for more than half of the time

    Returns
    -------
    Events by their start, of those that start together the likelier first:
    ``{"start", "end", "name", "index", "mid", "probability", "head"}``. Times are in seconds; the probability is the
    highest of the rows, calibrated for heads of one's own, which have no ``mid``. No event goes on through rows that
    were not heard.

    Raises
    ------
    ValueError
        If the result carries no tags, or none of that head; a class does not exist; or a number is below 0.
    """
    for name, value in (("hysteresis", hysteresis), ("gap", gap), ("shortest", shortest)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")
    heads = [*([AUDIOSET] if result.get(AUDIOSET) is not None else []), *attached_names(result)]
    if not heads or (head is not None and head not in heads):
        there = f"it has those of {', '.join(heads)}" if heads else "transcribe with at_time_res=2, say"
        raise ValueError(f"this result carries no tags{'' if head is None else f' of {head!r}'}: {there}")
    found = []
    for one in heads if head is None else [head]:
        wanted = include_class_list if one == (head or AUDIOSET) else None
        if one == AUDIOSET:
            rows = _of_audioset(result, p_threshold, wanted, tag_language(result, language))
        else:
            rows = _of_own(result, one, p_threshold, wanted)
        lasting = _lasting(rows.logits, rows.thresholds, hysteresis)
        better = _better_told(lasting, rows.wanted) if one == AUDIOSET and specific else {}
        times = list(row_times(len(lasting), rows.seconds, result.get("duration")))
        for index in rows.wanted:
            for first, last in _runs(lasting[:, index], gap / rows.seconds, np.isnan(rows.logits[:, index])):
                start, end = times[first][0], times[last][1]
                told = better[index][first : last + 1].sum() if index in better else 0
                if end - start >= shortest and 2 * told <= last + 1 - first:
                    probability = sigmoid(float(np.nanmax(rows.logits[first : last + 1, index])))
                    time = {"start": start, "end": end}
                    found.append({**time, **rows.facts[index], "probability": probability, "head": one})
    return sorted(found, key=lambda event: (event["start"], -event["probability"]))


class _Rows(NamedTuple):
    """The rows of one head: their seconds, what its classes are called, logits ``(rows, classes)``, the thresholds of
    the classes, and which of them are wanted.
    """

    seconds: float
    facts: list[dict[str, Any]]
    logits: np.ndarray
    thresholds: np.ndarray
    wanted: list[int]


def _of_audioset(result: Mapping[str, Any], p_threshold: float | None, wanted: Any, language: str) -> _Rows:
    seconds, tags = _finest(result[AUDIOSET], result["at_time_res"])
    names = label_names(language)
    facts = [{"name": names[label.index], "index": label.index, "mid": label.mid} for label in audioset_labels()]
    indices = range(len(names)) if wanted is None else sorted(set(find_classes(wanted)))
    return _Rows(seconds, facts, row_logits(tags), np.full(len(names), p_threshold or 0.0), list(indices))


def _of_own(result: Mapping[str, Any], head: str, p_threshold: float | None, wanted: Any) -> _Rows:
    found = result[head]
    seconds, tags = _finest(found["logits"], result["at_time_res"])
    _, probabilities = calibrated(found, tags)
    facts = [{"name": name, "index": index} for index, name in enumerate(found["classes"])]
    thresholds = np.full(len(facts), p_threshold or 0.0)
    if p_threshold is None and found.get("thresholds") is not None:
        thresholds = _logit(np.array([math.inf if t is None else t for t in found["thresholds"]]))
    return _Rows(seconds, facts, _logit(probabilities), thresholds, own_classes(found["classes"], wanted))


def _finest(tags: Any, seconds: Any) -> tuple[float, Any]:
    """Seconds of a row, and the rows, of the finest resolution that there is."""
    if isinstance(tags, Mapping):  # JSON has made strings of the keys
        return min(((float(key), rows) for key, rows in tags.items()), key=lambda pair: pair[0])
    return float(seconds), tags


def _logit(probabilities: np.ndarray) -> np.ndarray:
    """Logits of probabilities, ±700 for 1 and 0; infinite for a threshold above 1, which is never met."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.clip(np.log(probabilities) - np.log1p(-probabilities), -700, 700)
    return np.where(probabilities > 1, math.inf, logits)


def _lasting(logits: np.ndarray, thresholds: np.ndarray, hysteresis: float) -> np.ndarray:
    """Bool ``(rows, classes)``: where a class that reaches its threshold is no more than ``hysteresis`` below."""
    lasting, begun = logits >= thresholds - hysteresis, logits >= thresholds  # false for NaN
    for index in np.flatnonzero(lasting.any(0)):
        for first, last in _runs(lasting[:, index]):
            lasting[first : last + 1, index] = begun[first : last + 1, index].any()
    return lasting


def _better_told(lasting: np.ndarray, wanted: list[int]) -> dict[int, np.ndarray]:
    """For every class of AudioSet that contains wanted ones: in which rows any of those sounds."""
    told: dict[int, np.ndarray] = {}
    for index in wanted:
        for above in ancestors(index) if lasting[:, index].any() else ():
            told[above] = told[above] | lasting[:, index] if above in told else lasting[:, index]
    return told


def _runs(active: np.ndarray, gap: float = 0.0, unheard: np.ndarray | None = None) -> Iterator[tuple[int, int]]:
    """First and last row of every run; runs with no more than ``gap`` rows between them, all of them heard, are one."""
    rows = np.flatnonzero(active)
    if len(rows):
        apart = np.diff(rows) - 1 > gap + 1e-6
        if unheard is not None:
            apart |= np.diff(np.cumsum(unheard)[rows]) > 0
        breaks = np.flatnonzero(apart)
        yield from zip(rows[[0, *(breaks + 1)]].tolist(), rows[[*breaks, -1]].tolist())

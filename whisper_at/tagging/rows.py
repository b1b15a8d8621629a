"""The rows of tags in a result, of AudioSet's head and of others alike, and the tags that they name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .classes import OTHER, ClassSet
from .labels import audioset_classes, display_names, tag_language
from .timeline import seconds_to_steps, steps_to_seconds

AUDIOSET = "audio_tag"
"""Key of a result, and the name of the head, that AudioSet's rows have."""
EVENT_ROWS = "event_rows"
"""Key of a result that has rows for events alone, as a result of its own, beside those that were asked for."""
CALIBRATION = "audio_tag_calibration"
"""Key of a result that has what AudioSet's head says of itself: temperature, thresholds, the classes it knows."""
RESERVED_NAMES = frozenset(
    "text segments words language duration task at_time_res audio_tag audio_tag_coverage audio_tag_calibration audio "
    "events event_rows auto withheld".split()
)
"""Keys that a result has, or may come to have, and that no attached head can be called."""
EVENT_KINDS = ("specific", "all", "groups")
"""Of which classes there are events."""
DEFAULT_THRESHOLD = -1.0
"""Logit above which a class counts as a tag where neither the caller nor the head says otherwise."""

T = TypeVar("T")


@dataclass(frozen=True)
class TagOptions:
    """Which tags are shown and written.

    Attributes
    ----------
    top_k : int
        At most so many tags a row.
    p_threshold : float, optional
        Logit above which a class counts; None for the head's own thresholds, or else -1.
    label_language : str
        Language of AudioSet's names; ``follow_asr`` is that of the text.
    include_classes : list of int or str, optional
        The wanted classes of AudioSet's head, by index, MID or English name; None for all.
    events : str
        ``specific``: an event of the most specific class alone; ``all``: also of those that contain it; ``groups``: one
        event of all classes of a group, as of `find_events`.
    """

    top_k: int = 5
    p_threshold: float | None = None
    label_language: str = "follow_asr"
    include_classes: Iterable[int | str] | None = None
    events: str = "specific"

    def __post_init__(self) -> None:
        if self.events not in EVENT_KINDS:
            raise ValueError(f"events must be {', '.join(EVENT_KINDS[:-1])} or {EVENT_KINDS[-1]}, not {self.events!r}")
        if self.include_classes is not None:  # read more than once
            object.__setattr__(self, "include_classes", audioset_classes().indices(self.include_classes))


@dataclass(frozen=True)
class HeadRows:
    """What one head found in a recording, at every resolution of the result.

    Attributes
    ----------
    head : str
        Name of the head; ``audio_tag`` is AudioSet's.
    classes : ClassSet
        What the columns mean.
    logits : dict of float to ndarray
        Seconds of a row → float64 logits ``(rows, classes)``, NaN where there was no audio.
    several : bool
        Whether the result has a dict of resolutions rather than a single one.
    duration : float, optional
        Seconds of audio.
    coverage : dict of float to list, optional
        Seconds of a row → share of each row that held audio.
    segments : ndarray, optional
        Logits ``(segments, classes)`` of the transcript's segments.
    first_row : dict of float to int, optional
        Seconds of a row → which row of the recording the first of these is; 0 by default.
    """

    head: str
    classes: ClassSet
    logits: dict[float, np.ndarray]
    several: bool
    duration: float | None = None
    coverage: dict[float, Any] | None = None
    segments: np.ndarray | None = None
    first_row: dict[float, int] | None = None

    def at_each_resolution(self, function: Callable[[float, np.ndarray], T]) -> T | dict[float, T]:
        """Return ``function(seconds, logits)``, or for several resolutions a dict of them by seconds."""
        results = {seconds: function(seconds, logits) for seconds, logits in self.logits.items()}
        return results if self.several else next(iter(results.values()))

    def finest(self) -> tuple[float, np.ndarray]:
        """Return the seconds of a row, and the logits, of the finest resolution."""
        return min(self.logits.items(), key=lambda item: item[0])

    def times(self, seconds: float) -> list[tuple[float, float]]:
        """Return start and end, in seconds, of each row of a resolution."""
        first = 0 if self.first_row is None else self.first_row[seconds]
        return list(row_times(len(self.logits[seconds]), seconds, self.duration, first))


def read_rows(result: Mapping[str, Any]) -> dict[str, HeadRows]:
    """Return what every head found, by its name, AudioSet's first.

    `result` is what `transcribe` returned, or the same read from JSON: lists in place of tensors, None for NaN, and
    resolutions as strings.
    """
    if result.get("at_time_res") is None:
        return {}
    found: dict[str, HeadRows] = {}
    duration = None if result.get("duration") is None else float(result["duration"])
    seconds = result["at_time_res"]
    if result.get(AUDIOSET) is not None:
        classes = audioset_classes()
        if (values := result.get(CALIBRATION)) is not None:
            values = {"classes": classes.names, "kind": classes.kind, **values}
            classes = replace(ClassSet.from_values(values), mids=classes.mids)
        rows, coverage = result[AUDIOSET], result.get("audio_tag_coverage")
        if isinstance(coverage, Mapping) != isinstance(rows, Mapping):
            coverage = None
        found[AUDIOSET] = HeadRows(
            AUDIOSET,
            classes,
            {key: _as_logits(value, classes) for key, value in _by_seconds(rows, seconds).items()},
            isinstance(rows, Mapping),
            duration,
            None if coverage is None else _by_seconds(coverage, seconds),
        )
    for name, value in result.items():
        if isinstance(value, Mapping) and "logits" in value:
            classes, rows = ClassSet.from_values(value), value["logits"]
            found[name] = HeadRows(
                name,
                classes,
                {key: _as_logits(part, classes) for key, part in _by_seconds(rows, seconds).items()},
                isinstance(rows, Mapping),
                duration,
                segments=None if value.get("segments") is None else _as_logits(value["segments"], classes),
            )
    return found


def audioset_values(classes: ClassSet) -> dict[str, Any]:
    """Return what a result says of its AudioSet head beside the rows; nothing for one that is not calibrated."""
    if classes == audioset_classes():
        return {}
    values = classes.values()
    return {CALIBRATION: {name: values[name] for name in ("temperature", "thresholds", "known") if name in values}}


def head_rows(result: Mapping[str, Any], head: str | None = None) -> HeadRows:
    """Return what one head found; AudioSet's for None.

    Raises
    ------
    ValueError
        If the result has no rows of that head.
    """
    rows = read_rows(result)
    if head is None and AUDIOSET not in rows:
        raise ValueError(
            "this result carries no audio tags: transcribe with at_time_res= (seconds of a row, such as 10) "
            "on a model that has an AudioSet head (load_model(..., head=...))"
        )
    if (head or AUDIOSET) not in rows:
        attached = ", ".join(name for name in rows if name != AUDIOSET) or "none"
        raise ValueError(f"this result has no head {head!r}; attached were: {attached}")
    return rows[head or AUDIOSET]


def _by_seconds(rows: Any, seconds: Any) -> dict[float, Any]:
    if isinstance(rows, Mapping):  # JSON has made strings of the keys
        return {float(key): value for key, value in rows.items()}
    return {float(seconds): rows}


def _as_logits(rows: Any, classes: ClassSet) -> np.ndarray:
    """Float64 logits ``(rows, classes)`` of a tensor, array or lists, where None is NaN.

    In float32, numpy would round a threshold to the precision of the logits.
    """
    n = len(classes)
    if isinstance(rows, Tensor):
        logits = rows.detach().cpu().double().numpy()
    elif isinstance(rows, np.ndarray):
        logits = rows.astype(np.float64)
    else:
        # A whole row may be None; the type turns each None within a row into NaN.
        full = [[None] * n if row is None else row for row in rows]
        logits = np.array(full, dtype=np.float64).reshape(len(full), -1 if full else n)
    if logits.ndim != 2 or logits.shape[1] != n:
        raise ValueError(f"rows of tags must be of shape (rows, {n}), not {tuple(logits.shape)}")
    return logits


def row_times(n_rows: int, resolution: float, duration: float | None, first: int = 0) -> Iterator[tuple[float, float]]:
    """Yield start and end (seconds) of rows of `resolution` seconds, a multiple of 0.4, from row `first` on."""
    steps = seconds_to_steps(resolution)
    for row in range(first, first + n_rows):
        start, end = steps_to_seconds(row * steps), steps_to_seconds((row + 1) * steps)
        if duration is not None and row == first + n_rows - 1:
            end = max(start, min(end, duration))
        yield start, end


def select_tags(
    classes: ClassSet,
    logits: np.ndarray,
    top_k: int = 5,
    p_threshold: float | None = None,
    include: Any = None,
    names: tuple[str, ...] | None = None,
) -> list[list[dict[str, Any]]]:
    """Return the tags of each row, from the likeliest down.

    Parameters
    ----------
    classes : ClassSet
        What the columns mean.
    logits : ndarray, shape (rows, classes)
        Float64; NaN is never a tag.
    top_k : int
        At most so many tags a row.
    p_threshold : float, optional
        A class counts if the logit of its calibrated probability is above it. None takes the thresholds of the
        classes, from which on each counts, where they are decided one by one; else -1, and what is `OTHER` is no tag.
    include : optional
        The wanted classes, as `ClassSet.indices` takes them; None for all.
    names : tuple of str, optional
        Names to show instead of those of the classes.

    Returns
    -------
    list of list of dict
        Tags ``{"index", "mid", "name", "logit", "probability"}``, of equal ones the lower index first; ``mid``
        only for classes of the ontology.
    """
    names = names or classes.names
    log_odds = classes.log_odds(logits)
    probabilities = classes.probabilities(torch.from_numpy(logits)).numpy()
    if p_threshold is None and classes.thresholds is not None and classes.kind == "multi_label":
        counts = probabilities >= np.array(classes.thresholds)  # false for NaN
    else:
        counts = log_odds > (DEFAULT_THRESHOLD if p_threshold is None else p_threshold)
        if p_threshold is None and OTHER in classes.names:
            counts[:, classes.names.index(OTHER)] = False
    wanted = np.array(sorted(set(classes.indices(include))), dtype=np.intp)
    rows = []
    for row in range(len(logits)):
        above = wanted[counts[row, wanted]]
        best = above[np.argsort(-log_odds[row, above], kind="stable")[:top_k]]
        rows.append(
            [
                {
                    "index": int(i),
                    **({} if classes.mids is None else {"mid": classes.mids[i]}),
                    "name": names[i],
                    "logit": float(logits[row, i]),
                    "probability": float(probabilities[row, i]),
                }
                for i in best
            ]
        )
    return rows


def parse_at_label(
    result: Mapping[str, Any],
    language: str = "follow_asr",
    top_k: int = 5,
    p_threshold: float | None = -1,
    include_class_list: Iterable[int | str] | int | str | None = None,
    *,
    probabilities: bool = False,
    head: str | None = None,
) -> list[dict[str, Any]] | dict[float, list[dict[str, Any]]]:
    """Turn the rows of tags in a `transcribe` result into named tags.

    Of each row, only the wanted classes count; of those, the ones scoring strictly above the threshold; of
    those, the `top_k` highest, in falling order (of equal scores, the lower index first).

    Parameters
    ----------
    result : dict
        What `transcribe` returned, or the same with lists in place of tensors. ``result["audio_tag"]`` holds logits
        of shape ``(rows, 527)``, ``result["at_time_res"]`` the seconds of a row. For several resolutions,
        ``audio_tag`` is a dict from seconds to rows.
    language : str
        Code or name of the language of AudioSet's names; "follow_asr" takes ``result["language"]``, or English where
        the text was translated into it.
    top_k : int
        At most so many tags a row, from 1; more than there are classes gives all of them.
    p_threshold : float, optional
        A logit, whatever `probabilities` says; -1 is a probability of 0.27. None takes the head's own thresholds
        where its classes are decided one by one and it has some, else -1.
    include_class_list : optional
        The wanted classes as indices, MIDs or names, in any container; None is all.
    probabilities : bool
        Give the calibrated probability as the score of each tag instead of its logit.
    head : str, optional
        Name of an attached head (`WhisperAT.attach`) whose rows to name; AudioSet's by default.

    Returns
    -------
    list of dict, or dict of float to list of dict
        One entry a row, in order: ``{'time': {'start': s, 'end': e}, 'audio tags': [(name, score), …]}``, in
        seconds. The last ``end`` is no later than ``result["duration"]`` where that is known. A row that no audio
        covered (all NaN, in JSON null) has no tags. For several resolutions, a dict from seconds to such a list.

    Raises
    ------
    ValueError
        If `result` carries no tags, `top_k` is below 1, a class does not exist, or the rows are of another width.
    """
    top_k = operator.index(top_k)
    if top_k < 1:
        raise ValueError(f"top_k is the number of tags a row may have, from 1; it is {top_k}")
    found = head_rows(result, head)
    names = display_names(found.classes, tag_language(result, language))
    score = "probability" if probabilities else "logit"
    wanted = found.classes.indices(include_class_list)

    def parse(seconds: float, logits: np.ndarray) -> list[dict[str, Any]]:
        rows = select_tags(found.classes, logits, top_k, p_threshold, wanted, names)
        return [
            {"time": {"start": start, "end": end}, "audio tags": [(tag["name"], tag[score]) for tag in tags]}
            for (start, end), tags in zip(found.times(seconds), rows)
        ]

    return found.at_each_resolution(parse)

"""How well events are found and placed in time: F1 with a collar, and PSDS, as `sed_scores_eval` computes them.

Mesaros et al., "Metrics for polyphonic sound event detection", 2016; Bilen et al., "A framework for the robust
evaluation of sound event detection", 2020; Ebbers et al., "Threshold-independent evaluation of sound event detection
scores", 2022.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..data.events import LabelledEvent
from ..tagging.events import find_events
from ..tagging.rows import head_rows
from ..tagging.timeline import STEP_SECONDS

COLLAR = 0.4
"""Seconds that an onset may be early or late."""
OFFSET_SHARE = 0.5
"""Share of an event's length that its offset may be early or late, if that is more than the collar."""
PSDS_SCENARIOS: dict[str, dict[str, float]] = {
    "PSDS1": {"dtc_threshold": 0.7, "gtc_threshold": 0.7, "alpha_st": 1.0},
    "PSDS2": {"dtc_threshold": 0.1, "gtc_threshold": 0.1, "cttc_threshold": 0.3, "alpha_ct": 0.5, "alpha_st": 1.0},
}
"""DCASE's scenarios: events are to be placed well, and classes are not to be taken for one another."""
PROBABILITIES = (0.005, 0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 20)), 0.97, 0.98, 0.99, 0.995)
"""Thresholds that PSDS tries, the same for all classes."""
MAX_FALSE_ALARMS = 100.0
"""False alarms an hour up to which PSDS looks, of each class."""


class Detection(NamedTuple):
    """What was found in a recording.

    Attributes
    ----------
    duration : float
        Of the recording, in seconds.
    events : list of LabelledEvent
        Found events.
    scores : ndarray, shape (rows, classes)
        The highest of the thresholds at which an event is found there, or 0.
    times : ndarray, shape (rows + 1,)
        Start of each row, and the end of the last, in seconds.
    """

    duration: float
    events: list[LabelledEvent]
    scores: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class EventScores:
    """Scores over recordings.

    Attributes
    ----------
    per_class : dict of str to dict
        Class → ``events`` (to be found), ``found``, ``F1``, ``precision``, ``recall``.
    f1, precision, recall : float
        Means over the classes.
    overall_f1 : float
        Of all events, whatever their class.
    psds : dict of str to float
        PSDS by scenario.
    """

    per_class: dict[str, dict[str, float]]
    f1: float
    precision: float
    recall: float
    overall_f1: float
    psds: dict[str, float]


def detect_events(
    result: Mapping[str, Any],
    indices: Sequence[int],
    head: str | None = None,
    probabilities: Sequence[float] = PROBABILITIES,
    **options: Any,
) -> Detection:
    """Return what `find_events` finds in a result, by the head's own thresholds and at those that PSDS tries.

    Parameters
    ----------
    result : dict
        What `transcribe` or `tag` returned.
    indices : sequence of int
        Classes that count.
    head : str, optional
        Name of the head; AudioSet's by default.
    probabilities : sequence of float
        Thresholds that PSDS tries, from the lowest up.
    **options
        Of `find_events`.
    """
    found = head_rows(result, head)
    options = {"include_class_list": list(indices), "head": found.head, "language": "en", "specific": False, **options}
    events = [
        LabelledEvent(event["start"], event["end"], found.classes.names[event["index"]])
        for event in find_events(result, **options)
    ]
    duration = float(result["duration"])
    n_steps = max(1, math.ceil(round(duration / STEP_SECONDS, 6)))
    times = np.minimum(np.arange(n_steps + 1) * STEP_SECONDS, duration)
    scores = np.zeros((n_steps, len(indices)))
    column = {index: i for i, index in enumerate(indices)}
    for probability in probabilities:
        for event in find_events(result, math.log(probability / (1 - probability)), **options):
            first, last = (math.ceil(round(event[edge] / STEP_SECONDS, 6)) for edge in ("start", "end"))
            scores[first:last, column[event["index"]]] = probability
    return Detection(duration, events, scores, times)


def check_event_scoring() -> None:
    """Raise ImportError, which says what to install, if `sed_scores_eval` cannot be used."""
    try:
        importlib.import_module("sed_scores_eval")
    except ImportError as error:  # also of what it stands on
        raise ImportError(f'events are scored by sed_scores_eval: pip install ".[events]" ({error})') from None


def score_events(
    reference: Mapping[str, Sequence[LabelledEvent]],
    detections: Mapping[str, Detection],
    classes: Sequence[str],
    collar: float = COLLAR,
) -> EventScores:
    """Score what was found in recordings.

    A found event is right if its onset is within the collar of a true one's, and its offset within the collar or half
    of the true event's length; true and found events are matched one to one.

    Parameters
    ----------
    reference : mapping of str to sequence of LabelledEvent
        True events by recording; those of a class must not overlap.
    detections : mapping of str to Detection
        What was found in the same recordings.
    classes : sequence of str
        Labels that count, the columns of scores. Those without any true event are left out.
    collar : float
        In seconds.

    Raises
    ------
    ImportError
        If `sed_scores_eval` is not installed.
    """
    check_event_scoring()
    from sed_scores_eval import collar_based, intersection_based

    true_labels = {event.label for events in reference.values() for event in events}
    columns = [column for column, name in enumerate(classes) if name in true_labels]
    names = [classes[column] for column in columns]
    wanted = {
        file: [tuple(event) for event in events if event.label in set(names)] for file, events in reference.items()
    }
    active = {file: _score_frame(*_active_rows(found, names), names) for file, found in detections.items()}
    f1, precision, recall, counts = collar_based.fscore(
        active, wanted, threshold=0.5, onset_collar=collar, offset_collar=collar, offset_collar_rate=OFFSET_SHARE
    )
    scores = {file: _score_frame(found.scores[:, columns], found.times, names) for file, found in detections.items()}
    durations = {file: found.duration for file, found in detections.items()}
    psds = {
        scenario: float(intersection_based.psds(scores, wanted, durations, max_efpr=MAX_FALSE_ALARMS, **settings)[0])
        for scenario, settings in PSDS_SCENARIOS.items()
    }
    per_class = {
        name: {
            "events": counts[name]["n_ref"],
            "found": counts[name]["tps"] + counts[name]["fps"],
            **{"F1": f1[name], "precision": precision[name], "recall": recall[name]},
        }
        for name in names
    }
    mean = "macro_average"
    return EventScores(
        per_class, float(f1[mean]), float(precision[mean]), float(recall[mean]), float(f1["micro_average"]), psds
    )


def _active_rows(found: Detection, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return events as scores 0 and 1 of rows that begin and end where events do, and the times of these rows."""
    events = [event for event in found.events if event.label in set(names)]
    edges = {0.0, round(found.duration, 6)} | {round(time, 6) for event in events for time in event[:2]}
    times = np.array(sorted(edges))
    active = np.zeros((len(times) - 1, len(names)))
    for event in events:
        first, last = np.searchsorted(times, (round(event.onset, 6), round(event.offset, 6)))
        active[first:last, names.index(event.label)] = 1.0
    return active, times


def _score_frame(scores: np.ndarray, times: np.ndarray, names: Sequence[str]) -> Any:
    from sed_scores_eval.base_modules.scores import create_score_dataframe

    return create_score_dataframe(scores, times, list(names))

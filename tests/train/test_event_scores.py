"""Scores of events: as an own count of matches has them, and what is right has perfect ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("sed_scores_eval")

from recipes.open_head.detection import Counts, join_spans, match_events
from whisper_at.data.events import LabelledEvent
from whisper_at.train.event_scores import Detection, score_events

DURATION = 40.0
CLASSES = ("Dog", "Rain")


def events(spans: dict[str, list[tuple[float, float]]]) -> list[LabelledEvent]:
    return [LabelledEvent(*span, label) for label, found in spans.items() for span in join_spans(found, 0.0)]


def detection(found: list[LabelledEvent], scores: np.ndarray | None = None) -> Detection:
    times = np.arange(101) * 0.4
    if scores is None:
        scores = np.zeros((100, len(CLASSES)))
        for event in found:
            scores[round(event.onset / 0.4) : round(event.offset / 0.4), CLASSES.index(event.label)] = 0.9
    return Detection(DURATION, found, scores, times)


times = st.integers(0, 80).flatmap(lambda a: st.integers(1, 20).map(lambda n: (a * 0.4, min(a + n, 100) * 0.4)))
spans = st.lists(times, min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(spans, spans, spans, spans), min_size=1, max_size=2))
def test_f1_is_that_of_most_matches(recordings):
    """`match_events` counts by itself."""
    wanted = {str(i): events({"Dog": a, "Rain": b}) for i, (a, b, _, _) in enumerate(recordings)}
    found = {str(i): events({"Dog": c, "Rain": d}) for i, (_, _, c, d) in enumerate(recordings)}
    scores = score_events(wanted, {file: detection(part) for file, part in found.items()}, CLASSES, 0.4)
    for label in CLASSES:
        counts = Counts(0, 0, 0)
        for file in wanted:
            truth, guess = ([event[:2] for event in part[file] if event.label == label] for part in (wanted, found))
            counts += match_events(truth, guess, 0.4, offsets=True)
        assert scores.per_class[label]["events"] == counts.wanted
        assert scores.per_class[label]["found"] == counts.found
        assert scores.per_class[label]["F1"] == pytest.approx(counts.f1)
    assert scores.f1 == pytest.approx(np.mean([scores.per_class[label]["F1"] for label in CLASSES]))


def test_what_is_right_has_perfect_scores_and_noise_has_none():
    truth = {"a": events({"Dog": [(4.0, 8.0), (20.0, 22.0)], "Rain": [(10.0, 30.0)]}), "b": []}
    perfect = score_events(truth, {file: detection(part) for file, part in truth.items()}, CLASSES)
    assert (perfect.f1, perfect.precision, perfect.recall, perfect.overall_f1) == (1, 1, 1, 1)
    assert perfect.psds == {"PSDS1": pytest.approx(1), "PSDS2": pytest.approx(1)}
    noise = np.random.default_rng(0).random((100, len(CLASSES)))
    wrong = score_events(truth, {file: detection([], noise) for file in truth}, CLASSES)
    assert wrong.f1 == wrong.overall_f1 == 0
    assert wrong.psds["PSDS1"] < 0.1  # PSDS2 asks for a tenth of an event, which noise has of long ones

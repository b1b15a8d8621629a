"""Longer rows say whether a class sounds, rows of 0.4 s when."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import noise
from hypothesis import given
from hypothesis import strategies as st
from test_events import SILENT, spans

from whisper_at import find_events
from whisper_at.tagging.event_times import MARGIN, REACH, Span, choose_rows, place_event, touching
from whisper_at.tagging.labels import find_class
from whisper_at.tagging.rows import EVENT_ROWS
from whisper_at.writers import result_to_json

DOG = find_class("Dog")


def tags(n: int, *loud: int, level: float = 2.0) -> torch.Tensor:
    rows = torch.full((n, 527), SILENT)
    rows[list(loud), DOG] = level
    return rows


def test_an_event_begins_and_ends_where_short_rows_rise_and_fall():
    """A dog from 4.4 to 5.2 s, which rows of 2 s hear from 4 to 6 s."""
    result = {"at_time_res": [0.4, 2.0], "language": "en", "duration": 12.0}
    result["audio_tag"] = {0.4: tags(30, 11, 12, level=-3.0), 2.0: tags(6, 2)}  # short rows reach no threshold
    (event,) = find_events(result)
    assert (event["start"], event["end"]) == (4.4, 5.2)
    assert event["probability"] == pytest.approx(1 / (1 + math.exp(-2)))  # of the row that decides
    result["audio_tag"][0.4] = tags(30, 2, 24)  # loud elsewhere: short rows alone make no event
    assert [span[0] for span in spans(find_events(result))] == ["Dog"]
    result["audio_tag"][2.0] = tags(6)
    assert find_events(result) == []


def test_rows_of_ten_seconds_do_not_decide():
    assert choose_rows([10.0, 0.4]) == (0.4, None)
    assert choose_rows([10.0, 0.4, 2.0]) == (2.0, 0.4)
    assert choose_rows([2.0, 4.0]) == (2.0, None)


logits = st.integers(-36, 36).map(lambda n: n / 4)


@given(st.lists(logits, min_size=1, max_size=60), st.integers(0, 20), st.integers(1, 10))
def test_a_placed_event_holds_the_highest_row_near_it(values, first, n):
    scores = torch.tensor(values, dtype=torch.float64).numpy()
    duration = len(values) * 0.4 - 0.1
    span = Span(min(first * 1.2, duration - 0.1), min((first + n) * 1.2, duration))
    if span.start >= span.end or span.start < 0:
        return
    placed = place_event(span, scores, duration)
    assert span.start - REACH - 0.2 - 1e-6 <= placed.start < placed.end <= min(span.end + REACH + 0.4, duration) + 1e-6
    inside = scores[max(0, round((span.start - REACH) / 0.4)) : math.ceil(round((span.end + REACH) / 0.4, 6))]
    kept = scores[round(placed.start / 0.4) : math.ceil(round(placed.end / 0.4, 6))]
    assert kept.max() == inside.max()
    moved = place_event(span, scores + 3.0, duration)  # calibration does not matter
    assert placed == pytest.approx(moved)


def test_without_audio_around_an_event_is_where_longer_rows_say():
    scores = torch.full((10,), math.nan, dtype=torch.float64).numpy()
    assert place_event(Span(1.2, 2.4), scores, 4.0) == (1.2, 2.4)
    scores[3:6] = [0.0, 1.0, 0.0]
    assert place_event(Span(1.2, 2.4), scores, 4.0) == (1.6, 2.0)
    assert MARGIN > REACH
    assert list(touching([])) == []


def test_rows_for_events_come_from_the_same_pass(model_en):
    """Whatever rows are asked for, of all heads, and they are no part of JSON."""
    audio = noise(35)
    options = {"temperature": 0, "fp16": False, "logprob_threshold": None, "sample_len": 12}
    plain = model_en.transcribe(audio, at_time_res=10, **options)
    result = model_en.transcribe(audio, at_time_res=10, event_rows=True, **options)
    rows = result.pop(EVENT_ROWS)
    torch.testing.assert_close(result["audio_tag"], plain["audio_tag"], rtol=0, atol=0)
    assert result["text"] == plain["text"]
    both = model_en.transcribe(audio, at_time_res=[0.4, 1.2], event_rows=True, **options)
    assert EVENT_ROWS not in both
    for seconds in (0.4, 1.2):
        torch.testing.assert_close(rows["audio_tag"][seconds], both["audio_tag"][seconds], rtol=0, atol=0)
    threshold = float(both["audio_tag"][1.2].quantile(0.9))
    events = find_events({**result, EVENT_ROWS: rows}, threshold)
    assert events == find_events(both, threshold) != []
    assert EVENT_ROWS not in result_to_json({**result, EVENT_ROWS: rows})
    tagged = model_en.tag(audio, at_time_res=10, event_rows=True)
    assert set(tagged[EVENT_ROWS]["audio_tag"]) == {0.4, 1.2}

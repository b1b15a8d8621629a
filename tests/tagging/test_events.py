"""Events from rows of tags: against a plain scan, on hand-made rows, and of heads of one's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_at import find_events
from whisper_at.tagging.labels import ancestors, find_class

SILENT = -9.0
OWN = {"classes": ["wren", "owl"], "kind": "multi_label", "temperature": 1.0, "thresholds": None}


def heard(rows: int, seconds: float = 2.0, duration: float | None = None, **sounds: list[float]) -> dict:
    """A result whose classes, named with _ for a space, have these logits; all others are silent."""
    tags = torch.full((rows, 527), SILENT)
    for name, logits in sounds.items():
        tags[:, find_class(name.replace("_", " "))] = torch.tensor(logits)
    facts = {"at_time_res": seconds, "duration": duration or rows * seconds, "language": "en"}
    return {"audio_tag": tags, "audio_tag_coverage": torch.ones(rows), **facts}


def own(logits: list[list[float]], **facts) -> dict:
    """A result of an attached head alone."""
    found = {**OWN, **facts, "logits": torch.tensor(logits)}
    return {"audio_tag": None, "at_time_res": 2.0, "duration": 2.0 * len(logits), "birds": found}


def spans(events: list[dict]) -> list[tuple[str, float, float]]:
    return [(event["name"], event["start"], event["end"]) for event in events]


def test_an_event_has_all_that_is_known_of_it():
    (event,) = find_events(heard(3, duration=5.1, Siren=[SILENT, 1.0, 2.0]))
    siren = find_class("Siren")
    assert event == {
        **{"start": 2.0, "end": 5.1, "name": "Siren", "index": siren, "mid": "/m/03kmc9", "head": "audio_tag"},
        "probability": pytest.approx(1 / (1 + math.exp(-2))),
    }


def test_it_lasts_while_it_is_a_little_below_its_threshold():
    result = heard(8, Rain=[-0.9, 0.1, -1.0, -1.1, -0.5, 3.0, -0.5, -2.0])
    assert spans(find_events(result)) == [("Rain", 0.0, 6.0), ("Rain", 8.0, 14.0)]
    assert spans(find_events(result, hysteresis=0)) == [("Rain", 2.0, 4.0), ("Rain", 10.0, 12.0)]
    assert spans(find_events(result, p_threshold=2.5)) == [("Rain", 10.0, 12.0)]
    assert spans(find_events(result, p_threshold=3.1)) == []


def test_events_can_be_joined_and_short_ones_left_out():
    result = heard(6, Rain=[1, SILENT, 1, SILENT, SILENT, 1])
    assert len(find_events(result)) == 3
    assert spans(find_events(result, gap=2)) == [("Rain", 0.0, 6.0), ("Rain", 10.0, 12.0)]
    assert spans(find_events(result, gap=4)) == [("Rain", 0.0, 12.0)]
    assert spans(find_events(result, gap=2, shortest=3)) == [("Rain", 0.0, 6.0)]


def test_rows_that_nothing_covered_end_events():
    result = heard(4, Rain=[1, math.nan, 1, SILENT])
    result["audio_tag"][1] = math.nan
    assert spans(find_events(result)) == [("Rain", 0.0, 2.0), ("Rain", 4.0, 6.0)]
    result["audio_tag"] = [None if row[0] != row[0] else row for row in result["audio_tag"].tolist()]  # as in JSON
    assert spans(find_events(result)) == [("Rain", 0.0, 2.0), ("Rain", 4.0, 6.0)]


def test_what_a_part_tells_better_is_left_out():
    result = heard(4, Animal=[3, 3, 3, 3], Dog=[3, 3, 3, SILENT], Bark=[SILENT, 2, 2, SILENT])
    assert {find_class("Animal"), find_class("Dog")} < set(ancestors(find_class("Bark")))
    assert spans(find_events(result)) == [("Bark", 2.0, 6.0)]  # Animal and Dog sound elsewhere, too, but not for long
    assert len(find_events(result, specific=False)) == 3
    assert spans(find_events(result, include_class_list=["Dog"])) == [("Dog", 0.0, 6.0)]  # barks are not asked for
    result = heard(4, Dog=[3, 3, 3, 3], Bark=[SILENT, 2, 2, SILENT])
    assert len(find_events(result)) == 2  # half of the dog's time is not told otherwise


def test_the_finest_of_several_resolutions():
    fine, coarse = heard(4, 0.4, Rain=[1, 1, SILENT, 1]), heard(1, 10, Rain=[3])
    result = fine | {"audio_tag": {10.0: coarse["audio_tag"], 0.4: fine["audio_tag"]}, "at_time_res": [10.0, 0.4]}
    assert find_events(result) == find_events(fine)
    result["audio_tag"] = {str(seconds): rows.tolist() for seconds, rows in result["audio_tag"].items()}
    assert find_events(result) == find_events(fine)


def test_classes_and_languages():
    result = heard(1, Rain=[1], Siren=[2], Music=[3])
    assert [event["name"] for event in find_events(result)] == ["Music", "Siren", "Rain"]
    assert [event["name"] for event in find_events(result, include_class_list=["Rain", "/m/04rlf"])] == [
        "Music",
        "Rain",
    ]
    with pytest.raises(ValueError, match="Rain"):
        find_events(result, include_class_list="Rainn")
    with pytest.warns(UserWarning, match="no class names in 'xx'"):
        find_events(result, language="xx")


def test_heads_of_ones_own_have_thresholds_and_calibration_of_their_own():
    logits = [[1.0, 1.0], [3.0, -4.0]]
    assert spans(find_events(own(logits))) == [("wren", 0.0, 4.0), ("owl", 0.0, 2.0)]
    by_threshold = find_events(own(logits, thresholds=[0.9, None]), hysteresis=0)
    assert spans(by_threshold) == [("wren", 2.0, 4.0)]  # 0.9 is a logit of 2.2; an owl never counts
    assert by_threshold[0]["probability"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert by_threshold[0]["head"] == "birds"
    assert "mid" not in by_threshold[0]
    assert spans(find_events(own(logits, temperature=2.0), p_threshold=1.2)) == [("wren", 0.0, 4.0)]
    one_of_them = find_events(own(logits, kind="single_label"), hysteresis=0.1)
    assert spans(one_of_them) == [("wren", 0.0, 4.0), ("owl", 0.0, 2.0)]  # even odds, then all but sure
    assert one_of_them[0]["probability"] == pytest.approx(1 / (1 + math.exp(-7)))
    assert find_events(own([[100.0, -100.0]], kind="single_label"))[0]["probability"] == pytest.approx(1)
    strict = own([[2.0, -2.0], [3.0, -3.0]], kind="single_label", thresholds=[0.99, None])  # 0.982 and 0.998
    assert spans(find_events(strict, hysteresis=0)) == [("wren", 2.0, 4.0)]


def test_all_heads_or_one():
    result = heard(2, Rain=[1, 1]) | {"birds": own([[3.0, -3.0], [-3.0, 3.0]])["birds"]}
    assert [event["head"] for event in find_events(result)] == ["birds", "audio_tag", "birds"]
    assert {event["head"] for event in find_events(result, head="audio_tag")} == {"audio_tag"}
    assert spans(find_events(result, head="birds", include_class_list="owl")) == [("owl", 2.0, 4.0)]
    assert len(find_events(result, include_class_list="Siren")) == 2  # of AudioSet's classes; birds are not asked


@pytest.mark.parametrize(
    ("result", "options", "message"),
    [
        ({"text": ""}, {}, "carries no tags: transcribe with at_time_res"),
        (heard(1), {"head": "birds"}, "no tags of 'birds': it has those of audio_tag"),
        (heard(1), {"gap": -1}, "gap must be 0 or more, not -1"),
        (heard(1), {"hysteresis": math.nan}, "hysteresis must be 0 or more"),
    ],
)
def test_what_cannot_be(result, options, message):
    with pytest.raises(ValueError, match=message):
        find_events(result, **options)


def test_no_event_goes_on_through_rows_that_were_not_heard():
    nan, result = math.nan, {}
    result = heard(5, Rain=[2.0, nan, nan, 2.0, 2.0])
    result["audio_tag"][1:3] = nan
    assert spans(find_events(result, gap=60)) == [("Rain", 0.0, 2.0), ("Rain", 6.0, 10.0)]
    rows = own([[2.0, -9.0], [nan, nan], [2.0, -9.0], [-9.0, -9.0], [2.0, -9.0]])
    assert spans(find_events(rows, gap=4)) == [("wren", 0.0, 2.0), ("wren", 4.0, 10.0)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([-3.0, -0.5, 0.0, 1.0, math.nan]), min_size=1, max_size=14), st.integers(0, 3))
def test_events_are_those_of_a_plain_scan(values, gap):
    result = heard(len(values), 0.4, Rain=values)
    runs = []
    for i, value in enumerate(values):
        if value >= -1:
            runs = [*runs[:-1], (runs[-1][0], i)] if runs and runs[-1][1] == i - 1 else [*runs, (i, i)]
    runs = [run for run in runs if any(values[i] >= 0 for i in range(run[0], run[1] + 1))]
    joined: list[tuple[int, int]] = []
    for first, last in runs:
        between = values[joined[-1][1] : first] if joined else []
        near = joined and first - joined[-1][1] - 1 <= gap and not any(map(math.isnan, between))
        joined = [*joined[:-1], (joined[-1][0], last)] if near else [*joined, (first, last)]
    found = find_events(result, gap=gap * 0.4)
    times = [(round(event["start"] / 0.4), round(event["end"] / 0.4) - 1) for event in found]
    assert times == joined

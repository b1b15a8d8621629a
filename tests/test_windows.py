"""Clips: every way to name them, and what cannot be one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import noise

from whisper_at.windows import clip_frames, parse_clip_timestamps

SAME = [
    "2,4,6,8.5",
    " 2, 4 ,6 , 8.5",
    [2, 4, 6, 8.5],
    ("2", "4", "6", "8.5"),
    [(2, 4), (6, 8.5)],
    [[2, 4], [6, 8.5]],
    [{"start": 2, "end": 4}, {"start": 6, "end": 8.5}],
    [{"start": 6, "end": 8.5, "name": "Dog"}, {"start": 2, "end": 4}],
    [(6, 8.5), {"start": 2, "end": 4}],
    np.array([2, 4, 6, 8.5]),
    np.array([[2, 4], [6, 8.5]]),
    torch.tensor([[2.0, 4.0], [6.0, 8.5]]),
    [(2, 3.5), (6, 8.5), (3, 4)],
    [(2, 4), (2.5, 3), (6, 8.5)],
    (pair for pair in [(2, 4), (6, 8.5)]),
]


@pytest.mark.parametrize("clips", SAME, ids=range(len(SAME)))
def test_clips_are_the_same_however_they_are_given(clips):
    assert parse_clip_timestamps(clips) == [(2, 4), (6, 8.5)]


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        ("", [(0, math.inf)]),
        ("0", [(0, math.inf)]),
        ([], [(0, math.inf)]),
        (None, [(0, math.inf)]),
        (3, [(3, math.inf)]),
        ((2, 5), [(2, 5)]),
        ({"start": 2, "end": 5}, [(2, 5)]),
        ([{"start": 2}], [(2, math.inf)]),
        ([(2, None)], [(2, math.inf)]),
        ("0,inf", [(0, math.inf)]),
        ("2,3,3,4", [(2, 3), (3, 4)]),
        ("5,6,1", [(1, math.inf)]),
        ("3,3", [(3, 3)]),
    ],
)
def test_what_may_be_left_out(clips, expected):
    assert parse_clip_timestamps(clips) == expected


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        ("8,3", "ends at 3 s, before it starts at 8 s"),
        ([(0, 1), (8, 3)], "before it starts"),
        ([{"start": 8, "end": 3}], "before it starts"),
        ("inf", "cannot start at infinity"),
        ([math.inf, math.inf], "cannot start at infinity"),
        ("nan", "'nan' is no number"),
        ([0, math.nan], "nan is no number"),
        ("-1,3", "must not be negative: -1"),
        ("-inf,3", "must not be negative"),
        ("abc", "'abc' is no number"),
        ("0-10", "'0-10' is no number"),
        ("1,2,", "'' is no number"),
        ([{"end": 3}], "a clip has start and end, not end"),
        ([(1, 2, 3)], "a clip is a pair"),
        ([(1, 2), 3], "give one or the other"),
        ([None], "None is no number"),
        ([{"start": "soon"}], "'soon' is no number"),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_is_no_clip_is_refused_unheard(clips, says, batch_size, model_en, monkeypatch):
    monkeypatch.setattr(model_en, "embed_audio", lambda *_: pytest.fail("it was heard"), raising=False)
    with pytest.raises(ValueError, match="clip_timestamps") as error:
        model_en.transcribe(noise(10), clip_timestamps=clips, batch_size=batch_size)
    assert says in str(error.value)


def test_clips_end_with_the_recording():
    assert clip_frames([(0, 2), (8, 20), (9.5, math.inf)], 1000) == [(0, 200), (800, 1000), (950, 1000)]
    assert clip_frames([(0, math.inf)], 0) == [(0, 0)]
    with pytest.warns(UserWarning, match="the recording has 10 s, and 2 of 3 clips start after it"):
        assert clip_frames([(0, 2), (10, 20), (30, math.inf)], 1000) == [(0, 200)]
    with pytest.raises(ValueError, match="the recording has 10 s, and every clip starts after that"):
        clip_frames([(11, 12)], 1000)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_segments_are_in_order_of_time(model_en, batch_size):
    clips = [{"start": 30, "end": 40}, {"start": 5, "end": 12}, {"start": 10, "end": 15}]
    options = dict(temperature=0.0, sample_len=8, at_time_res=None, batch_size=batch_size)
    result = model_en.transcribe(noise(45), clip_timestamps=clips, **options)
    starts = [segment["start"] for segment in result["segments"]]
    assert starts == sorted(starts) != []
    assert [segment["id"] for segment in result["segments"]] == list(range(len(starts)))
    assert result == model_en.transcribe(noise(45), clip_timestamps="5,15,30,40", **options)

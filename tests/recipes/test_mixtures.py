"""Figures of tags over mixtures with known times, and the recordings that a student hears."""

from __future__ import annotations

import csv
import json
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE_RATE
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from recipes.open_head.detection import Counts, active_segments, join_spans, match_events, match_segments
from recipes.open_head.evaluate import Clip, all_clips
from recipes.open_head.mixtures import Mixture, activity, audible_spans, by_second, detection_figures, mix, tune
from recipes.open_head.pool import Item, Pool
from recipes.open_head.sources import class_indices
from recipes.open_head.students import unlabelled, write_recordings
from whisper_at.tagging.labels import N_CLASSES, audioset_classes, find_class

DOG, SPEECH = find_class("Dog"), find_class("Speech")
spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda s: (s[0] / 4, (s[0] + s[1]) / 4)))


def hiss(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.2, 0.2, round(seconds * SAMPLE_RATE)).astype(np.float32)


def write(path: Path, audio: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, SAMPLE_RATE, (audio * 32767).astype(np.int16))
    return path


@given(spans.map(lambda s: s[:4]), spans.map(lambda s: s[:4]), st.sampled_from([0.25, 1.0]), st.booleans())
def test_as_many_events_are_matched_as_can_be(wanted, found, collar, offsets):
    def fits(truth, guess) -> bool:
        allowed = max(collar, 0.5 * (truth[1] - truth[0]))
        return abs(truth[0] - guess[0]) <= collar and (not offsets or abs(truth[1] - guess[1]) <= allowed)

    few, many = sorted((wanted, found), key=len)
    best = max(
        sum(fits(*pair) if few is wanted else fits(*pair[::-1]) for pair in zip(few, order))
        for order in permutations(many, len(few))
    )
    assert match_events(wanted, found, collar, offsets) == Counts(best, len(found), len(wanted))


@given(spans)
def test_joined_spans_cover_the_same_and_lie_apart(found):
    joined = join_spans(found, 0.5)
    assert all(b[0] - a[1] > 0.5 for a, b in pairwise(joined))
    assert all(any(a <= onset and offset <= b for a, b in joined) for onset, offset in found)
    heard = active_segments(found, 80, 0.25)
    assert (active_segments(joined, 80, 0.25) >= heard).all()
    assert match_segments(heard, heard).f1 == pytest.approx(1) or not found


def test_a_segment_counts_if_a_class_is_heard_in_any_part_of_it():
    assert active_segments([(0.9, 1.1), (3.0, 4.0)], 5, 1.0).tolist() == [True, True, False, True, False]
    assert Counts(2, 3, 4).f1 == pytest.approx(4 / 7)


def test_a_mixture_says_when_its_sounds_are_heard(tmp_path):
    silence = np.zeros(SAMPLE_RATE // 2, np.float32)
    sound = np.concatenate([silence, hiss(1.0), np.zeros(SAMPLE_RATE, np.float32), hiss(0.5)])
    assert audible_spans(sound) == [pytest.approx((0.5, 1.5), abs=0.03), pytest.approx((2.5, 3.0), abs=0.03)]
    dog = Clip(write(tmp_path / "dog.wav", sound), "esc50", "a", class_indices("Dog"))
    speech = Clip(write(tmp_path / "speech.wav", hiss(4.0, seed=1)), "librispeech", "b", (SPEECH,))
    mixture = mix([dog, speech], [DOG], seed=3, seconds=60)
    again = mix([dog, speech], [DOG], seed=3, seconds=60)
    np.testing.assert_array_equal(mixture.audio, again.audio)
    assert mixture.events == again.events
    assert set(mixture.events) == {*dog.labels, SPEECH}
    assert len(mixture.audio) == 60 * SAMPLE_RATE
    only_dog = mix([dog], [DOG], seed=4, seconds=60)
    heard = active_segments(only_dog.events[DOG], 3000, 0.02)
    power = (only_dog.audio.reshape(3000, -1) ** 2).mean(1)
    assert heard.mean() > 0.1
    assert np.median(power[heard]) > 30 * np.median(power[~heard])


def test_logits_that_are_right_have_perfect_figures():
    events = {DOG: [(2.0, 6.0), (20.0, 24.0)], SPEECH: [(8.0, 16.0)]}
    mixture = Mixture(np.zeros(40 * SAMPLE_RATE, np.float32), events)
    for seconds in (0.4, 2.0):
        rows = np.where(activity([mixture], seconds), 3.0, -3.0)
        assert rows.shape == (round(40 / seconds), N_CLASSES)
        by_seconds = by_second(rows, seconds, 40)
        classes = tune(audioset_classes(), activity([mixture], 1.0), by_seconds)
        assert classes.thresholds is not None
        assert classes.thresholds[DOG] == pytest.approx(0.5)
        figures = detection_figures([mixture], [rows], seconds, classes, [DOG, SPEECH])
        assert set(figures.values()) == {1.0}
        late = np.roll(rows, round(2 / seconds), axis=0)  # two seconds late: beyond every collar
        figures = detection_figures([mixture], [late], seconds, classes, [DOG, SPEECH])
        assert figures["onset_f1_1"] == figures["event_f1_0.4"] == 0
        assert 0 < figures["segment_f1"] < 1


def test_a_student_hears_nothing_that_is_measured_on(tmp_path):
    data, file_of = tmp_path / "data", {}
    tables = {"esc50": ["file", "class", "audioset", "fold"], "librispeech": ["file", "speaker", "sex", "seconds"]}
    tables["sounds"] = ["file", "label", "audioset", "set", "group", "licence"]
    rows = {name: [dict.fromkeys(columns, "")] for name, columns in tables.items()}
    rows["esc50"] = [{"file": f"1-{i}-A-0.wav", "class": "dog", "audioset": "Dog", "fold": "1"} for i in range(20)]
    rows["librispeech"] = [{"file": "s.wav", "speaker": "ls1", "sex": "F", "seconds": "1"}]
    rows["sounds"] = [
        {"file": f"{i}.wav", "label": "cough", "audioset": "Cough", "set": "v", "group": f"g{i}", "licence": "CC BY-NC"}
        for i in range(20)
    ]
    for name, columns in tables.items():
        for row in rows[name]:
            n = 20 * SAMPLE_RATE + len(file_of)  # samples tell recordings apart
            file_of[n] = row["file"]
            write(data / name / row["file"], np.full(n, 0.5))
        with open(data / name / "index.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows[name])
    n = 30 * SAMPLE_RATE
    items = [Item(f"{i}.ogg", "a", f"a/{i}", (), i == 1, i * n, n, 0).__dict__ for i in range(2)]
    (tmp_path / "pool.json").write_text(json.dumps(items))
    np.save(tmp_path / "samples.npy", np.repeat(np.array([1000, 2000], np.int16), n))
    np.save(tmp_path / "scores.npy", np.zeros((2, N_CLASSES), np.uint8))

    heard = [len(audio) for audio in unlabelled(data, Pool(tmp_path))]
    assert heard.count(n) == 1
    assert len(heard) > 10
    measured = {clip.path.name for clip in all_clips(data) if not clip.selects}
    assert len(measured) > 10
    assert not measured & {file_of.get(length) for length in heard}

    lengths = (1 / 60, 3 / 60)
    folders = write_recordings(data, Pool(tmp_path), tmp_path / "out", lengths)
    assert [len(list(folders[hours].rglob("*.wav"))) for hours in lengths] == [1, 3]
    assert set(folders[lengths[0]].rglob("*.wav")) < set(folders[lengths[1]].rglob("*.wav"))
    with pytest.raises(ValueError, match=f"there are {sum(heard) / SAMPLE_RATE / 3600:.2f} hours of sound, fewer than"):
        write_recordings(data, Pool(tmp_path), tmp_path / "more", (9.0,))

"""Thresholds by precision, by number of clips, and by how often background reaches them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from whisper_at.data.background import background_kind, packaged_background
from whisper_at.data.clips import Clip, Dataset
from whisper_at.data.datasets import read_public_dataset
from whisper_at.tagging.classes import OTHER
from whisper_at.train.background import (
    add_background,
    background_clips,
    is_background,
    kinds_among_classes,
    speech_classes,
)
from whisper_at.train.thresholds import PRIOR_CLIPS, ROW_STEPS, count_events, shrunk_thresholds, tail_thresholds


def test_a_class_with_few_clips_has_a_threshold_near_that_of_all():
    rng = np.random.default_rng(0)
    targets = np.eye(3, dtype=np.float32)[np.repeat([0, 1, 2], [100, 100, 2])]
    scores = 4 * targets - 2 + rng.standard_normal(targets.shape)
    scores[-2:, 2] = 9.0  # two clips that happen to be easy: alone, their threshold would be above 5
    found = shrunk_thresholds(targets, scores, 0.9, targets.sum(0))
    common = shrunk_thresholds(targets, scores, 0.9, np.zeros(3))
    assert np.ptp(common) == 0
    alone = shrunk_thresholds(targets, scores, 0.9, np.full(3, 1e9))
    assert alone[2] > 3
    weight = 2 / (2 + PRIOR_CLIPS)
    assert found[2] == pytest.approx(weight * alone[2] + (1 - weight) * common[2])
    assert abs(found[2] - common[2]) < 1.2


def test_a_class_that_never_reaches_the_precision_never_counts_if_there_are_clips_enough_to_say_so():
    targets = np.zeros((40, 2), np.float32)
    targets[:20, 0] = targets[20:, 1] = 1
    scores = np.column_stack([np.where(targets[:, 0] > 0, 3.0, -3.0), np.where(targets[:, 1] > 0, -1.0, 1.0)])
    found = shrunk_thresholds(targets, scores, 0.9, targets.sum(0))
    assert np.isfinite(found[0])
    assert found[1] == np.inf
    assert np.isfinite(shrunk_thresholds(targets, scores, 0.9, np.array([20, 3]))[1])


@pytest.mark.parametrize("per_hour", [0.5, 1, 20])
def test_background_reaches_thresholds_as_often_as_asked_for(per_hour):
    """Ten minutes of exponential scores foretell what happens in a thousand hours."""
    rng = np.random.default_rng(1)
    scores = rng.exponential(1.5, (300, 8)) - 4
    thresholds = tail_thresholds(scores, per_hour)
    hours = 1000
    later = rng.exponential(1.5, (hours * 3600 // 2, 8)) - 4
    rate = (later >= thresholds).sum() / hours
    assert per_hour / 3 < rate < per_hour * 3


def test_where_there_is_background_enough_the_threshold_is_a_quantile():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(5000, 2))
    per_hour = 2 * 1800 * 0.2  # a fifth of the rows of either class
    np.testing.assert_allclose(tail_thresholds(scores, per_hour), np.quantile(scores, 0.8, axis=0))
    assert ROW_STEPS * 0.4 == 2.0


def test_rows_in_succession_are_one_event():
    above = np.array([[1, 0], [1, 0], [0, 1], [1, 1], [1, 0]], bool)
    clips = np.array([0, 0, 0, 0, 1])
    assert count_events(above, clips) == 4  # class 0: rows 0-1, row 3, and row 4, which is of another clip
    assert count_events(np.zeros((0, 2), bool), np.zeros(0, int)) == 0


def test_background_is_a_class_of_its_own_where_one_is_right_else_none():
    clips = tuple(Clip(Path(f"{i}.wav"), (name,), fold=str(i % 2)) for i, name in enumerate(["dog", "cat"] * 4))
    dataset = Dataset(clips, ("cat", "dog"))
    background = packaged_background()
    assert {background_kind(clip) for clip in background} == {"speech", "music", "noise", "silence"}
    joined = add_background(dataset, background, exclusive=True)
    assert joined.classes == ("cat", "dog", OTHER)
    assert is_background(joined, background).sum() == len(background)
    added = joined.clips[len(clips) :]
    assert {clip.labels for clip in added} == {(OTHER,)}
    assert {clip.fold for clip in added} == {"0", "1"}
    assert {clip.labels for clip in add_background(dataset, background, exclusive=False).clips[len(clips) :]} == {()}
    assert add_background(dataset, (), exclusive=True) is dataset
    named = Dataset((*clips, Clip(Path("x.wav"), ("Background",))), ("Background", "cat", "dog"))
    assert add_background(named, background, exclusive=True).classes == named.classes


def test_a_class_that_background_would_hold_excludes_it():
    assert kinds_among_classes(["dog", "Male speech", "rain"]) == {"speech": "Male speech"}
    assert kinds_among_classes(["mandolin", "fanfare", "humming bird"]) == {}
    assert kinds_among_classes(["white_noise", "silence"]) == {"noise": "white_noise", "silence": "silence"}


@pytest.mark.parametrize(
    ("names", "spoken"),
    [
        (["Happy", "sad", "anger"], True),
        (["one", "two"], True),
        (["german", "Swahili"], True),
        (["speaker 12", "speaker_03"], True),
        (["commands", "rain"], True),
        (["one", "rain"], False),  # a single word says little
        (["0", "1", "2"], False),  # numbers of any classes
        (["other", "calm"], False),
    ],
)
def test_names_of_emotions_digits_languages_and_speakers_are_speech(names, spoken):
    assert ("speech" in kinds_among_classes(names)) == spoken


def test_classes_whose_clips_are_speech_are_found_whatever_their_names():
    """And the package's speech is none of their background; a class that stands for background says nothing of it."""
    kinds: dict[str, list[Clip]] = {}
    for clip in packaged_background():
        kinds.setdefault(background_kind(clip), []).append(clip)
    of_class = {"0": kinds["noise"], "1": kinds["speech"], "2": kinds["silence"], "Unknown": kinds["speech"]}
    clips = tuple(replace(clip, labels=(name,)) for name, found in of_class.items() for clip in found)
    assert speech_classes(Dataset(clips, tuple(of_class))) == ["1"]
    assert speech_classes(Dataset((Clip(Path("absent.wav"), ("0",)),), ("0",))) == []


@pytest.mark.real
def test_emotions_and_digits_are_speech_and_sounds_are_not(data):
    assert len(speech_classes(read_public_dataset("emodb", data / "emodb"))) == 7
    assert len(speech_classes(read_public_dataset("fsdd", data / "fsdd"))) == 10
    assert speech_classes(read_public_dataset("esc10", data / "esc10")) == []


def test_own_background_comes_besides_that_of_the_package(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "office.wav", np.random.default_rng(0).normal(0, 0.01, 16000 * 25), 16000)
    clips = background_clips(str(tmp_path), tmp_path / "cut")
    own = [clip for clip in clips if background_kind(clip) == "own"]
    assert len(own) == 3
    assert len(clips) == 3 + len(packaged_background())
    assert background_clips("none", tmp_path) == ()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        background_clips(str(tmp_path / "absent"), tmp_path / "cut")

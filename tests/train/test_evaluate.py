"""Scoring of heads: classes and targets of a head, which clips are scored, and whether it was trained on them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from whisper_at.data.clips import Clip, Dataset
from whisper_at.tagging.classes import ClassSet
from whisper_at.train.evaluate import classes_of_head, select_clips, targets_for, trained_on_note

NAMES = ("hiss", "hum")


def test_only_clips_that_were_not_held_out_are_noted():
    def noted(what: str, data: str = "esc50.csv", test: int = 2) -> bool:
        training = {"data": "esc50.csv", "clips": {"train": 8, "valid": 2, "test": test}}
        return trained_on_note({"training": json.dumps(training)}, data, what) is not None

    assert noted("all clips")
    assert noted("split train")
    assert noted("fold 5", test=0)
    assert not any(map(noted, ("fold 5", "split test", "split valid")))
    assert not noted("all clips", "eval.csv")
    for metadata in ({}, {"training": "damaged"}, {"training": '{"data": "esc50.csv"}'}):
        assert trained_on_note(metadata, "esc50.csv", "all clips") is None


def test_labels_are_the_heads_classes_in_its_order():
    clips = (Clip("a.wav", ("hum",)), Clip("b.wav", ("hiss",)))
    data = Dataset(clips, ("hum", "hiss"))
    assert targets_for(data, ClassSet(NAMES, "single_label")).tolist() == [[0, 1], [1, 0]]
    with pytest.raises(ValueError, match="label 'hum', which the head does not know: it knows x, y"):
        targets_for(data, ClassSet(("x", "y")))
    both = Dataset((Clip("a.wav", NAMES), Clip("b.wav", ())), NAMES)
    assert targets_for(both, ClassSet(NAMES)).tolist() == [[1, 1], [0, 0]]
    with pytest.raises(ValueError, match="decides for one class, but a.wav has the labels"):
        targets_for(both, ClassSet(NAMES, "single_label"))


def test_audiosets_classes_go_by_name_or_mid():
    audioset = classes_of_head({}, 527)
    assert audioset.names[74] == "Dog"
    assert audioset.kind == "multi_label"
    data = Dataset((Clip("a.wav", ("dog", "/m/09x0r")),), ("dog", "/m/09x0r"))
    assert np.flatnonzero(targets_for(data, audioset)[0]).tolist() == [0, 74]
    with pytest.raises(ValueError, match="'clock_tick', which the head does not know"):
        targets_for(Dataset((Clip("a.wav", ("clock_tick",)),), ("clock_tick",)), audioset)
    with pytest.raises(ValueError, match="3 outputs have no names"):
        classes_of_head({}, 3)
    calibrated = classes_of_head({"classes": "audioset-527", "temperature": "2.5"}, 527)
    assert calibrated.temperature == 2.5
    assert calibrated.names == audioset.names


def test_which_clips_are_scored():
    clips = tuple(Clip(f"{i}.wav", ("hum",), split, fold=str(i)) for i, split in enumerate(["train", "valid", "test"]))
    data = Dataset(clips, ("hum",))
    assert select_clips(data)[0].clips == clips[2:]
    assert select_clips(data)[1] == "split test"
    assert select_clips(data, split="train")[0].clips == clips[:1]
    assert select_clips(data, test_fold="1")[0].clips == clips[1:2]
    assert select_clips(data.select([0, 1]))[1] == "all clips"
    with pytest.raises(ValueError, match="no clip is of fold 7"):
        select_clips(data, test_fold="7")

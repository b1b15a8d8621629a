"""Training of heads: splits, losses, tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from whisper_at.data.clips import Clip, Dataset
from whisper_at.train.config import Settings
from whisper_at.train.results import format_table
from whisper_at.train.train_head import resolve_loss, split_dataset


def dataset_of(*clips: Clip) -> Dataset:
    return Dataset(clips, tuple(sorted({label for clip in clips for label in clip.labels})))


def test_epochs_are_never_chosen_on_test_clips_T2():
    """T2: the reference had no held-out split; epochs and averaging were chosen on the evaluation set."""
    clips = [Clip(Path(f"{i}.wav"), ("ab"[i % 2],), "test" if i < 10 else "", fold=str(i % 5)) for i in range(60)]
    division = split_dataset(dataset_of(*clips), Settings(valid_share=0.2))
    assert division.test.tolist() == list(range(10))
    assert len(division.valid) == 10
    assert len(division.train) == 40
    assert sorted([*division.train, *division.valid, *division.test]) == list(range(60))
    division = split_dataset(dataset_of(*(replace(clip, split="") for clip in clips)), Settings(), test_fold="3")
    assert {clips[i].fold for i in division.test} == {"3"}
    assert "3" not in {clips[i].fold for i in (*division.train, *division.valid)}
    assert not len(split_dataset(dataset_of(*clips), Settings(valid_share=0)).valid)
    with pytest.raises(ValueError, match="fold '9'"):
        split_dataset(dataset_of(*clips), Settings(), test_fold="9")


def test_the_loss_suits_the_data():
    one, several = dataset_of(Clip(Path("a"), ("x",)), Clip(Path("b"), ("y",))), dataset_of(Clip(Path("a"), ("x", "y")))
    assert resolve_loss(one, Settings()).loss == "ce"
    assert resolve_loss(several, Settings()).loss == "bce"
    assert resolve_loss(one, Settings(loss="bce")).loss == "bce"
    with pytest.raises(ValueError, match="2; use bce|2 labels|has 2"):
        resolve_loss(several, Settings(loss="ce"))


def test_tables_say_what_is_not_known():
    lines = format_table([{"class": "dog", "AP": float("nan"), "threshold": float("inf"), "trained": 3}])
    assert lines[1].split() == ["dog", "-", "never", "3"]

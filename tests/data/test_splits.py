"""Folds, a held-out part and few-shot training sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from whisper_at.data import Clip, Dataset, few_shot, folds, hold_out


def make_dataset(*rows: tuple[str, str], **fields: list[str]) -> Dataset:
    """Clips of (name, labels between ;) with further fields."""
    clips = [
        Clip(Path(name), tuple(filter(None, labels.split(";"))), **{k: v[i] for k, v in fields.items()})
        for i, (name, labels) in enumerate(rows)
    ]
    return Dataset(tuple(clips), tuple(sorted({label for clip in clips for label in clip.labels})))


def test_folds_of_the_dataset():
    found = folds(make_dataset(("a", "x"), ("b", "y"), ("c", "x"), fold=["2", "1", "2"]))
    assert [(train.tolist(), test.tolist()) for train, test in found] == [([0, 2], [1]), ([1], [0, 2])]


def test_folds_keep_groups_together_and_classes_even():
    rows = [(f"{i}", "xy"[i % 2]) for i in range(120)]
    dataset = make_dataset(*rows, group=[f"g{i // 4}" for i in range(120)])
    for seed in (0, 1):
        found = folds(dataset, 4, seed)
        assert sorted(i for _, test in found for i in test) == list(range(120))
        for train, test in found:
            assert not {dataset.clips[i].group for i in train} & {dataset.clips[i].group for i in test}
            shares = dataset.select(test).targets().mean(0)
            assert np.abs(shares - 0.5).max() < 0.05
            assert 24 <= len(test) <= 36
    assert [t.tolist() for _, t in folds(dataset, 4, 0)] == [t.tolist() for _, t in folds(dataset, 4, 0)]
    with pytest.raises(ValueError, match="3 clips or groups cannot be divided into 5 folds"):
        folds(make_dataset(("a", "x"), ("b", "x"), ("c", "y")))


def test_holding_out_is_by_class_and_group():
    rows = [(f"{i}", "x" if i < 80 else "y") for i in range(120)]
    dataset = make_dataset(*rows, group=[f"g{i // 2}" for i in range(120)])
    kept, held = hold_out(dataset, 0.25, seed=3)
    assert sorted([*kept, *held]) == list(range(120))
    assert dataset.select(held).targets().sum(0).tolist() == [20, 10]
    assert not {dataset.clips[i].group for i in kept} & {dataset.clips[i].group for i in held}
    assert hold_out(dataset, 0.25, seed=3)[1].tolist() == held.tolist()
    assert hold_out(dataset, 0.25, seed=4)[1].tolist() != held.tolist()


@pytest.mark.parametrize("seed", range(20))
def test_every_class_stays_in_training(seed):
    """Classes with one clip or one group, groups that span classes, and classes that are never named first."""
    rows = [("a", "x"), ("b", "y"), ("c", "y"), ("d", "z"), ("e", "z;rare"), ("f", "z"), ("g", "z;w"), ("h", "z;w")]
    dataset = make_dataset(*rows, group=["1", "2", "2", "3", "4", "2", "5", "6"])
    kept, held = hold_out(dataset, 0.5, seed)
    assert len(held)
    assert set(dataset.classes) == {label for i in kept for label in dataset.clips[i].labels}


def test_few_shot_takes_k_clips_of_each_class():
    dataset = make_dataset(*[(f"{i}", "xyz"[i % 3]) for i in range(30)], ("last", "w"))
    chosen = few_shot(dataset, 4, seed=1)
    assert dataset.select(chosen).targets().sum(0).tolist() == [1, 4, 4, 4]
    assert chosen.tolist() == sorted(chosen) == few_shot(dataset, 4, seed=1).tolist()
    assert chosen.tolist() != few_shot(dataset, 4, seed=2).tolist()
    assert few_shot(dataset, 2, None).tolist() == [0, 1, 2, 3, 4, 5, 30]

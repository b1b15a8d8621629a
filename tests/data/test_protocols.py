"""The papers' protocols: training, validation and test never share clips, and are divided as published."""

from __future__ import annotations

import numpy as np
import pytest
from dataset_files import iemocap, labels, make

from whisper_at.data import Dataset, protocols, read_public_dataset
from whisper_at.data.protocols import make_splits


def folds_of(dataset: Dataset, indices: np.ndarray, what: str = "fold") -> str:
    return " ".join(sorted({getattr(dataset.clips[i], what) for i in indices}, key=lambda n: (len(n), n)))


def test_p10_every_protocol_tests_all_and_mixes_nothing(tmp_path):
    iemocap(tmp_path)
    corpora = {
        "folds": make(fold=list("12345") * 8),
        "sessions": read_public_dataset("iemocap", tmp_path),
        "session_speakers": read_public_dataset("iemocap", tmp_path),
        "speaker_folds": make(group=[str(1001 + i // 2) for i in range(182)]),
        "leave_group_out": make(group=["x", "y", "z", "w"] * 6),
        "random_folds": make(group=[str(i // 2) for i in range(60)], labels=["a", "a", "b", "b"] * 15),
        "splits": make(split=["train"] * 20 + ["test"] * 6),
    }
    assert corpora.keys() == protocols.PROTOCOLS.keys()
    for protocol, dataset in corpora.items():
        divisions = make_splits(dataset, protocol)
        for name, *parts in divisions:
            joined = np.concatenate(parts)
            assert len(set(joined.tolist())) == len(joined), (protocol, name)
            if protocol != "splits":
                assert protocol == "session_speakers" or len(joined) == len(dataset)
        tested = np.concatenate([division.test for division in divisions])
        everything = range(20, 26) if protocol == "splits" else range(len(dataset))
        assert sorted(tested.tolist()) == list(everything), protocol


def test_folds_rotate_as_in_petl_ast():
    esc = make(fold=list("12345"))
    found = [tuple(folds_of(esc, part) for part in division[1:]) for division in make_splits(esc, "folds")]
    assert found[:3] == [("1 2 3", "4", "5"), ("2 3 4", "5", "1"), ("3 4 5", "1", "2")]
    us8k = make(fold=[str(i) for i in range(1, 11)])
    first, second, *_ = make_splits(us8k, "folds")
    assert (folds_of(us8k, first.test), folds_of(us8k, second.test)) == ("10", "1")
    assert len(first.valid) == 1  # P10: one of the nine training folds chooses the epoch, not the test


def test_splits_of_iemocap_in_both_papers(tmp_path):
    iemocap(tmp_path)
    dataset = read_public_dataset("iemocap", tmp_path)
    found = [tuple(folds_of(dataset, part) for part in division[1:]) for division in make_splits(dataset, "sessions")]
    assert found == [
        ("2 3 4", "5", "1"),
        ("1 3 4", "5", "2"),
        ("1 2 4", "5", "3"),
        ("1 2 3", "5", "4"),
        ("1 2 3", "4", "5"),
    ]
    ten = make_splits(dataset, "session_speakers")
    held = [(folds_of(dataset, d.valid, "group"), folds_of(dataset, d.test, "group")) for d in ten]
    assert held[:3] == [("Ses05F", "Ses05M"), ("Ses05M", "Ses05F"), ("Ses01F", "Ses01M")]
    assert len(held) == 10
    assert folds_of(dataset, ten[0].train) == "1 2 3 4"


def test_crema_d_speakers_are_divided_as_by_an_unshuffled_kfold():
    from sklearn.model_selection import KFold

    dataset = make(group=[str(1001 + i) for i in range(91)])
    divisions = make_splits(dataset, "speaker_folds")
    for division, (rest, test) in zip(divisions, KFold(5).split(np.arange(91))):
        assert division.test.tolist() == test.tolist()
        assert division.valid.tolist() == rest[-15:].tolist()  # the last 15 of 72 or 73


def test_few_shot_takes_from_training_only():
    dataset = make(split=["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    whole = make_splits(dataset, "splits")[0]
    first, drawn, again = (protocols.few_shot_split(dataset, whole, 3, seed) for seed in (None, 1, 1))
    assert first.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert labels(dataset.select(drawn.train)).count("a") == 3
    assert drawn.train.tolist() != first.train.tolist()
    assert drawn.train.tolist() == again.train.tolist()
    assert len(drawn.valid) == 10
    assert len(drawn.test) == 10
    with pytest.raises(ValueError, match="few_shot must be at least 1"):
        protocols.few_shot_split(dataset, whole, 0, 1)


def test_invalid_protocols_are_rejected():
    with pytest.raises(ValueError, match="did you mean 'folds'"):
        make_splits(make(fold=list("123")), "fold")
    with pytest.raises(ValueError, match="have no speaker"):
        make_splits(make(group=["a", "b", "c", ""]), "leave_group_out")
    with pytest.raises(ValueError, match="nothing is left to validate"):
        make_splits(make(split=["train", "test"]), "splits")
    with pytest.raises(ValueError, match="define no training and test split"):
        make_splits(make(fold=list("123")), "splits")
    lacking = make(fold=list("1234"), labels=["a", "a", "a", "b"])
    with pytest.raises(ValueError, match="fold 4: class 'b' is in test, but not in training"):
        protocols.check_classes(lacking, make_splits(lacking, "folds")[0])

"""Evaluation protocols of the papers: how a data set is divided into training, validation and test.

The best epoch is always chosen on validation data, never on the test. If a data set has no validation part, one is
held out of its training part (P10).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .clips import Dataset, sort_classes
from .splits import few_shot, folds, hold_out
from .validation import unknown_name


class Split(NamedTuple):
    """A division of a data set for one training run.

    Attributes
    ----------
    name : str
        Name in results, such as ``fold 5``.
    train, valid, test : ndarray of int
        Indices of clips for training, for choosing the epoch and for testing.
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def make_splits(dataset: Dataset, protocol: str, seed: int = 0, k: int | None = None) -> list[Split]:
    """Divide a data set by a protocol.

    Parameters
    ----------
    dataset : Dataset
        Clips to divide.
    protocol : str
        A key of `PROTOCOLS`.
    seed : int
        Seed of random choices, if the protocol makes any.
    k : int, optional
        Number of splits, if the protocol leaves it open.

    Returns
    -------
    list of Split

    Raises
    ------
    ValueError
        If the protocol is unknown, the clips lack what it divides by (folds, speakers …), or a part would be empty.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(unknown_name("no protocol", protocol, PROTOCOLS))
    splits = PROTOCOLS[protocol](dataset, seed, k)
    for name, *parts in splits:
        for purpose, part in zip(("train", "validate", "test"), parts):
            if not len(part):
                raise ValueError(f"protocol {protocol}, {name}: nothing is left to {purpose} on")
    return splits


def predefined_split(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Use the data set's own ``train``, ``valid`` and ``test``; hold out 10 % of training if there is no ``valid``."""
    train, valid, test = (_indices(dataset, split=[name]) for name in ("train", "valid", "test"))
    if not len(train) or not len(test):
        raise ValueError("these data define no training and test split; choose a protocol that divides them")
    return [hold_out_validation(dataset, Split("splits", train, valid, test), seed)]


def rotate_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Test on each fold in turn, starting with the last; validate on the fold before it, train on the others.

    ESC-50 starts with folds 1, 2, 3 for training, 4 for validation and 5 for the test. UrbanSound8K tests on fold 10
    first, then on 1 to 9; one of its nine other folds is for validation (P10).
    """
    names = _fold_names(dataset)
    if len(names) < 3:
        raise ValueError(f"these data have {len(names)} folds of their own; at least 3 are needed")
    parts = [_indices(dataset, fold=[name]) for name in names]
    splits = []
    for i in range(len(names)):
        test, valid = (i - 1) % len(names), (i - 2) % len(names)
        train = np.concatenate([part for j, part in enumerate(parts) if j not in (test, valid)])
        splits.append(Split(f"fold {names[test]}", np.sort(train), parts[valid], parts[test]))
    return splits


def leave_session_out(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Test on each session in turn and validate on the last of the others, as PEFT-SER does (spec section 2.4)."""
    sessions = _fold_names(dataset)
    if len(sessions) < 3:
        raise ValueError(f"these data have {len(sessions)} sessions; at least 3 are needed")
    splits = []
    for test in sessions:
        *train, valid = [name for name in sessions if name != test]
        parts = [_indices(dataset, fold=names) for names in (train, [valid], [test])]
        splits.append(Split(f"session {test}", *parts))
    return splits


def leave_session_speaker_out(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Leave each session of IEMOCAP out; validate on one of its speakers and test on the other (spec section 1.4).

    As in PETL_AST, sessions are left out in the order 5, 1, 2, 3, 4, and each is used twice: first F is for
    validation and M for the test, then the other way round.
    """
    sessions = _fold_names(dataset)
    splits = []
    for session in [*sessions[-1:], *sessions[:-1]]:
        train = _indices(dataset, fold=[name for name in sessions if name != session])
        for valid, test in (("F", "M"), ("M", "F")):
            parts = [
                _indices(dataset, fold=[session], group=[name for name in _group_names(dataset) if name.endswith(sex)])
                for sex in (valid, test)
            ]
            splits.append(Split(f"session {session}, {test} tested", train, *parts))
    return splits


def speaker_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Divide the speakers, sorted by name, into ``k`` (5) consecutive folds, as PEFT-SER does on CREMA-D.

    Each fold is tested in turn; the last fifth of the other speakers is for validation (spec section 2.4).
    """
    speakers = _group_names(dataset)
    splits = []
    for i, test in enumerate(np.array_split(np.array(speakers), k or 5)):
        others = [name for name in speakers if name not in set(test)]
        n_valid = -(-len(others) // 5)
        parts = [_indices(dataset, group=names) for names in (others[:-n_valid], others[-n_valid:], test)]
        splits.append(Split(f"fold {i + 1}", *parts))
    return splits


def leave_group_out(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Test on each speaker (group) in turn, or on each of ``k`` sets of them; validate on one of the others."""
    groups = _group_names(dataset)
    test_sets = [part.tolist() for part in np.array_split(np.array(groups), k or len(groups))]
    if len(test_sets) < 2 or not test_sets[-1]:
        raise ValueError(f"{len(groups)} speakers or groups cannot be divided into {k or len(groups)} parts")
    if len(groups) < 3:
        raise ValueError(f"{len(groups)} speakers or groups: at least 3 are needed to train, validate and test")
    splits = []
    for i, test in enumerate(test_sets):
        valid = [test_sets[i - 1][-1]]
        train = [name for name in groups if name not in {*test, *valid}]
        parts = [_indices(dataset, group=names) for names in (train, valid, test)]
        splits.append(Split(f"without {' '.join(test)}", *parts))
    return splits


def random_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Divide into ``k`` (5) random stratified folds, groups together; hold out 10 % of training for validation."""
    no_folds = replace(dataset, clips=tuple(replace(clip, fold="") for clip in dataset.clips))
    return [
        hold_out_validation(dataset, Split(f"fold {i + 1}", train, np.array([], int), test), seed)
        for i, (train, test) in enumerate(folds(no_folds, k, seed))
    ]


PROTOCOLS: dict[str, Callable[[Dataset, int, int | None], list[Split]]] = {
    "splits": predefined_split,
    "folds": rotate_folds,
    "sessions": leave_session_out,
    "session_speakers": leave_session_speaker_out,
    "speaker_folds": speaker_folds,
    "leave_group_out": leave_group_out,
    "random_folds": random_folds,
}
"""Protocols by their names in configurations."""


def few_shot_split(dataset: Dataset, split: Split, k: int, seed: int | None) -> Split:
    """Reduce the training part of a split to ``k`` clips of each class.

    Parameters
    ----------
    dataset : Dataset
        The divided data set.
    split : Split
        One of its splits.
    k : int
        Clips of each class to keep, at least 1.
    seed : int, optional
        Seed of the random choice; None keeps the first ``k``.

    Returns
    -------
    Split
        With fewer training clips; validation and test are unchanged.
    """
    if k < 1:
        raise ValueError(f"few_shot must be at least 1 clip of each class, not {k}")
    kept = few_shot(dataset.select(split.train), k, seed)
    return split._replace(train=split.train[kept])


def check_classes(dataset: Dataset, split: Split) -> None:
    """Check that every class has training clips; warn if a class has no test clips and so no score.

    Raises
    ------
    ValueError
        If a class does not occur in training.
    """
    train, valid, test = ({name for i in part for name in dataset.clips[i].labels} for part in split[1:])
    for part, classes in (("validation", valid), ("test", test)):
        if missing := sorted(classes - train):
            raise ValueError(f"{split.name}: class {missing[0]!r} is in {part}, but not in training")
    if missing := [name for name in dataset.classes if name not in train]:
        raise ValueError(f"{split.name}: class {missing[0]!r} has nothing to train on ({len(missing)} such)")
    if missing := [name for name in dataset.classes if name not in test]:
        where = "in the test" if missing[0] in valid else "in validation or in the test"
        message = f"{split.name}: class {missing[0]!r} is not {where}, so it gets no score ({len(missing)} such)"
        warnings.warn(message, stacklevel=2)


def _indices(dataset: Dataset, **allowed: Iterable[str]) -> np.ndarray:
    """Return the indices of clips whose ``split``, ``fold`` and ``group`` are among the given values."""
    sets = {field: set(values) for field, values in allowed.items()}
    matches = [all(getattr(clip, field) in values for field, values in sets.items()) for clip in dataset.clips]
    return np.flatnonzero(np.array(matches, bool))


def _fold_names(dataset: Dataset) -> list[str]:
    names = list(sort_classes({clip.fold for clip in dataset.clips}))
    if "" in names:
        raise ValueError("some of these clips have no fold or session")
    return names


def _group_names(dataset: Dataset) -> list[str]:
    names = sorted({clip.group for clip in dataset.clips})
    if "" in names:
        raise ValueError("some of these clips have no speaker or group")
    return names


def hold_out_validation(dataset: Dataset, split: Split, seed: int) -> Split:
    """Return a split with a validation part: its own, or a tenth of its training part that is held out."""
    if len(split.valid):
        return split
    kept, held = hold_out(dataset.select(split.train), seed=seed)
    return split._replace(train=split.train[kept], valid=split.train[held])

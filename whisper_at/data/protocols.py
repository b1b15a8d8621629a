"""How papers divide their data into training, validation and test: indices of clips, never a clip in two of them.

The epoch is always chosen on validation, never on the test; where a collection has no validation part, one is held
out of training (P10).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .clips import Dataset, sort_classes
from .splits import few_shot, folds, hold_out


class Split(NamedTuple):
    """One training: its name, and indices of clips to train on, to choose the epoch on, and to test on."""

    name: str
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def make_splits(dataset: Dataset, protocol: str, seed: int = 0, k: int | None = None) -> list[Split]:
    """Divide a dataset by the name of a protocol (see `PROTOCOLS`).

    Raises
    ------
    ValueError
        If there is no such protocol, the data lack what it divides by, or a part would be empty.
    """
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no protocol {protocol!r}: {hint}There are {', '.join(PROTOCOLS)}")
    divisions = PROTOCOLS[protocol](dataset, seed, k)
    for name, *parts in divisions:
        for what, part in zip(("train", "validate", "test"), parts):
            if not len(part):
                raise ValueError(f"protocol {protocol}, {name}: nothing is left to {what} on")
    return divisions


def by_splits(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """The data's own ``train``, ``valid`` and ``test``; 10 % of training validates where there is no ``valid``."""
    train, valid, test = (_select(dataset, split=[name]) for name in ("train", "valid", "test"))
    if not len(train) or not len(test):
        raise ValueError("these data do not say what is train and what is test; choose a protocol that divides them")
    return [_split_off_validation(dataset, "splits", train, valid, test, seed)]


def by_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """One fold to test, the one before it to validate, the others to train: fold 0 of ESC-50 is 123/4/5, then rotated.

    So UrbanSound8K tests fold 10 first, then 1 to 9, and one of its training folds validates (P10).
    """
    names = _names(clip.fold for clip in dataset.clips)
    if len(names) < 3:
        raise ValueError(f"these data have {len(names)} folds of their own; at least 3 are needed")
    parts = [_select(dataset, fold=[name]) for name in names]
    out = []
    for i in range(len(names)):
        test, valid = (i - 1) % len(names), (i - 2) % len(names)
        train = np.concatenate([part for j, part in enumerate(parts) if j not in (test, valid)])
        out.append(Split(f"fold {names[test]}", np.sort(train), parts[valid], parts[test]))
    return out


def by_sessions(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """PEFT-SER: test on each session in turn, validate on the last of the others (spec section 2.4)."""
    names = _names(clip.fold for clip in dataset.clips)
    if len(names) < 3:
        raise ValueError(f"these data have {len(names)} sessions; at least 3 are needed")
    out = []
    for test in names:
        *train, valid = [name for name in names if name != test]
        parts = [_select(dataset, fold=part) for part in (train, [valid], [test])]
        out.append(Split(f"session {test}", *parts))
    return out


def by_session_speakers(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """PETL_AST on IEMOCAP: of a session held out (5, 1, 2, 3, 4), one speaker validates, the other is tested.

    First F validates and M is tested, then the other way round: ten folds (spec section 1.4).
    """
    names = _names(clip.fold for clip in dataset.clips)
    out = []
    for session in [*names[-1:], *names[:-1]]:
        train = _select(dataset, fold=[name for name in names if name != session])
        for valid, test in (("F", "M"), ("M", "F")):
            parts = [
                _select(dataset, fold=[session], group=[name for name in _speakers(dataset) if name.endswith(sex)])
                for sex in (valid, test)
            ]
            out.append(Split(f"session {session}, {test} tested", train, *parts))
    return out


def by_speaker_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """PEFT-SER on CREMA-D: ``k`` (5) runs of neighbouring speakers are tested; the last fifth of the rest validates.

    Speakers stand in the order of their names and are not shuffled (spec section 2.4).
    """
    speakers = _speakers(dataset)
    out = []
    for i, part in enumerate(np.array_split(np.array(speakers), k or 5)):
        rest = [name for name in speakers if name not in set(part)]
        held = -(-len(rest) // 5)
        parts = [_select(dataset, group=names) for names in (rest[:-held], rest[-held:], part)]
        out.append(Split(f"fold {i + 1}", *parts))
    return out


def leave_group_out(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """Test on each speaker (group) in turn, or on ``k`` sets of them; another one of training's validates."""
    speakers = _speakers(dataset)
    sets = [part.tolist() for part in np.array_split(np.array(speakers), k or len(speakers))]
    if len(sets) < 2 or not sets[-1]:
        raise ValueError(f"{len(speakers)} speakers or groups cannot be divided into {k or len(speakers)} parts")
    if len(speakers) < 3:
        raise ValueError(f"{len(speakers)} speakers or groups: at least 3 are needed to train, validate and test")
    out = []
    for i, test in enumerate(sets):
        valid = [sets[i - 1][-1]]
        train = [name for name in speakers if name not in {*test, *valid}]
        parts = [_select(dataset, group=names) for names in (train, valid, test)]
        out.append(Split(f"without {' '.join(test)}", *parts))
    return out


def by_random_folds(dataset: Dataset, seed: int = 0, k: int | None = None) -> list[Split]:
    """``k`` (5) folds drawn with equal shares of classes, a group never on both sides; 10 % of training validates."""
    none = np.array([], int)
    unfolded = replace(dataset, clips=tuple(replace(clip, fold="") for clip in dataset.clips))
    return [
        _split_off_validation(dataset, f"fold {i + 1}", train, none, test, seed)
        for i, (train, test) in enumerate(folds(unfolded, k, seed))
    ]


PROTOCOLS: dict[str, Callable[..., list[Split]]] = {
    "splits": by_splits,
    "folds": by_folds,
    "sessions": by_sessions,
    "session_speakers": by_session_speakers,
    "speaker_folds": by_speaker_folds,
    "leave_group_out": leave_group_out,
    "random_folds": by_random_folds,
}


def few_shot_split(dataset: Dataset, division: Split, k: int, seed: int | None) -> Split:
    """The same with ``k`` clips of each class to train on, the rest untouched; the first ``k`` where seed is None.

    ValueError if ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"few_shot must be at least 1 clip of each class, not {k}")
    kept = few_shot(dataset.select(division.train), k, seed)
    return division._replace(train=division.train[kept])


def check_classes(dataset: Dataset, division: Split) -> None:
    """Raise ValueError if a class of the data does not occur in training, or one of the test does not.

    Warns of a class that the test lacks, for no score will tell of it.
    """
    have = {name for i in division.train for name in dataset.clips[i].labels}
    for what, part in (("validation", division.valid), ("test", division.test)):
        needed = {name for i in part for name in dataset.clips[i].labels}
        if missing := sorted(needed - have):
            raise ValueError(f"{division.name}: class {missing[0]!r} is in {what}, but not in training")
    if missing := [name for name in dataset.classes if name not in have]:
        raise ValueError(f"{division.name}: class {missing[0]!r} has nothing to train on ({len(missing)} such)")
    valid, test = ({name for i in part for name in dataset.clips[i].labels} for part in division[2:])
    if missing := [name for name in dataset.classes if name not in test]:
        where = "in the test" if missing[0] in valid else "in validation or in the test"
        message = f"{division.name}: class {missing[0]!r} is not {where}, so no score tells of it ({len(missing)} such)"
        warnings.warn(message, stacklevel=2)


def _select(dataset: Dataset, **wanted: Iterable[str]) -> np.ndarray:
    """Indices of the clips whose ``split``, ``fold`` or ``group`` is among these."""
    sets = {name: set(values) for name, values in wanted.items()}
    clips = enumerate(dataset.clips)
    return np.array([i for i, clip in clips if all(getattr(clip, name) in s for name, s in sets.items())], int)


def _names(found: Iterable[str]) -> list[str]:
    names = list(sort_classes(set(found)))
    if "" in names:
        raise ValueError("some of these clips have no fold or session")
    return names


def _speakers(dataset: Dataset) -> list[str]:
    names = sorted({clip.group for clip in dataset.clips})
    if "" in names:
        raise ValueError("some of these clips have no speaker or group")
    return names


def _split_off_validation(
    dataset: Dataset, name: str, train: np.ndarray, valid: np.ndarray, test: np.ndarray, seed: int
) -> Split:
    if not len(valid):
        kept, held = hold_out(dataset.select(train), seed=seed)
        train, valid = train[kept], train[held]
    return Split(name, train, valid, test)

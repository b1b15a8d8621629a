"""Cross-validation folds, a held-out validation part, and few-shot training sets, as indices of clips."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .clips import Dataset


def folds(dataset: Dataset, k: int | None = None, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training and test indices of each cross-validation fold.

    The data set's own folds are used if every clip has one and ``k`` is None or their number. Otherwise the clips are
    divided into ``k`` folds stratified by their first label, clips of a group together.

    Parameters
    ----------
    dataset : Dataset
        Clips to divide.
    k : int, optional
        Number of folds; 5 if the data set has none.
    seed : int
        Seed of the division into ``k`` folds.

    Returns
    -------
    list of (ndarray of int, ndarray of int)
        Indices for training and for testing, one pair per fold.

    Raises
    ------
    ValueError
        If there are fewer than ``k`` clips or groups.
    """
    fold_names = sorted({clip.fold for clip in dataset.clips})
    if "" not in fold_names and len(fold_names) > 1 and k in (None, len(fold_names)):
        fold_of = np.array([clip.fold for clip in dataset.clips])
        return [(np.flatnonzero(fold_of != name), np.flatnonzero(fold_of == name)) for name in fold_names]
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.array([clip.group or clip.key for clip in dataset.clips])
    k = k or 5
    if len(set(groups)) < k:
        raise ValueError(f"{len(set(groups))} clips or groups cannot be divided into {k} folds")
    first_labels = np.array([clip.labels[0] if clip.labels else "" for clip in dataset.clips])
    splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
    return list(splitter.split(first_labels, first_labels, groups))


def hold_out(dataset: Dataset, share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Hold out about ``share`` of each class for validation.

    Clips of a group stay together, and at least one clip or group of every class stays in training.

    Parameters
    ----------
    dataset : Dataset
        Clips to divide.
    share : float
        Fraction of each class (by first label) to hold out.
    seed : int
        Seed of the random choice.

    Returns
    -------
    train, valid : ndarray of int
        Sorted indices.
    """
    rng = np.random.default_rng(seed)
    group_of = [clip.group or clip.key for clip in dataset.clips]
    group_classes: dict[str, set[str]] = {}
    members: dict[str, dict[str, list[int]]] = {}  # clips by first label and group
    for i, (clip, group) in enumerate(zip(dataset.clips, group_of)):
        group_classes.setdefault(group, set()).update(clip.labels or ("",))
        members.setdefault(clip.labels[0] if clip.labels else "", {}).setdefault(group, []).append(i)
    groups_left = Counter(name for names in group_classes.values() for name in names)  # training groups of each class
    held_groups: set[str] = set()
    for by_group in members.values():
        candidates = [group for group in by_group if group not in held_groups]
        total = sum(map(len, by_group.values()))
        missing = share * total - sum(len(by_group[group]) for group in by_group if group in held_groups)
        for group in rng.permutation(np.array(candidates, dtype=object)) if candidates else []:
            if missing < 0.5:
                break
            if all(groups_left[name] > 1 for name in group_classes[group]):
                held_groups.add(group)
                groups_left.subtract(group_classes[group])
                missing -= len(by_group[group])
    is_held = np.array([group in held_groups for group in group_of], bool)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def few_shot(dataset: Dataset, k: int, seed: int | None = 0) -> np.ndarray:
    """Return the sorted indices of ``k`` clips of each class: random ones, or the first if ``seed`` is None.

    Examples
    --------
    >>> from pathlib import Path
    >>> from whisper_at.data import Clip, Dataset
    >>> clips = [Clip(Path(f"{i}.wav"), (label,)) for i, label in enumerate(["dog", "dog", "rain", "dog", "rain"])]
    >>> few_shot(Dataset(tuple(clips), ("dog", "rain")), 1, seed=None)
    array([0, 2])
    """
    chosen: list[int] = []
    for name in dataset.classes:
        indices = np.array([i for i, clip in enumerate(dataset.clips) if name in clip.labels], int)
        if seed is not None:
            indices = np.random.default_rng([seed, len(chosen)]).permutation(indices)
        chosen += indices[:k].tolist()
    return np.array(sorted(set(chosen)), int)

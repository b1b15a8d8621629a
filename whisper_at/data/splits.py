"""Split of a data set into folds, into training and validation, and few-shot training sets."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .clips import Dataset


def folds(dataset: Dataset, k: int | None = None, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cross-validation: for each fold the indices outside and inside of it.

    The data's own folds where every clip has one and ``k`` is None or their number; else ``k`` (5) folds with about
    equal shares of each class, a group never on both sides.

    Raises
    ------
    ValueError
        If there are too few clips or groups for so many folds.
    """
    own = sorted({clip.fold for clip in dataset.clips})
    if "" not in own and len(own) > 1 and k in (None, len(own)):
        of = np.array([clip.fold for clip in dataset.clips])
        return [(np.flatnonzero(of != name), np.flatnonzero(of == name)) for name in own]
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.array([clip.group or clip.key for clip in dataset.clips])
    k = k or 5
    if len(set(groups)) < k:
        raise ValueError(f"{len(set(groups))} clips or groups cannot be cut into {k} folds")
    first = np.array([clip.labels[0] if clip.labels else "" for clip in dataset.clips])
    return list(StratifiedGroupKFold(k, shuffle=True, random_state=seed).split(first, first, groups))


def hold_out(dataset: Dataset, share: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices to train on and to validate on: about ``share`` of each class, a group never on both sides.

    The last clip or group of a class stays in training.
    """
    r = np.random.default_rng(seed)
    group_of = [clip.group or clip.key for clip in dataset.clips]
    classes_of: dict[str, set[str]] = {}  # of a group
    by_class: dict[str, dict[str, list[int]]] = {}
    for i, (clip, group) in enumerate(zip(dataset.clips, group_of)):
        classes_of.setdefault(group, set()).update(clip.labels or ("",))
        by_class.setdefault(clip.labels[0] if clip.labels else "", {}).setdefault(group, []).append(i)
    left = Counter(name for names in classes_of.values() for name in names)  # groups of a class in training
    out: set[str] = set()
    for members in by_class.values():
        names = [name for name in members if name not in out]
        wanted = share * sum(map(len, members.values())) - sum(len(members[n]) for n in members if n in out)
        for name in r.permutation(np.array(names, dtype=object)) if names else []:
            if wanted < 0.5:
                break
            if all(left[of] > 1 for of in classes_of[name]):
                out.add(name)
                left.subtract(classes_of[name])
                wanted -= len(members[name])
    held = {i for i, name in enumerate(group_of) if name in out}
    everything = range(len(dataset.clips))
    return np.array([i for i in everything if i not in held], int), np.array(sorted(held), int)


def few_shot(dataset: Dataset, k: int, seed: int | None = 0) -> np.ndarray:
    """Indices of ``k`` clips of each class, in order; the first ``k`` where ``seed`` is None."""
    kept: list[int] = []
    for name in dataset.classes:
        of = np.array([i for i, clip in enumerate(dataset.clips) if name in clip.labels], int)
        if seed is not None:
            of = np.random.default_rng([seed, len(kept)]).permutation(of)
        kept += of[:k].tolist()
    return np.array(sorted(set(kept)), int)

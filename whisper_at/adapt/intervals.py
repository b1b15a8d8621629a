"""Confidence intervals of the scores of experiments, over speakers or other groups of clips, by the jackknife.

Clips of one speaker or source are alike, so that what was tested is as many independent cases as there are groups, not
clips; and splits share their training clips, so that the spread over splits is no interval. Leaving out one group at a
time (Tukey's jackknife; Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 11.5) needs no random
numbers and, with Student's t, few groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data.clips import Dataset
from ..train.metrics import confusion


class Interval(NamedTuple):
    """A score over all tests of a seed together, mean over seeds, and half the width of its 95 % interval.

    ``half_width`` is NaN for a single group; ``groups`` is their number.
    """

    score: float
    half_width: float
    groups: int


def predictions(dataset: Dataset, indices: Sequence[int] | np.ndarray, logits: np.ndarray) -> dict[str, list[Any]]:
    """Return the true and the predicted class of clips with one label each, and their groups, as JSON values."""
    clips = [dataset.clips[int(i)] for i in indices]
    truth = dataset.targets()[np.asarray(indices, int)].argmax(1)
    groups = [clip.group or str(clip.key) for clip in clips]
    return {"truth": truth.tolist(), "predicted": logits.argmax(1).tolist(), "group": groups}


def score_interval(
    runs: Sequence[Mapping[str, Any]], score: str, baseline: Sequence[Mapping[str, Any]] | None = None
) -> Interval | None:
    """Return a score of some runs with its interval over groups of clips.

    Parameters
    ----------
    runs : sequence of mapping
        Rows of `whisper_at.adapt.experiment.run_experiment`, of all splits and seeds.
    score : str
        ``accuracy``, ``UAR`` or ``F1``.
    baseline : sequence of mapping, optional
        Rows of another method on the same clips: the score is then the difference to it, whose interval is narrower
        than those of the two scores if the same groups are hard for both.

    Returns
    -------
    Interval or None
        None if the runs have no predictions, as with several labels a clip, or the baseline was tested on other clips.
    """
    of_runs = _confusions(runs)
    if of_runs is None:
        return None
    values = _leave_one_out(of_runs, score)
    if baseline is not None:
        of_baseline = _confusions(baseline)
        if of_baseline is None or of_baseline[0] != of_runs[0]:
            return None
        values = values - _leave_one_out(of_baseline, score)
    whole, without = values[0], values[1:]
    n = len(without)
    if n < 2:
        return Interval(float(whole), float("nan"), n)
    error = np.sqrt((n - 1) / n * np.sum((without - np.mean(without)) ** 2))
    from scipy import stats  # of the extras

    return Interval(float(whole), float(stats.t.ppf(0.975, n - 1) * error), n)


def _confusions(runs: Sequence[Mapping[str, Any]]) -> tuple[list[str], np.ndarray] | None:
    """Return the names of groups, and the confusion of each ``(seeds, groups, classes, classes)``."""
    if not runs or any("predictions" not in run for run in runs):
        return None
    tests = [run["predictions"] for run in runs]
    names = sorted({name for test in tests for name in test["group"]})
    classes = 1 + max(max(test["truth"] + test["predicted"]) for test in tests)
    seeds = sorted({run["seed"] for run in runs})
    counts = np.zeros((len(seeds), len(names), classes, classes))
    for run, test in zip(runs, tests):
        truth, predicted, group = (np.array(test[key]) for key in ("truth", "predicted", "group"))
        for i, name in enumerate(names):
            chosen = group == name
            if chosen.any():
                counts[seeds.index(run["seed"]), i] += confusion(truth[chosen], predicted[chosen], classes)
    return names, counts


def _leave_one_out(confusions: tuple[list[str], np.ndarray], score: str) -> np.ndarray:
    """Return the score of all groups, then of all but each one: ``(1 + groups,)``, means over seeds."""
    counts = confusions[1]
    whole = counts.sum(1, keepdims=True)
    return confusion_score(np.concatenate([whole, whole - counts], 1), score).mean(0)


def confusion_score(counts: np.ndarray, score: str) -> np.ndarray:
    """Return ``accuracy``, ``UAR`` or ``F1`` of confusion matrices ``(…, classes, classes)``, truth in rows.

    UAR and F1 are means over the classes that occur, as in `whisper_at.train.metrics.decision_scores`.
    """
    right, true, predicted = np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    if score == "accuracy":
        return right.sum(-1) / np.maximum(1, true.sum(-1))
    whole = true if score == "UAR" else (true + predicted) / 2
    occurring = true > 0
    shares = np.where(occurring, right / np.where(occurring, whole, 1), 0)
    return shares.sum(-1) / np.maximum(1, occurring.sum(-1))

"""Intervals over groups of clips: closed formulas of the jackknife, and what pairs and seeds do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from whisper_at.adapt.intervals import confusion_score, predictions, score_interval
from whisper_at.data.clips import Clip, Dataset
from whisper_at.train.metrics import confusion, decision_scores


def run(truth, predicted, group, seed=0) -> dict:
    return {"seed": seed, "predictions": {"truth": truth, "predicted": predicted, "group": group}}


def test_an_accuracy_over_clips_has_the_interval_of_a_proportion():
    right = [1, 1, 0, 1, 0, 1, 1, 1]
    found = score_interval([run([1] * 8, right, list("abcdefgh"))], "accuracy")
    assert found.groups == 8
    assert found.score == pytest.approx(0.75)
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 7) * np.sqrt(0.75 * 0.25 / 7))


def test_clips_of_one_speaker_are_one_case():
    """Twenty copies of each clip tell no more than one."""
    truth, predicted, group = [0, 1, 0, 1], [0, 0, 0, 1], ["a", "a", "b", "b"]
    once = score_interval([run(truth, predicted, group)], "UAR")
    many = score_interval([run(truth * 20, predicted * 20, group * 20)], "UAR")
    assert many == pytest.approx(once)
    assert once.groups == 2
    assert np.isnan(score_interval([run([0, 1], [0, 1], ["a", "a"])], "UAR").half_width)


def test_splits_are_pooled_and_seeds_averaged():
    first, second = run([0, 0], [0, 1], ["a", "a"]), run([1, 1], [1, 1], ["b", "b"])
    assert score_interval([first, second], "accuracy").score == 0.75
    other = run([0, 0, 1, 1], [0, 0, 1, 1], list("aabb"), seed=1)
    assert score_interval([first, second, other], "accuracy").score == pytest.approx((0.75 + 1) / 2)


def test_a_difference_on_the_same_clips_is_surer_than_the_scores():
    rng = np.random.default_rng(0)
    group = [f"{i % 8}" for i in range(400)]
    hard = rng.uniform(0.2, 0.9, 8)  # speakers differ
    chance = rng.uniform(size=400)
    truth = [0] * 400
    one = [int(chance[i] > hard[i % 8]) for i in range(400)]
    two = [int(chance[i] > hard[i % 8] + 0.05) for i in range(400)]
    a, b = [run(truth, one, group)], [run(truth, two, group)]
    gain = score_interval(b, "accuracy", a)
    assert gain.score == pytest.approx(score_interval(b, "accuracy").score - score_interval(a, "accuracy").score)
    assert gain.half_width < 0.3 * score_interval(a, "accuracy").half_width
    assert score_interval(a, "accuracy", a)[:2] == (0.0, 0.0)
    assert score_interval(a, "accuracy", [run(truth, two, ["x"] * 400)]) is None  # other clips
    assert score_interval([{"seed": 0}], "accuracy") is None  # several labels a clip


@pytest.mark.parametrize("score", ["accuracy", "UAR", "F1"])
def test_scores_of_confusions_are_those_of_decisions(score):
    rng = np.random.default_rng(1)
    for _ in range(20):
        truth, decided = rng.integers(0, 3, 12), rng.integers(0, 5, 12)
        found = confusion_score(confusion(truth, decided, 5), score)
        assert found == pytest.approx(decision_scores(truth, decided)[score])


def test_predictions_have_the_group_of_a_clip_or_the_clip_itself():
    clips = (Clip(Path("a.wav"), ("low",), group="ann"), Clip(Path("b.wav"), ("high",)))
    found = predictions(Dataset(clips, ("high", "low")), [1, 0], np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert found["truth"] == [0, 1]
    assert found["predicted"] == [0, 0]
    assert found["group"] == [str(clips[1].key), "ann"]

"""Calibration: temperatures against closed forms and a grid, thresholds by counting, reliability by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from whisper_at.train.calibration import (
    expected_calibration_error,
    fit_temperature,
    probabilities,
    reliability_curve,
    thresholds_for_precision,
)


def cross_entropy(targets: np.ndarray, logits: np.ndarray, multi_label: bool, temperature: float) -> float:
    p = probabilities(logits, multi_label, temperature)
    if multi_label:
        return float(-np.mean(np.log(np.where(targets > 0, p, 1 - p))))
    return float(-np.mean(np.log(p[np.arange(len(p)), targets])))


def test_a_temperature_of_two_logits_has_a_closed_form():
    # Of clips at logit 4, three in four are right. By Platt's targets, 4/5 and 1/3, the best probability is their mean.
    targets = np.array([[1], [1], [1], [0]])
    p = (3 * 4 / 5 + 1 / 3) / 4
    assert fit_temperature(targets, np.full((4, 1), 4.0), True) == pytest.approx(4 / np.log(p / (1 - p)), rel=1e-6)
    # The softmax of two classes 4 apart is the sigmoid of 4; right is 5/6, of four clips.
    logits = np.array([[4.0, 0.0]] * 4)
    assert fit_temperature(np.array([0, 0, 0, 1]), logits, False) == pytest.approx(4 / np.log(2), rel=1e-6)
    assert fit_temperature(np.eye(2)[[0, 0, 0, 1]], logits, False) == pytest.approx(4 / np.log(2), rel=1e-6)


@pytest.mark.parametrize("n", [2, 4, 400])
def test_a_few_clips_that_are_right_do_not_make_certain(n):
    targets = np.arange(n) % 2
    logits = 3.0 * np.eye(3)[targets]
    found = probabilities(logits, False, fit_temperature(targets, logits, False))
    assert found.max(1) == pytest.approx((n + 1) / (n + 2))
    assert found.sum(1) == pytest.approx(1)
    each = probabilities(2 * logits - 3, True, fit_temperature(targets, 2 * logits - 3, True))
    assert each.max(1) == pytest.approx(np.full(n, each.max()))
    assert (n + 1) / (n + 2) < each.max() < 1 - 1 / (3 * n + 2)


@pytest.mark.parametrize("multi_label", [True, False])
def test_the_temperature_that_made_the_labels_is_found(multi_label):
    r = np.random.default_rng(0)
    logits = r.normal(0, 6, (20_000, 3))
    p = probabilities(logits, multi_label, 2.5)
    one_class, several = (r.random((len(p), 1)) > p.cumsum(1)).sum(1), (r.random(p.shape) < p).astype(int)
    targets = several if multi_label else one_class
    found = fit_temperature(targets, logits, multi_label)
    assert found == pytest.approx(2.5, rel=0.05)
    grid = np.geomspace(0.5, 10, 60)
    assert cross_entropy(targets, logits, multi_label, found) <= min(
        cross_entropy(targets, logits, multi_label, t) for t in grid
    )


def test_bounds_of_the_temperature():
    targets = np.array([0, 1])
    assert fit_temperature(targets, np.array([[0.01, 0], [0, 0.01]]), False) == 0.01  # all right, and hardly said
    assert fit_temperature(targets, np.array([[-3.0, 3.0], [3.0, -3.0]]), False) == 100  # all wrong
    assert fit_temperature(targets, np.zeros((2, 2)), False) == 100  # they tell nothing


def test_probabilities_do_not_overflow():
    extreme = np.array([[1e4, -1e4]])
    assert probabilities(extreme, True).tolist() == [[1.0, 0.0]]
    assert probabilities(extreme, False, 0.01).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("targets", "logits", "multi_label", "message"),
    [
        (np.array([0, 1]), np.array([[0.0, np.nan], [1, 2]]), False, "1 clips have scores that are no numbers"),
        (np.ones((3, 2)), np.ones((2, 2)), True, r"targets are \(3, 2\)"),
        (np.ones((2, 2)), np.ones((2, 2)), False, "exactly one class"),
        (np.ones((0, 2)), np.ones((0, 2)), True, "some of each"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(targets, logits, multi_label, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(targets, logits, multi_label)


def test_thresholds_by_hand():
    #                 0.9   0.8   0.7   0.6   0.5
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])[:, None]
    wanted = np.array([1, 0, 1, 1, 0])[:, None]
    # precision at each:  1/1   1/2   2/3   3/4   3/5
    assert thresholds_for_precision(wanted, scores, 0.75) == pytest.approx([0.55])
    assert thresholds_for_precision(wanted, scores, 0.76) == pytest.approx([0.85])
    assert thresholds_for_precision(wanted, scores, 1.0) == pytest.approx([0.85])
    everything = thresholds_for_precision(wanted, scores, 0.6)
    assert everything < 0.5
    assert everything == pytest.approx([0.5])


def test_equal_scores_are_taken_together_and_what_cannot_be_reached_is_inf():
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.9]])
    targets = np.array([[1, 1, 0], [0, 1, 0]])
    found = thresholds_for_precision(targets, scores, 0.8)
    assert found[0] == np.inf  # one in two at best
    assert found[1] == pytest.approx(0.5)
    assert found[1] < 0.5
    assert np.isnan(found[2])  # no clip has the class: nothing is known
    assert not (scores > found)[:, [0, 2]].any()
    with pytest.raises(ValueError, match="precision is a share"):
        thresholds_for_precision(targets, scores, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(arrays(np.int8, n, elements=st.integers(0, 1)), arrays(np.int8, n))),
    st.sampled_from([0.1, 0.5, 2 / 3, 0.9, 1.0]),
)
def test_a_threshold_reaches_its_precision_with_the_greatest_recall(case, precision):
    targets, scores = case
    (threshold,) = thresholds_for_precision(targets[:, None], scores[:, None].astype(float), precision)
    if not targets.any():
        assert np.isnan(threshold)
        return
    reached = [  # by counting, at every score there is
        t for t in np.unique(scores) if targets[scores >= t].mean() >= precision - 1e-12
    ]
    if not reached:
        assert threshold == np.inf
    else:
        assert ((scores > threshold) == (scores >= min(reached))).all()
        assert ((scores >= threshold) == (scores > threshold)).all()


def test_reliability_by_hand():
    p = np.array([0.0, 0.1, 0.25, 0.75, 0.95, 1.0])
    right = np.array([0, 1, 0, 1, 1, 1])
    found = reliability_curve(right, p, bins=4)
    assert found.counts.tolist() == [2, 1, 0, 3]
    assert found.predicted[[0, 1, 3]] == pytest.approx([0.05, 0.25, 0.9])
    assert found.observed[[0, 1, 3]] == pytest.approx([0.5, 0.0, 1.0])
    assert np.isnan(found.predicted[2])
    assert np.isnan(found.observed[2])
    assert expected_calibration_error(found) == pytest.approx((2 * 0.45 + 1 * 0.25 + 3 * 0.1) / 6)
    assert reliability_curve(right.reshape(2, 3), p.reshape(2, 3), 4).counts.tolist() == [2, 1, 0, 3]


def test_a_reliability_of_what_is_none_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability_curve(np.array([1]), np.array([1.5]))
    with pytest.raises(ValueError, match="between 0 and 1"):
        reliability_curve(np.array([1]), np.array([np.nan]))
    with pytest.raises(ValueError, match="targets are"):
        reliability_curve(np.array([1, 0]), np.array([0.5]))
    assert np.isnan(expected_calibration_error(reliability_curve(np.zeros(0), np.zeros(0))))


def test_calibration_takes_the_gap_away():
    r = np.random.default_rng(1)
    logits = r.normal(0, 8, (4000, 4))
    targets = (r.random(logits.shape) < probabilities(logits, True, 4.0)).astype(int)
    before = expected_calibration_error(reliability_curve(targets, probabilities(logits, True)))
    temperature = fit_temperature(targets, logits, True)
    after = expected_calibration_error(reliability_curve(targets, probabilities(logits, True, temperature)))
    assert after < 0.02 < 0.1 < before

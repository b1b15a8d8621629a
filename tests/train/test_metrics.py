"""Metrics against hand-computed cases, counting, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm

from whisper_at.train.metrics import (
    average_precision,
    bootstrap_interval,
    confusion,
    d_prime,
    decision_scores,
    mean_interval,
    one_hot,
    ranking_scores,
    roc_auc,
)


def column(*values: float) -> np.ndarray:
    return np.array(values, float)[:, None]


def test_average_precision_by_hand():
    # ranks of the positives: 1, 3, 4 of 5, so the precisions there are 1, 2/3, 3/4
    wanted, scores = column(1, 0, 1, 1, 0), column(9, 8, 7, 6, 5)
    assert average_precision(wanted, scores) == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])
    assert roc_auc(wanted, scores) == pytest.approx([(2 + 1 + 1) / 6])  # negatives below each positive


def test_ties_count_together_whatever_their_order():
    scores = column(1, 1, 1, 1)
    for order in ([1, 0, 0, 0], [0, 0, 0, 1]):
        wanted = column(*order)
        assert average_precision(wanted, scores) == pytest.approx([1 / 4])  # the share of positives
        assert roc_auc(wanted, scores) == pytest.approx([1 / 2])


def test_classes_that_cannot_be_scored_are_nan_and_left_out_of_means():
    targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    scores = np.array([[3.0, 1, 0], [2, 5, 2], [1, 3, 1]])
    assert average_precision(targets, scores) == pytest.approx([(1 + 2 / 3) / 2, np.nan, 1.0], nan_ok=True)
    assert roc_auc(targets, scores) == pytest.approx([1 / 2, np.nan, np.nan], nan_ok=True)
    found = ranking_scores(targets, scores)
    assert found["mAP"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["AUC"] == pytest.approx(1 / 2)
    assert found["d_prime"] == pytest.approx(0)
    nothing = ranking_scores(np.zeros((2, 2)), np.zeros((2, 2)))
    assert all(np.isnan(value) for value in nothing.values())


@settings(max_examples=100, deadline=None)
@given(
    st.integers(2, 15).flatmap(
        lambda n: st.tuples(
            arrays(np.int8, n, elements=st.integers(0, 1)), arrays(np.int8, n, elements=st.integers(-3, 3))
        )
    )
)
def test_rankings_are_what_counting_gives(case):
    wanted, scores = case
    positives, negatives = scores[wanted == 1], scores[wanted == 0]
    ap, auc = average_precision(wanted[:, None], scores[:, None]), roc_auc(wanted[:, None], scores[:, None])
    if not len(positives):
        assert np.isnan(ap)
        assert np.isnan(auc)
        return
    # Each positive adds the precision among all that score no less than it does.
    expected = np.mean([np.mean(wanted[scores >= score]) for score in positives])
    assert ap == pytest.approx([expected])
    if len(negatives):
        difference = positives[:, None].astype(int) - negatives[None, :]
        assert auc == pytest.approx([np.mean(difference > 0) + np.mean(difference == 0) / 2])
    else:
        assert np.isnan(auc)


def test_only_the_order_counts():
    r = np.random.default_rng(0)
    targets, logits = r.integers(0, 2, (50, 4)), r.normal(0, 3, (50, 4))
    squashed = 1 / (1 + np.exp(-logits))
    assert average_precision(targets, logits) == pytest.approx(average_precision(targets, squashed))
    assert ranking_scores(targets, logits) == pytest.approx(ranking_scores(targets, 10 * logits - 5))


def test_indices_of_classes_are_targets_too():
    r = np.random.default_rng(1)
    truth, scores = r.integers(0, 3, 30), r.normal(size=(30, 3))
    assert (one_hot(truth, 3) == np.eye(3)[truth].astype(bool)).all()
    assert ranking_scores(truth, scores) == ranking_scores(np.eye(3)[truth], scores)


def test_d_prime_separates_unit_normals_by_itself():
    # Two unit normals d apart: one of each is in order with probability Φ(d / √2).
    for distance in (0.0, 0.5, 1.0, 2.474):
        assert d_prime(norm.cdf(distance / np.sqrt(2))) == pytest.approx(distance)
    assert d_prime(1.0) == np.inf
    assert d_prime(np.array([0.5, 0.9599])) == pytest.approx([0, 2.474], abs=1e-3)  # spec section 3.6, tiny


def test_d_prime_is_of_the_mean_auc_not_the_mean_of_each():
    # As Whisper-AT reports it (spec section 3.5); a class with AUC 1 would make the mean infinite.
    targets = np.array([[1, 1], [0, 1], [1, 0], [0, 0]])
    scores = np.array([[4.0, 4], [2, 3], [3, 3.5], [1, 1]])
    assert roc_auc(targets, scores) == pytest.approx([1, 3 / 4])
    assert ranking_scores(targets, scores)["d_prime"] == pytest.approx(d_prime(7 / 8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    scores = np.zeros((3, 2))
    scores[1, 0] = bad
    with pytest.raises(ValueError, match="1 clips have scores that are no numbers"):
        average_precision(np.eye(2)[[0, 1, 0]], scores)
    with pytest.raises(ValueError, match=r"targets are \(2, 2\), but scores are \(3, 2\)"):
        roc_auc(np.eye(2), np.zeros((3, 2)))


def test_decisions_by_hand():
    truth, decided = np.array([0, 0, 0, 2, 2, 2, 2, 3]), np.array([0, 0, 2, 2, 2, 2, 1, 3])
    found = decision_scores(truth, decided)
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert found["UAR"] == pytest.approx((2 / 3 + 3 / 4 + 1) / 3)  # class 1 does not occur
    assert found["F1"] == pytest.approx((2 * 2 / 5 + 2 * 3 / 8 + 1) / 3)  # 2 tp / (2 tp + fp + fn)
    table = confusion(truth, decided, 4)
    assert table.tolist() == [[2, 0, 1, 0], [0, 0, 0, 0], [0, 1, 3, 0], [0, 0, 0, 1]]
    assert np.trace(table) / table.sum() == found["accuracy"]


def test_the_interval_of_a_mean_is_students():
    # Three values 1, 2, 3: s = 1, t(0.975, 2) = 4.303
    mean, half = mean_interval(np.array([1, 2, 3]))
    assert (mean, half) == (2.0, pytest.approx(4.3027 / np.sqrt(3), rel=1e-4))
    mean, half = mean_interval(np.array([5.0]))
    assert mean == 5
    assert np.isnan(half)


def test_the_bootstrap_covers_a_share_as_the_normal_approximation_does():
    r = np.random.default_rng(2)
    truth = r.integers(0, 2, 400)
    decided = np.where(r.random(400) < 0.8, truth, 1 - truth)

    def accuracy(targets: np.ndarray, scores: np.ndarray) -> float:
        return float(np.mean(targets == scores))

    low, high = bootstrap_interval(accuracy, truth, decided, draws=2000)
    share = accuracy(truth, decided)
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert (low, high) == (pytest.approx(share - half, abs=0.006), pytest.approx(share + half, abs=0.006))
    assert bootstrap_interval(accuracy, truth, decided, draws=50) == bootstrap_interval(
        accuracy, truth, decided, draws=50
    )


def test_class_indices_out_of_range_are_refused():
    for wrong in ([0, -1], [0, 3]):
        with pytest.raises(ValueError, match="but there are 3 classes"):
            one_hot(np.array(wrong), 3)

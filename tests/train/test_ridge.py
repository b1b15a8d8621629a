"""Heads in closed form, against the normal equations and against fits that leave clips out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from whisper_at.data.clips import Clip, Dataset
from whisper_at.train.ridge import MAX_GROUPS, balanced_weights, fit_ridge, left_out_error, number_groups


def problem(rows: int = 60, inputs: int = 25, classes: int = 3):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((rows, inputs))).double()
    targets = torch.eye(classes, dtype=torch.float64)[rng.integers(0, classes, rows)]
    weights = torch.from_numpy(rng.uniform(0.3, 3, rows))
    return x, targets, weights, rng.integers(0, 6, rows)


def solve(x, targets, weights, offset, strength):
    """Solve the normal equations of weighted ridge regression."""
    left = x.T @ (weights[:, None] * x) + strength * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(left, x.T @ (weights[:, None] * (targets - offset))).T


def test_weights_are_those_of_the_normal_equations_with_and_without_each_group():
    x, targets, weights, groups = problem()
    found = fit_ridge(x, targets, groups, weights, penalties=(0.2,))
    torch.testing.assert_close(found.centre, (weights @ x) / weights.sum())
    x = x - found.centre
    strength = 0.2 * (x * x).sum(1).mean()
    torch.testing.assert_close(found.weight, solve(x, targets, weights, found.offset, strength))
    errors = 0.0
    for group, weight in enumerate(found.weights_without):
        kept = groups != group
        expected = solve(x[kept], targets[kept], weights[kept], found.offset, strength)
        torch.testing.assert_close(weight, expected)
        wrong = (x[~kept] @ expected.T + found.offset).argmax(1) != targets[~kept].argmax(1)
        errors += float(weights[~kept] @ wrong.double())
    assert found.errors[0.2] == pytest.approx(errors / float(weights.sum()))


def test_without_one_class_a_row_the_error_is_squared():
    targets = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    predicted = torch.tensor([[0.5, 1.0], [0.0, 3.0]])
    assert left_out_error(predicted, targets, torch.tensor([1.0, 3.0])) == pytest.approx((0.25 + 3 * 4) / 4)


def test_the_penalty_is_that_of_the_least_error_on_what_was_left_out():
    x, targets, weights, groups = problem()
    found = fit_ridge(x, targets, groups, weights, penalties=(1e-3, 0.3, 30.0))
    assert found.errors[found.penalty] == min(found.errors.values())
    assert len(found.errors) == 3
    alone = fit_ridge(x, targets, groups, weights, penalties=(found.penalty,))
    torch.testing.assert_close(alone.weight, found.weight)
    with pytest.raises(ValueError, match="at least two groups"):
        fit_ridge(x, targets, np.zeros(len(x), int), weights)


def test_a_frequent_class_that_counts_no_more_than_others_is_still_found():
    """Its rows lie near the mean of all rows, which must not be where every class is as likely."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 20, 200])
    x = torch.from_numpy(rng.standard_normal((240, 2000)) + 0.5 * rng.standard_normal((3, 2000))[labels])
    targets = torch.eye(3, dtype=torch.float64)[labels]
    groups = rng.integers(0, 10, 240)
    weights = torch.from_numpy(balanced_weights(targets.numpy())).double()
    found = fit_ridge(x, targets, groups, weights)
    scores = torch.stack([found.offset + found.weights_without[g] @ (row - found.centre) for g, row in zip(groups, x)])
    assert (scores.argmax(1).numpy() == labels).all()


def test_float32_is_near_float64():
    x, targets, weights, groups = problem(400, 1000)
    exact = fit_ridge(x, targets, groups, weights, penalties=(0.01,))
    found = fit_ridge(x.float(), targets.float(), groups, weights.float(), penalties=(0.01,))
    assert (found.weights_without - exact.weights_without).norm() < 1e-4 * exact.weights_without.norm()


def test_classes_count_alike_and_no_row_counts_more_than_ten():
    targets = np.zeros((110, 2), np.float32)
    targets[:80, 0] = targets[80:100, 1] = 1  # ten rows have neither
    weights = balanced_weights(targets)
    assert weights.mean() == pytest.approx(1)
    sums = [weights[:80].sum(), weights[80:100].sum(), weights[100:].sum()]
    assert sums == pytest.approx([110 / 3] * 3, rel=1e-5)
    rare = balanced_weights(np.eye(2, dtype=np.float32)[[0] * 999 + [1]])
    assert rare.max() == rare[-1] == 10


def test_groups_are_the_folds_or_parts_with_as_many_clips_of_each_class_and_whole_recordings():
    clips = [Clip(Path(f"{i}.wav"), (f"class {i % 4}",), group=f"take {i // 8}-{i % 4}") for i in range(400)]
    dataset = Dataset(tuple(clips), tuple(f"class {i}" for i in range(4)))
    numbers = number_groups(dataset, np.arange(400), 0)
    assert set(numbers) == set(range(MAX_GROUPS))
    for group in {clip.group for clip in clips}:
        assert len({numbers[i] for i, clip in enumerate(clips) if clip.group == group}) == 1
    counts = np.array([np.bincount(numbers[i::4], minlength=MAX_GROUPS) for i in range(4)])
    assert counts.max() - counts.min() <= 4
    folds = tuple(Clip(clip.path, clip.labels, fold=str(i % 3)) for i, clip in enumerate(clips))
    assert number_groups(Dataset(folds, dataset.classes), np.array([3, 1, 2]), 0).tolist() == [0, 1, 2]

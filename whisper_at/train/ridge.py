"""Ridge regression of class labels on statistics in closed form, with scores of clips that were left out.

Regularised least-squares classification (Rifkin, Yeo & Poggio, "Regularized least-squares classification", 2003): one
linear map to the targets, found by one factorisation of the matrix of inner products. Left-out predictions, and the
weights without a group of rows, follow from its inverse by block elimination; nothing is fitted twice. With thousands
of statistics and tens of clips per class that is as accurate as gradient descent and takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..data.clips import Dataset
from ..features.store import Features
from ..tagging.heads import StatisticsHead

MAX_ROWS = 12_288
"""Rows beyond which the matrix of inner products is too large for a laptop (0.6 GB at this number)."""
MAX_NUMBERS = 2**29
"""Most statistics of all rows together (2 GB)."""
MAX_GROUPS = 10
"""Most parts that are left out in turn, where the data have no folds."""
BATCH = 64
"""Rows that are read at once."""
PENALTIES = (0.03, 0.1, 0.3, 1.0)
"""Penalties that are tried, relative to the mean squared length of the rows."""


@dataclass(frozen=True)
class RidgeFit:
    """A linear map, and what its penalty and the maps without each group predict.

    Attributes
    ----------
    weight : Tensor, shape (classes, inputs)
        The map that was fitted to all rows.
    weights_without : Tensor, shape (groups, classes, inputs)
        The maps that were fitted to the rows of all groups but one.
    offset : Tensor, shape (classes,)
        Weighted mean of the targets.
    centre : Tensor, shape (inputs,)
        Weighted mean of the rows; a map predicts ``offset + weight @ (x - centre)``.
    penalty : float
        Penalty with the least error on groups that were left out.
    errors : dict of float to float
        Error on groups that were left out, by penalty, see `left_out_error`.
    """

    weight: Tensor
    weights_without: Tensor
    offset: Tensor
    centre: Tensor
    penalty: float
    errors: dict[float, float]


def balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Return weights by which every class counts alike in single-label data, float32 of shape (rows,).

    The weight of a row is the mean, over its classes, of one over the number of rows of the class; rows without a class
    are one class more. The mean is 1 but for rows that would weigh more than 10, and weigh that.
    """
    targets = np.column_stack([targets, targets.sum(1) == 0]).astype(np.float64)
    inverse = targets @ (1 / np.maximum(targets.sum(0), 1)) / targets.sum(1)
    return np.minimum(inverse / inverse.mean(), 10.0).astype(np.float32)


def left_out_error(predicted: Tensor, targets: Tensor, weights: Tensor) -> float:
    """Return the weighted share of rows whose highest score is wrong or, unless each has one class, the squared error.

    Parameters
    ----------
    predicted, targets : Tensor, shape (rows, classes)
        Scores, and 0 and 1.
    weights : Tensor, shape (rows,)
        Weights of the rows.
    """
    if (targets.sum(1) == 1).all():
        errors = (predicted.argmax(1) != targets.argmax(1)).to(weights.dtype)
    else:
        errors = (predicted - targets).square().sum(1)
    return float(weights @ errors / weights.sum())


def fit_ridge(
    x: Tensor,
    targets: Tensor,
    groups: np.ndarray,
    weights: Tensor,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeFit:
    """Fit a linear map from standardised rows to targets, and without each group of rows.

    Minimises ``sum_i w_i ||t_i - x_i W||^2 + λ ||W||^2`` of centred rows and targets in its dual form: with
    ``M = X X' + λ diag(1 / w)``, the map is ``X' M^-1 T``. Without group g it is
    ``X' (a - M^-1[:, g] (M^-1[g, g])^-1 a[g])`` with ``a = M^-1 T``, by block elimination (Cawley & Talbot, "Fast exact
    leave-one-out cross-validation of sparse least-squares support vector machines", 2004, for groups of one).

    Parameters
    ----------
    x : Tensor, shape (rows, inputs)
        Floating point, columns of like scale.
    targets : Tensor, shape (rows, classes)
        0 and 1, or probabilities.
    groups : ndarray, shape (rows,)
        Int, from 0: rows that are left out together.
    weights : Tensor, shape (rows,)
        Above 0.
    penalties : sequence of float
        Candidates for λ, relative to the mean of the diagonal of ``X X'``.

    Returns
    -------
    RidgeFit
        All of the penalty with the least error of left-out predictions; of equal ones, the greatest penalty.

    Raises
    ------
    ValueError
        If there are fewer than two groups.
    """
    members = [np.flatnonzero(groups == group) for group in range(int(groups.max()) + 1)]
    if len(members) < 2:
        raise ValueError("to choose a penalty takes at least two groups of rows, of which each is left out once")
    offset = (weights @ targets) / weights.sum()
    centre = (weights @ x) / weights.sum()
    x, centred = x - centre, targets - offset
    products = x @ x.T
    scale = float(products.diagonal().mean()) or 1.0
    best: tuple[float, Tensor, list[Tensor]] | None = None
    errors: dict[float, float] = {}
    for penalty in penalties:
        matrix = products.clone()
        matrix.diagonal().add_(penalty * scale / weights)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        del matrix
        dual = inverse @ centred
        missing = [torch.linalg.solve(inverse[rows][:, rows], dual[rows]) for rows in members]  # target - prediction
        predicted = torch.empty_like(targets)
        for rows, error in zip(members, missing):
            predicted[rows] = targets[rows] - error
        errors[penalty] = left_out_error(predicted, targets, weights)
        if errors[penalty] == min(errors.values()):
            best = penalty, dual, [dual - inverse[:, rows] @ error for rows, error in zip(members, missing)]
    assert best is not None
    penalty, dual, duals_without = best
    without = torch.stack([x.T @ part for part in duals_without]).mT
    return RidgeFit((x.T @ dual).T, without, offset, centre, penalty, errors)


@dataclass(frozen=True)
class Rows:
    """Rows of clips to fit to: views in a store, first steps, lengths, and positions of the clips, each (rows,)."""

    views: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    positions: np.ndarray

    def batches(self, features: Features) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield numbers of rows of one length, and their pooled states."""
        for steps in np.unique(self.steps):
            members = np.flatnonzero(self.steps == steps)
            for first in range(0, len(members), BATCH):
                part = members[first : first + BATCH]
                yield part, features.batch(self.views[part], int(steps), self.starts[part].tolist())


def most_rows(inputs: int) -> int:
    """Return how many rows of so many statistics can be fitted in closed form."""
    return min(MAX_ROWS, MAX_NUMBERS // inputs)


def choose_rows(
    features: Features, indices: np.ndarray, positions: np.ndarray, lengths: Sequence[int], most: int, seed: int
) -> Rows:
    """Choose rows of clips: of every view one of each length; where these are too many, one of each view.

    Parameters
    ----------
    features : Features
        Where the states are.
    indices, positions : ndarray, shape (clips,)
        Index of every clip in `features`, and its position in the data set.
    lengths : sequence of int
        Lengths of rows, in steps.
    most : int
        Number of rows that there may be.
    seed : int
        Of where the parts are cut.
    """
    rng = np.random.default_rng(seed)
    views = features.view_indices(indices)
    clips = np.tile(positions, len(views))
    views = views.ravel()
    n_steps = features.n_steps[views]
    possible = [sorted({*(length for length in lengths if length < n), min(max(lengths), n)}) for n in n_steps.tolist()]
    if sum(map(len, possible)) > most:  # one row of each view: the first whole, the others of any length
        possible = [row[-1:] if i < len(indices) else [rng.choice(row)] for i, row in enumerate(possible)]
    chosen = np.repeat(np.arange(len(views)), [len(row) for row in possible])
    steps = np.concatenate(possible).astype(int)
    starts = rng.integers(0, n_steps[chosen] - steps + 1)
    return Rows(views[chosen], starts, steps, clips[chosen])


def number_groups(dataset: Dataset, positions: np.ndarray, seed: int) -> np.ndarray:
    """Return which part of the data each clip is left out with, int of shape (clips,), from 0.

    The parts are the folds of the data, or up to ten with as many clips of every class; clips of one group are in one.
    """
    clips = [dataset.clips[i] for i in positions]
    names = sorted({clip.fold for clip in clips})
    if len(names) > 1 and "" not in names:
        return np.array([names.index(clip.fold) for clip in clips])
    groups: dict[str, str] = {}
    for clip in clips:
        groups.setdefault(clip.group or clip.key, clip.labels[0] if clip.labels else "")
    order = np.random.default_rng(seed).permutation(len(groups))
    keys = list(groups)
    ranked = sorted((keys[i] for i in order), key=lambda key: groups[key])  # stable: by class, at random within
    number = {key: i % MAX_GROUPS for i, key in enumerate(ranked)}
    return np.array([number[clip.group or clip.key] for clip in clips])


def fit_statistics_head(
    head: StatisticsHead, features: Features, rows: Rows, targets: np.ndarray, groups: np.ndarray
) -> tuple[RidgeFit, Iterator[tuple[int, StatisticsHead]]]:
    """Fit a head in closed form; return the fit, and for each group the head that was fitted without it.

    Parameters
    ----------
    head : StatisticsHead
        Gets the weights.
    features : Features
        Where the states are.
    rows : Rows
        What to fit to.
    targets : ndarray, shape (clips of the data set, classes)
        0 and 1.
    groups : ndarray, shape (clips of the data set,)
        Int, from 0: clips that are left out together.
    """
    device = next(head.parameters()).device
    head.fit_statistics(states.to(device) for _, states in rows.batches(features))
    scale = head.scale
    x = torch.empty(len(rows.views), head.inputs, device=device)
    for members, states in rows.batches(features):
        x[torch.from_numpy(members).to(device)] = scale(head.statistics(states.to(device)))
    wanted = targets[rows.positions]
    weights = torch.from_numpy(balanced_weights(wanted)).to(device)
    fitted = fit_ridge(x, torch.from_numpy(wanted).to(device), groups[rows.positions], weights)

    def set_weights(target: StatisticsHead, weight: Tensor) -> StatisticsHead:
        with torch.no_grad():
            target.linear.weight.copy_(weight)
            bias = fitted.offset - weight @ fitted.centre - 0.5  # a score halfway between no and yes is a logit of 0
            target.linear.bias.copy_(bias)
        return target

    set_weights(head, fitted.weight)
    others = copy.deepcopy(head)
    return fitted, ((g, set_weights(others, weight)) for g, weight in enumerate(fitted.weights_without))

"""Linear probes on fixed embeddings, many fitted at once: one for each layer or fusion of layers (spec section 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..train.metrics import average_precision

MAX_GROUP_BYTES = 1 << 30  # of embeddings that are fitted together


@dataclass(frozen=True)
class ProbeSettings:
    """How a probe is fitted; the published values by default.

    Attributes
    ----------
    lr, weight_decay : float
        Of Adam, whose other settings are PyTorch's.
    batch : int
        Clips in a batch.
    epochs : int
        Maximum number of epochs.
    patience : int
        Stop after this many consecutive epochs whose validation score is below the best.
    """

    lr: float = 3e-4
    weight_decay: float = 1e-8
    batch: int = 200
    epochs: int = 200
    patience: int = 20


class FittedProbe(NamedTuple):
    """A fitted probe: its best validation score, the epoch of it (from 1), and its logits for the test split.

    ``finished`` is whether its validation score had not risen for ``patience`` epochs at its end; otherwise more
    epochs might give a better probe.
    """

    valid: float
    epoch: int
    test_logits: np.ndarray
    finished: bool


class StandardScaler:
    """Mean and standard deviation of each column, accumulated batch by batch in float64.

    Every batch counts by its size, the first one as well: a running mean that divides by the count before adding to it
    forgets the first batch (defect F5). A constant column is divided by 1. Used as scikit-learn's.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def partial_fit(self, values: np.ndarray) -> StandardScaler:
        """Add rows, shape (n, width)."""
        n = len(values)
        if n:
            mean = values.mean(axis=0, dtype=np.float64)
            squares = ((values - mean) ** 2).sum(axis=0)
            shift = mean - self.mean
            total = self.count + n
            self._squares = self._squares + squares + shift**2 * (self.count * n / total)
            self.mean = self.mean + shift * (n / total)
            self.count = total
        return self

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, dividing by the number of rows."""
        variance = np.asarray(self._squares) / max(1, self.count)
        return np.where(variance > 0, np.sqrt(variance), 1.0)

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Return standardised rows, float32."""
        return ((values - self.mean) / self.std).astype(np.float32)


class SplitArrays(NamedTuple):
    """Embeddings (n, width) of one representation by split, or targets (n, classes) of 0 and 1."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def fit_probes(
    representations: list[SplitArrays],
    targets: SplitArrays,
    settings: ProbeSettings,
    seed: int,
    multi_label: bool = False,
) -> list[FittedProbe]:
    """Fit one probe to each representation: standard scaler, one linear layer, Adam, early stopping.

    Those of equal width are fitted together, each with the numbers that it would have alone. The scaler is fitted on
    the training split only (defect F6). The loss is the mean over clips and classes of ``-target * log_softmax`` or,
    with several labels per clip, of the binary cross-entropy. The validation score is accuracy or mean average
    precision; of equally good epochs, the last one counts.

    Parameters
    ----------
    representations : list of SplitArrays
        Embeddings.
    targets : SplitArrays
        Targets of the same clips.
    settings : ProbeSettings
        How to fit.
    seed : int
        Of initial weights and batches.
    multi_label : bool
        Whether a clip may have several labels.

    Raises
    ------
    ValueError
        If a split is empty.
    """
    for name, array in zip(SplitArrays._fields, targets):
        if not len(array):
            raise ValueError(f"there are no clips for {name}")
    probes: dict[int, FittedProbe] = {}
    for group in _group_by_width(representations):
        scaled = [_standardise(representations[i]) for i in group]
        train, valid, test = (torch.from_numpy(np.stack(split)) for split in zip(*scaled))
        probes |= dict(zip(group, _fit_group(train, valid, test, targets, settings, seed, multi_label)))
    return [probes[i] for i in range(len(representations))]


def score(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Return the accuracy, or with several labels per clip the mean average precision over the classes that occur."""
    if multi_label:
        return float(np.nanmean(average_precision(targets, logits)))
    return float((logits.argmax(1) == targets.argmax(1)).mean())


def _group_by_width(representations: list[SplitArrays]) -> Iterable[list[int]]:
    """Yield indices of representations that are fitted together."""
    by_width: dict[int, list[int]] = {}
    for i, arrays in enumerate(representations):
        by_width.setdefault(arrays.train.shape[1], []).append(i)
    for members in by_width.values():
        size = sum(split.nbytes for split in representations[members[0]])
        group_size = max(1, MAX_GROUP_BYTES // max(1, size))
        yield from (members[i : i + group_size] for i in range(0, len(members), group_size))


def _standardise(arrays: SplitArrays) -> SplitArrays:
    scaler = StandardScaler()
    for first in range(0, len(arrays.train), 4096):
        scaler.partial_fit(arrays.train[first : first + 4096])
    return SplitArrays(*map(scaler.transform, arrays))


def _fit_group(
    train: Tensor,
    valid: Tensor,
    test: Tensor,
    targets: SplitArrays,
    settings: ProbeSettings,
    seed: int,
    multi_label: bool,
) -> list[FittedProbe]:
    """Fit probes to standardised embeddings ``train``, ``valid`` and ``test``, shape (probes, n, width)."""
    count, n, width = train.shape
    train_targets = torch.from_numpy(targets.train)
    classes = train_targets.shape[1]
    generator = torch.Generator().manual_seed(seed)
    bound = width**-0.5  # as nn.Linear is initialised
    weight = (torch.rand(width, classes, generator=generator) * 2 - 1) * bound
    bias = (torch.rand(1, classes, generator=generator) * 2 - 1) * bound
    parameters = [p.expand(count, -1, -1).clone().requires_grad_() for p in (weight, bias)]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)

    best = [p.detach().clone() for p in parameters]
    best_scores, best_epochs = np.full(count, -np.inf), np.zeros(count, int)
    epochs_since_best, last_rise = np.zeros(count, int), np.zeros(count, int)
    for epoch in range(1, settings.epochs + 1):
        for batch in torch.randperm(n, generator=generator).split(min(settings.batch, n)):
            logits = torch.baddbmm(parameters[1], train[:, batch], parameters[0])
            labels = train_targets[batch].expand(count, -1, -1)
            # a sum over the probes of each one's mean, so that their gradients are independent
            if multi_label:
                loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            else:
                loss = -(labels * logits.log_softmax(-1)).sum()
            optimizer.zero_grad(set_to_none=True)
            (loss / (len(batch) * classes)).backward()
            optimizer.step()
        running = epochs_since_best < settings.patience
        scores = _valid_scores(valid, parameters, targets.valid, multi_label)
        better = running & (scores >= best_scores)
        last_rise = np.where(running & (scores > best_scores), epoch, last_rise)
        best_scores, best_epochs = np.where(better, scores, best_scores), np.where(better, epoch, best_epochs)
        epochs_since_best = np.where(better, 0, epochs_since_best + running)
        for kept, parameter in zip(best, parameters):
            kept[torch.from_numpy(better)] = parameter.detach()[torch.from_numpy(better)]
        if (epochs_since_best >= settings.patience).all():
            break
    test_logits = torch.baddbmm(best[1], test, best[0]).numpy()
    finished = (epochs_since_best >= settings.patience) | (settings.epochs - last_rise >= settings.patience)
    return [
        FittedProbe(*probe) for probe in zip(best_scores.tolist(), best_epochs.tolist(), test_logits, finished.tolist())
    ]


@torch.no_grad()
def _valid_scores(x: Tensor, parameters: list[Tensor], targets: np.ndarray, multi_label: bool) -> np.ndarray:
    logits = torch.baddbmm(parameters[1], x, parameters[0])
    if multi_label:
        return np.array([score(probe, targets, True) for probe in logits.numpy()])
    return (logits.argmax(-1).numpy() == targets.argmax(1)).mean(1)

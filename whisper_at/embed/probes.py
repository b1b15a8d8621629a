"""Linear classifiers on fixed embeddings, many at once: one for each layer or fusion of layers (spec section 4.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..train.metrics import average_precision

GROUP_BYTES = 1 << 30  # of embeddings that are fitted together


@dataclass(frozen=True)
class ProbeSettings:
    """How a classifier is fitted; the published values by default.

    lr, weight_decay : of Adam, whose other settings are PyTorch's
    batch, epochs : at most
    patience : stop at so many epochs in a row without a validation score at least as good as the best
    """

    lr: float = 3e-4
    weight_decay: float = 1e-8
    batch: int = 200
    epochs: int = 200
    patience: int = 20


class Fitted(NamedTuple):
    """A fitted classifier: its best validation score, the epoch of it (from 1), and its logits for the test part."""

    valid: float
    epoch: int
    test_logits: np.ndarray


class Scaler:
    """Mean and standard deviation of each column, gathered batch by batch, in float64.

    Each batch counts by its size, the first one, too: a running mean that divides by the count before adding to it
    forgets the first batch (defect F5). A column that never changes is divided by 1.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0

    def update(self, values: np.ndarray) -> Scaler:
        """Add rows ``(n, width)``."""
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

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Standardised float32 rows."""
        return ((values - self.mean) / self.std).astype(np.float32)


class Parts(NamedTuple):
    """Embeddings ``(n, width)`` of one representation by part, or targets ``(n, classes)`` of 0 and 1."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def fit_probes(
    representations: list[Parts], targets: Parts, settings: ProbeSettings, seed: int, multi_label: bool = False
) -> list[Fitted]:
    """Fit one classifier to each representation: standard scaler, one linear map, Adam, early stopping.

    Those of equal width are fitted together, each with the numbers that it would have alone. The scaler sees the
    training part and nothing else (defect F6). The loss is the mean over clips and classes of
    ``-target * log_softmax`` or, with several labels a clip, of the binary cross-entropy; the validation score is
    accuracy or mean average precision, and the last of equally good epochs is kept.

    Raises
    ------
    ValueError
        If a part is empty.
    """
    for name, part in zip(Parts._fields, targets):
        if not len(part):
            raise ValueError(f"there are no clips for {name}")
    fitted: dict[int, Fitted] = {}
    for group in _groups(representations):
        scaled = [_scaled(representations[i]) for i in group]
        train, valid, test = (torch.from_numpy(np.stack(part)) for part in zip(*scaled))
        found = _fit(train, valid, test, targets, settings, seed, multi_label)
        fitted |= dict(zip(group, found))
    return [fitted[i] for i in range(len(representations))]


def score(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """Accuracy, or mean average precision over the classes that occur."""
    if multi_label:
        return float(np.nanmean(average_precision(targets, logits)))
    return float((logits.argmax(1) == targets.argmax(1)).mean())


def _groups(representations: list[Parts]) -> Iterable[list[int]]:
    """Indices of representations that are fitted together."""
    by_width: dict[int, list[int]] = {}
    for i, parts in enumerate(representations):
        by_width.setdefault(parts.train.shape[1], []).append(i)
    for members in by_width.values():
        size = sum(part.nbytes for part in representations[members[0]])
        each = max(1, GROUP_BYTES // max(1, size))
        yield from (members[i : i + each] for i in range(0, len(members), each))


def _scaled(parts: Parts) -> Parts:
    scaler = Scaler()
    for first in range(0, len(parts.train), 4096):
        scaler.update(parts.train[first : first + 4096])
    return Parts(*map(scaler, parts))


def _fit(
    train: Tensor, valid: Tensor, test: Tensor, targets: Parts, settings: ProbeSettings, seed: int, multi_label: bool
) -> list[Fitted]:
    """``train``, ``valid``, ``test``: standardised embeddings ``(representations, n, width)``."""
    count, n, width = train.shape
    wanted = torch.from_numpy(targets.train)
    classes = wanted.shape[1]
    draw = torch.Generator().manual_seed(seed)
    bound = width**-0.5  # where PyTorch starts a linear map
    weight = (torch.rand(width, classes, generator=draw) * 2 - 1) * bound
    bias = (torch.rand(1, classes, generator=draw) * 2 - 1) * bound
    parameters = [p.expand(count, -1, -1).clone().requires_grad_() for p in (weight, bias)]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    batch = min(settings.batch, n)

    best = [p.detach().clone() for p in parameters]
    scores, epochs, waited = np.full(count, -np.inf), np.zeros(count, int), np.zeros(count, int)
    for epoch in range(1, settings.epochs + 1):
        for chosen in torch.randperm(n, generator=draw).split(batch):
            logits = torch.baddbmm(parameters[1], train[:, chosen], parameters[0])
            labels = wanted[chosen].expand(count, -1, -1)
            # the sum over representations of each one's mean: no classifier's gradient knows of the others
            if multi_label:
                loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            else:
                loss = -(labels * logits.log_softmax(-1)).sum()
            optimizer.zero_grad(set_to_none=True)
            (loss / (len(chosen) * classes)).backward()
            optimizer.step()
        running = waited < settings.patience
        found = _scores(valid, parameters, targets.valid, multi_label)
        better = running & (found >= scores)
        scores, epochs = np.where(better, found, scores), np.where(better, epoch, epochs)
        waited = np.where(better, 0, waited + running)
        for kept, parameter in zip(best, parameters):
            kept[torch.from_numpy(better)] = parameter.detach()[torch.from_numpy(better)]
        if (waited >= settings.patience).all():
            break
    decided = torch.baddbmm(best[1], test, best[0]).numpy()
    return [Fitted(float(scores[i]), int(epochs[i]), decided[i]) for i in range(count)]


@torch.no_grad()
def _scores(x: Tensor, parameters: list[Tensor], targets: np.ndarray, multi_label: bool) -> np.ndarray:
    logits = torch.baddbmm(parameters[1], x, parameters[0])
    if multi_label:
        return np.array([score(one, targets, True) for one in logits.numpy()])
    return (logits.argmax(-1).numpy() == targets.argmax(1)).mean(1)

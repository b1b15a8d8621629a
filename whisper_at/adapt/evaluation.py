"""Evaluating a classifier of clips: logits of all clips, losses and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..train.metrics import confusion, decision_scores, ranking_scores
from .sources import BatchSource, batches_by_length

SINGLE_LABEL_SCORES = ("accuracy", "UAR", "F1")
MULTI_LABEL_SCORES = ("mAP", "AUC", "d_prime")
SCORES = (*SINGLE_LABEL_SCORES, *MULTI_LABEL_SCORES)


@dataclass(frozen=True)
class Evaluation:
    """Results of a classifier on labelled clips.

    Attributes
    ----------
    scores : dict of str to float
        `SINGLE_LABEL_SCORES` or `MULTI_LABEL_SCORES`.
    logits, targets : ndarray, shape (clips, classes)
        Float32.
    """

    scores: dict[str, float]
    logits: np.ndarray
    targets: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Number of clips of each true class (row) and predicted class (column), int ``(classes, classes)``."""
        return confusion(self.targets.argmax(1), self.logits.argmax(1), self.logits.shape[1])


def predict_logits(model: nn.Module, source: BatchSource, batch_size: int = 32, progress: bool = False) -> np.ndarray:
    """Return the logits of every clip, in order: float32 ``(clips, classes)``."""
    device = next(model.parameters()).device
    rows: dict[int, np.ndarray] = {}
    model.eval()
    batches = batches_by_length(source.lengths, batch_size)
    with torch.no_grad():
        for indices in tqdm(batches, "evaluating", disable=not progress, leave=False):
            logits = model(*(part.to(device) for part in source.batch(indices)))
            rows |= dict(zip(indices, logits.float().cpu().numpy()))
    return np.stack([rows[i] for i in range(len(rows))])


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool, weights: Tensor | None = None) -> Tensor:
    """Return the mean (binary) cross-entropy of logits ``(batch, classes)`` (W1) for targets of 0 and 1."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, weights)
    return F.cross_entropy(logits, targets.argmax(1), weights)


def classification_scores(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> dict[str, float]:
    """Return `MULTI_LABEL_SCORES` or `SINGLE_LABEL_SCORES` by name."""
    if multi_label:
        return ranking_scores(targets, logits)
    return decision_scores(targets.argmax(1), logits.argmax(1))


def check_select(select: str | None, multi_label: bool) -> None:
    """Raise ValueError if such data do not have the score that is to choose the epoch."""
    known = MULTI_LABEL_SCORES if multi_label else SINGLE_LABEL_SCORES
    if select not in (None, "-valid_loss", *known):
        which = "several labels, or none" if multi_label else "one label each"
        raise ValueError(f"select = {select!r}: these clips have {which}; take {', '.join(known)} or -valid_loss")


def check_classes(given: Sequence[str], expected: Sequence[str]) -> None:
    """Raise ValueError if the classes of some data are not those of a model."""
    if tuple(given) != tuple(expected):
        raise ValueError(f"the data have classes {_shorten(given)}, but the model has {_shorten(expected)}")


def _shorten(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" … ({len(classes)})" if len(classes) > 4 else "")

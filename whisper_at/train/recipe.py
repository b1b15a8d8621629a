"""How heads are trained on pooled states: sampling, mixup, masks, smoothed targets, losses, scores (spec section 3).

A batch is a pure function of seed, epoch and step, so that `whisper_at.train.fit` can go on where a run was stopped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tagging.timeline import WINDOW_STEPS
from .config import Settings
from .features import Features
from .metrics import decision_scores, ranking_scores

SCORED_AT_ONCE = 3000  # steps of clips that are scored in one pass of the head

_RANKINGS = ("valid_loss", "mAP", "AUC", "d_prime")
SCORES: dict[str, tuple[str, ...]] = {"bce": _RANKINGS, "ce": (*_RANKINGS, "accuracy", "UAR", "F1")}
"""What `scores_of` gives, by loss."""

Batch = tuple[Tensor, Tensor]
"""Pooled states float32 ``(batch, layers, steps, dim)`` and targets ``(batch, classes)``."""


def clip_weights(targets: np.ndarray) -> np.ndarray:
    """How often each clip is drawn in balanced sampling, float64 ``(clips,)``, not normalised.

    A class weighs ``1000 / (clips of it + 0.01)``, a clip the sum over its labels (spec section 3.2).
    """
    return targets.astype(np.float64) @ (1000.0 / (targets.sum(axis=0, dtype=np.float64) + 0.01))


def smoothed_targets(
    targets: np.ndarray, smoothing: float, partners: np.ndarray | None = None, share: np.ndarray | None = None
) -> np.ndarray:
    """Targets that a head is taught, float32 ``(batch, classes)``, by spec section 3.3.

    With C classes and smoothing ε: ε/C everywhere, and labels *set* to 1 - ε. Where a clip is mixed with another, ε/C
    everywhere *plus* λ(1 - ε) for each label of the first and (1 - λ)(1 - ε) for each of the second.

    Parameters
    ----------
    targets : ``(batch, classes)`` of 0 and 1
    partners : targets of the clips mixed in
    share : λ of each clip, ``(batch,)``; 1 for clips that are not mixed
    """
    floor = smoothing / targets.shape[1]
    plain = np.where(targets > 0, 1 - smoothing, floor)
    if partners is None or share is None:
        return plain.astype(np.float32)
    part = share[:, None]
    mixed = floor + (1 - smoothing) * (part * targets + (1 - part) * partners)
    return np.where(part < 1, mixed, plain).astype(np.float32)


def mask_span(r: np.random.Generator, below: float, size: int) -> tuple[int, int]:
    """Start and end of a masked span: a length uniform below ``below``, anywhere."""
    length = int(r.random() * min(below, size))
    start = int(r.integers(0, size - length + 1))
    return start, start + length


def batches_of_pass(clips: int, settings: Settings) -> int:
    """Batches of a pass over so many clips; the last is smaller where clips are not drawn with replacement."""
    return max(1, clips // settings.batch) if settings.balanced else -(-clips // settings.batch)


def batches_of_epoch(clips: int, settings: Settings) -> int:
    """Batches of an epoch; with ``epoch_share``, until the number of the batch exceeds that share of them all.

    Whisper-AT's 10 % of AudioSet are 4070 batches of 48 (spec section 3.5).
    """
    whole, share = batches_of_pass(clips, settings), settings.epoch_share
    return max(settings.least_steps, whole if share >= 1 else min(whole, math.floor(share * whole) + 2))


class HeadTask:
    """Training of a head on the states of clips, for `whisper_at.train.fit.fit`.

    Parameters
    ----------
    features : where the states are
    items : clips to train on, as numbers in ``features``
    targets : float32 ``(items, classes)`` of 0 and 1
    settings : how; see `Settings`
    valid : numbers and targets of the hearings that epochs are judged by, or None
    told : is called after every epoch with its number (from 1) and scores
    """

    def __init__(
        self,
        features: Features,
        items: np.ndarray,
        targets: np.ndarray,
        settings: Settings,
        valid: tuple[np.ndarray, np.ndarray] | None = None,
        told: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        if len(items) != len(targets) or not len(items):
            raise ValueError(f"{len(items)} clips to train on, and targets of {len(targets)}")
        self.features, self.items, self.targets, self.settings = features, np.asarray(items), targets, settings
        self.valid, self.told = valid, told
        self._chances = np.cumsum(clip_weights(targets)) if settings.balanced else None
        if self._chances is not None and not self._chances[-1] > 0:
            raise ValueError("balanced sampling draws clips by their labels, and no clip has any")
        self._hearings = features.hearings(self.items)
        self._n_steps = features.n_steps[self.items]  # of each hearing
        self._longest = max(min(settings.rows), int(self._n_steps.max()))  # longer rows would only repeat
        self._order: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.zeros(0, int))
        self._readers = ThreadPoolExecutor(settings.readers) if settings.readers else None
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}
        self._epoch, self._loss, self._losses = 0, 0.0, 0

    def steps(self, epoch: int) -> int:
        """Batches of an epoch, see `batches_of_epoch`."""
        return batches_of_epoch(len(self.items), self.settings)

    def batch(self, epoch: int, step: int) -> Batch:
        """Batch ``step`` of ``epoch``: always the same for these two and the seed."""
        self._epoch = epoch
        if self._readers is None:
            return self._made(epoch, step)
        for later in range(step, min(step + 1 + self.settings.readers, self.steps(epoch))):
            if (epoch, later) not in self._ahead:
                self._ahead[epoch, later] = self._readers.submit(self._made, epoch, later)
        return self._ahead.pop((epoch, step)).result()

    def _made(self, epoch: int, step: int) -> Batch:
        settings = self.settings
        r = np.random.default_rng([settings.seed, epoch, step])
        picked = self._picked(r, epoch, step)
        width = min(int(r.choice(settings.rows)), self._longest)
        states = self._cut(r, picked, width)
        partners = share = None
        if settings.mixup > 0:
            share = np.where(
                r.random(len(picked)) < settings.mixup,
                r.beta(settings.mixup_alpha, settings.mixup_alpha, len(picked)),
                1.0,
            )
            chosen = r.integers(0, len(self.items), len(picked))
            mixed = np.flatnonzero(share < 1)
            if len(mixed):
                part = torch.from_numpy(share[mixed].astype(np.float32))[:, None, None, None]
                mate = self._cut(r, chosen[mixed], width)
                states[mixed] = part * states[mixed] + (1 - part) * mate
            partners = self.targets[chosen]
        for item in states:  # (layers, steps, dim); the same span for all layers, order as in the reference
            if settings.freq_mask:
                start, end = mask_span(r, settings.freq_mask, item.shape[2])
                item[:, :, start:end] = 0
            if settings.time_mask:
                start, end = mask_span(r, min(settings.time_mask, settings.most_masked * width), width)
                item[:, start:end] = 0
        return states, torch.from_numpy(smoothed_targets(self.targets[picked], settings.smoothing, partners, share))

    def _picked(self, r: np.random.Generator, epoch: int, step: int) -> np.ndarray:
        """Which of the clips a batch is of."""
        size = self.settings.batch
        if self._chances is not None:
            drawn = r.random(size) * self._chances[-1]
            return np.minimum(np.searchsorted(self._chances, drawn, side="right"), len(self.items) - 1)
        passes, step = divmod(step, batches_of_pass(len(self.items), self.settings))
        seed, order = (epoch, passes), self._order
        if order[0] != seed:
            order = seed, np.random.default_rng([self.settings.seed, *seed]).permutation(len(self.items))
            self._order = order
        return order[1][step * size : (step + 1) * size]

    def _cut(self, r: np.random.Generator, picked: np.ndarray, width: int) -> Tensor:
        """Rows of ``width`` steps from anywhere in one of the clips' hearings; shorter ones are repeated."""
        free = self._n_steps[picked] - width
        starts = np.where(free > 0, r.integers(0, np.maximum(free, 0) + 1), 0)
        starts = np.where(free < 0, r.integers(0, self._n_steps[picked]), starts)
        ways = len(self._hearings)
        way = r.integers(0, ways, len(picked)) if ways > 1 else 0
        return self.features.batch(self._hearings[way, picked], width, starts.tolist())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean over the batch (and, for ``bce``, the classes)."""
        states, targets = batch
        loss = loss_of(model(states), targets, self.settings.loss)
        self._loss, self._losses = self._loss + loss.item(), self._losses + 1
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scores of all held-out clips; none is dropped (defect T1)."""
        train_loss = self._loss / max(1, self._losses)
        self._loss, self._losses = 0.0, 0
        scores: dict[str, float] = {}
        if self.valid is not None:
            items, targets = self.valid
            logits = score(model, self.features, items, longest=max(self.settings.rows))
            scores = scores_of(targets, logits, self.settings.loss)
        if self.told is not None:
            self.told(self._epoch + 1, {"train_loss": train_loss, **scores})
        return scores


def loss_of(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """``bce``, of every class alone, or ``ce``, of which one is right; for that, targets are made to sum to 1."""
    if loss == "bce":
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))


@torch.no_grad()
def score(model: nn.Module, features: Features, items: Sequence[int] | np.ndarray, longest: int = 25) -> np.ndarray:
    """Logits of whole hearings of clips, float32 ``(items, classes)``, computed in float32 (defect T6).

    A hearing is one row of all the steps it has. One that is longer than the rows a head was trained on (``longest``
    steps, and at least 30 s) is cut into equal rows, whose logits are averaged.
    """
    model.eval()
    items = np.asarray(items, int)
    device = next(model.parameters()).device
    rows: dict[int, list[tuple[int, int]]] = {}  # steps of a row -> (which item, start)
    limit = max(longest, WINDOW_STEPS)
    for i, n in enumerate(features.n_steps[items]):
        pieces = -(-int(n) // limit)
        edges = [int(n) * k // pieces for k in range(pieces + 1)]
        for start, end in itertools.pairwise(edges):
            rows.setdefault(end - start, []).append((i, start))
    total: np.ndarray | None = None
    for width, members in rows.items():
        size = max(1, SCORED_AT_ONCE // width)
        for first in range(0, len(members), size):
            some = members[first : first + size]
            which = np.array([i for i, _ in some])
            states = features.batch(items[which], width, [start for _, start in some])
            with torch.autocast(device.type, enabled=False):
                logits = model(states.to(device)).float().cpu().numpy()
            total = np.zeros((len(items), logits.shape[1])) if total is None else total
            np.add.at(total, which, logits * width)
    if total is None:
        raise ValueError("there are no clips to score")
    return (total / features.n_steps[items][:, None]).astype(np.float32)


def scores_of(targets: np.ndarray, logits: np.ndarray, loss: str) -> dict[str, float]:
    """``loss`` of the plain targets, and mAP, AUC, d' of ``bce`` heads; ``ce`` heads have accuracy, UAR and F1 too.

    Clips are ranked by what a class's output says: its logit, or for ``ce`` its log probability among all classes.
    """
    mean = float(loss_of(torch.from_numpy(logits), torch.from_numpy(targets), loss))
    ranked = logits if loss == "bce" else torch.from_numpy(logits).log_softmax(1).numpy()
    scores = {"valid_loss": mean, **ranking_scores(targets, ranked)}
    if loss == "ce":
        scores |= decision_scores(targets.argmax(1), logits.argmax(1))
    return scores

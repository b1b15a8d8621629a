"""How heads are trained on pooled states: sampling, mixup, masks, label smoothing, losses, scores (spec section 3).

A batch is a pure function of seed, epoch and step, so that `whisper_at.train.fit` can resume a run that was stopped.
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

from ..features.store import Features
from ..tagging.heads import Head
from ..tagging.timeline import WINDOW_STEPS
from .config import Settings
from .metrics import decision_scores, ranking_scores

MAX_STEPS_PER_PASS = 3000
"""Number of steps, of several clips, that go through the head at once when clips are scored."""

_RANKING_SCORES = ("valid_loss", "mAP", "AUC", "d_prime")
SCORES: dict[str, tuple[str, ...]] = {"bce": _RANKING_SCORES, "ce": (*_RANKING_SCORES, "accuracy", "UAR", "F1")}
"""Names of the scores that `compute_scores` gives, by loss."""

Batch = tuple[Tensor, Tensor]
"""Pooled states, float32 of shape (batch, layers, steps, dim), and targets, shape (batch, classes)."""


def sampling_weights(targets: np.ndarray) -> np.ndarray:
    """Return how often each clip is drawn in balanced sampling (spec section 3.2).

    A class has the weight ``1000 / (number of its clips + 0.01)``, a clip the sum over its labels.

    Parameters
    ----------
    targets : ndarray, shape (clips, classes)
        0 and 1, or probabilities; NaN counts as 0.

    Returns
    -------
    ndarray, shape (clips,)
        float64, not normalised.
    """
    targets = np.nan_to_num(targets.astype(np.float64))
    return targets @ (1000.0 / (targets.sum(axis=0) + 0.01))


def smooth_targets(
    targets: np.ndarray, smoothing: float, partners: np.ndarray | None = None, share: np.ndarray | None = None
) -> np.ndarray:
    """Smooth and mix targets (spec section 3.3).

    With C classes and smoothing ε, targets are ε/C everywhere, and labels are *set* to 1 - ε. If a clip is mixed with
    another, targets are ε/C everywhere *plus* λ(1 - ε) for each label of the first clip and (1 - λ)(1 - ε) for each of
    the second.

    Parameters
    ----------
    targets : ndarray, shape (batch, classes)
        0 and 1.
    smoothing : float
        ε.
    partners : ndarray, shape (batch, classes), optional
        Targets of the clips mixed in.
    share : ndarray, shape (batch,), optional
        λ of each clip; 1 for clips that are not mixed.

    Returns
    -------
    ndarray, shape (batch, classes)
        float32.
    """
    floor = smoothing / targets.shape[1]
    unmixed = np.where(targets == 1, 1 - smoothing, floor + (1 - smoothing) * targets)  # of 0, that is ε/C
    if partners is None or share is None:
        return unmixed.astype(np.float32)
    part = share[:, None]
    mixed = floor + (1 - smoothing) * (part * targets + (1 - part) * partners)
    return np.where(part < 1, mixed, unmixed).astype(np.float32)


def random_span(rng: np.random.Generator, max_length: float, size: int) -> tuple[int, int]:
    """Return start and end of a masked span within `size`: its length is uniform below `max_length`."""
    length = int(rng.random() * min(max_length, size))
    start = int(rng.integers(0, size - length + 1))
    return start, start + length


def batches_per_pass(clips: int, settings: Settings) -> int:
    """Return the number of batches in a pass over all clips; the last is smaller unless clips are drawn at random."""
    return max(1, clips // settings.batch) if settings.balanced else -(-clips // settings.batch)


def batches_per_epoch(clips: int, settings: Settings) -> int:
    """Return the number of batches in an epoch: with ``epoch_share``, until their number exceeds that share of a pass.

    Whisper-AT's 10 % of AudioSet are 4070 batches of 48 (spec section 3.5).
    """
    full, share = batches_per_pass(clips, settings), settings.epoch_share
    return max(settings.least_steps, full if share >= 1 else min(full, math.floor(share * full) + 2))


class HeadTask:
    """Training of a head on pooled states, a `whisper_at.train.fit.Task`.

    Parameters
    ----------
    features : Features
        Where the states are.
    clips : ndarray, shape (n,)
        Indices in `features` of the clips to train on.
    targets : ndarray, shape (n, classes)
        float32, 0 and 1, or probabilities; NaN for classes that are not known.
    settings : Settings
        How to train.
    valid : (ndarray of shape (m,), ndarray of shape (m, classes)), optional
        Held-out views (indices in `features`) and their targets, by which epochs are judged.
    on_epoch_end : callable, optional
        Takes the epoch (from 1) and its scores.
    """

    def __init__(
        self,
        features: Features,
        clips: np.ndarray,
        targets: np.ndarray,
        settings: Settings,
        valid: tuple[np.ndarray, np.ndarray] | None = None,
        on_epoch_end: Callable[[int, Mapping[str, float]], object] | None = None,
    ) -> None:
        if len(clips) != len(targets) or not len(clips):
            raise ValueError(f"{len(clips)} clips to train on, and targets of {len(targets)}")
        self.features, self.clips, self.targets, self.settings = features, np.asarray(clips), targets, settings
        self.valid, self.on_epoch_end = valid, on_epoch_end
        self._cumulative_weights = np.cumsum(sampling_weights(targets)) if settings.balanced else None
        if self._cumulative_weights is not None and not self._cumulative_weights[-1] > 0:
            raise ValueError("balanced sampling draws clips by their labels, and no clip has any")
        self._views = features.view_indices(self.clips)
        self._n_steps = features.n_steps[self.clips]  # of each view
        self._max_width = max(min(settings.rows), int(self._n_steps.max()))  # longer rows would only repeat
        self._permutation: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.zeros(0, int))
        self._executor = ThreadPoolExecutor(settings.readers) if settings.readers else None
        self._prefetched: dict[tuple[int, int], Future[Batch]] = {}
        self._epoch, self._loss_sum, self._loss_count = 0, 0.0, 0

    def steps(self, epoch: int) -> int:
        """Return the number of batches in an epoch, see `batches_per_epoch`."""
        return batches_per_epoch(len(self.clips), self.settings)

    def batch(self, epoch: int, step: int) -> Batch:
        """Return a batch; it depends only on the seed, the epoch and the step."""
        self._epoch = epoch
        if self._executor is None:
            return self._make_batch(epoch, step)
        for later in range(step, min(step + 1 + self.settings.readers, self.steps(epoch))):
            if (epoch, later) not in self._prefetched:
                self._prefetched[epoch, later] = self._executor.submit(self._make_batch, epoch, later)
        return self._prefetched.pop((epoch, step)).result()

    def _make_batch(self, epoch: int, step: int) -> Batch:
        settings = self.settings
        rng = np.random.default_rng([settings.seed, epoch, step])
        chosen = self._sample(rng, epoch, step)
        width = min(int(rng.choice(settings.rows)), self._max_width)
        states = self._crop(rng, chosen, width)
        partner_targets = share = None
        if settings.mixup > 0:
            share = np.where(
                rng.random(len(chosen)) < settings.mixup,
                rng.beta(settings.mixup_alpha, settings.mixup_alpha, len(chosen)),
                1.0,
            )
            partners = rng.integers(0, len(self.clips), len(chosen))
            mixed = np.flatnonzero(share < 1)
            if len(mixed):
                part = torch.from_numpy(share[mixed].astype(np.float32))[:, None, None, None]
                states[mixed] = part * states[mixed] + (1 - part) * self._crop(rng, partners[mixed], width)
            partner_targets = self.targets[partners]
        for item in states:  # (layers, steps, dim); all layers have the same mask, in the order of the reference
            if settings.freq_mask:
                start, end = random_span(rng, settings.freq_mask, item.shape[2])
                item[:, :, start:end] = 0
            if settings.time_mask:
                start, end = random_span(rng, min(settings.time_mask, settings.most_masked * width), width)
                item[:, start:end] = 0
        targets = smooth_targets(self.targets[chosen], settings.smoothing, partner_targets, share)
        return states, torch.from_numpy(targets)

    def _sample(self, rng: np.random.Generator, epoch: int, step: int) -> np.ndarray:
        """Return the positions in `clips` of the members of a batch."""
        size = self.settings.batch
        if self._cumulative_weights is not None:
            drawn = rng.random(size) * self._cumulative_weights[-1]
            return np.minimum(np.searchsorted(self._cumulative_weights, drawn, side="right"), len(self.clips) - 1)
        passes, step = divmod(step, batches_per_pass(len(self.clips), self.settings))
        key, order = self._permutation
        if key != (epoch, passes):
            key = epoch, passes
            order = np.random.default_rng([self.settings.seed, *key]).permutation(len(self.clips))
            self._permutation = key, order
        return order[step * size : (step + 1) * size]

    def _crop(self, rng: np.random.Generator, chosen: np.ndarray, width: int) -> Tensor:
        """Cut rows of `width` steps from anywhere in any view of the chosen clips; shorter views are repeated."""
        free = self._n_steps[chosen] - width
        starts = np.where(free > 0, rng.integers(0, np.maximum(free, 0) + 1), 0)
        starts = np.where(free < 0, rng.integers(0, self._n_steps[chosen]), starts)
        num_views = len(self._views)
        view = rng.integers(0, num_views, len(chosen)) if num_views > 1 else 0
        return self.features.batch(self._views[view, chosen], width, starts.tolist())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss over the batch and, for ``bce``, the classes."""
        states, targets = batch
        loss = head_loss(model(states), targets, self.settings.loss)
        self._loss_sum, self._loss_count = self._loss_sum + loss.item(), self._loss_count + 1
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the scores of all held-out clips; none is dropped (defect T1)."""
        train_loss = self._loss_sum / max(1, self._loss_count)
        self._loss_sum, self._loss_count = 0.0, 0
        scores: dict[str, float] = {}
        if self.valid is not None:
            views, targets = self.valid
            logits = compute_logits(model, self.features, views, max_steps=max(self.settings.rows))
            scores = compute_scores(targets, logits, self.settings.loss)
        if self.on_epoch_end is not None:
            self.on_epoch_end(self._epoch + 1, {"train_loss": train_loss, **scores})
        return scores


def head_loss(logits: Tensor, targets: Tensor, loss: str) -> Tensor:
    """Return binary (``bce``) or categorical (``ce``) cross-entropy; for ``ce``, targets are normalised to sum to 1.

    Of ``bce``, classes of a clip whose target is NaN do not count.
    """
    if loss == "bce":
        known = ~targets.isnan()
        if not known.all():
            return F.binary_cross_entropy_with_logits(logits[known], targets[known])
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))


@torch.no_grad()
def compute_logits(
    model: nn.Module, features: Features, views: Sequence[int] | np.ndarray, max_steps: int = 25
) -> np.ndarray:
    """Compute the logits of whole views of clips, in float32 (defect T6).

    A view is one row of all its steps. One that is longer than `max_steps` and 30 s is cut into equal rows, whose
    logits are averaged.

    Parameters
    ----------
    model : nn.Module
        The head.
    features : Features
        Where the states are.
    views : sequence of int
        Indices in `features`.
    max_steps : int
        Greatest length, in steps, of the rows that the head was trained on.

    Returns
    -------
    ndarray, shape (views, classes)
        float32.
    """
    model.eval()
    views = np.asarray(views, int)
    device = next(model.parameters()).device
    rows: dict[int, list[tuple[int, int]]] = {}  # length -> (position in views, start)
    limit = max(max_steps, WINDOW_STEPS)
    for i, n in enumerate(features.n_steps[views]):
        pieces = -(-int(n) // limit)
        edges = [int(n) * k // pieces for k in range(pieces + 1)]
        for start, end in itertools.pairwise(edges):
            rows.setdefault(end - start, []).append((i, start))
    total: np.ndarray | None = None
    for width, members in rows.items():
        size = max(1, MAX_STEPS_PER_PASS // width)
        for first in range(0, len(members), size):
            some = members[first : first + size]
            positions = np.array([i for i, _ in some])
            states = features.batch(views[positions], width, [start for _, start in some])
            with torch.autocast(device.type, enabled=False):
                logits = model(states.to(device)).float().cpu().numpy()
            total = np.zeros((len(views), logits.shape[1])) if total is None else total
            np.add.at(total, positions, logits * width)
    if total is None:
        raise ValueError("there are no clips to score")
    return (total / features.n_steps[views][:, None]).astype(np.float32)


def compute_row_logits(model: Head, features: Features, views: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the logits of consecutive rows of clips, as a transcription has them.

    Parameters
    ----------
    model : Head
        The head.
    features : Features
        Where the states are.
    views : ndarray, shape (views,)
        Indices in `features`.
    steps : int
        Length of the rows; what is left at the end of a view is no row, unless the view has no other.

    Returns
    -------
    positions : ndarray, shape (rows,)
        Position in `views` of each row, rising.
    logits : ndarray, shape (rows, classes)
        float32.
    """
    counts = np.maximum(1, features.n_steps[views] // steps)
    positions = np.repeat(np.arange(len(views)), counts)
    starts = np.concatenate([np.arange(count) * steps for count in counts]) if len(views) else np.zeros(0, int)
    size, found = max(1, MAX_STEPS_PER_PASS // steps), []
    device = next(model.parameters()).device
    model.eval()
    for first in range(0, len(positions), size):
        part = slice(first, first + size)
        states = features.batch(views[positions[part]], steps, starts[part].tolist())
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            found.append(model(states.to(device)).float().cpu().numpy())
    return positions, np.concatenate(found) if found else np.zeros((0, model.label_dim), np.float32)


def compute_scores(targets: np.ndarray, logits: np.ndarray, loss: str) -> dict[str, float]:
    """Compute the scores named in `SCORES`, ``valid_loss`` being the loss of the unsmoothed targets.

    Clips are ranked by the logit of a class or, for ``ce``, by its log probability among all classes.
    """
    valid_loss = float(head_loss(torch.from_numpy(logits), torch.from_numpy(targets), loss))
    ranked = logits if loss == "bce" else torch.from_numpy(logits).log_softmax(1).numpy()
    known = np.isfinite(targets).all(0)
    scores = {"valid_loss": valid_loss, **ranking_scores(targets[:, known], ranked[:, known])}
    if loss == "ce":
        scores |= decision_scores(targets.argmax(1), logits.argmax(1))
    return scores

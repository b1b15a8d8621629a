"""Fitting a classifier of clips through the common loop, and measuring it.

A training part, a validation part that chooses the epoch, and nothing else: the test is never looked at here (P10).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..data.clips import Dataset
from ..data.splits import hold_out
from ..train.fit import FitOptions, FitResult, fit
from ..train.metrics import confusion, decision_scores, ranking_scores
from ..train.schedules import (
    Schedule,
    schedule_constant,
    schedule_cosine,
    schedule_linear,
    schedule_plateau,
)
from . import shared_pass
from .pooling import HeadInput, concat_inputs
from .shared_pass import HeardSource, heard
from .waveforms import Waves, first_convolution, spec_augment

if TYPE_CHECKING:
    from .classifier import AudioClassifier

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SCHEDULES = ("constant", "cosine", "linear", "plateau")
DECISIONS, RANKINGS = ("accuracy", "UAR", "F1"), ("mAP", "AUC", "d_prime")
"""Scores of clips with one label each, and of clips with several, or none."""
SCORES = (*DECISIONS, "-valid_loss", *RANKINGS)


@dataclass(frozen=True)
class Recipe:
    """How to fit.

    Attributes
    ----------
    epochs, batch_size : as they say; batches are drawn anew every epoch
    optimizer, lr, weight_decay, betas, eps : ``adamw`` (decay apart from the gradient) or ``adam`` (within it)
    schedule : ``constant``; ``cosine`` and ``linear`` down to 0 over all batches; ``plateau``: half after more than 5
        epochs without a lower validation loss, never below ``lr_min``
    warm_up_steps : batches over which the rate rises from 0 (``cosine`` and ``linear``)
    select : the validation score that chooses the epoch: ``accuracy``, ``UAR``, ``F1``, ``-valid_loss``, with several
        labels a clip ``mAP``; None keeps the last epoch
    patience : stop after so many epochs without a better one, or None
    class_weights : weigh classes by N / n_c, of the training part
    vary : white noise at 10 to 30 dB, then silence over 10 to 15 % of each training clip (PEFT-SER)
    spec_augment : widths below which a band of channels and one of frames are masked in training, or None
    drop_last : leave out an epoch's last batch if it is smaller
    precision, clip, seed : as in `whisper_at.train.fit.FitOptions`, whose ``max_grad_norm`` is ``clip``
    """

    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_min: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "cosine"
    warm_up_steps: int = 0
    select: str | None = "accuracy"
    patience: int | None = None
    class_weights: bool = False
    vary: bool = False
    spec_augment: tuple[int, int] | None = None
    drop_last: bool = False
    precision: str = "float32"
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("optimizer", tuple(OPTIMIZERS)), ("schedule", SCHEDULES), ("select", (*SCORES, None))):
            if getattr(self, name) not in known:
                said = ", ".join(str(value) for value in known)
                raise ValueError(f"{name} must be one of {said}, not {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")

    def scheduled(self, steps: int) -> Schedule:
        """The schedule, with ``steps`` batches an epoch."""
        warm_up = self.warm_up_steps / steps
        if self.schedule == "cosine":
            return schedule_cosine(self.epochs, warm_up)
        if self.schedule == "linear":
            return schedule_linear(self.epochs, warm_up)
        if self.schedule == "plateau":
            return schedule_plateau("valid_loss", floor=self.lr_min / self.lr)
        return schedule_constant


@dataclass(frozen=True)
class Evaluation:
    """How well a classifier does on clips: scores, and logits ``(clips, classes)`` with their targets."""

    scores: dict[str, float]
    logits: np.ndarray
    targets: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Clips of each true class (row) by the class decided (column), int ``(classes, classes)``."""
        return confusion(self.targets.argmax(1), self.logits.argmax(1), self.logits.shape[1])


# --- where batches come from ---------------------------------------------------------------------------------------


class Source(Protocol):
    """Clips of one part, in batches that `AudioClassifier.forward` takes."""

    lengths: list[int]

    def batch(self, indices: Sequence[int], random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The clips at ``indices``, varied if a generator is given."""


class WaveSource:
    """Batches of waveforms."""

    def __init__(self, model: AudioClassifier, dataset: Dataset, cache: Any = None, progress: bool = False) -> None:
        front = model.backbone.front
        rate = model.backbone.sample_rate
        least = round(model.seconds * rate) if model.pad and model.seconds else front.min_samples
        self.waves = Waves(dataset.clips, rate, cache, model.seconds, least, progress)
        self.lengths = [len(self.waves[i]) for i in range(len(self.waves))]
        if front.max_samples is not None and (longest := max(self.lengths, default=0)) > front.max_samples:
            name = self.waves.clips[self.lengths.index(longest)].path
            raise ValueError(
                f"{name} lasts {longest / rate:.1f} s, but {model.backbone.name} hears at most "
                f"{(front.max_samples + 1) / rate:g} s: set seconds, so that longer clips are cut"
            )

    def batch(self, indices: Sequence[int], random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        return self.waves.batch(indices, random)


class KeptSource:
    """Batches of what a head keeps of hidden states that do not change, computed once."""

    def __init__(self, kept: list[HeadInput]) -> None:
        self.kept = kept
        self.lengths = [one.values.shape[2] for one in kept]

    def batch(self, indices: Sequence[int], random: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        return concat_inputs([self.kept[int(i)] for i in indices])


def kept_states(model: AudioClassifier, source: WaveSource, batch_size: int, progress: bool = False) -> Source:
    """`KeptSource` of these clips where nothing in the encoder trains and memory suffices, else what was given."""
    if any(p.requires_grad for p in model.backbone.parameters()):
        return source
    kept: dict[int, HeadInput] = {}
    encoded = used = 0
    model.eval()
    for indices in tqdm(batches_by_length(source.lengths, batch_size), "encoding", disable=not progress, leave=False):
        with torch.no_grad():
            values, mask = model.reduce(*(part.to(model.device) for part in source.batch(indices)))
        for i, value, real in zip(indices, values.cpu(), mask.cpu()):
            n = int(real.nonzero().max()) + 1 if real.any() else 1
            kept[i] = HeadInput(value[None, :, :n].clone(), real[None, :n].clone())
            used += kept[i].values.nbytes
            encoded += source.lengths[i]
        if used / encoded * sum(source.lengths) > shared_pass.KEPT_BYTES:
            return source
    return KeptSource([kept[i] for i in range(len(source.lengths))])


def batches_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in batches of clips of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[a : a + size] for a in range(0, len(order), size)]


# --- fitting --------------------------------------------------------------------------------------------------


class ClassificationTask:
    """What `whisper_at.train.fit.fit` wants to know: batches of an epoch, their loss, and validation."""

    def __init__(
        self,
        train: Source,
        targets: np.ndarray,
        recipe: Recipe,
        valid: Source,
        valid_targets: np.ndarray,
        multi_label: bool = False,
    ):
        self.train, self.valid, self.recipe = train, valid, recipe
        self.targets, self.valid_targets = torch.from_numpy(targets), valid_targets
        self.multi_label = multi_label
        self.weights = class_weights(targets) if recipe.class_weights else None

    def steps(self, epoch: int) -> int:
        n, size = len(self.targets), self.recipe.batch_size
        return max(1, n // size) if self.recipe.drop_last else math.ceil(n / size)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``step``-th part of the epoch's order: always the same for the same epoch, step and seed."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.targets))
        picked = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size].tolist()
        twice = isinstance(self.train, HeardSource)  # by themselves, and in company
        random = np.random.default_rng([self.recipe.seed, epoch, step, 1]) if self.recipe.vary or twice else None
        return (*self.train.batch(picked, random), self.targets[picked * 2 if twice else picked])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Cross-entropy of logits (W1), or binary cross-entropy where clips have several labels."""
        first, second, targets = batch
        inner: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with spec_augment(inner.backbone.front, self.recipe.spec_augment):
            logits = model(first, second)
        return classification_loss(logits.float(), targets, self.multi_label, self.weights)

    def validate(self, model: nn.Module) -> dict[str, float]:
        logits = all_logits(model, self.valid, self.recipe.batch_size)
        weights = None if self.weights is None else self.weights.cpu()
        targets = torch.from_numpy(self.valid_targets)
        loss = classification_loss(torch.from_numpy(logits), targets, self.multi_label, weights)
        return {"valid_loss": float(loss), **classification_scores(logits, self.valid_targets, self.multi_label)}


def fit_classifier(
    model: AudioClassifier,
    train: Dataset,
    valid: Dataset | None,
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
    facts: dict[str, Any] | None = None,
) -> FitResult:
    """Fit a classifier in place and leave it with the weights of the epoch that validation chose.

    One that hears in windows is trained on every clip by itself and in company, and validated on all hearings; with
    `vary` or `spec_augment`, which change clips by themselves, it no longer is one.

    Parameters
    ----------
    valid : clips to choose the epoch on; a tenth of ``train`` is held out if None
    out : folder for `whisper_at.train.fit.fit` to go on from
    cache : folder of decoded audio; see `Waves`

    Raises
    ------
    ValueError
        If the data's classes are not the model's, a class has no clip to train on, ``select`` is no score of such data,
        or SpecAugment is asked of a backbone without a spectrogram; all before any work.
    RuntimeError
        If a file cannot be decoded.
    """
    if valid is None:
        kept, held = hold_out(train, seed=recipe.seed)
        train, valid = train.select(kept), train.select(held)
    for part in (train, valid):
        if part.classes != model.classes:
            raise ValueError(f"the data have classes {_some(part.classes)}, but the model has {_some(model.classes)}")
    targets = train.targets()
    if missing := [name for name, n in zip(train.classes, targets.sum(0)) if not n]:
        raise ValueError(f"class {missing[0]!r} has nothing to train on ({len(missing)} such)")
    if not len(valid):
        raise ValueError("nothing is left to validate on; give a validation part, or more clips of each class")
    multi_label = model.kind == "multi_label" or train.multi_label or valid.multi_label
    refuse_select(recipe.select, multi_label)
    if recipe.spec_augment is not None:
        first_convolution(model.backbone.front)
    sources: list[Source] = []
    varied = recipe.vary or recipe.spec_augment is not None
    waves = [WaveSource(model, part, cache, progress) for part in (train, valid)]
    valid_targets = valid.targets()
    model.windows = model.windows and not varied
    if model.windows:
        parts = [heard(model, source.waves, recipe.batch_size, progress) for source in waves]
        if parts[0] is not None and parts[1] is not None:
            hearings = parts[1].hearings
            sources = [parts[0], KeptSource([one for hearing in hearings for one in hearing])]
            valid_targets = np.tile(valid_targets, (len(hearings), 1))
    model.windows = bool(sources)
    if not sources:
        for source, as_is in zip(waves, (varied, False)):
            sources.append(source if as_is else kept_states(model, source, recipe.batch_size, progress))
    task = ClassificationTask(sources[0], targets, recipe, sources[1], valid_targets, multi_label)
    if task.weights is not None:
        task.weights = task.weights.to(model.device)
    model.kind = "multi_label" if multi_label else "single_label"
    optimizer = OPTIMIZERS[recipe.optimizer](
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    plan = FitOptions(
        recipe.epochs,
        recipe.scheduled(task.steps(0)),
        recipe.select,
        patience=recipe.patience,
        precision=recipe.precision,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
    )
    known = {"recipe": asdict(recipe), "model": model.configuration()} | (facts or {})
    return fit(model, task, optimizer, plan, out, progress, known)


def evaluate_classifier(
    model: AudioClassifier,
    dataset: Dataset,
    batch_size: int = 32,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Scores on clips, in padded batches; the result does not depend on ``batch_size`` (S8).

    ValueError if there is no clip, or the classes are not the model's.
    """
    if not len(dataset):
        raise ValueError("there are no clips to evaluate on")
    if dataset.classes != model.classes:
        raise ValueError(f"the data have classes {_some(dataset.classes)}, but the model has {_some(model.classes)}")
    logits = all_logits(model, WaveSource(model, dataset, cache, progress), batch_size, progress)
    targets = dataset.targets()
    multi_label = model.kind == "multi_label" or dataset.multi_label
    return Evaluation(classification_scores(logits, targets, multi_label), logits, targets)


def all_logits(model: nn.Module, source: Source, batch_size: int = 32, progress: bool = False) -> np.ndarray:
    """Logits float32 ``(clips, classes)`` of every clip, in order."""
    device = next(model.parameters()).device
    found: dict[int, np.ndarray] = {}
    model.eval()
    batches = batches_by_length(source.lengths, batch_size)
    with torch.no_grad():
        for indices in tqdm(batches, "evaluating", disable=not progress, leave=False):
            logits = model(*(part.to(device) for part in source.batch(indices)))
            found |= dict(zip(indices, logits.float().cpu().numpy()))
    return np.stack([found[i] for i in range(len(found))])


def classification_loss(logits: Tensor, targets: Tensor, multi_label: bool, weights: Tensor | None = None) -> Tensor:
    """Mean loss of logits ``(batch, classes)`` for targets of 0 and 1, classes weighted as in `F.cross_entropy`."""
    if multi_label:
        return F.binary_cross_entropy_with_logits(logits, targets, weights)
    return F.cross_entropy(logits, targets.argmax(1), weights)


def refuse_select(select: str | None, multi_label: bool) -> None:
    """Raise ValueError if data with one label a clip, or with several, have no such score to choose an epoch by."""
    known = RANKINGS if multi_label else DECISIONS
    if select not in (None, "-valid_loss", *known):
        which = "several labels, or none" if multi_label else "one label each"
        raise ValueError(f"select = {select!r}: these clips have {which}; take {', '.join(known)} or -valid_loss")


def classification_scores(logits: np.ndarray, targets: np.ndarray, multi_label: bool) -> dict[str, float]:
    """`DECISIONS` or, where classes are decided one by one, `RANKINGS`."""
    if multi_label:
        return ranking_scores(targets, logits)
    return decision_scores(targets.argmax(1), logits.argmax(1))


def class_weights(targets: np.ndarray) -> Tensor:
    """float32 ``(classes,)`` in proportion to N / n_c, summing to 1 (spec section 2.4)."""
    weights = len(targets) / targets.sum(0)
    return torch.from_numpy((weights / weights.sum()).astype(np.float32))


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" … ({len(classes)})" if len(classes) > 4 else "")

"""Fitting a classifier of clips by the common loop of `whisper_at.train.fit`.

There is a training part, and a validation part that chooses the epoch; the test part is never used here (P10).
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.clips import Dataset
from ..data.splits import hold_out
from ..train.fit import FitOptions, FitResult, fit
from ..train.schedules import (
    Schedule,
    schedule_constant,
    schedule_cosine,
    schedule_linear,
    schedule_plateau,
    with_warm_up,
)
from .evaluation import (
    MULTI_LABEL_SCORES,
    SINGLE_LABEL_SCORES,
    check_classes,
    check_select,
    classification_loss,
    classification_scores,
    predict_logits,
)
from .shared_pass import precompute_views
from .sources import BatchSource, StatesDataset, precompute_states
from .waveforms import WaveformDataset, spec_augment, spectrogram_conv

if TYPE_CHECKING:
    from .classifier import AudioClassifier

MIN_DELTA = 1e-3
"""Share by which the validation loss has to fall for a fit to go on."""
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
SCHEDULES = ("constant", "cosine", "linear", "plateau")


@dataclass(frozen=True)
class Recipe:
    """How to fit a classifier: by default, until the loss of the validation part stops falling.

    A fixed number of epochs suits one method and leaves another one unfinished, so that a comparison of the two says
    little. Give ``patience=None`` and a schedule with an end for a published recipe of so many epochs.

    Attributes
    ----------
    epochs : int
        Most epochs; with ``patience`` a limit that is not meant to be reached.
    batch_size : int
        Batches are drawn anew every epoch.
    optimizer : str
        ``adamw`` (decoupled weight decay) or ``adam`` (weight decay as a part of the gradient).
    lr, lr_min, weight_decay, betas, eps : float
        Settings of the optimizer; ``lr_min`` is the lower limit of ``plateau``.
    schedule : str
        ``plateau``: halved after more than 5 epochs without a lower validation loss; ``constant``; ``cosine`` and
        ``linear`` down to 0 over all ``epochs``, which takes a number of epochs that are all run.
    warm_up_steps : int
        Batches over which the rate rises from 0.
    select : str, optional
        Validation score that chooses the epoch: ``-valid_loss``, ``accuracy``, ``UAR``, ``F1``, or with several labels
        a clip ``mAP``, ``AUC``, ``d_prime``; None keeps the last epoch.
    patience : int, optional
        Stop after so many epochs in which that score has not got better, a loss by at least 0.1 %; None runs all
        ``epochs``.
    class_weights : bool
        Weight classes by N / n_c of the training part.
    augment : bool
        Add white noise at 10 to 30 dB to each training clip, then silence 10 to 15 % of it (PEFT-SER).
    spec_augment : pair of int, optional
        Limits of the widths of the bands of channels and frames that SpecAugment masks in training.
    drop_last : bool
        Leave out an epoch's last batch if it is smaller.
    precision, clip, seed
        As in `whisper_at.train.fit.FitOptions`, whose ``max_grad_norm`` is ``clip``.
    vary : bool, optional
        Deprecated name of ``augment``; None once that is set.
    """

    epochs: int = 500
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_min: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = "plateau"
    warm_up_steps: int = 0
    select: str | None = "-valid_loss"
    patience: int | None = 15
    class_weights: bool = False
    augment: bool = False
    spec_augment: tuple[int, int] | None = None
    drop_last: bool = False
    precision: str = "float32"
    clip: float | None = None
    seed: int = 0
    vary: bool | None = None

    def __post_init__(self) -> None:
        if self.vary is not None:
            warnings.warn("vary is now called augment", DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "augment", self.vary)
            object.__setattr__(self, "vary", None)
        selectable = (*SINGLE_LABEL_SCORES, "-valid_loss", *MULTI_LABEL_SCORES, None)
        for name, known in (("optimizer", tuple(OPTIMIZERS)), ("schedule", SCHEDULES), ("select", selectable)):
            if getattr(self, name) not in known:
                choices = ", ".join(str(value) for value in known)
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)!r}")

    def make_schedule(self, steps_per_epoch: int) -> Schedule:
        """Return the schedule of the learning rate."""
        warm_up = self.warm_up_steps / steps_per_epoch
        if self.schedule == "cosine":
            return schedule_cosine(self.epochs, warm_up)
        if self.schedule == "linear":
            return schedule_linear(self.epochs, warm_up)
        plateau = schedule_plateau("valid_loss", floor=self.lr_min / self.lr)
        schedule = plateau if self.schedule == "plateau" else schedule_constant
        return with_warm_up(schedule, warm_up) if warm_up else schedule


class ClassificationTask:
    """The `whisper_at.train.fit.Task` of classifying clips: batches of an epoch, their loss, and validation."""

    def __init__(
        self,
        train: BatchSource,
        targets: np.ndarray,
        recipe: Recipe,
        valid: BatchSource,
        valid_targets: np.ndarray,
        multi_label: bool = False,
        device: torch.device | str = "cpu",
    ):
        self.train, self.valid, self.recipe = train, valid, recipe
        self.targets, self.valid_targets = torch.from_numpy(targets), valid_targets
        self.multi_label = multi_label
        self.weights = class_weights(targets).to(device) if recipe.class_weights else None

    def steps(self, epoch: int) -> int:
        """Return the number of batches of an epoch."""
        n, size = len(self.targets), self.recipe.batch_size
        return max(1, n // size) if self.recipe.drop_last else math.ceil(n / size)

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, lengths or masks, and targets; always the same for the same epoch, step and seed."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.targets))
        indices = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size].tolist()
        first, second = self.train.batch(indices, np.random.default_rng([self.recipe.seed, epoch, step, 1]))
        n_views = len(first) // len(indices)
        return first, second, self.targets[indices * n_views]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the loss of a batch, with SpecAugment if the recipe wants it."""
        first, second, targets = batch
        inner: Any = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        with spec_augment(inner.backbone.front, self.recipe.spec_augment):
            logits = model(first, second)
        return classification_loss(logits.float(), targets, self.multi_label, self.weights)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return ``valid_loss`` and the scores of the validation part."""
        logits = predict_logits(model, self.valid, self.recipe.batch_size)
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
) -> FitResult:
    """Fit a classifier in place and leave it with the weights of the chosen epoch.

    See `AudioClassifier.fit`, which calls this.
    """
    if valid is None:
        kept, held_out = hold_out(train, seed=recipe.seed)
        train, valid = train.select(kept), train.select(held_out)
    multi_label = model.kind == "multi_label" or train.multi_label or valid.multi_label
    _check_data(model, train, valid)
    check_select(recipe.select, multi_label)
    if recipe.spec_augment is not None:
        spectrogram_conv(model.backbone.front)
    train_waveforms = model.load_waveforms(train.clips, cache, progress, augment=recipe.augment)
    valid_waveforms = model.load_waveforms(valid.clips, cache, progress)
    train_source, valid_source, n_views = _batch_sources(model, train_waveforms, valid_waveforms, recipe, progress)
    valid_targets = np.tile(valid.targets(), (n_views, 1))
    task = ClassificationTask(
        train_source, train.targets(), recipe, valid_source, valid_targets, multi_label, model.device
    )
    model.kind = "multi_label" if multi_label else "single_label"
    optimizer = OPTIMIZERS[recipe.optimizer](
        [p for p in model.parameters() if p.requires_grad],
        lr=recipe.lr,
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    options = FitOptions(
        recipe.epochs,
        recipe.make_schedule(task.steps(0)),
        recipe.select,
        patience=None if recipe.select is None else recipe.patience,
        min_delta=MIN_DELTA if recipe.select == "-valid_loss" else 0.0,
        precision=recipe.precision,
        max_grad_norm=recipe.clip,
        seed=recipe.seed,
    )
    known = {"recipe": recipe_settings(recipe), "model": model.configuration()}
    return fit(model, task, optimizer, options, out, progress, known)


def _check_data(model: AudioClassifier, train: Dataset, valid: Dataset) -> None:
    """Raise ValueError if the classes of the data are not the model's, or a part lacks clips."""
    for part in (train, valid):
        check_classes(part.classes, model.classes)
    if missing := [name for name, n in zip(train.classes, train.targets().sum(0)) if not n]:
        raise ValueError(f"class {missing[0]!r} has nothing to train on ({len(missing)} such)")
    if not len(valid):
        raise ValueError("nothing is left to validate on; give a validation part, or more clips of each class")


def _batch_sources(
    model: AudioClassifier, train: WaveformDataset, valid: WaveformDataset, recipe: Recipe, progress: bool
) -> tuple[BatchSource, BatchSource, int]:
    """Return sources of training and validation batches, and the views in validation.

    They are states of all that is before the first trained block, where such states fit into memory.

    Sets ``model.windows`` to whether states of windows are used, in several views. They cannot be if clips are
    augmented or do not fit into memory.
    """
    augmented = recipe.augment or recipe.spec_augment is not None
    model.eval()
    if model.windows and not augmented:
        views = precompute_views(model.backbone, model.head, train, recipe.batch_size, progress)
        if views is not None:
            valid_views = precompute_views(model.backbone, model.head, valid, recipe.batch_size, progress)
            if valid_views is not None:
                every = [states for view in valid_views.views for states in view]
                return views, StatesDataset(every), len(valid_views.views)
    model.windows = False
    if model.backbone.num_frozen_blocks is None:
        return train, valid, 1
    size, device = recipe.batch_size, model.device
    train_source = train if augmented else precompute_states(model.frozen_states, train, size, device, progress)
    return train_source, precompute_states(model.frozen_states, valid, size, device, progress), 1


def recipe_settings(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as written to files of runs, where ``augment`` still has its first name, ``vary``."""
    settings = {name: value for name, value in asdict(recipe).items() if name != "vary"}
    return {"vary" if name == "augment" else name: value for name, value in settings.items()}


def class_weights(targets: np.ndarray) -> Tensor:
    """Return float32 ``(classes,)`` in proportion to N / n_c, summing to 1 (spec section 2.4)."""
    weights = len(targets) / targets.sum(0)
    return torch.from_numpy((weights / weights.sum()).astype(np.float32))

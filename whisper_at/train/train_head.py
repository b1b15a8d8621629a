"""From labelled clips and their pooled states to a head: split, fit, select, calibrate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..data.background import background_kind
from ..data.clips import Clip, Dataset
from ..data.splits import hold_out
from ..features.files import IndexRow
from ..features.store import Features
from ..tagging.classes import ClassSet, logit
from ..tagging.heads import Head, StatisticsHead, make_head
from .background import is_background
from .config import Settings, settings_dict
from .fit import HISTORY_FILE, STATE_FILE, FitResult, fit
from .recipe import SCORES, HeadTask, compute_logits, compute_scores
from .results import REFIT_FOLDER, TrainedHead, add_scores, class_table, count_false_alarms
from .ridge import choose_rows, fit_statistics_head, most_rows, number_groups
from .thresholds import calibrate, score_left_out

REFERENCE_INPUTS = 512
"""Number of inputs of a linear map at which `Settings.rate` is the rate of a `StatisticsHead`."""


@dataclass(frozen=True)
class SplitIndices:
    """Indices of the clips to train on, to select epochs and calibrate on, and to test on; int, shape (n,) each."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split_dataset(dataset: Dataset, settings: Settings, test_fold: str | None = None) -> SplitIndices:
    """Split clips as the data say; without a validation split, hold out clips of training, never of test (T2).

    Parameters
    ----------
    dataset : Dataset
        The clips.
    settings : Settings
        Share to hold out, and seed.
    test_fold : str, optional
        Fold to test on.

    Raises
    ------
    ValueError
        If no clip has the fold `test_fold`, or none is left to train on.
    """
    split = np.array([clip.split or "train" for clip in dataset.clips])
    if test_fold is not None:
        folds = np.array([clip.fold for clip in dataset.clips])
        if test_fold not in folds:
            raise ValueError(f"no clip is of fold {test_fold!r}; there are {', '.join(sorted(set(folds.tolist())))}")
        split[folds == test_fold] = "test"
    train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
    if not len(valid) and settings.valid_share > 0 and len(train):
        kept, held_out = hold_out(dataset.select(train), settings.valid_share, settings.seed)
        train, valid = train[kept], train[held_out]
    if not len(train):
        raise ValueError("no clip is left to train on; give some the split 'train', or none a split")
    return SplitIndices(train, valid, test)


def resolve_loss(dataset: Dataset, settings: Settings) -> Settings:
    """Return settings with loss ``auto`` replaced by the one that suits the data.

    Raises
    ------
    ValueError
        If the loss is ``ce`` and a clip has not exactly one label; or ``select`` is no score of that loss.
    """
    if settings.loss == "auto":
        settings = replace(settings, loss="bce" if dataset.multi_label else "ce")
    elif settings.loss == "ce" and (odd := next((c for c in dataset.clips if len(set(c.labels)) != 1), None)):
        raise ValueError(f"loss ce needs one label per clip, but {odd.path} has {len(odd.labels)}; use bce")
    if settings.select and settings.select.removeprefix("-") not in (known := SCORES[settings.loss]):
        raise ValueError(f"select must be one of {', '.join(known)} for loss {settings.loss}, not {settings.select!r}")
    return settings


def with_supported_precision(settings: Settings, device: str | torch.device) -> Settings:
    """Return settings with float32 instead of float16 without a GPU, as only there gradients are scaled."""
    if settings.precision == "float16" and torch.device(device).type != "cuda":
        return replace(settings, precision="float32")
    return settings


def make_optimizer(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer that the settings name.

    The rate of a `StatisticsHead` is divided by the number of its inputs: a step of Adam changes every weight by about
    the rate, so the change of a logit grows with that number, which differs 30-fold between Whispers.
    """
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    b1, b2 = settings.betas
    rate = settings.rate
    if isinstance(model, StatisticsHead):
        rate *= REFERENCE_INPUTS / model.inputs
    return kind(model.parameters(), lr=rate, betas=(b1, b2), weight_decay=settings.weight_decay)


def train_head(
    dataset: Dataset,
    features: Features,
    split: SplitIndices,
    settings: Settings,
    *,
    device: str | torch.device = "cpu",
    run_dir: Path | None = None,
    progress: bool = False,
    on_epoch_end: Callable[[int, Mapping[str, float]], object] | None = None,
    targets: np.ndarray | None = None,
    background: Sequence[Clip] = (),
) -> TrainedHead:
    """Train a head on pooled states; select its weights and calibrate it on clips that it has not seen.

    By gradient descent, these are held-out clips; with ``refit``, the head is then trained anew on these clips too,
    while scores, temperature and thresholds remain those of the first training. In closed form (``ridge``), every clip
    is scored by a head that was fitted without it, unless the data have a validation split.

    Parameters
    ----------
    dataset : Dataset
        The clips and classes.
    features : Features
        The states of every clip.
    split : SplitIndices
        Which clips to train, validate and test on.
    settings : Settings
        How to train; `loss` must not be ``auto``, see `resolve_loss`.
    device : str or torch.device
        Where to compute.
    run_dir : Path, optional
        Folder for the state, from which a run that was stopped is resumed.
    progress : bool
        Whether to show a progress bar.
    on_epoch_end : callable, optional
        Takes the epoch (from 1) and its scores.
    targets : ndarray, shape (clips, classes), optional
        Probabilities to learn instead of the labels, float32; NaN for classes that are not known.
    background : sequence of Clip
        The clips of the data set that hold none of the classes that are asked for, see `whisper_at.train.background`.
        False alarms are counted on them; scores are those of the others.

    Raises
    ------
    ValueError
        If clips have no states, `run_dir` is the folder of another run, or there is no such mode.
    RuntimeError
        If the loss becomes NaN or infinite.
    """
    indices = features.find(dataset.clips)
    if (indices < 0).any():
        missing = [clip.path.name for clip, i in zip(dataset.clips, indices) if i < 0]
        raise ValueError(f"{len(missing)} clips have no states in {features.folder} ({missing[0]} …)")
    taught = targets is not None
    targets = dataset.targets() if targets is None else targets
    known = np.isfinite(targets).any(0)
    quiet = is_background(dataset, background)
    max_steps = max(settings.rows)
    task = _Training(dataset, features, indices, targets, settings, torch.device(device))
    if settings.optimizer == "ridge":
        trained = task.in_closed_form(split)
    else:
        digest = targets if taught else None
        run_config = {
            "settings": settings_dict(settings),
            "features": features.metadata.to_dict(),
            "data": _data_digest(dataset, split, [features.rows[i] for i in indices], digest),
        }
        trained = task.by_gradient(split, run_dir, run_config, progress, on_epoch_end)

    multi_label = settings.loss == "bce"
    temperature, thresholds, scores, false_alarms = 1.0, None, {}, {}
    table = class_table(dataset, split, trained.left_out)
    if trained.heads is not None:
        scored = score_left_out(trained.heads, features, indices, quiet, max_steps)
        own = ~quiet[scored.positions]
        scores = compute_scores(targets[scored.positions[own]], scored.logits[own], settings.loss)
        labels = (np.nan_to_num(targets) > 0.5).astype(np.float32)
        kinds = np.array([background_kind(dataset.clips[i]) for i in scored.row_positions], dtype=object)
        counted = kinds != "noise"  # which may sound like rain, wind and engines
        found = calibrate(
            scored,
            labels,
            known,
            multi_label,
            settings.threshold_precision,
            settings.false_alarms_per_hour,
            counted,
        )
        temperature, thresholds = found.temperature, found.thresholds
        other = np.flatnonzero(labels[quiet].any(0)) if quiet.any() and not multi_label else np.zeros(0, int)
        thresholds[other] = np.inf  # says that none of the others sounds, which is no event
        add_scores(table, labels[scored.positions[own]], found.log_odds[own], thresholds, multi_label)
        for i in other:
            table[i]["threshold"] = float("nan")
        above = found.row_log_odds[counted] >= logit(thresholds)
        false_alarms = count_false_alarms(above, kinds[counted], scored.row_positions[counted], scored.n_row_views)
    test_scores: dict[str, float] = {}
    if len(test := split.test[~quiet[split.test]]):
        views = features.view_indices(indices[test])
        logits = compute_logits(trained.head, features, views.ravel(), max_steps)
        test_scores = compute_scores(np.tile(targets[test], (len(views), 1)), logits, settings.loss)
    classes = ClassSet(
        dataset.classes,
        "multi_label" if multi_label else "single_label",
        temperature,
        None if thresholds is None else tuple(float(t) for t in thresholds),
        known=None if known.all() else tuple(np.flatnonzero(known).tolist()),
    )
    return TrainedHead(
        trained.head, classes, trained.fitted, scores, test_scores, table, trained.calibration, false_alarms
    )


class _Fitted(NamedTuple):
    """A head; the clips that were left out, and by which heads they are scored; and what a reader is told of that."""

    head: Head
    fitted: FitResult
    left_out: np.ndarray
    heads: Iterable[tuple[np.ndarray, Head]] | None
    calibration: str


@dataclass(frozen=True)
class _Training:
    """What both ways of training need."""

    dataset: Dataset
    features: Features
    indices: np.ndarray
    targets: np.ndarray
    settings: Settings
    device: torch.device

    def fresh_head(self) -> Head:
        torch.manual_seed(self.settings.seed)
        layers, dim = self.features.metadata.layers, self.features.metadata.dim
        head = make_head(self.settings.mode, n_layer=layers, rep_dim=dim, label_dim=len(self.dataset.classes))
        return head.to(self.device)

    def in_closed_form(self, split: SplitIndices) -> _Fitted:
        head = self.fresh_head()
        assert isinstance(head, StatisticsHead)
        most, lengths, seed = most_rows(head.inputs), self.settings.rows, self.settings.seed
        rows = choose_rows(self.features, self.indices[split.train], split.train, lengths, most, seed)
        groups = np.full(len(self.dataset), -1)
        groups[split.train] = number_groups(self.dataset, split.train, seed)
        fit, without = fit_statistics_head(head, self.features, rows, self.targets, groups)
        history = [{"penalty": penalty, "valid_loss": error} for penalty, error in fit.errors.items()]
        fitted = FitResult(history, list(fit.errors).index(fit.penalty) + 1)
        if len(split.valid):
            calibration = f"{len(split.valid)} held-out clips"
            return _Fitted(head, fitted, split.valid, [(split.valid, head)], calibration)
        n_groups = int(groups.max()) + 1
        calibration = f"all {len(split.train)} clips, each by a head fitted without its part, of {n_groups} parts"
        heads = ((np.flatnonzero(groups == group), other) for group, other in without)
        return _Fitted(head, fitted, split.train, heads, calibration)

    def by_gradient(
        self,
        split: SplitIndices,
        run_dir: Path | None,
        run_config: Mapping[str, Any],
        progress: bool,
        on_epoch_end: Callable[[int, Mapping[str, float]], object] | None,
    ) -> _Fitted:
        settings, features = self.settings, self.features

        def start(part: np.ndarray) -> Head:
            head = self.fresh_head()
            if isinstance(head, StatisticsHead):
                head.fit_statistics(_rows_of_all_views(features, self.indices[part], settings, self.device))
            return head

        valid = None
        if len(split.valid):
            views = features.view_indices(self.indices[split.valid])
            valid = views.ravel(), np.tile(self.targets[split.valid], (len(views), 1))
        head = start(split.train)
        train = split.train
        task = HeadTask(features, self.indices[train], self.targets[train], settings, valid, on_epoch_end)
        if run_dir is not None and not (run_dir / STATE_FILE).exists():
            (run_dir / HISTORY_FILE).unlink(missing_ok=True)  # of a run that ended
        options = settings.fit_options(valid is not None)
        fitted = fit(head, task, make_optimizer(head, settings), options, run_dir, progress, run_config)
        if valid is None:
            return _Fitted(head, fitted, split.valid, None, "")
        selected = head
        if settings.refit and not any(self.dataset.clips[i].split for i in split.valid):
            everything = np.concatenate([split.train, split.valid])
            head = start(everything)
            task = HeadTask(features, self.indices[everything], self.targets[everything], settings)
            options = replace(options, select=None, patience=None)  # to the end, where the rate is 0: nothing selects
            refit_dir = run_dir / REFIT_FOLDER if run_dir is not None else None
            fit(head, task, make_optimizer(head, settings), options, refit_dir, progress, run_config)
        return _Fitted(head, fitted, split.valid, [(split.valid, selected)], f"{len(split.valid)} held-out clips")


def _rows_of_all_views(
    features: Features, clips: np.ndarray, settings: Settings, device: str | torch.device
) -> Iterator[Tensor]:
    """Yield pooled states of clips in all their views, in rows as long as training uses at most."""
    views = features.view_indices(clips).ravel()
    for steps in np.unique(wanted := np.minimum(features.n_steps[views], max(settings.rows))):
        members = views[wanted == steps]
        for first in range(0, len(members), settings.batch):
            yield features.batch(members[first : first + settings.batch], int(steps)).to(device)


def _data_digest(
    dataset: Dataset, split: SplitIndices, rows: Sequence[IndexRow], targets: np.ndarray | None = None
) -> str:
    """Return a hash of clips, labels or targets, classes, files (by size and time) and split."""
    parts: list[Any] = [list(dataset.classes)]
    parts.append([[clip.key, sorted(clip.labels), row.size, row.mtime] for clip, row in zip(dataset.clips, rows)])
    parts += [part.tolist() for part in (split.train, split.valid)]
    if targets is not None:
        parts.append(hashlib.sha256(targets.tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

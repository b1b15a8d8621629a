"""From labelled clips and their pooled states to a head in one file: split, fit, select, calibrate, save."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoints import save_safetensors
from ..checkpoints.files import atomic_write
from ..data.clips import Dataset
from ..data.splits import hold_out
from ..features.files import FeatureMetadata, IndexRow
from ..features.store import Features
from ..tagging.classes import ClassSet
from ..tagging.heads import PREFIX, Head, StatisticsHead, make_head
from ..tagging.labels import is_audioset
from .calibration import fit_temperature, probabilities, thresholds_for_precision
from .config import Settings, settings_dict
from .fit import HISTORY_FILE, STATE_FILE, FitResult, fit
from .metrics import average_precision, one_hot
from .recipe import SCORES, HeadTask, compute_logits, compute_scores

AUDIOSET = "audioset-527"
"""What a head's file says instead of AudioSet's class names."""
REFERENCE_INPUTS = 512
"""Number of inputs of a linear map at which `Settings.rate` is the rate of a `StatisticsHead`."""
REFIT_FOLDER = "refit"
"""Folder, in that of the run, of the state of the second training, see `Settings.refit`."""


@dataclass(frozen=True)
class SplitIndices:
    """Indices of the clips to train on, to select epochs and calibrate on, and to test on; int, shape (n,) each."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclass
class TrainedHead:
    """A head and how well it does.

    Attributes
    ----------
    head : Head
        The head, with the weights that were selected.
    classes : Classes
        Names, temperature and thresholds.
    fitted : FitResult
        Scores of all epochs, and which one was selected.
    scores : dict of str to float
        Scores of the held-out clips in all their views; empty if none were held out.
    test_scores : dict of str to float
        Scores of the test clips; empty if there are none.
    table : list of dict
        A row per class: clips trained on, held-out clips, average precision, recall, threshold.
    """

    head: Head
    classes: ClassSet
    fitted: FitResult
    scores: dict[str, float]
    test_scores: dict[str, float]
    table: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        """Epoch (from 1) whose weights the head has; 0 for an average."""
        return self.fitted.epoch

    @property
    def is_audioset(self) -> bool:
        """Whether the classes are AudioSet's, of which one without a threshold that can be reached has a default."""
        return is_audioset(self.classes)


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
) -> TrainedHead:
    """Train a head on pooled states; select its weights and calibrate it on held-out clips.

    With ``refit``, the head is then trained anew on these clips too; scores, temperature and thresholds remain those of
    the first training, which did not see them.

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
    layers, dim = features.metadata.layers, features.metadata.dim

    def fresh_head(part: np.ndarray) -> Head:
        torch.manual_seed(settings.seed)
        head = make_head(settings.mode, n_layer=layers, rep_dim=dim, label_dim=len(dataset.classes)).to(device)
        if isinstance(head, StatisticsHead):
            head.fit_statistics(_rows_of_all_views(features, indices[part], settings, device))
        return head

    def all_views(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        views = features.view_indices(indices[part])
        return views.ravel(), np.tile(targets[part], (len(views), 1))

    valid = all_views(split.valid) if len(split.valid) else None
    head = fresh_head(split.train)
    task = HeadTask(features, indices[split.train], targets[split.train], settings, valid, on_epoch_end)
    run_config = {
        "settings": settings_dict(settings),
        "features": features.metadata.to_dict(),
        "data": _data_digest(dataset, split, [features.rows[i] for i in indices], targets if taught else None),
    }
    if run_dir is not None and not (run_dir / STATE_FILE).exists():
        (run_dir / HISTORY_FILE).unlink(missing_ok=True)  # of a run that ended
    options = settings.fit_options(valid is not None)
    fitted = fit(head, task, make_optimizer(head, settings), options, run_dir, progress, run_config)

    max_steps = max(settings.rows)
    multi_label = settings.loss == "bce"
    temperature, thresholds, scores, table = 1.0, None, {}, _class_table(dataset, split, dataset.targets())
    if valid is not None:
        views, wanted = valid
        logits = compute_logits(head, features, views, max_steps)
        scores = compute_scores(wanted, logits, settings.loss)
        wanted = (np.nan_to_num(wanted) > 0.5).astype(np.float32)
        temperature = fit_temperature(wanted[:, known], logits[:, known], multi_label)
        p = probabilities(logits, multi_label, temperature)
        thresholds = thresholds_for_precision(wanted, p, settings.threshold_precision)
        thresholds = np.where(np.isnan(thresholds), 0.5, thresholds)  # no held-out clip has the class
        _add_scores(table, wanted, p, thresholds, multi_label)
        if settings.refit and not any(dataset.clips[i].split for i in split.valid):
            everything = np.concatenate([split.train, split.valid])
            head = fresh_head(everything)
            task = HeadTask(features, indices[everything], targets[everything], settings)
            options = replace(options, select=None, patience=None)  # to the end, where the rate is 0: nothing selects
            refit_dir = run_dir / REFIT_FOLDER if run_dir is not None else None
            fit(head, task, make_optimizer(head, settings), options, refit_dir, progress, run_config)
    test_scores: dict[str, float] = {}
    if len(split.test):
        views, wanted = all_views(split.test)
        test_scores = compute_scores(wanted, compute_logits(head, features, views, max_steps), settings.loss)
    classes = ClassSet(
        dataset.classes,
        "multi_label" if multi_label else "single_label",
        temperature,
        None if thresholds is None else tuple(float(t) for t in thresholds),
        known=None if known.all() else tuple(np.flatnonzero(known).tolist()),
    )
    return TrainedHead(head, classes, fitted, scores, test_scores, table)


def _rows_of_all_views(
    features: Features, clips: np.ndarray, settings: Settings, device: str | torch.device
) -> Iterator[Tensor]:
    """Yield pooled states of clips in all their views, in rows as long as training uses at most."""
    views = features.view_indices(clips).ravel()
    for steps in np.unique(wanted := np.minimum(features.n_steps[views], max(settings.rows))):
        members = views[wanted == steps]
        for first in range(0, len(members), settings.batch):
            yield features.batch(members[first : first + settings.batch], int(steps)).to(device)


def save_head(
    trained: TrainedHead, path: Path, features: FeatureMetadata, settings: Settings, details: Mapping[str, Any]
) -> None:
    """Save a head as one ``.safetensors`` file that `load_model` takes.

    Parameters
    ----------
    trained : TrainedHead
        The head.
    path : Path
        The file.
    features : FeatureMetadata
        What the head was trained on.
    settings : Settings
        How it was trained.
    details : mapping
        Kept as JSON under ``training``, together with settings and scores.
    """
    metadata = trained.classes.metadata()
    if trained.is_audioset:
        metadata["classes"] = AUDIOSET
    training = {
        **details,
        "protocol": features.protocol,
        "epoch": trained.epoch,
        "held_out": _round_scores(trained.scores),
        "test": _round_scores(trained.test_scores),
        "settings": settings_dict(settings),
    }
    metadata |= {
        "mode": settings.mode,
        "n_layer": str(features.layers),
        "width": str(features.dim),
        "model": features.model,
        "encoder_sha256": features.encoder_sha256,
        "steps": json.dumps(list(settings.rows)),
        "training": json.dumps(training),
    }
    tensors = {PREFIX + name: tensor for name, tensor in trained.head.state_dict().items()}
    save_safetensors(tensors, path, metadata)


def finish_run(run_dir: Path, fitted: FitResult) -> None:
    """Write the scores of all epochs as ``history.csv``, and delete the states."""
    path = run_dir / "history.csv"
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fitted.history[0]) if fitted.history else [])
        writer.writeheader()
        writer.writerows(fitted.history)
    (run_dir / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(run_dir / REFIT_FOLDER, ignore_errors=True)


def format_table(table: list[dict[str, Any]]) -> list[str]:
    """Return the table of classes as lines of text, columns aligned."""
    if not table:
        return []
    rows = [list(table[0]), *([_format_cell(value) for value in row.values()] for row in table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


def _format_cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else "never" if np.isinf(value) else f"{value:.3f}"
    return str(value)


def _class_table(dataset: Dataset, split: SplitIndices, targets: np.ndarray) -> list[dict[str, Any]]:
    """Return a row per class with the number of clips trained on and held out."""
    trained, held_out = targets[split.train].sum(0), targets[split.valid].sum(0)
    return [
        {"class": name, "trained": int(trained[i]), "held out": int(held_out[i])}
        for i, name in enumerate(dataset.classes)
    ]


def _add_scores(
    table: list[dict[str, Any]], targets: np.ndarray, p: np.ndarray, thresholds: np.ndarray, multi_label: bool
) -> None:
    """Add average precision, threshold, and recall (by the threshold, or as the most likely class) to the table."""
    ap = average_precision(targets, p)
    decided = p >= thresholds if multi_label else one_hot(p.argmax(1), p.shape[1])
    for i, row in enumerate(table):
        wanted = targets[:, i] > 0.5
        row["AP"] = float(ap[i])
        row["recall"] = float(decided[wanted, i].mean()) if wanted.any() else float("nan")
        row["threshold"] = float(thresholds[i])


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


def _round_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()}

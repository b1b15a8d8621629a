"""From labelled clips and their states to one file: divide, fit, choose, calibrate, write."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoints import save_safetensors
from ..checkpoints.files import atomic_write
from ..data.clips import Dataset
from ..data.splits import hold_out
from ..tagging.classes import ClassSet
from ..tagging.heads import PREFIX, Head, make_head
from ..tagging.labels import audioset_labels
from .calibration import fit_temperature, probabilities, thresholds_for_precision
from .config import Settings, as_dict
from .features import About, Features, Row
from .fit import HISTORY, STATE, Fitted, fit
from .metrics import average_precision, one_hot
from .recipe import SCORES, HeadTask, score, scores_of

AUDIOSET = "audioset-527"


@dataclass(frozen=True)
class Division:
    """Numbers of the clips to train on, to choose epochs and calibrate on, and to test on once; int arrays."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


@dataclass
class Trained:
    """A head and what is known of it.

    Attributes
    ----------
    epoch : whose weights it has (from 1); 0 for an average
    scores : of the held-out clips in all their hearings, at the chosen weights; empty where none were held out
    test_scores : of the test clips; empty where there are none
    table : a row for each class: clips trained on, held-out clips, average precision, recall, threshold
    """

    head: Head
    classes: ClassSet
    fitted: Fitted
    scores: dict[str, float]
    test_scores: dict[str, float]
    table: list[dict[str, Any]]

    @property
    def epoch(self) -> int:
        return self.fitted.epoch

    @property
    def of_audioset(self) -> bool:
        """Whether its classes are AudioSet's, whose events hang on no threshold of the head's."""
        return self.classes.names == tuple(label.name for label in audioset_labels())


def divide(dataset: Dataset, settings: Settings, test_fold: str | None = None) -> Division:
    """The data's own parts; what they lack to choose epochs by is held out of training, never taken from test (T2).

    Raises
    ------
    ValueError
        If no clip has the fold ``test_fold``, or none is left to train on.
    """
    split = np.array([clip.split or "train" for clip in dataset.clips])
    if test_fold is not None:
        of = np.array([clip.fold for clip in dataset.clips])
        if test_fold not in of:
            raise ValueError(f"no clip is of fold {test_fold!r}; there are {', '.join(sorted(set(of.tolist())))}")
        split[of == test_fold] = "test"
    train, valid, test = (np.flatnonzero(split == name) for name in ("train", "valid", "test"))
    if not len(valid) and settings.valid_share > 0 and len(train):
        kept, held = hold_out(dataset.select(train), settings.valid_share, settings.seed)
        train, valid = train[kept], train[held]
    if not len(train):
        raise ValueError("no clip is left to train on; give some the split 'train', or none a split")
    return Division(train, valid, test)


def resolve_loss(dataset: Dataset, settings: Settings) -> Settings:
    """Settings with ``auto`` replaced by the loss that suits the data.

    Raises
    ------
    ValueError
        If one class is to be right of each clip (``ce``), and a clip has several or none; or ``select`` is none of the
        scores of that loss.
    """
    if settings.loss == "auto":
        settings = replace(settings, loss="bce" if dataset.multi_label else "ce")
    elif settings.loss == "ce" and (odd := next((c for c in dataset.clips if len(set(c.labels)) != 1), None)):
        raise ValueError(f"loss ce wants one label a clip, but {odd.path} has {len(odd.labels)}; use bce")
    if settings.select and settings.select.removeprefix("-") not in (known := SCORES[settings.loss]):
        raise ValueError(f"select must be one of {', '.join(known)} for loss {settings.loss}, not {settings.select!r}")
    return settings


def for_device(settings: Settings, device: str | torch.device) -> Settings:
    """Settings as they can be trained with there: float16 wants its gradients scaled, as GPUs do; else float32."""
    if settings.precision == "float16" and torch.device(device).type != "cuda":
        return replace(settings, precision="float32")
    return settings


def optimizer_of(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """The optimizer that the settings name."""
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    b1, b2 = settings.betas
    return kind(model.parameters(), lr=settings.rate, betas=(b1, b2), weight_decay=settings.weight_decay)


def train_head(
    dataset: Dataset,
    features: Features,
    division: Division,
    settings: Settings,
    *,
    device: str | torch.device = "cpu",
    run: Path | None = None,
    progress: bool = False,
    told: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Trained:
    """Train a head on the states of clips, choose its weights on held-out clips, and calibrate it there.

    Parameters
    ----------
    features : the states of every clip of ``dataset``
    settings : with a ``loss``, see `resolve_loss`
    run : folder in which the state is kept, so that a run that was stopped goes on; None for none
    told : is called after every epoch with its number and scores

    Raises
    ------
    ValueError
        If clips have no states, ``run`` is the folder of another run, or no head has the mode that is set.
    RuntimeError
        If the loss becomes NaN or infinite.
    """
    items = features.find(dataset.clips)
    if (items < 0).any():
        missing = [clip.path.name for clip, i in zip(dataset.clips, items) if i < 0]
        raise ValueError(f"{len(missing)} clips have no states in {features.folder} ({missing[0]} …)")
    targets = dataset.targets()
    about = features.about
    torch.manual_seed(settings.seed)
    head = make_head(settings.mode, n_layer=about.layers, rep_dim=about.dim, label_dim=len(dataset.classes)).to(device)

    def all_hearings(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = features.hearings(items[part])
        return numbers.ravel(), np.tile(targets[part], (len(numbers), 1))

    held = all_hearings(division.valid) if len(division.valid) else None
    task = HeadTask(features, items[division.train], targets[division.train], settings, held, told)
    facts = {
        "settings": as_dict(settings),
        "features": vars(about),
        "data": _digest(dataset, division, [features.rows[i] for i in items]),
    }
    if run is not None and not (run / STATE).exists():
        (run / HISTORY).unlink(missing_ok=True)  # of a run that ended
    fitted = fit(head, task, optimizer_of(head, settings), settings.plan(held is not None), run, progress, facts)

    longest = max(settings.rows)
    multi_label = settings.loss == "bce"
    temperature, thresholds, scores, table = 1.0, None, {}, _table(dataset, division, targets)
    if held is not None:
        logits = score(head, features, held[0], longest)
        scores = scores_of(held[1], logits, settings.loss)
        temperature = fit_temperature(held[1], logits, multi_label)
        found = probabilities(logits, multi_label, temperature)
        thresholds = thresholds_for_precision(held[1], found, settings.threshold_precision)
        thresholds = np.where(np.isnan(thresholds), 0.5, thresholds)  # no held-out clip has the class
        _add_figures(table, held[1], found, thresholds, multi_label)
    test_scores: dict[str, float] = {}
    if len(division.test):
        tested, wanted = all_hearings(division.test)
        test_scores = scores_of(wanted, score(head, features, tested, longest), settings.loss)
    classes = ClassSet(
        dataset.classes,
        "multi_label" if multi_label else "single_label",
        temperature,
        None if thresholds is None else tuple(float(t) for t in thresholds),
    )
    return Trained(head, classes, fitted, scores, test_scores, table)


def write_head(trained: Trained, path: Path, about: About, settings: Settings, facts: Mapping[str, Any]) -> None:
    """Write a head as one ``.safetensors`` that `load_model` takes, whole or not at all.

    ``facts`` are kept as JSON under ``training``, beside the settings and scores.
    """
    metadata = trained.classes.metadata()
    if trained.of_audioset:
        metadata["classes"] = AUDIOSET
    training = {
        **facts,
        "protocol": about.protocol,
        "epoch": trained.epoch,
        "held_out": _rounded(trained.scores),
        "test": _rounded(trained.test_scores),
        "settings": as_dict(settings),
    }
    metadata |= {
        "mode": settings.mode,
        "n_layer": str(about.layers),
        "width": str(about.dim),
        "model": about.model,
        "encoder_sha256": about.encoder_sha256,
        "steps": json.dumps(list(settings.rows)),
        "training": json.dumps(training),
    }
    tensors = {PREFIX + name: tensor for name, tensor in trained.head.state_dict().items()}
    save_safetensors(tensors, path, metadata)


def finish_run(run: Path, fitted: Fitted) -> None:
    """Write the scores of all epochs as ``history.csv``, and let go of what a stopped run would need."""
    with atomic_write(run / "history.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fitted.history[0]) if fitted.history else [])
        writer.writeheader()
        writer.writerows(fitted.history)
    (run / STATE).unlink(missing_ok=True)


def table_lines(table: list[dict[str, Any]]) -> list[str]:
    """The table of classes as text, columns aligned."""
    if not table:
        return []
    rows = [list(table[0]), *([_cell(value) for value in row.values()] for row in table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else "never" if np.isinf(value) else f"{value:.3f}"
    return str(value)


def _table(dataset: Dataset, division: Division, targets: np.ndarray) -> list[dict[str, Any]]:
    trained, held = targets[division.train].sum(0), targets[division.valid].sum(0)
    return [
        {"class": name, "trained": int(trained[i]), "held out": int(held[i])} for i, name in enumerate(dataset.classes)
    ]


def _add_figures(
    table: list[dict[str, Any]], targets: np.ndarray, found: np.ndarray, thresholds: np.ndarray, multi_label: bool
) -> None:
    """Average precision of each class; how much of it is found, by its threshold or as the likeliest class."""
    ap = average_precision(targets, found)
    decided = found >= thresholds if multi_label else one_hot(found.argmax(1), found.shape[1])
    for i, row in enumerate(table):
        wanted = targets[:, i] > 0.5
        row["AP"] = float(ap[i])
        row["recall"] = float(decided[wanted, i].mean()) if wanted.any() else float("nan")
        row["threshold"] = float(thresholds[i])


def _digest(dataset: Dataset, division: Division, rows: Sequence[Row]) -> str:
    """Text that differs for other clips, labels, classes, files (by their size and time) or another division."""
    parts: list[Any] = [list(dataset.classes)]
    parts.append([[clip.key, sorted(clip.labels), *row[-2:]] for clip, row in zip(dataset.clips, rows)])
    parts += [part.tolist() for part in (division.train, division.valid)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _rounded(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()}

"""What a training gives: a head with its scores, as a file and as a table."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checkpoints import save_safetensors
from ..checkpoints.files import atomic_write
from ..data.clips import Dataset
from ..features.files import FeatureMetadata
from ..tagging.classes import ClassSet, logit
from ..tagging.heads import PREFIX, Head
from ..tagging.labels import is_audioset
from ..tagging.timeline import STEP_SECONDS
from .config import Settings, settings_dict
from .fit import STATE_FILE, FitResult
from .metrics import average_precision, one_hot
from .thresholds import ROW_STEPS, count_events

if TYPE_CHECKING:
    from .train_head import SplitIndices

AUDIOSET = "audioset-527"
"""What a head's file says instead of AudioSet's class names."""
REFIT_FOLDER = "refit"
"""Folder, in that of the run, of the state of the second training, see `Settings.refit`."""


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
        Scores of all epochs (of all penalties, if it was fitted in closed form), and which one was selected.
    scores : dict of str to float
        Scores of clips that were left out, in all their views; empty if none were.
    test_scores : dict of str to float
        Scores of the test clips; empty if there are none.
    table : list of dict
        A row per class: clips trained on, left out, average precision, recall, threshold.
    calibration : str
        What temperature and thresholds were fitted on, for a reader; empty if they were not.
    false_alarms : dict of str to (float, float)
        By kind of background: events per hour by the thresholds, and the minutes that they were counted on.
    """

    head: Head
    classes: ClassSet
    fitted: FitResult
    scores: dict[str, float]
    test_scores: dict[str, float]
    table: list[dict[str, Any]]
    calibration: str = ""
    false_alarms: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Epoch (from 1) whose weights the head has; 0 for an average."""
        return self.fitted.epoch

    @property
    def is_audioset(self) -> bool:
        """Whether the classes are AudioSet's, of which one without a threshold that can be reached has a default."""
        return is_audioset(self.classes)


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
        "calibration": trained.calibration,
        "false_alarms_per_hour": {kind: round(rate, 2) for kind, (rate, _) in trained.false_alarms.items()},
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
    """Write the scores of all epochs, or penalties, as ``history.csv``, and delete the states."""
    run_dir.mkdir(exist_ok=True)
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


def class_table(dataset: Dataset, split: SplitIndices, left_out: np.ndarray) -> list[dict[str, Any]]:
    """Return a row per class with the number of clips trained on and, of those or others, left out when scored."""
    targets = dataset.targets()
    trained, scored = targets[split.train].sum(0), targets[left_out].sum(0)
    return [
        {"class": name, "trained": int(trained[i]), "held out": int(scored[i])}
        for i, name in enumerate(dataset.classes)
    ]


def add_scores(
    table: list[dict[str, Any]],
    targets: np.ndarray,
    log_odds: np.ndarray,
    thresholds: np.ndarray,
    multi_label: bool,
) -> None:
    """Add to the table: average precision, recall as the most likely class, share above the threshold, threshold."""
    ap = average_precision(targets, log_odds)
    above = log_odds >= logit(thresholds)
    likeliest = one_hot(log_odds.argmax(1), log_odds.shape[1])
    for i, row in enumerate(table):
        wanted = targets[:, i] > 0.5
        row["AP"] = float(ap[i])
        for name, decided in (("recall", above if multi_label else likeliest), ("events", above)):
            row[name] = float(decided[wanted, i].mean()) if wanted.any() else float("nan")
        row["threshold"] = float(thresholds[i])


def count_false_alarms(
    above: np.ndarray, kinds: np.ndarray, positions: np.ndarray, n_views: int
) -> dict[str, tuple[float, float]]:
    """Return events per hour of background, and how many minutes of it there are, by kind of background.

    Parameters
    ----------
    above : ndarray, shape (rows, classes)
        Bool: classes above their threshold in rows of background of 2 s.
    kinds, positions : ndarray, shape (rows,)
        Kind of background, and position in the data set of the clip, of each row.
    n_views : int
        How often each clip is there.
    """
    found = {}
    for kind in dict.fromkeys(kinds.tolist()):
        rows = kinds == kind
        minutes = float(rows.sum() * ROW_STEPS * STEP_SECONDS / 60)
        found[kind] = 60 / minutes * count_events(above[rows], positions[rows]), minutes / n_views
    return found


def _round_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: round(value, 4) if np.isfinite(value) else None for name, value in scores.items()}

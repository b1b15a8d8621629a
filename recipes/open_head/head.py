"""Training of a head on the states of scenes, its calibration, and the file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whisper_at.checkpoints import encoder_sha256, save_safetensors
from whisper_at.model import WhisperAT
from whisper_at.tagging.heads import PREFIX, Head, make_head
from whisper_at.tagging.labels import N_CLASSES
from whisper_at.train.calibration import fit_temperature, probabilities, thresholds_for_precision
from whisper_at.train.fit import FitOptions, fit
from whisper_at.train.metrics import average_precision
from whisper_at.train.results import AUDIOSET
from whisper_at.train.schedules import schedule_cosine

from .states import States

FALSE_ALARMS = 0.02
"""Share of the held-out rows without a class that its threshold lets pass at most."""


@dataclass(frozen=True)
class Settings:
    """How a head is trained.

    Attributes
    ----------
    mode : str
        Architecture, see `whisper_at.tagging.heads`.
    epochs, steps, batch : int
        Number of epochs, batches in each, and rows in a batch.
    rate, weight_decay : float
        Of AdamW; the rate rises over the first epoch and falls along a cosine.
    mixup : float
        Share of rows that are mixed with another one.
    time_mask : float
        Largest share of the steps of a row that is left out.
    rows : tuple of int
        Lengths of rows in steps of 0.4 s; each batch has one of them.
    precision : float
        Precision on held-out rows that the threshold of each class reaches.
    seed : int
        Of all that is random.
    """

    mode: str = "tl_down_tr_256_1_8"
    epochs: int = 15
    steps: int = 100
    batch: int = 32
    rate: float = 1e-3
    weight_decay: float = 0.02
    mixup: float = 0.2
    time_mask: float = 0.2
    rows: tuple[int, ...] = (3, 5, 8, 13, 13, 25)
    precision: float = 0.6
    seed: int = 0


class SceneTask:
    """Training on random rows of scenes, a `whisper_at.train.fit.Task`."""

    def __init__(self, states: States, valid: States, settings: Settings) -> None:
        self.states, self.settings = states, settings
        self.valid = [*fixed_rows(valid, 13), *fixed_rows(valid, 25)]

    def steps(self, epoch: int) -> int:
        """Return the number of batches in an epoch."""
        return self.settings.steps

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Return states ``(batch, layers, steps, dim)`` and targets ``(batch, classes)``."""
        settings = self.settings
        rng = np.random.default_rng((settings.seed, epoch, step))
        length = int(rng.choice(settings.rows))
        rows = [random_row(self.states, int(i), length, rng) for i in rng.integers(0, len(self.states), settings.batch)]
        states = torch.from_numpy(np.stack([row for row, _ in rows]).astype(np.float32))
        targets = torch.from_numpy(np.stack([wanted for _, wanted in rows]))
        if length > 4:  # heads do not depend on how many steps there are
            kept = length - int(rng.random() * settings.time_mask * length)
            states = states[:, :, np.sort(rng.permutation(length)[:kept])]
        mixed = torch.from_numpy(rng.random(settings.batch) < settings.mixup)
        share = torch.from_numpy(rng.beta(8, 8, settings.batch).astype(np.float32))
        share = torch.where(mixed, share, torch.ones(()))[:, None]
        partner = torch.from_numpy(rng.permutation(settings.batch))
        states = share[..., None, None] * states + (1 - share[..., None, None]) * states[partner]
        targets = share * targets + (1 - share) * targets[partner]
        return states, targets

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the cross-entropy, summed over classes."""
        states, targets = batch
        return F.binary_cross_entropy_with_logits(model(states), targets, reduction="none").sum(1).mean()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return ``mAP`` over the classes that occur in held-out scenes."""
        logits, targets = classify_rows(model, self.valid)
        wanted = targets > 0.7
        enough = wanted.sum(0) >= 3
        ap = average_precision(wanted[:, enough], logits[:, enough])
        loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(targets), reduction="none")
        return {"mAP": float(np.nanmean(ap)), "valid_loss": float(loss.sum(1).mean())}


def random_row(states: States, i: int, length: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a row of a recording and its targets, 0 to 1; one that is too short is continued from its beginning."""
    n = states.steps(i)
    if n >= length:
        row, wanted = states.row(i, int(rng.integers(0, n - length + 1)), length)
    else:
        row, wanted = states.row(i, 0, n)
        row = row[:, np.arange(length) % n]
    return row, row_targets(wanted)


def row_targets(targets: np.ndarray) -> np.ndarray:
    """Return the targets of a row, float32 (classes,): what is heard anywhere in it."""
    return targets.max(0).astype(np.float32) / 255


def fixed_rows(states: States, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return all rows of `length` steps, one after another, and the shorter ones of short recordings."""
    rows = []
    for i in range(len(states)):
        n = states.steps(i)
        for start in range(0, max(1, n - length + 1), length):
            row, wanted = states.row(i, start, min(length, n))
            rows.append((row, row_targets(wanted)))
    return rows


@torch.no_grad()
def classify_rows(model: nn.Module, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and targets of rows, both float32 ``(rows, classes)``."""
    by_length: dict[int, list[int]] = {}
    for i, (row, _) in enumerate(rows):
        by_length.setdefault(row.shape[1], []).append(i)
    logits = np.zeros((len(rows), len(rows[0][1])), np.float32)
    for members in by_length.values():
        for first in range(0, len(members), 64):
            part = members[first : first + 64]
            batch = torch.from_numpy(np.stack([rows[i][0] for i in part]).astype(np.float32))
            logits[part] = model(batch).float().numpy()
    return logits, np.stack([wanted for _, wanted in rows])


@torch.no_grad()
def standardise(head: Head, states: States, rows: int = 400) -> None:
    """Initialise the head's first normalisation so that every dimension has mean 0 and deviation 1 on training rows.

    A few dimensions of Whisper's states are a hundred times larger than the rest, which would else start out near 0.
    """
    if not hasattr(head, "down_layer"):
        return
    rng = np.random.default_rng(0)
    sample = [random_row(states, int(i), 8, rng)[0] for i in rng.integers(0, len(states), rows)]
    x = torch.from_numpy(np.stack(sample).astype(np.float32))
    norm = head.down_layer[0]
    normalised = F.layer_norm(x, norm.normalized_shape).flatten(0, 2)
    deviation = normalised.std(0).clamp_min(1e-2)
    norm.weight.copy_(1 / deviation)
    norm.bias.copy_(-normalised.mean(0) / deviation)


def train(
    states: States, valid: States, settings: Settings, run_dir: Path | None = None
) -> tuple[Head, float, np.ndarray]:
    """Train and calibrate a head.

    Parameters
    ----------
    states, valid : States
        Scenes to train on, and held-out ones.
    settings : Settings
        How.
    run_dir : Path, optional
        Where the state is saved, from which a run that was stopped is resumed.

    Returns
    -------
    head : Head
        The average of the last epochs.
    temperature : float
        By which logits are divided before the sigmoid.
    thresholds : ndarray, shape (527,)
        Probability of each class from which it makes an event; 0.5 where no held-out row has the class.
    """
    torch.manual_seed(settings.seed)
    head = make_head(settings.mode, n_layer=states.layers, rep_dim=states.dim)
    nn.init.constant_(head.mlp_layer[1].bias, -5.0)  # most classes are silent most of the time
    standardise(head, states)
    task = SceneTask(states, valid, settings)
    optimizer = torch.optim.AdamW(head.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    options = FitOptions(
        settings.epochs,
        schedule_cosine(settings.epochs, 1.0),
        average=(max(1, settings.epochs - settings.epochs // 4), settings.epochs),
        precision="bfloat16",
        max_grad_norm=1.0,
        seed=settings.seed,
    )
    fit(head, task, optimizer, options, run_dir, run_config={"settings": asdict(settings)})
    return (head, *calibrate(head, valid, settings.precision))


def calibrate(head: Head, valid: States, precision: float) -> tuple[float, np.ndarray]:
    """Return temperature and thresholds by rows of 2, 5 and 10 s of held-out scenes."""
    rows = [row for length in (5, 13, 25) for row in fixed_rows(valid, length)]
    logits, targets = classify_rows(head, rows)
    sure = (targets > 0.7) | (targets < 0.1)  # what the teacher doubts is neither right nor wrong
    wanted = (targets > 0.7).astype(int)
    occurring = wanted.sum(0) >= 5
    temperature = fit_temperature(
        wanted[:, occurring][sure[:, occurring]][:, None], logits[:, occurring][sure[:, occurring]][:, None], True
    )
    thresholds = np.full(N_CLASSES, 0.5)
    p = probabilities(logits, True, temperature)
    for i in np.flatnonzero(occurring):
        kept = sure[:, i]
        found = thresholds_for_precision(wanted[kept, i : i + 1], p[kept, i : i + 1], precision)[0]
        silent = np.quantile(
            p[kept & (wanted[:, i] == 0), i], 1 - FALSE_ALARMS
        )  # precision alone is easy if most have it
        thresholds[i] = np.clip(max(found, silent), 0.05, 0.95) if np.isfinite(found) else 0.95
    return float(temperature), thresholds


def save(
    head: Head,
    path: Path,
    model: WhisperAT,
    name: str,
    temperature: float,
    thresholds: np.ndarray,
    known: Sequence[int],
    settings: Settings,
    figures: Mapping[str, Any],
) -> None:
    """Write a head in half precision.

    Parameters
    ----------
    head : Head
        The head.
    path : Path
        The file.
    model : WhisperAT
        The model whose encoder it belongs to.
    name : str
        The model's name.
    temperature, thresholds : float, ndarray of shape (527,)
        See `train`.
    known : sequence of int
        Indices of the classes that the head knows, ascending; its other outputs mean nothing.
    settings : Settings
        How it was trained.
    figures : mapping
        What was measured, kept as JSON under ``training``.
    """
    metadata = {
        "classes": AUDIOSET,
        "kind": "multi_label",
        "temperature": json.dumps(round(temperature, 4)),
        "thresholds": json.dumps([round(float(threshold), 4) for threshold in thresholds]),
        "known": json.dumps([int(i) for i in known]),
        "mode": settings.mode,
        "n_layer": str(head.n_layer),
        "width": str(head.rep_dim),
        "model": name,
        "encoder_sha256": encoder_sha256(model.state_dict()),
        "steps": json.dumps(sorted(set(settings.rows))),
        "training": json.dumps({"recipe": "open_head", "settings": asdict(settings), **figures}),
    }
    tensors = {PREFIX + key: tensor.half() for key, tensor in head.state_dict().items()}
    save_safetensors(tensors, path, metadata)

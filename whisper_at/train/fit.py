"""The training loop of heads and adaptations; a run can be killed at any time and resumed.

A batch is a pure function of epoch and step, the learning rate one of progress and past scores, and every step seeds
PyTorch again. A run that was stopped and resumed therefore gives the same weights as one that was not, bit for bit on a
CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints.files import atomic_write
from .schedules import Schedule, schedule_constant

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE_FILE = "state.pt"
HISTORY_FILE = "history.jsonl"


class Task(Protocol):
    """What is trained: batches, loss, validation."""

    def steps(self, epoch: int) -> int:
        """Return the number of batches in an epoch (from 0)."""

    def batch(self, epoch: int, step: int) -> Any:
        """Return a batch, always the same for the same epoch and step."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss over the batch."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return scores after an epoch; may be empty."""


@dataclass(frozen=True)
class FitOptions:
    """Options of `fit`.

    Attributes
    ----------
    epochs : int
        Number of epochs.
    schedule : callable
        Factor of the optimizer's learning rates, by progress and past scores.
    select : str or None
        Score that selects the epoch whose weights are kept, with ``-`` in front if less is better; None keeps the last
        epoch. Of equal epochs, the one of the least ``valid_loss``, if that is a score, then the first.
    average : (int, int) or None
        First and last epoch (from 1) whose weights are averaged.
    patience : int or None
        Early stopping after this many epochs in a row without a better `select`.
    precision : str
        ``float32``, ``bfloat16`` or ``float16``, of what autocast covers.
    max_grad_norm : float or None
        Gradients are clipped to this norm.
    save_steps : int or None
        Also save within an epoch, every so many steps.
    seed : int
        Seed of dropout and the like.
    min_delta : float
        Share of the best score by which a score has to be better to count for `patience`.
    """

    epochs: int
    schedule: Schedule = schedule_constant
    select: str | None = None
    average: tuple[int, int] | None = None
    patience: int | None = None
    precision: str = "float32"
    max_grad_norm: float | None = None
    save_steps: int | None = None
    seed: int = 0
    min_delta: float = 0.0


@dataclass
class FitResult:
    """Result of `fit`.

    Attributes
    ----------
    history : list of dict of str to float
        Scores of each epoch.
    epoch : int
        Epoch (from 1) whose weights the model now has, 0 for an average.
    stopped : bool
        Whether `FitOptions.patience` ended the run. If not, it ran for all epochs that it was given, and more of them
        might have given a better model.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0
    stopped: bool = False


def fit(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
    run_config: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a model in place; leave it with the weights that were selected, or averaged, or the last.

    Under ``torchrun``, each process takes its share of every batch, which must be a tuple or dict of tensors that are
    divided along their first dimension.

    Parameters
    ----------
    model : nn.Module
        The model. Only parameters that require a gradient, and buffers, are saved.
    task : Task
        Batches, loss and validation.
    optimizer : Optimizer
        Optimizer of the parameters that require a gradient.
    options : FitOptions
        How long and how to train.
    run_dir : path, optional
        Where the state is saved after every epoch (``state.pt``) and scores are appended (``history.jsonl``). A later
        call with the same `run_config` resumes from there.
    progress : bool
        Whether to show a progress bar.
    run_config : mapping, optional
        What defines the run; a saved state with another one is refused.

    Raises
    ------
    ValueError
        If `run_dir` holds the state of another run, or an option names something that does not exist.
    RuntimeError
        If the loss becomes NaN or infinite.
    """
    if options.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {options.precision!r}")
    if options.average is not None and not 1 <= options.average[0] <= options.average[1] <= options.epochs:
        raise ValueError(f"cannot average epochs {options.average[0]} to {options.average[1]} of {options.epochs}")
    folder = Path(run_dir) if run_dir is not None else None
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "float16" and device.type == "cuda")
    state = _TrainingState(model, optimizer, scaler, json.loads(json.dumps(run_config or {}, default=str)))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        state.load(folder / STATE_FILE)
    parallel = distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    trained: nn.Module = nn.parallel.DistributedDataParallel(model) if parallel else model
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    while state.epoch < options.epochs and not _should_stop(state.history, options):
        epoch, steps = state.epoch, task.steps(state.epoch)
        model.train()
        start = time.perf_counter()
        for step in tqdm(
            range(state.step, steps),
            desc=f"epoch {epoch + 1}/{options.epochs}",
            initial=state.step,
            total=steps,
            disable=not progress or rank > 0,
            leave=False,
        ):
            factor = options.schedule(epoch + step / steps, state.history)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor
            torch.manual_seed(_mix_seed(options.seed, epoch, step, rank))
            batch = task.batch(epoch, step)
            if parallel:
                batch = _shard_batch(batch, rank, world)
            with _autocast(device, options.precision):
                loss = task.loss(trained, _to_device(batch, device))
            if not math.isfinite(value := float(loss.detach())):
                raise RuntimeError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: lower the learning rate, or check data"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if options.max_grad_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], options.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            state.loss_sum, state.step = state.loss_sum + value, step + 1
            if folder is not None and rank == 0 and options.save_steps and state.step % options.save_steps == 0:
                state.save(folder / STATE_FILE)
        model.eval()
        torch.manual_seed(_mix_seed(options.seed, epoch, steps, rank))
        with torch.no_grad():
            scores = task.validate(model)
        if options.select is not None and options.select.removeprefix("-") not in scores:
            raise ValueError(
                f"epochs are chosen by {options.select!r}, but the scores are {', '.join(scores) or 'none'}"
            )
        entry = {"epoch": epoch + 1, "loss": state.loss_sum / max(1, steps), **scores}
        state.end_epoch(entry, options)
        if folder is not None and rank == 0:
            state.save(folder / STATE_FILE)
            logged = entry | {"seconds": round(time.perf_counter() - start, 2), "rate": optimizer.param_groups[0]["lr"]}
            with open(folder / HISTORY_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(logged) + "\n")
    return state.finish(options)


@dataclass
class _TrainingState:
    """Everything that is needed to resume a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: dict[str, Any]
    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_epoch: int = 0
    average: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of what training changes."""
        return {name: tensor.detach().clone() for name, tensor in trainable_state(self.model).items()}

    def end_epoch(self, scores: dict[str, float], options: FitOptions) -> None:
        """Count an epoch, and keep its weights if they are the best or to be averaged."""
        self.history.append(scores)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if options.select is not None and _best_epoch(self.history, options.select) == self.epoch:
            self.best, self.best_epoch = self.weights(), self.epoch
        if options.average is not None and options.average[0] <= self.epoch <= options.average[1]:
            count = self.epoch - options.average[0] + 1
            weights = self.weights()
            self.average = weights if self.average is None else _update_average(self.average, weights, 1 / count)

    def finish(self, options: FitOptions) -> FitResult:
        """Give the model the weights that were selected or averaged."""
        chosen, epoch = (self.average, 0) if options.average is not None else (self.best, self.best_epoch)
        if chosen is not None:
            self.model.load_state_dict(chosen, strict=False)
        self.model.eval()
        epoch = epoch if chosen is not None else self.epoch
        return FitResult(self.history, epoch, _should_stop(self.history, options))

    def save(self, path: Path) -> None:
        """Write the state to a file."""
        state = {
            "weights": trainable_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "average": self.average,
            "facts": json.dumps(self.config),
            "history": json.dumps(self.history),
        }
        state |= {name: getattr(self, name) for name in ("epoch", "step", "loss_sum", "best_epoch")}
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Read the state, if the file exists; ValueError if it is damaged or of another run."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            config = json.loads(state["facts"])
        except Exception as error:  # its type depends on what the bytes happen to be
            raise ValueError(
                f"{path} cannot be read as the state of a run ({error}); delete it to start over"
            ) from None
        if config != self.config:
            differing = sorted(k for k in config.keys() | self.config.keys() if config.get(k) != self.config.get(k))
            name = differing[0]
            raise ValueError(
                f"{path.parent} holds a run with {name} = {config.get(name)!r}, not {self.config.get(name)!r}: "
                "choose another folder, or delete this one to start over"
            )
        shapes, own = ({k: v.shape for k, v in s.items()} for s in (state["weights"], trainable_state(self.model)))
        if shapes != own:
            raise ValueError(f"{path} holds other parameters than this model has; delete it to start over")
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty where nothing was scaled
            self.scaler.load_state_dict(state["scaler"])
        self.history = json.loads(state["history"])
        for name in ("epoch", "step", "loss_sum", "best_epoch"):
            setattr(self, name, state[name])
        device = next(self.model.parameters()).device
        self.best, self.average = (_to_device(state[name], device) for name in ("best", "average"))


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: parameters that require a gradient, and buffers (of BatchNorm, say)."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trainable
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _best_epoch(history: Sequence[Mapping[str, float]], select: str) -> int:
    """Return the best epoch (from 1); of equal ones that of the least loss, then the first."""
    sign, name = (-1, select[1:]) if select.startswith("-") else (1, select)

    def rank(i: int) -> tuple[float, float, int]:
        value, loss = sign * history[i][name], history[i].get("valid_loss", math.nan)
        # NaN never wins
        return -math.inf if math.isnan(value) else value, -math.inf if math.isnan(loss) else -loss, -i

    return max(range(len(history)), key=rank) + 1


def _should_stop(history: Sequence[Mapping[str, float]], options: FitOptions) -> bool:
    """Return whether the last ``options.patience`` epochs were no better than the best one before them."""
    if options.patience is None or options.select is None:
        return False
    sign, name = (-1, options.select[1:]) if options.select.startswith("-") else (1, options.select)
    best, waited = -math.inf, 0
    for value in (sign * scores[name] for scores in history):
        margin = options.min_delta * abs(best) if math.isfinite(best) else 0.0
        best, waited = (value, 0) if value > best + margin else (best, waited + 1)
    return bool(history) and waited >= options.patience


def _update_average(average: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the running average with new weights of the given share; integers (counts) are taken from the new ones."""
    return {
        name: tensor + (new[name] - tensor) * share if tensor.is_floating_point() else new[name]
        for name, tensor in average.items()
    }


def _mix_seed(*numbers: int) -> int:
    """Combine numbers into one seed."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    return mixed


def _shard_batch(batch: Any, rank: int, world: int) -> Any:
    """Return the part of a batch for one process; all parts are of equal size, the remainder is dropped.

    If a batch is smaller than the number of processes, as the last of an epoch may be, some processes share an item.
    """
    if isinstance(batch, Tensor):
        size = len(batch) // world
        if not size:
            return batch[rank % len(batch)][None]
        return batch[rank * size : (rank + 1) * size]
    return _map_parts(batch, lambda part: _shard_batch(part, rank, world))


def _to_device(batch: Any, device: torch.device) -> Any:
    return batch.to(device) if isinstance(batch, Tensor) else _map_parts(batch, lambda part: _to_device(part, device))


def _map_parts(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to the members of a dict, tuple or list; return anything else as it is."""
    if isinstance(batch, Mapping):
        return {name: function(part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(function(part) for part in batch)
    return batch


@contextlib.contextmanager
def _autocast(device: torch.device, precision: str) -> Iterator[None]:
    dtype = PRECISIONS[precision]
    with torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext():
        yield

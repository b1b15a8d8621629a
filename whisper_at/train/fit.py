"""The fitting loop: whatever is trained here goes through it, and can be killed at any time and go on.

A batch is a pure function of epoch and step, the learning rate of progress and the scores so far, and every step
seeds PyTorch anew. So a run that was stopped and resumed gives the same weights, bit for bit on a CPU, as one that
was not.
"""

from __future__ import annotations

import contextlib
import copy
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

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATE = "state.pt"
HISTORY = "history.jsonl"

Schedule = Callable[[float, Sequence[Mapping[str, float]]], float]
"""From epochs done (with a fraction) and the scores of past epochs to the factor of the learning rate."""


class Task(Protocol):
    """What is learned: its batches, its loss, and how well it does."""

    def steps(self, epoch: int) -> int:
        """Number of batches of an epoch (from 0)."""

    def batch(self, epoch: int, step: int) -> Any:
        """One batch: always the same for the same epoch and step."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss over the batch."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Scores after an epoch; may be empty."""


@dataclass(frozen=True)
class Plan:
    """How long and how to fit.

    epochs : how many
    schedule : factor of the learning rates of the optimizer
    select : the score that chooses the epoch whose weights are kept, with ``-`` in front where less is better;
        None keeps the last. Of epochs that are equal, the one of the least ``valid_loss``, if that is a score, and
        then the first
    average : first and last epoch (from 1) whose weights are averaged, or None
    patience : stop after so many epochs in a row without a better ``select``, or None
    precision : ``float32``, ``bfloat16`` or ``float16`` for what autocast covers
    clip : largest norm of the gradients, or None
    save_steps : also save in the middle of an epoch every so many steps, or None
    """

    epochs: int
    schedule: Schedule = lambda epoch, history: 1.0
    select: str | None = None
    average: tuple[int, int] | None = None
    patience: int | None = None
    precision: str = "float32"
    clip: float | None = None
    save_steps: int | None = None
    seed: int = 0


@dataclass
class Fitted:
    """What came out: scores by epoch, and the epoch (from 1) whose weights the model now has, 0 for an average."""

    history: list[dict[str, float]] = field(default_factory=list)
    epoch: int = 0


def fit(
    model: nn.Module,
    task: Task,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Fitted:
    """Fit a model in place and leave it with the weights that were selected, or averaged, or the last.

    With ``out``, the state is saved there (``state.pt``) after every epoch, scores are added to
    ``history.jsonl``, and a later call with the same ``facts`` goes on from there. Under ``torchrun``, each process
    takes its share of every batch, which must be a tuple or dict of tensors along their first dimension.

    Parameters
    ----------
    model : only parameters that require a gradient, and buffers, are saved
    facts : what defines this run; a saved state with other facts is refused

    Raises
    ------
    ValueError
        If ``out`` holds the state of another run, or ``plan`` asks for something that does not exist.
    RuntimeError
        If the loss becomes NaN or infinite.
    """
    if plan.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {plan.precision!r}")
    if plan.average is not None and not 1 <= plan.average[0] <= plan.average[1] <= plan.epochs:
        raise ValueError(f"cannot average epochs {plan.average[0]} to {plan.average[1]} of {plan.epochs}")
    folder = Path(out) if out is not None else None
    device = next(model.parameters()).device
    scaler = torch.amp.GradScaler(device.type, enabled=plan.precision == "float16" and device.type == "cuda")
    run = _Run(model, optimizer, scaler, json.loads(json.dumps(facts or {}, default=str)))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        run.load(folder / STATE)
    parallel = distributed.is_available() and distributed.is_initialized()
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if parallel else (0, 1)
    trained: nn.Module = nn.parallel.DistributedDataParallel(model) if parallel else model
    rates = [group["initial_lr"] for group in optimizer.param_groups]
    while run.epoch < plan.epochs and not _is_over(run.history, plan):
        epoch, steps = run.epoch, task.steps(run.epoch)
        model.train()
        begun = time.perf_counter()
        for step in tqdm(
            range(run.step, steps),
            desc=f"epoch {epoch + 1}/{plan.epochs}",
            initial=run.step,
            total=steps,
            disable=not progress or rank > 0,
            leave=False,
        ):
            factor = plan.schedule(epoch + step / steps, run.history)
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * factor
            torch.manual_seed(_mixed(plan.seed, epoch, step, rank))
            batch = task.batch(epoch, step)
            if parallel:
                batch = _share(batch, rank, world)
            with _autocast(device, plan.precision):
                loss = task.loss(trained, _moved(batch, device))
            if not math.isfinite(value := float(loss.detach())):
                raise RuntimeError(
                    f"the loss is {value} in epoch {epoch + 1}, step {step + 1}: lower the learning rate, or check data"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            if plan.clip is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], plan.clip)
            scaler.step(optimizer)
            scaler.update()
            run.loss_sum, run.step = run.loss_sum + value, step + 1
            if folder is not None and rank == 0 and plan.save_steps and run.step % plan.save_steps == 0:
                run.save(folder / STATE)
        model.eval()
        torch.manual_seed(_mixed(plan.seed, epoch, steps, rank))
        with torch.no_grad():
            scores = task.validate(model)
        if plan.select is not None and plan.select.removeprefix("-") not in scores:
            raise ValueError(f"epochs are chosen by {plan.select!r}, but the scores are {', '.join(scores) or 'none'}")
        line = {"epoch": epoch + 1, "loss": run.loss_sum / max(1, steps), **scores}
        run.finish_epoch(line, plan)
        if folder is not None and rank == 0:
            run.save(folder / STATE)
            timed = line | {"seconds": round(time.perf_counter() - begun, 2), "rate": optimizer.param_groups[0]["lr"]}
            with open(folder / HISTORY, "a", encoding="utf-8") as file:
                file.write(json.dumps(timed) + "\n")
    return run.settle(plan)


def schedule_constant(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
    """Always 1."""
    return 1.0


def schedule_cosine(epochs: int, warm_up: float = 0.0) -> Schedule:
    """Linear warm-up over ``warm_up`` epochs, then half a cosine down to 0."""

    def factor(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        if epoch < warm_up:
            return epoch / warm_up
        return 0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / max(1e-9, epochs - warm_up)))

    return factor


def schedule_linear(epochs: int, warm_up: float = 0.0) -> Schedule:
    """Linear warm-up over ``warm_up`` epochs, then a line down to 0."""

    def factor(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        return epoch / warm_up if epoch < warm_up else max(0.0, (epochs - epoch) / max(1e-9, epochs - warm_up))

    return factor


def schedule_steps(start: int, every: int, factor: float, warm_up: float = 0.0) -> Schedule:
    """Multiply by ``factor`` after ``start`` whole epochs and again after each ``every`` more (spec section 3.5)."""

    def value(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        drops = 0 if epoch < start else int(epoch - start) // every + 1
        return (min(1.0, epoch / warm_up) if warm_up else 1.0) * factor**drops

    return value


def schedule_plateau(score: str, factor: float = 0.5, patience: int = 5, floor: float = 0.0) -> Schedule:
    """Multiply by ``factor`` after more than ``patience`` epochs without a lower ``score``, never below ``floor``.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` with its relative threshold of 1e-4.
    """

    def value(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        current, best, bad = 1.0, math.inf, 0
        for line in history:
            if line[score] < best * (1 - 1e-4):
                best, bad = line[score], 0
            else:
                bad += 1
            if bad > patience:
                current, bad = min(current, max(floor, current * factor)), 0
        return current

    return value


@dataclass
class _Run:
    """Everything that a stopped run needs to go on."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    facts: dict[str, Any]
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
        return {name: tensor.detach().clone() for name, tensor in trained_state(self.model).items()}

    def finish_epoch(self, line: dict[str, float], plan: Plan) -> None:
        self.history.append(line)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if plan.select is not None and _best_epoch(self.history, plan.select) == self.epoch:
            self.best, self.best_epoch = self.weights(), self.epoch
        if plan.average is not None and plan.average[0] <= self.epoch <= plan.average[1]:
            count = self.epoch - plan.average[0] + 1
            weights = self.weights()
            self.average = weights if self.average is None else _moved_towards(self.average, weights, 1 / count)

    def settle(self, plan: Plan) -> Fitted:
        chosen, epoch = (self.average, 0) if plan.average is not None else (self.best, self.best_epoch)
        if chosen is not None:
            self.model.load_state_dict(chosen, strict=False)
        self.model.eval()
        return Fitted(self.history, epoch if chosen is not None else self.epoch)

    def save(self, path: Path) -> None:
        state = {
            "weights": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "average": self.average,
            "facts": json.dumps(self.facts),
            "history": json.dumps(self.history),
        }
        state |= {name: getattr(self, name) for name in ("epoch", "step", "loss_sum", "best_epoch")}
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            facts = json.loads(state["facts"])
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read as the state of a run ({error}); delete it to begin anew"
            ) from None
        if facts != self.facts:
            differing = sorted(k for k in facts.keys() | self.facts.keys() if facts.get(k) != self.facts.get(k))
            name = differing[0]
            raise ValueError(
                f"{path.parent} holds a run with {name} = {facts.get(name)!r}, not {self.facts.get(name)!r}: "
                "choose another folder, or delete this one to begin anew"
            )
        shapes, own = ({k: v.shape for k, v in s.items()} for s in (state["weights"], trained_state(self.model)))
        if shapes != own:
            raise ValueError(f"{path} holds other parameters than this model has; delete it to begin anew")
        self.model.load_state_dict(state["weights"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if state.get("scaler"):  # empty where nothing was scaled
            self.scaler.load_state_dict(state["scaler"])
        self.history = json.loads(state["history"])
        for name in ("epoch", "step", "loss_sum", "best_epoch"):
            setattr(self, name, state[name])
        device = next(self.model.parameters()).device
        self.best, self.average = (_moved(state[name], device) for name in ("best", "average"))


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters that require a gradient, and buffers (of BatchNorm, say)."""
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trainable
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _best_epoch(history: Sequence[Mapping[str, float]], select: str, by_loss: bool = True) -> int:
    """The best epoch (from 1); of equal ones that of the least loss, unless not ``by_loss``, and then the first."""
    sign, name = (-1, select[1:]) if select.startswith("-") else (1, select)

    def rank(i: int) -> tuple[float, float, int]:
        value, loss = sign * history[i][name], history[i].get("valid_loss", math.nan) if by_loss else math.nan
        return -math.inf if math.isnan(value) else value, -math.inf if math.isnan(loss) else -loss, -i  # NaN never wins

    return max(range(len(history)), key=rank) + 1


def _is_over(history: Sequence[Mapping[str, float]], plan: Plan) -> bool:
    if plan.patience is None or plan.select is None or not history:
        return False
    return len(history) - _best_epoch(history, plan.select, by_loss=False) >= plan.patience


def _moved_towards(average: dict[str, Tensor], new: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    return {
        name: tensor + (new[name] - tensor) * share if tensor.is_floating_point() else new[name]
        for name, tensor in average.items()
    }


def _mixed(*numbers: int) -> int:
    """A seed that differs for each of these."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63 - 1)
    return mixed


def _share(batch: Any, rank: int, world: int) -> Any:
    """A process's part of a batch; all get equally much, and what is left over is dropped.

    Of a batch smaller than the number of processes, as the last of an epoch may be, some share an item.
    """
    if isinstance(batch, Tensor):
        each = len(batch) // world
        if not each:
            return batch[rank % len(batch)][None]
        return batch[rank * each : (rank + 1) * each]
    return _each(batch, lambda part: _share(part, rank, world))


def _moved(batch: Any, device: torch.device) -> Any:
    return batch.to(device) if isinstance(batch, Tensor) else _each(batch, lambda part: _moved(part, device))


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(batch, Mapping):
        return {name: change(part) for name, part in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(change(part) for part in batch)
    return copy.copy(batch)


@contextlib.contextmanager
def _autocast(device: torch.device, precision: str) -> Iterator[None]:
    dtype = PRECISIONS[precision]
    with torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext():
        yield

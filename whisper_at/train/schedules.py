"""Learning-rate schedules, as pure functions of progress and past scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Schedule = Callable[[float, Sequence[Mapping[str, float]]], float]
"""From progress (in epochs, with a fraction) and the scores of past epochs to a factor of the learning rate."""


def schedule_constant(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
    """Return 1, whatever the progress."""
    return 1.0


def schedule_cosine(epochs: int, warm_up: float = 0.0) -> Schedule:
    """Return a schedule of linear warm-up over `warm_up` epochs, then half a cosine down to 0."""

    def factor(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        if epoch < warm_up:
            return epoch / warm_up
        return 0.5 * (1 + math.cos(math.pi * (epoch - warm_up) / max(1e-9, epochs - warm_up)))

    return factor


def schedule_linear(epochs: int, warm_up: float = 0.0) -> Schedule:
    """Return a schedule of linear warm-up over `warm_up` epochs, then linear decay to 0."""

    def factor(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        return epoch / warm_up if epoch < warm_up else max(0.0, (epochs - epoch) / max(1e-9, epochs - warm_up))

    return factor


def schedule_steps(start: int, every: int, factor: float, warm_up: float = 0.0) -> Schedule:
    """Return a schedule that drops by `factor` after `start` epochs and after `every` more (spec section 3.5)."""

    def value(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        drops = 0 if epoch < start else int(epoch - start) // every + 1
        return (min(1.0, epoch / warm_up) if warm_up else 1.0) * factor**drops

    return value


def with_warm_up(schedule: Schedule, epochs: float) -> Schedule:
    """Return a schedule that rises linearly to that of `schedule` over the first `epochs`."""

    def factor(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        return schedule(epoch, history) * (epoch / epochs if epoch < epochs else 1.0)

    return factor


def schedule_plateau(score: str, factor: float = 0.5, patience: int = 5, floor: float = 0.0) -> Schedule:
    """Return a schedule that drops by `factor` after more than `patience` epochs without a lower `score`.

    It never goes below `floor`. As `torch.optim.lr_scheduler.ReduceLROnPlateau` with its relative threshold of 1e-4.
    """

    def value(epoch: float, history: Sequence[Mapping[str, float]]) -> float:
        current, best, bad = 1.0, math.inf, 0
        for scores in history:
            if scores[score] < best * (1 - 1e-4):
                best, bad = scores[score], 0
            else:
                bad += 1
            if bad > patience:
                current, bad = min(current, max(floor, current * factor)), 0
        return current

    return value

"""Learning-rate schedules against their formulas, and PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from whisper_at.train.schedules import (
    schedule_constant,
    schedule_cosine,
    schedule_linear,
    schedule_plateau,
    schedule_steps,
)


def test_schedules_are_their_formulas():
    cosine, line = schedule_cosine(10, 2), schedule_linear(10, 2)
    assert [cosine(e, []) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-9)
    assert [line(e, []) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert schedule_cosine(4)(0, []) == schedule_linear(4)(0, []) == schedule_constant(3.7, []) == 1
    steps = schedule_steps(4, 2, 0.5, warm_up=0.5)
    assert [steps(e, []) for e in (0, 0.25, 0.5, 3.9, 4, 5.9, 6, 8)] == [0, 0.5, 1, 1, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_plateau_is_pytorchs(floor):
    losses = [1.0, 0.9, 0.89999, *[0.95] * 9, 0.5, *[0.6] * 20]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=5, min_lr=floor)
    ours, history = schedule_plateau("valid_loss", 0.5, 5, floor), []
    for loss in losses:
        history.append({"valid_loss": loss})
        reference.step(loss)
        assert ours(len(history), history) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert optimizer.param_groups[0]["lr"] < 0.5

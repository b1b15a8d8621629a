"""The fitting loop: what it keeps, when it stops, and that it goes on where it was."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from whisper_at.train.fit import (
    FitOptions,
    _shard_batch,
    _TrainingState,
    fit,
    trainable_state,
)
from whisper_at.train.schedules import schedule_cosine, schedule_linear


class InterruptError(Exception):
    pass


class Regression:
    """Four batches an epoch; validation returns given scores, and records the weights."""

    def __init__(self, scores: list[dict[str, float]] | None = None, stop: tuple[int, int] | None = None) -> None:
        self.scores, self.stop = scores, stop
        self.seen: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def steps(self, epoch: int) -> int:
        return 4

    def batch(self, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        if self.stop == (epoch, step):
            raise InterruptError
        if self.optimizer is not None:
            self.rates.append(self.optimizer.param_groups[0]["lr"])
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(10 * epoch + step))
        return x, x.sum(1, keepdim=True)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        assert not torch.is_grad_enabled()
        self.seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return self.scores[len(self.seen) - 1] if self.scores else {}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1), nn.Linear(1, 1))
    model[4].requires_grad_(False)
    return model


def fit_network(task, options, out=None, run_config=None, model=None):
    model = model or network()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    task.optimizer = optimizer
    return model, fit(model, task, optimizer, options, out, run_config=run_config)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns():
    model, result = fit_network(Regression(), FitOptions(60))
    losses = [line["loss"] for line in result.history]
    assert result.epoch == 60
    assert [line["epoch"] for line in result.history] == list(range(1, 61))
    assert losses[-1] < 0.5 * losses[0]
    assert not model.training


@pytest.mark.parametrize("save_steps", [None, 1, 3])
@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (2, 3)])
def test_stopped_and_resumed_is_as_never_stopped_T8(tmp_path, save_steps, stop):
    """Dropout, BatchNorm, momentum, the schedule, averages and the chosen epoch all go on, bit for bit."""
    scores = [{"accuracy": value} for value in (0.5, 0.8, 0.7, 0.6)]
    options = FitOptions(
        4, schedule_cosine(4, 0.5), "accuracy", average=(2, 3), max_grad_norm=1.0, save_steps=save_steps
    )
    expected, whole = fit_network(Regression(scores), options)
    with pytest.raises(InterruptError):
        fit_network(Regression(scores, stop), options, tmp_path)
    rest = Regression(scores[stop[0] :])
    model, result = fit_network(rest, options, tmp_path)
    assert same(model.state_dict(), expected.state_dict())
    assert result == whole
    assert result.epoch == 0
    repeated = 0 if save_steps == 1 else stop[1] % 3 if save_steps == 3 else stop[1]
    assert len(rest.rates) == 16 - 4 * stop[0] - stop[1] + repeated
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [{k: line[k] for k in ("epoch", "loss", "accuracy")} for line in lines] == result.history
    assert {path.name for path in tmp_path.iterdir()} == {"state.pt", "history.jsonl"}


def test_a_finished_run_is_not_run_again(tmp_path):
    model, result = fit_network(Regression(), FitOptions(2), tmp_path)
    again, found = fit_network(Regression(stop=(0, 0)), FitOptions(2), tmp_path)
    assert found == result
    assert same(again.state_dict(), model.state_dict())
    longer = Regression()
    fit_network(longer, FitOptions(3), tmp_path)
    assert len(longer.rates) == 4  # one more epoch


def test_the_best_epoch_is_kept():
    task = Regression([{"accuracy": value} for value in (0.1, math.nan, 0.9, 0.9, 0.2)])
    model, result = fit_network(task, FitOptions(5, select="accuracy"))
    assert result.epoch == 3
    assert same(model.state_dict(), task.seen[2])
    task = Regression([{"valid_loss": value} for value in (3.0, 1.0, 2.0)])
    model, result = fit_network(task, FitOptions(3, select="-valid_loss"))
    assert result.epoch == 2
    assert same(model.state_dict(), task.seen[1])
    scores = [(1.0, 0.5), (1.0, 0.2), (1.0, 0.2), (1.0, math.nan), (math.nan, 0.1)]
    task = Regression([{"accuracy": value, "valid_loss": loss} for value, loss in scores])
    model, result = fit_network(task, FitOptions(5, select="accuracy"))
    assert result.epoch == 2
    assert same(model.state_dict(), task.seen[1])
    scores = [{"mAP": math.nan, "valid_loss": loss} for loss in (2.0, 1.0)]
    _, result = fit_network(Regression(scores), FitOptions(2, select="mAP"))
    assert result.epoch == 2
    task = Regression([{"accuracy": 0.5}] * 3)
    model, result = fit_network(task, FitOptions(3))
    assert result.epoch == 3
    assert same(model.state_dict(), task.seen[2])


def test_weights_are_averaged_over_epochs_after_both_ends():
    task = Regression()
    model, result = fit_network(task, FitOptions(5, average=(2, 4)))
    state = trainable_state(model)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            mean = torch.stack([seen[name] for seen in task.seen[1:4]]).mean(0)
            torch.testing.assert_close(tensor, mean, atol=1e-6, rtol=1e-5)
    assert state["1.num_batches_tracked"] == 16  # a count is taken, not averaged
    assert result.epoch == 0


def test_patience_ends_a_run():
    scores = [{"accuracy": value} for value in (0.5, 0.6, 0.6, 0.1, 0.9)]
    task = Regression(scores)
    _, result = fit_network(task, FitOptions(5, select="accuracy", patience=2))
    assert len(result.history) == 4
    assert result.epoch == 2
    assert result.stopped


def test_a_run_that_patience_does_not_end_is_not_called_stopped():
    scores = [{"accuracy": value} for value in (0.5, 0.6, 0.6, 0.1, 0.9)]
    _, result = fit_network(Regression(scores), FitOptions(3, select="accuracy", patience=2))
    assert not result.stopped
    _, result = fit_network(Regression(scores), FitOptions(4, select="accuracy", patience=2))  # in the last epoch
    assert result.stopped
    _, result = fit_network(Regression(scores), FitOptions(5, select="accuracy"))
    assert not result.stopped


def test_a_gain_below_min_delta_does_not_count_for_patience():
    losses = (1.0, 0.9, 0.8999, 0.8998, 0.5)
    task = Regression([{"valid_loss": value} for value in losses])
    _, result = fit_network(task, FitOptions(5, select="-valid_loss", patience=2, min_delta=1e-3))
    assert (len(result.history), result.epoch, result.stopped) == (4, 4, True)  # the least loss is chosen all the same
    slow = [0.9 * 0.9994**i for i in range(12)]  # 0.06 % an epoch are 0.12 % in two, so this goes on
    task = Regression([{"valid_loss": value} for value in slow])
    _, result = fit_network(task, FitOptions(12, select="-valid_loss", patience=2, min_delta=1e-3))
    assert (len(result.history), result.stopped) == (12, False)


def test_frozen_weights_are_neither_changed_nor_saved(tmp_path):
    before = network()[4].weight.clone()
    model, _ = fit_network(Regression(), FitOptions(1), tmp_path)
    assert torch.equal(model[4].weight, before)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert set(state["weights"]) == {name for name in model.state_dict() if not name.startswith("4.")}


def test_gradients_are_clipped():
    """Without momentum a step is the rate times a gradient of at most that norm."""
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    task = Regression()
    task.steps = lambda epoch: 1
    fit(model, task, optimizer, FitOptions(1, max_grad_norm=1e-3))
    moved = math.sqrt(sum(float((p - q).detach().square().sum()) for p, q in zip(model.parameters(), before)))
    assert moved == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_is_autocast():
    seen = []
    task, model = Regression(), network()
    model[0].register_forward_hook(lambda module, given, out: seen.append((module.weight.dtype, out.dtype)))
    fit_network(task, FitOptions(1, precision="bfloat16"), model=model)
    assert set(seen) == {(torch.float32, torch.bfloat16)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FitOptions(1, precision="int8"), "precision must be one of float32, bfloat16, float16, not 'int8'"),
        (FitOptions(3, average=(2, 4)), "cannot average epochs 2 to 4 of 3"),
        (FitOptions(3, average=(0, 2)), "cannot average epochs 0 to 2"),
        (FitOptions(1, select="mAP"), "chosen by 'mAP', but the scores are accuracy"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fit_network(Regression([{"accuracy": 1.0}]), options)


def test_the_scale_of_gradients_goes_on_too(tmp_path, monkeypatch):
    """float16's: it grows every few steps."""
    made, real = [], torch.amp.GradScaler

    def scaler(device, enabled):
        made.append(real("cpu", init_scale=4.0, growth_interval=3))
        return made[-1]

    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    expected, _ = fit_network(Regression(), FitOptions(2))
    with pytest.raises(InterruptError):
        fit_network(Regression(stop=(1, 1)), FitOptions(2), tmp_path)
    resumed, _ = fit_network(Regression(), FitOptions(2), tmp_path)
    assert same(resumed.state_dict(), expected.state_dict())
    assert made[-1].state_dict() == made[0].state_dict()
    assert made[0].get_scale() == 16


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_what_was_saved_goes_to_the_device_of_the_model(tmp_path):
    options = FitOptions(3, select="accuracy", average=(1, 3))
    with pytest.raises(InterruptError):
        fit_network(Regression([{"accuracy": 1.0}], (1, 0)), options, tmp_path)
    model = network().to("meta")  # stands for a GPU
    run = _TrainingState(model, torch.optim.AdamW(model.parameters()), torch.amp.GradScaler("cpu", enabled=False), {})
    run.optimizer.load_state_dict = lambda state: None
    run.load(tmp_path / "state.pt")
    assert run.epoch == 1
    assert run.best
    assert run.average
    assert {tensor.device.type for kept in (run.best, run.average) for tensor in kept.values()} == {"meta"}


def test_a_loss_that_is_no_number_stops_and_leaves_the_last_state(tmp_path):
    class Broken(Regression):
        def loss(self, model, batch):
            return super().loss(model, batch) * (math.inf if len(self.rates) == 7 else 1.0)

    with pytest.raises(RuntimeError, match="the loss is inf in epoch 2, step 3: lower the learning rate"):
        fit_network(Broken(), FitOptions(3), tmp_path)
    expected, _ = fit_network(Regression(), FitOptions(3))
    resumed, _ = fit_network(Regression(), FitOptions(3), tmp_path)
    assert same(resumed.state_dict(), expected.state_dict())


def test_a_state_of_something_else_is_refused(tmp_path):
    fit_network(Regression(), FitOptions(1), tmp_path, run_config={"rate": 0.1, "classes": ("a", "b")})
    with pytest.raises(ValueError, match=r"holds a run with rate = 0.1, not 0.2: choose another folder, or delete"):
        fit_network(Regression(), FitOptions(2), tmp_path, run_config={"rate": 0.2, "classes": ("a", "b")})
    other = nn.Sequential(nn.Linear(3, 1))
    with pytest.raises(ValueError, match="holds other parameters than this model has"):
        fit_network(Regression(), FitOptions(2), tmp_path, run_config={"rate": 0.1, "classes": ["a", "b"]}, model=other)
    kept = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match=r"state.pt cannot be read as the state of a run .*; delete it to start over"):
        fit_network(Regression(), FitOptions(2), tmp_path, run_config={"rate": 0.1, "classes": ["a", "b"]})


def test_a_batch_is_shared_in_equal_parts():
    batch = {"x": torch.arange(7), "pair": (torch.arange(14).view(7, 2), torch.ones(7))}
    parts = [_shard_batch(batch, rank, 3) for rank in range(3)]
    assert [part["x"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert [part["pair"][0].shape for part in parts] == [(2, 2)] * 3
    assert [_shard_batch(torch.arange(2), rank, 3).tolist() for rank in range(3)] == [[0], [1], [0]]  # none is idle


def test_rates_follow_the_schedule():
    task = Regression()
    fit_network(task, FitOptions(2, schedule_linear(2)))
    assert task.rates == pytest.approx([0.05 * (1 - i / 8) for i in range(8)])

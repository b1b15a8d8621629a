"""How heads are trained: targets, sampling, masks, losses by closed formulas; stopped, shared and resumed runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from whisper_at.data.clips import Clip
from whisper_at.features.files import FeatureMetadata
from whisper_at.features.store import Features
from whisper_at.features.writer import FeatureWriter
from whisper_at.tagging.heads import make_head
from whisper_at.train.config import Settings, preset_settings, settings_dict, update_settings
from whisper_at.train.fit import fit
from whisper_at.train.recipe import (
    HeadTask,
    compute_logits,
    compute_scores,
    head_loss,
    random_span,
    sampling_weights,
    smooth_targets,
)
from whisper_at.train.train_head import make_optimizer

LAYERS, DIM, CLASSES = 2, 16, 4
QUIET = {"mixup": 0.0, "time_mask": 0, "smoothing": 0.0, "balanced": False}
"""Settings under which a batch is the clips as they are."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return made_store(tmp_path_factory.mktemp("features") / "f")


def made_store(folder: Path, n: int = 40):
    """Features of clips of 5 to 12 steps that tell their class, and their targets."""
    r = np.random.default_rng(0)
    centres = r.standard_normal((CLASSES, DIM))
    with FeatureWriter(folder, FeatureMetadata("m", "sha", "30", 0.0, LAYERS, DIM, "float32")) as writer:
        for i in range(n):
            states = centres[i % CLASSES] + r.standard_normal((LAYERS, 5 + i % 8, DIM))
            writer.add(Clip(folder / f"{i:03d}.wav", ()), states.astype(np.float32))
    return Features.open(folder), np.eye(CLASSES, dtype=np.float32)[np.arange(n) % CLASSES]


def task_of(store, settings: Settings, valid: bool = True) -> HeadTask:
    features, targets = store
    items = np.arange(len(features))
    held = items % 5 == 0
    return HeadTask(features, items[~held], targets[~held], settings, (items[held], targets[held]) if valid else None)


def head(mode: str = "tl_tr_1_8") -> torch.nn.Module:
    torch.manual_seed(1)
    return make_head(mode, n_layer=LAYERS, rep_dim=DIM, label_dim=CLASSES)


def test_smoothed_targets_are_those_of_the_spec():
    """Section 3.3, C = 4, smoothing 0.1: labels are set, and mixed ones added to the floor."""
    a, b = np.array([[1, 1, 0, 0]], np.float32), np.array([[0, 1, 1, 0]], np.float32)
    np.testing.assert_allclose(smooth_targets(a, 0.1), [[0.9, 0.9, 0.025, 0.025]])
    mixed = smooth_targets(a, 0.1, b, np.array([0.6]))
    np.testing.assert_allclose(mixed, [[0.025 + 0.54, 0.025 + 0.9, 0.025 + 0.36, 0.025]], rtol=1e-6)
    np.testing.assert_allclose(smooth_targets(a, 0.1, b, np.array([1.0])), smooth_targets(a, 0.1))
    np.testing.assert_array_equal(smooth_targets(a, 0.0), a)


def test_weights_of_clips_are_sums_over_their_labels():
    """Section 3.2: 1000 / (count + 0.01) a class."""
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.float32)
    common, rare = 1000 / 3.01, 1000 / 1.01
    np.testing.assert_allclose(sampling_weights(targets), [common, common + rare, common, 0])


def test_balanced_sampling_draws_by_weight(store):
    features, _ = store
    targets = np.zeros((40, CLASSES), np.float32)
    targets[:, 0] = 1
    targets[:2] = [0, 1, 0, 0]
    targets[2] = 0
    task = HeadTask(features, np.arange(40), targets, Settings(loss="bce", balanced=True, batch=4000, seed=3))
    drawn = task._sample(np.random.default_rng(0), 0, 0)
    counts = np.bincount(drawn, minlength=40) / 4000
    np.testing.assert_allclose(counts, sampling_weights(targets) / sampling_weights(targets).sum(), atol=0.03)
    assert counts[2] == 0


def test_the_ten_percent_epoch_is_the_published_one(store):
    """Section 3.5: 1 953 082 clips in batches of 48 give pseudo-epochs of 4 070 batches."""
    features, targets = store
    task = HeadTask(features, np.arange(40), targets, preset_settings("audioset", 384))
    task.clips = np.zeros(1_953_082, np.int8)
    assert task.steps(0) == 4070
    task.settings = replace(task.settings, epoch_share=1.0)
    assert task.steps(0) == 40689


def test_an_epoch_without_balance_is_every_clip_once(store):
    task = task_of(store, Settings(loss="ce", batch=6, least_steps=1, **QUIET))
    assert task.steps(0) == 6
    passes = [np.concatenate([task._sample(None, epoch, step) for step in range(6)]) for epoch in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(32))
    assert passes[0].tolist() != passes[1].tolist()


def test_few_clips_still_make_an_epoch(store):
    task = task_of(store, Settings(loss="ce", batch=32, least_steps=3, **QUIET))
    assert task.steps(0) == 3
    passes = [task._sample(None, 0, step) for step in range(3)]
    assert all(sorted(p) == list(range(32)) for p in passes)
    assert passes[0].tolist() != passes[1].tolist()


def test_rows_are_cut_from_anywhere_or_repeated(store):
    features, _ = store
    task = task_of(store, Settings(loss="ce", batch=32, rows=(5,), **QUIET))
    starts = set()
    for step in range(8):
        states, _ = task.batch(step, 0)
        for row, item in zip(states, task._sample(None, step, 0)):
            whole = torch.from_numpy(np.array(features.states(task.clips[item])))
            fits = [s for s in range(whole.shape[1] - 4) if torch.equal(whole[:, s : s + 5], row)]
            assert len(fits) == 1
            starts.add(fits[0])
    assert starts == set(range(8))
    states, _ = task_of(store, Settings(loss="ce", batch=32, rows=(12,), **QUIET)).batch(0, 0)
    assert (states.abs().sum((1, 3)) > 0).all()  # D5: no zeros behind short clips


def test_mixup_is_between_two_clips(store):
    settings = Settings(loss="ce", batch=32, rows=(5,), **(QUIET | {"mixup": 1.0}))
    _, targets = task_of(store, settings).batch(0, 0)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
    share = targets.max(1).values
    assert (share < 1).any()
    assert share.min() >= 0.5
    assert share[share < 1].max() < 0.9
    _, plain = task_of(store, replace(settings, mixup=0.5)).batch(0, 0)
    assert 0 < (plain.max(1).values == 1).sum() < 32


def test_masks_are_spans_of_zeros_over_all_layers(store):
    settings = Settings(loss="ce", batch=32, rows=(25,), **(QUIET | {"time_mask": 10, "freq_mask": 4}))
    task = task_of(store, settings)
    lengths, widths = [], []
    for step in range(30):
        states, _ = task.batch(step, 0)
        zero = states == 0
        for item in zero:
            steps, dims = item.all(2), item.all(1)
            assert torch.equal(steps[0], steps[1])
            assert torch.equal(dims[0], dims[1])
            for span, found in ((steps[0], lengths), (dims[0], widths)):
                at = span.nonzero()[:, 0]
                assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)
                found.append(len(at))
    assert set(lengths) == set(range(10))
    assert set(widths) == set(range(4))


def test_short_rows_are_masked_in_part(store):
    task = task_of(store, Settings(loss="ce", batch=32, rows=(3,), **(QUIET | {"time_mask": 10})))
    masked = [int((item == 0).all(2)[0].sum()) for step in range(20) for item in task.batch(step, 0)[0]]
    assert set(masked) == {0, 1}


def test_mask_spans_stay_inside():
    r = np.random.default_rng(0)
    spans = [random_span(r, 10, 25) for _ in range(5000)]
    assert {end - start for start, end in spans} == set(range(10))
    assert min(start for start, _ in spans) == 0
    assert max(end for _, end in spans) == 25


def test_losses_are_the_textbooks():
    logits, targets = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[0.9, 0.05, 0.05]])
    p = torch.sigmoid(logits)
    wanted = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(head_loss(logits, targets, "bce"), wanted)
    torch.testing.assert_close(head_loss(logits, 3 * targets, "ce"), -(targets * logits.log_softmax(1)).sum())


def test_every_held_out_clip_is_scored_T1(store):
    """T1: the last, smaller batch of the evaluation was dropped: 19 152 of 19 185 clips were scored."""
    features, _targets = store
    model = head()
    items = np.arange(39)
    logits = compute_logits(model, features, items)
    assert logits.shape == (39, CLASSES)
    with torch.no_grad():
        for i in items:
            expected = model(torch.from_numpy(np.array(features.states(i)))[None])[0]
            np.testing.assert_allclose(logits[i], expected, rtol=1e-4, atol=1e-5)


def test_scores_are_of_float32_T6(store):
    """T6: validation ran under autocast, so its logits were rounded to half precision."""
    features, _ = store
    model = head()
    wanted = compute_logits(model, features, range(8))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(compute_logits(model, features, range(8)), wanted)


def test_long_clips_are_scored_in_equal_rows(tmp_path):
    with FeatureWriter(tmp_path / "f", FeatureMetadata("m", "", "30", 0.0, LAYERS, DIM, "float32")) as writer:
        long = np.random.default_rng(0).standard_normal((LAYERS, 151, DIM)).astype(np.float32)
        writer.add(Clip(tmp_path / "a.wav", ()), long)
    model, whole = head(), torch.from_numpy(long)[None]
    with torch.no_grad():
        rows = [model(whole[:, :, a:b])[0] * (b - a) for a, b in ((0, 50), (50, 100), (100, 151))]
    np.testing.assert_allclose(compute_logits(model, Features.open(tmp_path / "f"), [0])[0], sum(rows) / 151, atol=1e-5)


def test_scores_tell_decisions_only_where_one_class_is_right():
    targets, logits = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32) * 5
    assert compute_scores(targets, logits, "ce")["accuracy"] == 1
    assert "accuracy" not in compute_scores(targets, logits, "bce")


def trained(store, settings: Settings, out=None, stop_at=None, mode: str = "tl_tr_1_8") -> dict[str, torch.Tensor]:
    task, model = task_of(store, settings), head(mode)
    if stop_at is not None:
        real = task.batch
        task.batch = lambda e, s: real(e, s) if (e, s) != stop_at else (_ for _ in ()).throw(KeyboardInterrupt)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    fit(model, task, optimizer, replace(settings.fit_options(True), save_steps=1), out)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


SHORT = Settings(loss="ce", epochs=4, batch=8, rate=3e-3, rows=(3, 8), least_steps=5, mixup=0.5)


@pytest.mark.parametrize("changes", [{}, {"balanced": False, "average": (2, 4), "readers": 2, "decay": "steps"}])
def test_a_run_stopped_at_any_step_gives_the_same_weights_T8(store, tmp_path, changes):
    """T8: the reference had neither seed nor resume."""
    settings = replace(SHORT, **changes)
    whole = trained(store, settings)
    r = np.random.default_rng(7)
    stops = sorted({(int(r.integers(0, 4)), int(r.integers(0, 4))) for _ in range(4)})
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            trained(store, settings, tmp_path / "run", stop)
    resumed = trained(store, settings, tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = trained(store, replace(settings, seed=1))
    assert not all(torch.equal(whole[name], other[name]) for name in whole)


SEVERAL = """
import os, signal, sys
from pathlib import Path
import torch
import sklearn.metrics, torch._dynamo  # once, not in every child
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_recipe import SHORT, made_store, trained
from whisper_at.train.train_head import make_optimizer
from whisper_at.train.recipe import HeadTask
folder = Path({folder!r})
store = made_store(folder / "f")

def in_child(work):  # nothing of PyTorch has run in this process, so that it may be forked
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return child

def killed_at(stop):
    real = HeadTask.batch
    def batch(self, epoch, step):
        if (epoch, step) == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, epoch, step)
    HeadTask.batch = batch
    torch.save(trained(store, SHORT, folder / "run"), folder / "resumed.pt")

for stop in ((0, 3), (0, 4), (2, 0), (3, 2), None):
    status = os.waitpid(in_child(lambda: killed_at(stop)), 0)[1]
    assert status == (0 if stop is None else signal.SIGKILL), (stop, status)

def shared(rank):
    torch.distributed.init_process_group("gloo", f"file://{{folder}}/meet", rank=rank, world_size=2)
    weights = trained(store, SHORT)
    torch.save(weights, folder / f"shared{{rank}}.pt")
    torch.distributed.destroy_process_group()

children = [in_child(lambda: shared(rank)) for rank in (0, 1)]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
torch.save(trained(store, SHORT), folder / "whole.pt")
"""


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of a run, of one that was killed outright four times, and of two processes that share each batch."""
    if not hasattr(os, "fork"):
        pytest.skip("processes are forked")
    folder = tmp_path_factory.mktemp("several")
    code = SEVERAL.format(tests=str(Path(__file__).parent), folder=str(folder))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280, cwd=Path(__file__).parents[2])
    names = ("whole", "resumed", "shared0", "shared1")
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in names}


def test_a_run_killed_outright_goes_on_bit_for_bit_T8(several):
    whole, resumed = several["whole"], several["resumed"]
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_processes_train_as_one_does(several):
    """The mean over two halves of a batch is the mean over the batch, and so are its gradients."""
    start, whole = head().state_dict(), several["whole"]
    for name in whole:
        assert not torch.equal(start[name], whole[name]), name
        torch.testing.assert_close(several["shared0"][name], whole[name], rtol=1e-3, atol=1e-4)
        assert torch.equal(several["shared0"][name], several["shared1"][name])


@pytest.mark.parametrize("mode", ["tl_down_tr_32_1_8", "mean_mlp", "last_tr_4", "wa_tr_4", "wa_down_tr_8_2"])
def test_all_heads_learn(store, mode):
    settings = replace(SHORT, mixup=0.0, epochs=6, rate=5e-2 if mode.endswith("mlp") else 1e-2)
    before, after = (score_of(store, weights, mode) for weights in (None, trained(store, settings, mode=mode)))
    assert after > max(0.7, before)


def score_of(store, weights, mode) -> float:
    model = head(mode)
    if weights is not None:
        model.load_state_dict(weights)
    return compute_scores(store[1], compute_logits(model, store[0], np.arange(40)), "ce")["accuracy"]


def test_every_setting_does_something_T7(store):
    """T7: the reference had dead options. Each setting here changes the weights, the schedule or the division."""
    base = {**settings_dict(replace(SHORT, epochs=3, warm_up=1.0, least_steps=2, batch=16)), "balanced": True}
    reference = fingerprint(store, base)
    other = {
        "mode": "wa_tr_4", "loss": "bce", "epochs": 2, "batch": 4, "epoch_share": 0.25, "least_steps": 6,
        "optimizer": "adam", "rate": 1e-2, "betas": [0.5, 0.9], "weight_decay": 0.5, "warm_up": 2.0, "decay": "none",
        "average": [1, 3], "select": "-AUC", "patience": 1, "balanced": False, "mixup": 0.1, "mixup_alpha": 1.0,
        "time_mask": 1, "freq_mask": 5, "most_masked": 0.9, "smoothing": 0.3, "rows": [4], "precision": "bfloat16",
        "seed": 2,
    }  # fmt: skip
    elsewhere = {"decay_start", "decay_every", "decay_factor"}  # of decay = "steps", below
    files = {
        "valid_share",
        "refit",
        "threshold_precision",
        "false_alarms_per_hour",
        "protocol",
        "seconds",
        "readers",
    }  # tests of the command
    assert other.keys() | elsewhere | files == base.keys()
    for name, value in other.items():
        extra = {"least_steps": 1, "batch": 4} if name == "epoch_share" else {}
        start = fingerprint(store, base | extra) if extra else reference
        assert fingerprint(store, base | extra | {name: value}) != start, name
    stepped = base | {"select": "", "decay": "steps", "decay_start": 1, "decay_every": 1, "decay_factor": 0.5}
    for name, value in {"decay_start": 2, "decay_every": 2, "decay_factor": 0.1}.items():
        assert fingerprint(store, stepped | {name: value}) != fingerprint(store, stepped), name


def fingerprint(store, values: dict) -> list:
    """What a short run with these settings leads to."""
    settings = update_settings(Settings(), values, "test")
    task, model = task_of(store, settings), head(settings.mode)
    options = replace(settings.fit_options(True), save_steps=None)
    fitted = fit(model, task, make_optimizer(model, settings), options)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return [len(fitted.history), fitted.epoch, len(weights), float(weights.sum()), options.patience]

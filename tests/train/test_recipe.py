"""The recipe of heads: targets, sampling, masks and losses by closed formulas; stopped, shared and resumed runs."""

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
from whisper_at.data.toml import read_toml
from whisper_at.tagging.heads import make_head
from whisper_at.train.config import Settings, as_dict, changed, parse_assignments, preset
from whisper_at.train.features import About, Features, FeatureWriter
from whisper_at.train.fit import fit
from whisper_at.train.recipe import HeadTask, clip_weights, loss_of, mask_span, score, scores_of, smoothed_targets

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
    with FeatureWriter(folder, About("m", "sha", "30", 0.0, LAYERS, DIM, "float32")) as writer:
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
    np.testing.assert_allclose(smoothed_targets(a, 0.1), [[0.9, 0.9, 0.025, 0.025]])
    mixed = smoothed_targets(a, 0.1, b, np.array([0.6]))
    np.testing.assert_allclose(mixed, [[0.025 + 0.54, 0.025 + 0.9, 0.025 + 0.36, 0.025]], rtol=1e-6)
    np.testing.assert_allclose(smoothed_targets(a, 0.1, b, np.array([1.0])), smoothed_targets(a, 0.1))
    np.testing.assert_array_equal(smoothed_targets(a, 0.0), a)


def test_weights_of_clips_are_sums_over_their_labels():
    """Section 3.2: 1000 / (count + 0.01) a class."""
    targets = np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.float32)
    common, rare = 1000 / 3.01, 1000 / 1.01
    np.testing.assert_allclose(clip_weights(targets), [common, common + rare, common, 0])


def test_balanced_sampling_draws_by_weight(store):
    features, _ = store
    targets = np.zeros((40, CLASSES), np.float32)
    targets[:, 0] = 1
    targets[:2] = [0, 1, 0, 0]
    targets[2] = 0
    task = HeadTask(features, np.arange(40), targets, Settings(loss="bce", balanced=True, batch=4000, seed=3))
    drawn = task._picked(np.random.default_rng(0), 0, 0)
    counts = np.bincount(drawn, minlength=40) / 4000
    np.testing.assert_allclose(counts, clip_weights(targets) / clip_weights(targets).sum(), atol=0.03)
    assert counts[2] == 0


def test_the_ten_percent_epoch_is_the_published_one(store):
    """Section 3.5: 1 953 082 clips in batches of 48 give pseudo-epochs of 4 070 batches."""
    features, targets = store
    task = HeadTask(features, np.arange(40), targets, preset("audioset", 384))
    task.items = np.zeros(1_953_082, np.int8)
    assert task.steps(0) == 4070
    task.settings = replace(task.settings, epoch_share=1.0)
    assert task.steps(0) == 40689


def test_an_epoch_without_balance_is_every_clip_once(store):
    task = task_of(store, Settings(loss="ce", batch=6, least_steps=1, **QUIET))
    assert task.steps(0) == 6
    passes = [np.concatenate([task._picked(None, epoch, step) for step in range(6)]) for epoch in (0, 1)]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(32))
    assert passes[0].tolist() != passes[1].tolist()


def test_few_clips_still_make_an_epoch(store):
    task = task_of(store, Settings(loss="ce", batch=32, least_steps=3, **QUIET))
    assert task.steps(0) == 3
    passes = [task._picked(None, 0, step) for step in range(3)]
    assert all(sorted(p) == list(range(32)) for p in passes)
    assert passes[0].tolist() != passes[1].tolist()


def test_rows_are_cut_from_anywhere_or_repeated(store):
    features, _ = store
    task = task_of(store, Settings(loss="ce", batch=32, rows=(5,), **QUIET))
    starts = set()
    for step in range(8):
        states, _ = task.batch(step, 0)
        for row, item in zip(states, task._picked(None, step, 0)):
            whole = torch.from_numpy(np.array(features.states(task.items[item])))
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
    assert 0.5 <= share.min()
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
    spans = [mask_span(r, 10, 25) for _ in range(5000)]
    assert {end - start for start, end in spans} == set(range(10))
    assert min(start for start, _ in spans) == 0
    assert max(end for _, end in spans) == 25


def test_losses_are_the_textbooks():
    logits, targets = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[0.9, 0.05, 0.05]])
    p = torch.sigmoid(logits)
    wanted = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(loss_of(logits, targets, "bce"), wanted)
    torch.testing.assert_close(loss_of(logits, 3 * targets, "ce"), -(targets * logits.log_softmax(1)).sum())


def test_every_held_out_clip_is_scored_T1(store):
    """T1: the last, smaller batch of the evaluation was dropped: 19 152 of 19 185 clips were scored."""
    features, _targets = store
    model = head()
    items = np.arange(39)
    logits = score(model, features, items)
    assert logits.shape == (39, CLASSES)
    with torch.no_grad():
        for i in items:
            alone = model(torch.from_numpy(np.array(features.states(i)))[None])[0]
            np.testing.assert_allclose(logits[i], alone, rtol=1e-4, atol=1e-5)


def test_scores_are_of_float32_T6(store):
    """T6: validation ran under autocast, so its logits were rounded to half precision."""
    features, _ = store
    model = head()
    wanted = score(model, features, range(8))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(score(model, features, range(8)), wanted)


def test_long_clips_are_scored_in_equal_rows(tmp_path):
    with FeatureWriter(tmp_path / "f", About("m", "", "30", 0.0, LAYERS, DIM, "float32")) as writer:
        long = np.random.default_rng(0).standard_normal((LAYERS, 151, DIM)).astype(np.float32)
        writer.add(Clip(tmp_path / "a.wav", ()), long)
    model, whole = head(), torch.from_numpy(long)[None]
    with torch.no_grad():
        rows = [model(whole[:, :, a:b])[0] * (b - a) for a, b in ((0, 50), (50, 100), (100, 151))]
    np.testing.assert_allclose(score(model, Features.open(tmp_path / "f"), [0])[0], sum(rows) / 151, atol=1e-5)


def test_scores_tell_decisions_only_where_one_class_is_right():
    targets, logits = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32) * 5
    assert scores_of(targets, logits, "ce")["accuracy"] == 1
    assert "accuracy" not in scores_of(targets, logits, "bce")


def trained(store, settings: Settings, out=None, stop_at=None, mode: str = "tl_tr_1_8") -> dict[str, torch.Tensor]:
    task, model = task_of(store, settings), head(mode)
    if stop_at is not None:
        real = task.batch
        task.batch = lambda e, s: real(e, s) if (e, s) != stop_at else (_ for _ in ()).throw(KeyboardInterrupt)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.rate)
    fit(model, task, optimizer, replace(settings.plan(True), save_steps=1), out)
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
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_train_recipe import SHORT, made_store, trained
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
    code = SEVERAL.format(tests=str(Path(__file__).parent.parent), folder=str(folder))
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
    return scores_of(store[1], score(model, store[0], np.arange(40)), "ce")["accuracy"]


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "mode", "rate", "epochs", "average"),
    [
        (384, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (512, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (768, "tl_tr_1_8", 1e-4, 50, (21, 50)),
        (768, "tl_down_tr_512_1_8", 1e-4, 50, (21, 50)),
        (1024, "tl_tr_1_8", 5e-5, 30, (16, 30)),
        (1024, "tl_down_tr_512_1_8", 1e-4, 30, (16, 30)),
        (1280, "tl_tr_1_8", 5e-5, 30, (16, 30)),
        (1280, "tl_down_tr_512_1_8", 1e-4, 30, (16, 30)),
    ],
)
def test_presets_are_the_published_table(width, mode, rate, epochs, average):
    """Section 3.5."""
    s = preset("audioset", width, mode)
    assert (s.rate, s.epochs, s.average) == (rate, epochs, average)
    assert (s.optimizer, s.betas, s.weight_decay, s.batch, s.loss) == ("adam", (0.95, 0.999), 5e-7, 48, "bce")
    assert (s.mixup, s.mixup_alpha, s.time_mask, s.freq_mask, s.smoothing) == (0.5, 10, 10, 0, 0.1)
    assert s.balanced
    assert s.epoch_share == 0.1
    assert s.rows == (25,)
    assert s.protocol == "10"
    factors = [s.schedule()(epoch, []) for epoch in (0, 14, 15, 19, 20, 29)]
    np.testing.assert_allclose(factors, [1, 1, 0.75, 0.75, 0.5625, 0.421875])


def test_every_setting_does_something_T7(store):
    """T7: the reference had dead options. Each setting here changes the weights, the schedule or the division."""
    base = {**as_dict(replace(SHORT, epochs=3, warm_up=1.0, least_steps=2, batch=16)), "balanced": True}
    reference = fingerprint(store, base)
    other = {
        "mode": "wa_tr_4", "loss": "bce", "epochs": 2, "batch": 4, "epoch_share": 0.25, "least_steps": 6,
        "optimizer": "adam", "rate": 1e-2, "betas": [0.5, 0.9], "weight_decay": 0.5, "warm_up": 2.0, "decay": "none",
        "average": [1, 3], "select": "-AUC", "patience": 1, "balanced": False, "mixup": 0.1, "mixup_alpha": 1.0,
        "time_mask": 1, "freq_mask": 5, "most_masked": 0.9, "smoothing": 0.3, "rows": [4], "precision": "bfloat16",
        "seed": 2,
    }  # fmt: skip
    elsewhere = {"decay_start", "decay_every", "decay_factor"}  # of decay = "steps", below
    files = {"valid_share", "threshold_precision", "protocol", "seconds", "readers"}  # tests of the command
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
    from whisper_at.train.train_head import optimizer_of

    settings = changed(Settings(), values, "test")
    task, model = task_of(store, settings), head(settings.mode)
    plan = replace(settings.plan(True), save_steps=None)
    fitted = fit(model, task, optimizer_of(model, settings), plan)
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return [len(fitted.history), fitted.epoch, len(weights), float(weights.sum()), plan.patience]


def test_settings_come_from_toml_and_the_command_line(tmp_path):
    (tmp_path / "a.toml").write_text('mode = "mean_mlp"\nrows = [5, 10]\nrate = 1\nprotocol = 10\nseconds = 5\n')
    s = changed(Settings(), read_toml(tmp_path / "a.toml"), "a.toml")
    assert (s.mode, s.rows, s.rate, s.protocol, s.seconds) == ("mean_mlp", (5, 10), 1.0, "10", 5.0)
    s = changed(s, parse_assignments(["mode=wa_mlp", "rows=[3]", "rate=1e-4", "balanced=false"]), "--set")
    assert (s.mode, s.rows, s.rate, s.balanced) == ("wa_mlp", (3,), 1e-4, False)


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("learning_rate=1", "no setting"),
        ("epoch=5", "did you mean 'epochs'"),
        ("mixupp=1", "did you mean 'mixup'"),
        ("epochs=0", "between 1 and"),
        ("epochs=1.5", "a whole number"),
        ("rate=fast", "a number"),
        ("balanced=1", "true or false"),
        ("rows=[]", "at least one"),
        ("rows=5", "a list"),
        ("average=[5, 1000]", "first and a last epoch"),
        ("loss=mse", "auto, bce, ce"),
        ("smoothing=nan", "between"),
        ("rate", "name=value"),
    ],
)
def test_wrong_settings_are_named(pair, told):
    with pytest.raises(ValueError, match=told.replace(",", ".*")):
        changed(Settings(), parse_assignments([pair]), "--set")


def test_settings_that_are_no_toml(tmp_path):
    (tmp_path / "a.toml").write_text("rate = = 1")
    with pytest.raises(ValueError, match="is not TOML"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(FileNotFoundError, match=r"b\.toml"):
        read_toml(tmp_path / "b.toml")

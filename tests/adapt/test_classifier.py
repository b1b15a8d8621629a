"""Classifiers of clips: waveforms and their augmentation, fitting, resuming, saving, and what must not leak."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_backbones import FAMILIES
from torch.nn import functional as F

from whisper_at.adapt import merge, sources, waveforms
from whisper_at.adapt.backbones import load_backbone, random_backbone
from whisper_at.adapt.classifier import AudioClassifier
from whisper_at.adapt.config import make_config
from whisper_at.adapt.sources import StatesDataset
from whisper_at.adapt.trainer import ClassificationTask, Recipe, _batch_sources, class_weights, recipe_settings
from whisper_at.adapt.waveforms import WaveformDataset, add_noise, mask_spectrogram, mask_time, spec_augment
from whisper_at.data.clips import Clip, Dataset

RATE = 16000
CLASSES = ("high", "low")
RECIPE = Recipe(epochs=4, batch_size=6, lr=5e-3, seed=1)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(samples), "NONE", ""))
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Dataset:
    """24 noisy tones, high or low, of different lengths."""
    folder, r = tmp_path_factory.mktemp("tones"), np.random.default_rng(0)
    clips = []
    for i in range(24):
        high = i % 2 == 0
        t = np.arange(int(RATE * r.uniform(0.2, 0.5))) / RATE
        sound = 0.3 * np.sin(2 * np.pi * (r.uniform(2000, 3000) if high else r.uniform(150, 400)) * t)
        path = write_wav(folder / f"{i:02}.wav", sound + 0.01 * r.standard_normal(len(t)))
        clips.append(Clip(path, ("high" if high else "low",), ("train", "valid", "test")[min(i // 12, 1) + (i > 17)]))
    return Dataset(tuple(clips), CLASSES)


@pytest.fixture
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.getbasetemp() / "cache"


def make_classifier(name: str = "whisper-nano", methods=(), seed: int = 0, **options) -> AudioClassifier:
    torch.manual_seed(7)
    return AudioClassifier(random_backbone(name), methods, CLASSES, seed=seed, **options)


LORA = {"name": "lora", "sites": ["up", "down"], "rank": 2, "alpha": 2}
CONFORMER = {"name": "adapter", "block": "conformer", "dim": 4, "kernel": 3}


# --- waveforms ----------------------------------------------------------------------------------------------------


def test_audio_is_decoded_once_for_each_content(tmp_path, monkeypatch):
    r = np.random.default_rng(1)
    one = write_wav(tmp_path / "a.wav", r.uniform(-0.5, 0.5, 800))
    copied = write_wav(tmp_path / "b.wav", r.uniform(-0.5, 0.5, 800))
    copied.write_bytes(one.read_bytes())
    calls = []
    real = waveforms.load_audio
    monkeypatch.setattr(waveforms, "load_audio", lambda path, sr: calls.append(path) or real(path, sr))
    clips = [Clip(one, ("high",)), Clip(copied, ("low",)), Clip(one, ("low",), start=0.01, end=0.03)]
    first = WaveformDataset(clips[:1], RATE, tmp_path / "cache")
    again = WaveformDataset(clips, RATE, tmp_path / "cache")
    assert len(calls) == 1
    np.testing.assert_array_equal(first[0], real(one, RATE))
    np.testing.assert_array_equal(again[1], first[0])
    np.testing.assert_array_equal(again[2], first[0][160:480])
    WaveformDataset(clips[:1], 8000, tmp_path / "cache")
    write_wav(one, r.uniform(-0.5, 0.5, 400))
    changed = WaveformDataset(clips[:1], RATE, tmp_path / "cache")
    assert len(calls) == 3
    assert len(changed[0]) == 400


def test_clips_are_cut_and_padded(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.full(1000, 0.25))
    assert len(WaveformDataset([Clip(path, ())], RATE, tmp_path, seconds=0.05)[0]) == 800
    filled = WaveformDataset([Clip(path, ())], RATE, tmp_path, min_samples=1200)[0]
    assert len(filled) == 1200
    assert not filled[1000:].any()
    batch, lengths = WaveformDataset([Clip(path, ()), Clip(path, (), end=0.01)], RATE, tmp_path).batch([1, 0])
    assert lengths.tolist() == [160, 1000]
    assert not batch[0, 160:].any()
    assert batch[1].all()


def test_broken_files_are_named_before_any_work(tmp_path):
    good = write_wav(tmp_path / "good.wav", np.zeros(100))
    (tmp_path / "text.wav").write_text("no audio")
    clips = [Clip(tmp_path / name, ()) for name in (good.name, "text.wav", "none.wav")]
    with pytest.raises(RuntimeError, match=r"none\.wav.*2 of 3 files cannot be read"):
        WaveformDataset(clips, RATE, tmp_path / "cache")


def test_noise_has_the_ratio_that_was_drawn():
    r = np.random.default_rng(0)
    samples = np.sin(np.arange(40000) / 7).astype(np.float32)
    for decibels in (10.0, 30.0):
        noise = add_noise(samples, r, (decibels, decibels)) - samples
        assert 10 * np.log10(np.mean(samples**2) / np.mean(noise**2)) == pytest.approx(decibels, abs=0.2)
    drawn = [np.std(add_noise(samples, r) - samples) for _ in range(50)]
    assert 0.0223 * 0.9 < min(drawn) < max(drawn) < 0.2236 * 1.1  # rms of the tone at 30 and at 10 dB


def test_time_mask_silences_its_share_and_fades():
    samples = np.ones(16000, np.float32)
    for seed in range(10):
        masked = mask_time(samples, np.random.default_rng(seed))
        changed = np.flatnonzero(masked != 1)
        assert 0.1 * 16000 - 2 <= len(changed) <= 0.15 * 16000
        assert changed[-1] - changed[0] + 1 == len(changed)
        assert (masked == 0).sum() == pytest.approx(len(changed) - 2 * 160, abs=2)
        assert np.abs(np.diff(masked)).max() < 0.01
    assert samples.all()


def test_spec_augment_masks_one_band_and_one_stretch():
    torch.manual_seed(0)
    widths = set()
    for _ in range(30):
        masked = mask_spectrogram(torch.ones(1, 1, 128, 100), 24, 80)[0, 0] == 0
        rows, columns = masked.all(1), masked.all(0)
        assert torch.equal(masked, rows[:, None] | columns[None])
        for line, most in ((rows, 24), (columns, 80)):
            place = line.nonzero()[:, 0]
            assert len(place) < most
            assert not len(place) or place[-1] - place[0] + 1 == len(place)
        widths.add(int(columns.sum()))
    assert len(widths) > 10
    two = mask_spectrogram(torch.ones(2, 64, 50), 30, 1)
    assert not torch.equal(two[0], two[1])


@pytest.mark.parametrize("name", ["whisper-nano", "ast-tiny"])
def test_spec_augment_masks_the_input_of_the_encoder(name):
    model = make_classifier(name).eval()
    sound = torch.randn(1, 8000) * 0.1
    with torch.no_grad():
        plain = model(sound)
        with spec_augment(model.backbone.front, (60, 40)):
            torch.manual_seed(0)
            masked = model(sound)
        assert not torch.allclose(plain, masked)
        assert torch.equal(plain, model(sound))
    with (
        pytest.raises(ValueError, match="this backbone reads samples"),
        spec_augment(make_classifier("wav2vec2-tiny").backbone.front, (24, 80)),
    ):
        pass


# --- fitting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [(), LORA, [CONFORMER, {"name": "layer_norm", "sites": ["ffn", "final"]}]])
def test_fitting_learns_tones(tones, cache, methods):
    model = AudioClassifier("nano.en", methods, CLASSES, device="cpu")
    recipe = replace(RECIPE, epochs=6, lr=1e-2, select="-valid_loss")
    fitted = model.fit(tones.split("train"), tones.split("valid"), recipe, cache=cache)
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    evaluation = model.evaluate(tones.split("test"), cache=cache)
    assert evaluation.scores["accuracy"] == 1.0
    assert evaluation.confusion.tolist() == [[3, 0], [0, 3]]
    found = model.predict([clip.path for clip in tones.split("test").clips], cache=cache)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert [CLASSES[i] for i in found.argmax(1)] == [clip.labels[0] for clip in tones.split("test").clips]


def test_only_declared_parameters_change(tones, cache):
    model = make_classifier(methods=[CONFORMER, {"name": "layer_norm", "sites": ["final"]}])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fit(tones.split("train"), tones.split("valid"), replace(RECIPE, epochs=1), cache=cache)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith(("head.", "backbone.norm.")) or ".patches." in name for name in moved)
    assert any("running_mean" in name for name in moved)
    assert moved <= model.trained_state_dict().keys()


def test_s8_batches_and_single_clips_agree(tones, cache):
    model = make_classifier(methods=LORA, head="conv", layers="weighted_conv")
    torch.nn.init.normal_(model.backbone.blocks[0].ffn.lora["up"].B)
    together = model.evaluate(tones, 24, cache).logits
    alone = model.evaluate(tones, 1, cache).logits
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_w1_the_loss_is_of_logits(tones, cache):
    model = make_classifier()
    source = model.load_waveforms(tones.clips, cache)
    task = ClassificationTask(source, tones.targets(), RECIPE, source, tones.targets())
    waveforms, lengths, targets = batch = task.batch(0, 0)
    wanted = F.cross_entropy(model(waveforms, lengths), targets.argmax(1))
    torch.testing.assert_close(task.loss(model, batch), wanted)
    assert not torch.allclose(model(waveforms, lengths).sum(1), torch.ones(len(targets)))


def test_p10_the_best_epoch_is_kept_and_the_test_part_is_never_used(tones, cache):
    """P10: the reference kept a live reference to its weights, so its "best" was the last epoch."""
    model = make_classifier(methods=LORA)
    recipe = replace(RECIPE, epochs=6, lr=0.3, schedule="constant", select="-valid_loss")
    fitted = model.fit(tones.split("train"), tones.split("valid"), recipe, cache=cache)
    losses = [line["valid_loss"] for line in fitted.history]
    assert fitted.epoch == int(np.argmin(losses)) + 1 < 6
    valid = tones.split("valid")
    loss = F.cross_entropy(
        torch.from_numpy(model.evaluate(valid, cache=cache).logits), torch.tensor(valid.targets()).argmax(1)
    )
    assert float(loss) == pytest.approx(min(losses), rel=1e-4)


def test_without_validation_a_part_of_training_is_held_out(tones, cache, monkeypatch):
    parts = []
    real = AudioClassifier.load_waveforms

    def load_waveforms(self, clips, *args, **options):
        parts.append({clip.key for clip in clips})
        return real(self, clips, *args, **options)

    monkeypatch.setattr(AudioClassifier, "load_waveforms", load_waveforms)
    make_classifier().fit(replace(tones, clips=tones.clips * 2), None, replace(RECIPE, epochs=1), cache=cache)
    train, valid = parts
    assert valid
    assert not train & valid
    assert len(train | valid) == len(tones)


def test_clips_are_encoded_once_for_a_frozen_encoder_with_the_same_result(tones, cache, monkeypatch):
    found = {}
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr(sources, "MAX_CACHED_BYTES", 0)
        model = make_classifier(head="tl_tr_1_4", windows=False)
        passes = []
        model.backbone.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        model.fit(tones.split("train"), tones.split("valid"), RECIPE, cache=cache)
        found[cached] = (len(passes), model.evaluate(tones.split("test"), cache=cache).logits)
    assert found[True][0] == 3
    assert found[False][0] > 8
    np.testing.assert_allclose(found[True][1], found[False][1], atol=1e-3)


def test_states_are_cached_of_all_that_does_not_train_and_clips_as_they_are(tones, cache):
    for methods, augment, kinds in (
        ((), False, [StatesDataset, StatesDataset]),
        ((), True, [WaveformDataset, StatesDataset]),
        (LORA, False, [StatesDataset, StatesDataset]),
        (LORA, True, [WaveformDataset, StatesDataset]),
        ({"name": "full"}, False, [WaveformDataset, WaveformDataset]),
    ):
        model = make_classifier(methods=methods, windows=False)
        train, valid = model.load_waveforms(tones.clips[:4], cache), model.load_waveforms(tones.clips[4:8], cache)
        made = _batch_sources(model, train, valid, replace(RECIPE, augment=augment), progress=False)
        assert [type(source) for source in made[:2]] == kinds


class CountedFit(NamedTuple):
    calls: list[int]  # of each block
    layers: list[int]  # in each batch of states
    history: list[dict[str, float]]
    logits: np.ndarray


def _fit_counting_blocks(tones, cache, monkeypatch, limit, methods, options) -> CountedFit:
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", limit)
    model = make_classifier(methods=methods, **options)
    calls, layers = [0] * len(model.backbone.blocks), []

    def count(block, *_):
        calls[list(model.backbone.blocks).index(block)] += 1

    for block in model.backbone.blocks:
        block.register_forward_hook(count)
    model.register_forward_hook(lambda _, inputs, __: layers.append(inputs[0].shape[1]))
    fitted = model.fit(tones.split("train"), tones.split("valid"), RECIPE, cache=cache)
    return CountedFit(calls, layers, fitted.history, model.evaluate(tones.split("test"), cache=cache).logits)


@pytest.mark.parametrize(
    ("methods", "options", "cached"),
    [
        ({"name": "linear_probe"}, {"layers": "weighted_conv"}, (4, 3)),
        ({"name": "linear_probe"}, {}, (1, 3)),
        ({"name": "last_k", "k": 1}, {"head": "tl_tr_1_4"}, (3, 2)),
        (LORA, {"head": "conv", "layers": "weighted"}, (1, 0)),
        ({"name": "prompt", "kind": "shallow", "tokens": 2}, {}, (1, 0)),
    ],
)
def test_blocks_before_the_first_trained_one_run_once(tones, cache, monkeypatch, methods, options, cached):
    """A linear probe that trains the final norm ran the encoder in every epoch, as if all of it were trained."""
    stored, frozen = cached
    once, every = (
        _fit_counting_blocks(tones, cache, monkeypatch, limit, methods, options)
        for limit in (sources.MAX_CACHED_BYTES, 0)
    )
    assert set(once.layers[:-1]) == {stored}
    assert once.calls[:frozen] == [4] * frozen  # two batches for training, one for validation and one for the test
    assert once.calls[frozen:] == every.calls[frozen:]
    assert min(every.calls) > 3 * RECIPE.epochs
    for line, other in zip(once.history, every.history):
        assert line == pytest.approx(other, abs=1e-3)
    np.testing.assert_allclose(once.logits, every.logits, atol=1e-3)


def test_a_stopped_run_goes_on_to_the_same_weights(tones, cache, tmp_path):
    recipe = replace(RECIPE, augment=True, spec_augment=(20, 10), schedule="constant")
    train, valid = tones.split("train"), tones.split("valid")
    whole, parted = make_classifier(methods=CONFORMER), make_classifier(methods=CONFORMER)
    whole.fit(train, valid, recipe, tmp_path / "whole", cache)

    def stop(*_):
        if (tmp_path / "parted" / "history.jsonl").is_file():
            raise KeyboardInterrupt

    handle = parted.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        parted.fit(train, valid, recipe, tmp_path / "parted", cache)
    handle.remove()
    resumed = make_classifier(methods=CONFORMER)
    resumed.fit(train, valid, recipe, tmp_path / "parted", cache)
    for name, tensor in whole.trained_state_dict().items():
        assert torch.equal(tensor, resumed.trained_state_dict()[name]), name
    with pytest.raises(ValueError, match="holds a run with"):
        make_classifier(methods=LORA).fit(train, valid, recipe, tmp_path / "parted", cache)


def test_by_default_validation_ends_a_fit(tones, cache):
    model = make_classifier()
    fitted = model.fit(tones.split("train"), tones.split("valid"), Recipe(), cache=cache)
    losses = [line["valid_loss"] for line in fitted.history]
    assert fitted.stopped
    assert len(losses) < Recipe().epochs
    assert fitted.epoch == int(np.argmin(losses)) + 1
    assert min(losses[-15:]) > 0.999 * min(losses[:-15])
    short = make_classifier().fit(tones.split("train"), tones.split("valid"), Recipe(epochs=3), cache=cache)
    assert not short.stopped
    assert short.history == fitted.history[:3]


def test_how_long_a_fit_lasts_does_not_depend_on_a_number_of_epochs(tones, cache):
    """Comparisons gave each method the same few epochs: heads on frozen states were half fitted, at rates that fell
    to 0 with the last epoch. Now a slower rate takes longer, and comes to about the same loss."""
    found = {}
    for lr in (0.02, 0.002):
        fitted = make_classifier(seed=3).fit(tones.split("train"), tones.split("train"), Recipe(lr=lr), cache=cache)
        found[lr] = (len(fitted.history), fitted.history[fitted.epoch - 1]["valid_loss"], fitted.stopped)
        few = make_classifier(seed=3).fit(
            tones.split("train"),
            tones.split("train"),
            Recipe(lr=lr, epochs=8, schedule="cosine", patience=None),
            cache=cache,
        )
        assert not few.stopped
        assert few.history[few.epoch - 1]["valid_loss"] > 1.5 * found[lr][1]
    assert found[0.002][0] > found[0.02][0]


def test_class_weights_are_inverse_shares_of_sum_one():
    targets = np.eye(3, dtype=np.float32)[[0] * 6 + [1] * 3 + [2]]
    np.testing.assert_allclose(class_weights(targets).numpy(), np.array([1 / 6, 1 / 3, 1]) / 1.5, rtol=1e-6)


def test_vary_is_a_deprecated_name_of_augment():
    with pytest.warns(DeprecationWarning, match="augment"):
        recipe = Recipe(vary=True)
    assert recipe == Recipe(augment=True)
    assert replace(recipe, epochs=2).augment
    assert recipe_settings(recipe) == recipe_settings(Recipe()) | {"vary": True}  # the name in files of runs
    with pytest.warns(DeprecationWarning, match="augment"):
        assert make_config({"recipe": {"vary": True}}).recipe == recipe


def test_schedules_are_those_of_the_papers():
    cosine = Recipe(epochs=10, schedule="cosine").make_schedule(7)
    assert [cosine(e, []) for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    linear = Recipe(epochs=10, schedule="linear", warm_up_steps=14).make_schedule(7)  # up over two epochs, then down
    assert [linear(e, []) for e in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    plateau = Recipe(lr=5e-4, lr_min=5e-5, schedule="plateau").make_schedule(7)
    flat = [{"valid_loss": 1.0}] * 60
    assert [plateau(n, flat[:n]) for n in (6, 7, 13, 60)] == pytest.approx([1, 0.5, 0.25, 0.1])
    warm = Recipe(warm_up_steps=14, schedule="plateau").make_schedule(7)
    assert [warm(e, flat[: int(e)]) for e in (0, 1, 2, 7)] == pytest.approx([0, 0.5, 1, 0.5])
    assert [Recipe(warm_up_steps=14, schedule="constant").make_schedule(7)(e, []) for e in (1, 5)] == [0.5, 1.0]
    low = Recipe(lr=1e-5, lr_min=5e-5, schedule="plateau").make_schedule(7)  # below its own floor: it never rises
    assert [low(n, flat[:n]) for n in (6, 7, 60)] == [1, 1, 1]


def test_several_labels_a_clip_are_decided_one_by_one(tones, cache):
    both = replace(
        tones, clips=tuple(replace(c, labels=CLASSES) if i % 5 == 0 else c for i, c in enumerate(tones.clips))
    )
    model = make_classifier()
    recipe = replace(RECIPE, epochs=2, select="mAP")
    fitted = model.fit(both.split("train"), both.split("valid"), recipe, cache=cache)
    assert {"mAP", "AUC", "d_prime", "valid_loss"} <= fitted.history[-1].keys()
    single = tones.split("test")  # whatever labels a part happens to have, the model decides classes one by one
    assert model.kind == "multi_label"
    assert model.evaluate(single, cache=cache).scores.keys() == {
        "mAP",
        "AUC",
        "d_prime",
    }
    with pytest.raises(ValueError, match="there are no clips"):
        model.evaluate(single.select([]))


@pytest.mark.parametrize(("select", "several"), [("accuracy", True), ("UAR", True), ("mAP", False), ("d_prime", False)])
def test_a_score_that_the_data_do_not_have_cannot_select_an_epoch(tones, cache, select, several, monkeypatch):
    monkeypatch.setattr(AudioClassifier, "load_waveforms", None)  # it is refused before anything is decoded
    clips = tuple(replace(c, labels=CLASSES) if several and i == 0 else c for i, c in enumerate(tones.clips))
    data = replace(tones, clips=clips)
    with pytest.raises(ValueError, match=f"select = '{select}'"):
        make_classifier().fit(data.split("train"), data.split("valid"), replace(RECIPE, select=select), cache=cache)


# --- on disk -----------------------------------------------------------------------------------------------------


EVERY_METHOD = [
    (),
    "bitfit",
    LORA,
    [CONFORMER, {"name": "layer_norm"}],
    {"name": "prompt", "kind": "deep_prepend", "tokens": 3},
    {"name": "prompt", "kind": "shallow", "tokens": 3},
    {"name": "prefix", "tokens": 4},
    {"name": "soft_moa", "experts": 2, "dim": 2},
    {"name": "last_k", "k": 1},
]


@pytest.mark.parametrize("methods", EVERY_METHOD)
def test_s2_all_that_was_trained_is_saved_and_nothing_frozen(methods, tmp_path):
    """S2: the reference saved names with ``lora_`` only; head, prompts, adapters and layer weights were lost."""
    model = make_classifier(methods=methods, head="conv", layers="weighted")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.2)
    model.save(tmp_path / "m.safetensors")
    other = AudioClassifier.load(tmp_path / "m.safetensors", make_classifier().backbone)
    sound = torch.randn(2, 5000) * 0.1
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(sound), other(sound))
    assert other.configuration() == model.configuration()
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        names = set(file.keys())
    assert {name for name, p in model.named_parameters() if p.requires_grad} <= names
    assert not names & {name for name, p in model.named_parameters() if not p.requires_grad}


def test_a_file_names_its_backbone_classes_and_methods(tmp_path):
    path = tmp_path / "m.safetensors"
    make_classifier(methods=LORA).save(path)
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["configuration"])
    assert known["classes"] == list(CLASSES)
    assert known["methods"][0]["rank"] == 2
    torch.manual_seed(99)
    with pytest.warns(UserWarning, match="other frozen weights"):
        AudioClassifier.load(path, random_backbone("whisper-nano"))
    with pytest.raises(ValueError, match="does not fit wav2vec2-tiny"):
        AudioClassifier.load(path, random_backbone("wav2vec2-tiny"))
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RuntimeError, match="cannot be read"):
        AudioClassifier.load(path, random_backbone("whisper-nano"))


@pytest.mark.parametrize(
    ("name", "options", "other"), [("wav2vec2-tiny", {"normalize": False}, {}), ("ast-tiny", {"frames": 96}, {})]
)
def test_options_of_the_front_end_are_saved(name, options, other, tmp_path):
    backbone = load_backbone(f"random:{name}", "cpu", **options)
    model = AudioClassifier(backbone, "bitfit", CLASSES).eval()
    model.save(tmp_path / "m.safetensors")
    again = AudioClassifier.load(tmp_path / "m.safetensors", device="cpu")
    sound = torch.randn(1, 8000) * 0.03 + 0.1
    with torch.no_grad():
        torch.testing.assert_close(again(sound), model(sound))
    assert options.items() <= again.configuration().items()
    with pytest.raises(ValueError, match=f"load it with {next(iter(options))}="):
        AudioClassifier.load(tmp_path / "m.safetensors", load_backbone(f"random:{name}", "cpu", **other))


def test_merged_lora_is_saved_as_it_was_before(tmp_path, recwarn):
    model = make_classifier(methods=[{"name": "last_k", "k": 1}, {"name": "lora", "rank": 2}]).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    names, sound = model.trained_state_dict().keys(), torch.randn(1, 8000) * 0.1
    merge(model.backbone)
    with torch.no_grad():
        wanted = model(sound)
    model.save(tmp_path / "m.safetensors")
    assert model.backbone.blocks[0].attn.lora["q"].merged
    again = AudioClassifier.load(tmp_path / "m.safetensors", make_classifier().backbone)
    assert again.trained_state_dict().keys() == names
    assert not [w for w in recwarn if "frozen weights" in str(w.message)]
    with torch.no_grad():
        torch.testing.assert_close(again(sound), wanted, rtol=1e-4, atol=1e-4)


def test_an_embedded_backbone_is_found_by_its_name(tmp_path):
    model = AudioClassifier("nano.en", LORA, CLASSES, device="cpu")
    model.save(tmp_path / "m.safetensors")
    sound = torch.randn(1, 8000) * 0.1
    with torch.no_grad():
        found = AudioClassifier.load(tmp_path / "m.safetensors", device="cpu")(sound)
    torch.testing.assert_close(found, model.eval()(sound).detach())


# --- wrong options ----------------------------------------------------------------------------------------------------


def test_impossible_options_are_refused_before_any_work(tones, cache):
    with pytest.raises(ValueError, match="names of its classes"):
        AudioClassifier(random_backbone("whisper-nano"))
    with pytest.raises(ValueError, match="0 special tokens"):
        make_classifier(pooling="cls")
    with pytest.raises(ValueError, match="no prompts"):
        make_classifier(pooling="prompts", methods={"name": "prompt", "kind": "deep_append", "tokens": 2})
    for seconds in (0, -0.5):
        with pytest.raises(ValueError, match="seconds must be more than 0"):
            make_classifier(seconds=seconds)
    with pytest.raises(ValueError, match="must end in .safetensors"):
        make_classifier().save(cache / "m.bin")
    with pytest.raises(ValueError, match="site of lora"):
        make_classifier(methods={"name": "lora", "sites": ["query"]})
    with pytest.raises(ValueError, match="frames in time"):
        make_classifier("ast-tiny", head="tl_tr")
    with pytest.raises(ValueError, match="pad needs seconds"):
        make_classifier(pad=True)
    with pytest.raises(ValueError, match="reads samples"):
        make_classifier("wav2vec2-tiny").fit(tones, tones, replace(RECIPE, spec_augment=(24, 80)), cache=cache)
    with pytest.raises(ValueError, match="the data have classes"):
        make_classifier().fit(replace(tones, classes=("high", "low", "mid")), tones, RECIPE, cache=cache)
    lacking = tones.filter(lambda clip: clip.labels == ("high",))
    with pytest.raises(ValueError, match="class 'low' has nothing to train on"):
        make_classifier().fit(lacking, tones, RECIPE, cache=cache)
    for wrong in ({"optimizer": "sgd"}, {"schedule": "cos"}, {"select": "acc"}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Recipe(**wrong)


def test_a_clip_that_is_too_long_for_whisper_is_named(tmp_path):
    path = write_wav(tmp_path / "long.wav", np.zeros(31 * RATE))
    with pytest.raises(ValueError, match=r"long.wav lasts 31.0 s.*set seconds"):
        make_classifier().predict([path], cache=tmp_path)
    assert make_classifier(seconds=30.0).predict([path], cache=tmp_path).shape == (1, 2)


def test_no_files_have_no_probabilities():
    assert make_classifier().predict([]).shape == (0, 2)


def test_options_are_keyword_arguments():
    model = AudioClassifier(
        random_backbone("ast-tiny"), method={"name": "lora", "rank": 2}, pooling="cls", head="linear", classes=CLASSES
    )
    assert model.configuration()["methods"][0]["rank"] == 2
    assert model.configuration()["pooling"] == "cls"
    plain = AudioClassifier(random_backbone("whisper-nano"), method=None, classes=CLASSES)
    assert plain.configuration()["methods"] == []


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"head": "conv", "layers": "weighted_conv"}])
def test_a_classifier_may_be_cast_as_a_whole(name, options):
    model = make_classifier(name, LORA, **options).eval()
    sound = torch.randn(2, 8000) * 0.1
    with torch.no_grad():
        wanted, found = model(sound), model.bfloat16()(sound)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("part", "message"), [((1.0, None), "from 1 s to its end"), ((0.0, 0.0), "from 0 s to 0 s")])
def test_a_part_that_a_file_does_not_have_is_named(part, message, tmp_path):
    path = write_wav(tmp_path / "a.wav", np.full(1000, 0.25))
    with pytest.raises(ValueError, match=rf"a\.wav lasts 0\.06 s and has no part {message}"):
        WaveformDataset([Clip(path, (), start=part[0], end=part[1])], RATE, tmp_path)
    with pytest.raises(ValueError, match="seconds must be more than 0"):
        WaveformDataset([Clip(path, ())], RATE, tmp_path, seconds=0.0)

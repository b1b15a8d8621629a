"""Classifiers that share a model's encoder pass: trained on windows, with the same results everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise

from whisper_at.adapt import AudioClassifier, sources
from whisper_at.adapt.backbones import whisper_backbone
from whisper_at.adapt.shared_pass import precompute_views
from whisper_at.adapt.sources import MultiViewDataset
from whisper_at.adapt.trainer import Recipe
from whisper_at.adapt.waveforms import WaveformDataset
from whisper_at.data.clips import Clip, Dataset
from whisper_at.features.encode import describe_features
from whisper_at.features.extract import extract_features
from whisper_at.features.store import Features
from whisper_at.tagging.listeners import StateClassifier

CLASSES = ("hiss", "hum", "beep")
HEADS = [{}, {"layers": "weighted"}, {"head": "tl_tr"}]
RECIPE = Recipe(epochs=2, batch_size=4, lr=1e-2, select="-valid_loss")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Dataset:
    folder = tmp_path_factory.mktemp("sounds")
    clips = []
    for i in range(9):
        t = np.arange(round((1.0 + 0.35 * i) * 16000)) / 16000
        wave = [noise(len(t) / 16000, i)[: len(t)], np.sin(300 * t), np.sign(np.sin(9000 * t))][i % 3] * 0.2
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        clips.append(Clip(folder / f"{i}.wav", (CLASSES[i % 3],), "train" if i < 6 else "valid"))
    return Dataset(tuple(clips), CLASSES)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def make_classifier(model, **options) -> AudioClassifier:
    torch.manual_seed(5)
    return AudioClassifier(whisper_backbone(model.encoder), options.pop("methods", ()), CLASSES, **options)


def test_clips_are_encoded_as_for_heads(model_en, sounds, cache, tmp_path):
    """In isolation, and three times in recordings made of clips: the states of `whisper-at train`."""
    model = make_classifier(model_en, head="tl_tr")
    source = precompute_views(model.backbone, model.head, WaveformDataset(sounds.clips, cache=cache), batch_size=3)
    assert isinstance(source, MultiViewDataset)
    assert len(source.views) == 4
    metadata = describe_features("random", model_en, "30+", dtype="float32")
    assert not extract_features(sounds.clips, tmp_path / "f", model_en, metadata)
    features = Features.open(tmp_path / "f")
    numbers = features.view_indices(features.find(sounds.clips))
    for rows, view in zip(numbers, source.views):
        for number, (values, mask) in zip(rows.tolist(), view):
            wanted = torch.from_numpy(features.states(number).copy())
            assert mask.all()
            assert values[0].shape == wanted.shape
            torch.testing.assert_close(values[0, :-1], wanted[:-1], atol=1e-4, rtol=1e-4)  # the last is after the norm

    picked = [3, 0, 3]
    values, mask = source.batch(picked)
    assert mask.sum(1).tolist() == [source.views[0][i].values.shape[2] for i in picked]
    isolated, *in_context = (view[3].values[0] for view in source.views)
    found = set()
    for i in range(40):
        first, second = source.batch([3], np.random.default_rng(i))[0]
        assert torch.equal(first, isolated)
        found |= {n for n, states in enumerate(in_context) if torch.equal(second, states)}
    assert found == {0, 1, 2}


@pytest.mark.parametrize("options", HEADS)
def test_evaluate_and_transcribe_agree(model_en, sounds, cache, options):
    model = make_classifier(model_en, **options)
    model.fit(sounds.split("train"), sounds.split("valid"), RECIPE, cache=cache)
    assert model.windows
    found = model.evaluate(sounds, cache=cache).logits
    single = model.evaluate(sounds.select([0, 8]), batch_size=1, cache=cache).logits
    np.testing.assert_allclose(found[[0, 8]], single, atol=1e-4)
    model_en.attached.clear()
    model_en.attach("sounds", model)
    assert isinstance(model_en.attached["sounds"], StateClassifier)
    for clip, wanted in zip(sounds.clips[::4], found[::4]):
        result = model_en.transcribe(str(clip.path), language="en", temperature=0.0, sample_len=1, at_time_res=30)
        (logits,) = result["sounds"]["logits"]
        np.testing.assert_allclose(logits, wanted, atol=1e-3)
    model_en.attached.clear()


def test_training_takes_two_views_of_a_clip_and_validation_all(model_en, sounds, cache, monkeypatch):
    model, drawn, scored = make_classifier(model_en), [], []
    batch = MultiViewDataset.batch

    def note(self, indices, rng=None):
        drawn.append(rng is not None)
        return batch(self, indices, rng)

    monkeypatch.setattr(MultiViewDataset, "batch", note)
    real = Recipe.make_schedule
    monkeypatch.setattr(Recipe, "make_schedule", lambda self, steps: scored.append(steps) or real(self, steps))
    fitted = model.fit(sounds.split("train"), sounds.split("valid"), RECIPE, cache=cache)
    assert drawn == [True] * 4
    assert scored == [2]
    views = precompute_views(
        model.backbone, model.head, WaveformDataset(sounds.split("valid").clips, cache=cache), 4
    ).views
    with torch.no_grad():
        logits = torch.cat([model(*one) for view in views for one in view])
    targets = torch.tensor(np.tile(sounds.split("valid").targets(), (4, 1))).argmax(1)
    loss = float(torch.nn.functional.cross_entropy(logits, targets))
    assert loss == pytest.approx(min(line["valid_loss"] for line in fitted.history), rel=1e-4)


def test_a_stopped_run_goes_on_to_the_same_weights(model_en, sounds, cache, tmp_path):
    train, valid = sounds.split("train"), sounds.split("valid")
    recipe = replace(RECIPE, epochs=4, schedule="constant")
    whole, parted = make_classifier(model_en), make_classifier(model_en)
    whole.fit(train, valid, recipe, tmp_path / "whole", cache)
    calls = []

    class StopError(Exception):
        pass

    forward = parted.head.forward

    def stop_late(*args):
        calls.append(1)
        if len(calls) == 12:
            raise StopError
        return forward(*args)

    parted.head.forward = stop_late
    with pytest.raises(StopError):
        parted.fit(train, valid, recipe, tmp_path / "parted", cache)
    again = make_classifier(model_en)
    again.fit(train, valid, recipe, tmp_path / "parted", cache)
    for name, tensor in whole.trained_state_dict().items():
        assert torch.equal(tensor, again.trained_state_dict()[name])


def test_other_classifiers_need_a_pass_of_their_own(model_en, sounds, cache, tmp_path, recwarn, monkeypatch):
    assert not make_classifier(model_en, seconds=2.0).windows
    assert make_classifier(model_en, seconds=2.0, windows=True).windows
    for options in ({"methods": {"name": "lora", "rank": 4}}, {"layers": "weighted_conv"}, {"pooling": "mean_max"}):
        assert not make_classifier(model_en, **options).windows
        with pytest.raises(ValueError, match="windows is for a plain Whisper encoder"):
            make_classifier(model_en, windows=True, **options)
    with pytest.raises(ValueError, match="windows is for"):
        make_classifier(model_en, windows=True, seconds=2.0, pad=True)
    by_itself = make_classifier(model_en, windows=False)
    assert by_itself.on_states(model_en) is None
    with torch.no_grad():
        clip = torch.from_numpy(noise(2))[None]
        wanted = by_itself.head.linear(by_itself.backbone(clip).states[-1].mean(1))
        torch.testing.assert_close(by_itself(clip), wanted)

    train, valid = sounds.split("train"), sounds.split("valid")
    varied = make_classifier(model_en)
    varied.fit(train, valid, replace(RECIPE, augment=True), cache=cache)
    assert not varied.windows
    assert not recwarn.list
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", 0)
    large = make_classifier(model_en)
    with pytest.warns(UserWarning, match="do not fit into memory"):
        large.fit(train, valid, RECIPE, cache=cache)
    assert not large.windows


def test_windows_is_kept_in_the_file(model_en, sounds, cache, tmp_path):
    backbone = whisper_backbone(model_en.encoder)
    for windows in (True, False):
        model = make_classifier(model_en, windows=windows)
        model.save(tmp_path / "one.safetensors")
        again = AudioClassifier.load(tmp_path / "one.safetensors", backbone)
        assert again.windows is windows
        wanted = model.evaluate(sounds.split("valid"), cache=cache).logits
        np.testing.assert_array_equal(again.evaluate(sounds.split("valid"), cache=cache).logits, wanted)
    model = make_classifier(model_en)
    configuration = model.configuration()
    del configuration["windows"]  # as files had it before there was the choice: trained on clips by themselves
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(model, "configuration", lambda: configuration)
    model.save(tmp_path / "old.safetensors")
    monkeypatch.undo()
    assert not AudioClassifier.load(tmp_path / "old.safetensors", backbone).windows


def test_clips_twice_in_a_list_are_encoded_once(model_en, sounds, cache):
    model = make_classifier(model_en)
    twice = WaveformDataset(sounds.clips[:2] * 2, cache=cache)
    source = precompute_views(model.backbone, model.head, twice, 4)
    for view in source.views:
        assert view[0] is view[2]
        assert view[1] is view[3]
    assert len(model.load_waveforms(sounds.clips[:2] * 2, cache).lengths) == 4

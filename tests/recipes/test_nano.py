"""The embedded model: one file that openai-whisper opens as well, and a head in the official layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import whisper
from conftest import DATA, ROOT

import whisper_at
from whisper_at import checkpoints


def test_the_unmodified_whisper_opens_it(nano):
    path = checkpoints.find_whisper("nano.en")
    assert path.stat().st_size < 25e6
    theirs = whisper.load_model(str(path), device="cpu")
    assert theirs.dims == nano.dims
    assert not theirs.is_multilingual
    assert (nano.dims.n_audio_ctx, nano.dims.n_audio_layer, nano.dims.n_mels) == (1500, 4, 80)
    stored = torch.load(path, weights_only=True)["model_state_dict"]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_its_head_has_the_official_layout(nano):
    tensors, metadata = checkpoints.open_head(checkpoints.find_head("nano.en"))
    assert {k: tuple(v.shape) for k, v in tensors.items()} == checkpoints.head_shapes(nano.dims.n_audio_state)
    assert metadata["encoder_sha256"] == checkpoints.encoder_sha256(nano.state_dict())
    assert metadata["mode"] == nano.head.mode == "tl_tr_1_8"
    assert nano.head.label_dim == 527


@pytest.mark.parametrize("sample", ["street.ogg", "speech.flac", "sounds.ogg"])
def test_samples(nano, sample):
    result = nano.transcribe(str(ROOT / "sample" / sample), at_time_res=[0.4, 2, 10])
    for res, tags in result["audio_tag"].items():
        assert not tags.isnan().any()
        assert result["audio_tag_coverage"][res].min() == 1
    speech = result["audio_tag"][2][:, 0].sigmoid()
    if sample == "sounds.ogg":
        assert speech.mean() < 0.3
    else:
        assert speech.max() > 0.8
        assert result["text"].strip()


@pytest.mark.parametrize("sound", ["dog", "rain", "rooster", "clock_tick", "crying_baby"])
def test_real_sounds(nano, data, sound):
    """Of the ten sounds that it was trained on, the right one leads in most clips."""
    names = {"crying_baby": "Baby cry, infant cry", "rooster": "Chicken, rooster", "clock_tick": "Tick"}
    wanted = whisper_at.find_classes([names.get(sound, sound)])[0]
    clips = sorted((DATA / "esc10" / sound).glob("4-*.ogg"))
    others = whisper_at.find_classes(["Dog", "Rain", "Chicken, rooster", "Tick", "Baby cry, infant cry"])
    row = 83200  # 5.2 s: six clips of 5 s in a window
    audio = np.concatenate([np.resize(whisper_at.load_audio(str(clip)), row) for clip in clips])
    rows = nano.transcribe(audio, at_time_res=5.2, sample_len=1, temperature=0.0)["audio_tag"]
    assert len(rows) == len(clips) > 0
    right = sum(wanted == max(others, key=lambda i: float(tags[i])) for tags in rows)
    assert right > len(clips) / 2


def test_the_settings_of_its_head_are_in_a_file(tmp_path, monkeypatch):
    from recipes.nano import head

    assert vars(head.read_settings()) == {
        "scenes": 8000,
        "steps": 6000,
        "rate": 1e-3,
        "warm_up": 100,
        "betas": [0.9, 0.98],
        "weight_decay": 0.05,
        "average": 200,
        "rows": [1, 2, 3, 5, 8, 10, 12, 13, 15, 20, 25, 25, 50, 75],
        "batch": 64,
        "batch_long": 24,
        "smoothing": 0.02,
    }
    assert head.read_settings(steps=7, scenes=None) == replace(head.read_settings(), steps=7)
    (tmp_path / "head.toml").write_text(head.CONFIG.read_text("utf-8").replace("rate =", "rates ="))
    monkeypatch.setattr(head, "CONFIG", tmp_path / "head.toml")
    with pytest.raises(ValueError, match="head.toml: .*'rates'"):
        head.read_settings()


def test_its_head_is_trained_by_that_file(checkpoint, tmp_path, monkeypatch):
    from recipes.nano import head, scenes

    def batches(stream, **options):
        while True:
            yield torch.randn(16, 80, 3000), torch.ones(16, 75, len(scenes.CLASS_NAMES)), torch.full((16,), 75)

    made, adamw = [], torch.optim.AdamW
    monkeypatch.setattr(head, "DataLoader", batches)
    monkeypatch.setattr(torch.optim, "AdamW", lambda p, **given: made.append(given) or adamw(p, **given))
    settings = head.read_settings(scenes=16, steps=2)
    head.train_head(None, checkpoint, tmp_path / "head.safetensors", settings)
    assert made == [{"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.05}]
    tensors, metadata = checkpoints.open_head(tmp_path / "head.safetensors")
    assert metadata["mode"] == "tl_tr_1_8"
    assert len(tensors["mlp_layer.1.weight"]) == 527


def test_its_recipe_makes_windows_and_learns_from_them():
    import numpy as np

    from recipes.nano import data, windows
    from recipes.nano.batches import collate
    from recipes.nano.espeak import Utterance
    from recipes.nano.model import NanoWhisper
    from recipes.nano.train import compute_losses

    r = np.random.default_rng(0)

    def noise(seconds: float) -> np.ndarray:
        return r.normal(0, 3000, int(seconds * 16000)).astype(np.int16)

    take = data.Take(noise(0.5), 7, "ann", 0, 800, 7200)
    sentence = Utterance(noise(1), ["The", "dog", "."], [(0, 8000), (8000, 16000), (16000, 16000)], "en-us")
    pools = data.Pools([{"ann": [take]}], clips=[data.Clip(noise(5), "dog", "1")], sentences=[sentence])
    pools.digits = [Utterance(noise(1), ["7", "3"], [(0, 8000), (8000, 16000)], "en-us")]
    generator = windows.WindowGenerator(pools, 0)
    made = [generator.window(4, 0.2) for _ in range(8)]
    v = generator.vocabulary
    assert any(window.silent for window in made)
    for window in made:
        assert window.mel.shape == (80, 400)
        assert (window.plain[:2], window.plain[-1], window.timed[-1]) == ([v.sot, v.no_timestamps], v.eot, v.eot)
        assert v.time0 <= window.first <= v.timestamp(1.0)  # `transcribe` allows no later first timestamp
        times = [token for token in window.timed[2:] if token >= v.time0]
        assert times == sorted(times)
        assert [token for token in window.timed if token < v.eot] == [t for t in window.plain if t < v.eot]
    torch.manual_seed(0)
    model = NanoWhisper(v)
    losses = compute_losses(model, collate(made, v) | {"frozen": False}, encoder_only=False)
    sum(losses[name] for name in ("timed", "plain", "guide", "frames")).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

"""Fusion of a transformer's layers: norms, special tokens, chunks, batches."""

from __future__ import annotations

import pytest
import torch
from conftest import noise

from whisper_at.adapt.backbones import random_backbone
from whisper_at.adapt.backbones.configs import TRANSFORMERS_CONFIGS
from whisper_at.embed.fusion import Fusion, load_fusion, load_network
from whisper_at.embed.tokens import TransformerNetwork


def clip(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(seconds, seed))


def test_ast_fusion_published_shape(monkeypatch):
    """F3: 768 a layer; one frame, since there are no maps to flatten."""
    monkeypatch.setitem(
        TRANSFORMERS_CONFIGS, "ast", ("AST", {"intermediate_size": 64, "max_length": 256})
    )  # to be quick
    model = load_fusion("AST-Fusion", weights="random", device="cpu")
    x = clip(2.0)[None]
    assert (model.layers, model.width) == ((4, 11), 1536)
    assert model.encode_frames(x).shape == (1, 1536, 1)
    assert model(x).shape == (1, 1536)


def test_ast_frames_are_the_mean_of_its_special_tokens_under_the_final_norm():
    backbone = random_backbone("ast-tiny", frames=256)
    torch.nn.init.normal_(backbone.norm.weight)
    waveform = clip(2.0)
    states = backbone(waveform[None]).states
    expected = [backbone.norm(states[1])[0, :2].mean(0), states[3][0, :2].mean(0)]  # the last state is normed already
    found = Fusion(TransformerNetwork(backbone), [2, 0]).encode_clip(waveform[None])[0]
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny", "mms-tiny"])
def test_speech_models_pool_normed_tokens(name):
    network = load_network(name, "random")
    backbone = network.backbone
    waveform = clip(1.0)
    states = backbone(waveform[None]).states
    middle = states[2][0] if backbone.norm is None else backbone.norm(states[2])[0]
    for pooling, expected in (
        ("mean", [middle.mean(0), states[3][0].mean(0)]),
        ("mean_plus_max", [middle.mean(0) + middle.amax(0), states[3][0].mean(0) + states[3][0].amax(0)]),
    ):
        found = Fusion(network, [1, 2], pooling)(waveform[None])[0]
        torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize("name", ["whisper-nano", "wavlm-tiny", "ast-tiny"])
def test_batched_equals_single_equals_padded(name):
    model = Fusion(load_network(name, "random"), [0, 2])
    waveforms = [clip(seconds, i) for i, seconds in enumerate((1.0, 0.4, 0.05, 1.7))]
    lengths = torch.tensor([len(w) for w in waveforms])
    together = model.encode_clip(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths)
    for row, waveform in zip(together, waveforms):
        torch.testing.assert_close(row, model.encode_clip(waveform[None])[0], atol=1e-5, rtol=1e-4)


def test_f1_chunks_of_a_long_clip_are_in_order_of_time(monkeypatch):
    """F1: frames are in order of time also where a clip is read in chunks."""
    monkeypatch.setattr("whisper_at.embed.tokens.CHUNK_SECONDS", 1.0)
    model = Fusion(load_network("whisper-nano", "random"), [1])
    waveform = clip(2.6)
    frames = model.encode_frames(waveform[None])[0]
    parts = [model.encode_frames(waveform[None, start : start + 16000])[0] for start in (0, 16000, 32000)]
    assert frames.shape == (32, 130)
    torch.testing.assert_close(frames, torch.cat(parts, 1), atol=1e-5, rtol=1e-4)
    too_short = torch.cat([waveform[:16000], waveform[:100]])
    assert model.encode_frames(too_short[None]).shape[-1] == 50


def test_layers_by_default_are_a_third_of_the_way_and_of_others_than_whispers_the_last():
    assert load_fusion("whisper-nano", weights="random").layers == (1,)
    with pytest.raises(ValueError, match="takes waveforms"):
        load_fusion("whisper-nano", weights="random").encode_frames(torch.rand(1, 1, 96, 64))
    with pytest.raises(ValueError, match="numbers or 'all'"):
        load_fusion("whisper-nano", "both", "random")


def test_random_weights_of_a_loaded_encoder():
    """The same sizes and positions, other weights, and the same weights for the same seed."""
    plain, first, again = (
        load_fusion("nano.en", "all", weights, device="cpu") for weights in (None, "random", "random")
    )
    x = clip(1.0)[None]
    assert plain.layers == first.layers
    assert plain.width == first.width
    assert torch.equal(first(x), again(x))
    assert not torch.allclose(first(x), plain(x), atol=0.1)


def test_ast_has_one_frame_and_so_no_maximum():
    network = TransformerNetwork(random_backbone("ast-tiny", frames=256))
    assert Fusion(network, [0]).frame_seconds is None
    with pytest.raises(ValueError, match="its pooling is 'mean'"):
        Fusion(network, [0], "mean_plus_max")


def test_whisper_from_a_file(checkpoint):
    """The file may be the backbone's name, or its weights."""
    by_name = load_fusion(str(checkpoint), "all", device="cpu")
    by_weights = load_fusion("tiny", "all", checkpoint, device="cpu")
    x = clip(0.5)[None]
    assert by_name.width == 128
    assert torch.equal(by_name(x), by_weights(x))


def test_whisper_fusion_is_the_best_pair_of_linear_evaluation():
    """Layers 0 and 2 of nano.en, which are also its default layers."""
    model = load_fusion("Whisper-Fusion", device="cpu")
    sound = torch.from_numpy(noise(3.0))[None]
    layers = load_fusion("nano.en", "all", device="cpu").encode_layers(list(sound))
    torch.testing.assert_close(model(sound), torch.cat([layers[0], layers[2]], 1))
    assert model.width == 256
    assert load_fusion("nano.en", device="cpu").layers == model.layers == (0, 2)
    assert load_fusion("whisper_1_3", [0, 2], device="cpu").layers == (0, 2)

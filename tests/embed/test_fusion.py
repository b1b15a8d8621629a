"""Fusion of layers: published shapes, order of channels and time, batches, presets."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import noise

from whisper_at.embed import CNN14, GeneralPurposeCnn14, GeneralPurposeVGGish, VGGish
from whisper_at.embed.frames import concat_examples, flatten_maps, pool_frames
from whisper_at.embed.fusion import PRESETS, Fusion, load_fusion, load_network, reset_weights, weights_sha256


@pytest.fixture(scope="module")
def vggish():
    return load_network("vggish", "random")


@pytest.fixture(scope="module")
def cnn14():
    return load_network("cnn14", "random")


def clip(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(noise(seconds, seed))


def test_vggish_fusion_published_shapes(vggish):
    model = Fusion(vggish, (9, 14))
    x = torch.rand(4, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    frames = model.encode_frames(x)
    assert frames.shape == (4, 8192, 6)
    assert torch.equal(model(x), frames.mean(-1) + frames.amax(-1))
    assert model(x[:1]).shape == (1, 8192)


@pytest.mark.parametrize(
    ("layers", "width"),
    [
        *(((layer,), 4096) for layer in (1, 4, 7, 9, 12, 14, 17, 19)),
        ((21,), 128),
        ((1, 7, 14, 21), 12416),
        ((4, 7, 9, 14), 16384),
        ((1, 4, 7, 9, 12, 14, 17, 19, 21), 32896),
        ((9, 19), 8192),
    ],
)
def test_vggish_table(vggish, layers, width):
    """F3: the width is computed from the layers, and is what comes out."""
    model = Fusion(vggish, layers)
    assert model.width == width
    assert model.encode_frames(torch.rand(1, 1, 96, 64)).shape == (1, width, 6)


@pytest.mark.parametrize(("layer", "width"), [(0, 2048), (1, 2048), (2, 2048), (3, 2048), (4, 2048), (5, 4096)])
def test_cnn14_table(cnn14, layer, width):
    """F3, F4: every block is aligned to a 32nd of the frames, whichever blocks are chosen."""
    model = Fusion(cnn14, [layer])
    assert model.width == width
    assert model.encode_frames(torch.rand(1, 1, 95, 64)).shape == (1, width, 2)


def test_cnn14_fusion_published_shapes(cnn14):
    model = Fusion(cnn14, PRESETS["cnn14_3_6"].layers)
    x = torch.rand(2, 1, 154, 64)
    assert model.encode_frames(x).shape == (2, 6144, 4)
    assert model(x).shape == (2, 6144)


@pytest.mark.parametrize("n_frames", [32, 33, 63, 64, 97, 130])
def test_cnn14_nested_floors(cnn14, n_frames):
    assert Fusion(cnn14, range(6)).encode_frames(torch.rand(1, 1, n_frames, 64)).shape[-1] == n_frames // 32


def test_map_is_flattened_channels_outermost_and_pooled_over_time():
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)  # (batch, channels, time, frequencies)
    frames = flatten_maps(x, 2)
    assert frames.shape == (2, 15, 2)
    for c in range(3):
        for f in range(5):
            for t in range(2):
                assert torch.equal(frames[:, c * 5 + f, t], torch.maximum(x[:, c, 2 * t, f], x[:, c, 2 * t + 1, f]))
    assert torch.equal(pool_frames(frames[0], "mean"), (frames[0, :, 0] + frames[0, :, 1]) / 2)
    assert torch.equal(pool_frames(frames[0], "mean_plus_max"), frames[0].mean(1) + frames[0].amax(1))


def test_layers_are_joined_in_network_order(vggish):
    x = torch.rand(2, 1, 96, 64)
    fused = Fusion(vggish, [14, 9, 14]).encode_frames(x)
    assert torch.equal(fused, torch.cat([Fusion(vggish, [layer]).encode_frames(x) for layer in (9, 14)], 1))


def test_f1_frames_of_a_long_clip_are_in_order_of_time(vggish):
    """F1: the frames of the s-th example are at 6 s … 6 s + 5, not at t * S + s."""
    steps = torch.arange(12.0).reshape(2, 1, 6).expand(2, 3, 6)
    assert torch.equal(concat_examples(steps), torch.arange(12.0).expand(3, 12))

    model = Fusion(vggish, [9, 14])
    waveform = clip(3.2)
    whole = model.encode_frames(waveform[None])
    assert whole.shape == (1, 8192, 18)
    for s in range(3):
        start = s * 15360
        alone = model.encode_frames(waveform[None, start : start + 15600])
        torch.testing.assert_close(whole[..., 6 * s : 6 * s + 6], alone, atol=1e-5, rtol=1e-5)


def test_f2_nothing_past_the_deepest_chosen_layer_runs(vggish, cnn14):
    """F2: fully connected layers run only if chosen, and repeat for as many frames as the maps have, six or not."""
    ran = []
    hooks = [m.register_forward_hook(lambda m, i, o: ran.append(m)) for m in (*vggish.features, *vggish.embeddings)]
    try:
        frames = Fusion(vggish, [9, 14]).encode_frames(torch.rand(1, 1, 160, 64))
        assert frames.shape == (1, 8192, 10)
        assert ran == list(vggish.features[:15])
        ran.clear()
        frames = Fusion(vggish, [7, 17]).encode_frames(torch.rand(1, 1, 96, 64))
        assert ran == [*vggish.features, *vggish.embeddings[:2]]
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(frames[:, 4096:], frames[:, 4096:, :1].expand(-1, -1, 6))
    with pytest.raises(ValueError, match="need 96 frames"):
        Fusion(vggish, [14, 17]).encode_frames(torch.rand(1, 1, 160, 64))
    last = cnn14.conv_block4.conv1.register_forward_hook(lambda m, i, o: ran.append("block 3"))
    try:
        ran.clear()
        Fusion(cnn14, [0, 2]).encode_frames(torch.rand(1, 1, 64, 64))
        assert not ran
    finally:
        last.remove()


def test_f7_one_way_of_counting(cnn14):
    """F7: layers count from 0; the paper's labels, which count from 1, appear only in names of presets."""
    assert {label: (p.network, p.layers) for label, p in PRESETS.items()} == {
        "vggish_10_15": ("vggish", (9, 14)),
        "cnn14_3_6": ("cnn14", (2, 5)),
        "ast_5_12": ("ast", (4, 11)),
        "whisper_1_3": ("nano.en", (0, 2)),
    }
    for label, preset in PRESETS.items():
        assert tuple(int(number) - 1 for number in re.findall(r"_(\d+)", label)) == preset.layers
    model = load_fusion("VGGish-Fusion", weights="random")
    assert (model.layers, model.width) == ((9, 14), 8192)
    with pytest.raises(ValueError, match="no layer 6; counted from 0"):
        Fusion(cnn14, [3, 6])
    with pytest.raises(ValueError, match="fuses layers"):
        load_fusion("vggish_10_15", [1], "random")


@pytest.mark.parametrize(("network", "layers"), [("vggish", (7, 14)), ("cnn14", (0, 3, 5))])
def test_batched_equals_single_equals_padded(request, network, layers):
    model = Fusion(request.getfixturevalue(network), layers)
    waveforms = [clip(seconds, i) for i, seconds in enumerate((0.7, 1.31, 0.2, 1.31, 2.0))]
    lengths = torch.tensor([len(w) for w in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    together, frames = model.encode_clip(batch, lengths), model.encode_frames(batch, lengths)
    for i, waveform in enumerate(waveforms):
        alone = model.encode_frames(waveform[None])
        torch.testing.assert_close(together[i], pool_frames(alone[0], model.pooling), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(frames[i, :, : alone.shape[-1]], alone[0], atol=2e-5, rtol=1e-4)
        assert not frames[i, :, alone.shape[-1] :].any()


def test_cnn14_in_chunks_equals_one_pass(cnn14, monkeypatch):
    waveform = clip(4.3, 3)
    model = Fusion(cnn14, [1, 5])
    one_pass = model.encode_waveforms([waveform])[0]
    monkeypatch.setattr("whisper_at.embed.cnn14.CHUNK_FRAMES", 160)
    in_chunks = model.encode_waveforms([waveform, waveform[:20000]])[0]
    assert one_pass.shape == (6144, 431 // 32)
    torch.testing.assert_close(in_chunks, one_pass, atol=1e-5, rtol=1e-4)


def test_layers_of_one_pass_make_every_fusion(vggish):
    waveforms = [clip(1.1), clip(2.2, 1)]
    by_layer = Fusion(vggish, vggish.layers).encode_layers(waveforms)
    fused = Fusion(vggish, [9, 14])
    joined = torch.cat([by_layer[vggish.layers.index(layer)] for layer in (9, 14)], dim=1)
    torch.testing.assert_close(joined, torch.cat(fused.encode_layers(waveforms), 1), atol=1e-6, rtol=1e-5)


def test_frozen_and_in_evaluation_mode(cnn14):
    model = Fusion(cnn14, [5]).train()
    assert not model.training
    assert not cnn14.bn0.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_random_weights_follow_their_seed():
    first, again, other = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)) for _ in range(3))
    hashes = [weights_sha256(reset_weights(model, seed)) for model, seed in ((first, 1), (again, 1), (other, 2))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_errors_say_what_is_wanted(cnn14):
    with pytest.raises(ValueError, match="needs the file of its weights"):
        load_fusion("vggish")
    with pytest.raises(ValueError, match="pooling must be"):
        Fusion(cnn14, [5], "max")
    with pytest.raises(ValueError, match="at least one layer"):
        Fusion(cnn14, [])
    with pytest.raises(ValueError, match="CNN14 needs log-mel"):
        Fusion(cnn14, [5]).encode_frames(torch.rand(1, 1, 31, 64))
    with pytest.raises(ValueError, match="give waveforms"):
        Fusion(cnn14, [5]).encode_clip(torch.rand(100))


@pytest.mark.parametrize("layers", [None, [9, 14], [1, 4, 7], [21]])
def test_the_papers_class_of_vggish(layers):
    """``from gp_vggish import GeneralPurposeVGGish``: names, shapes, layers and weights of the repository."""
    model = GeneralPurposeVGGish() if layers is None else GeneralPurposeVGGish(layers)
    x = torch.rand(3, 1, 96, 64)
    width = {None: 8192, 9: 8192, 1: 12288, 21: 128}[layers[0] if layers else None]
    assert model(x).shape == (3, width)
    assert model.encode_frames(x).shape == (3, width, 6)
    other = VGGish()
    for fc in ("embeddings.", "fc."):  # torchvggish's names, and those of the port that the paper took
        published = {name.replace("embeddings.", fc): tensor for name, tensor in other.state_dict().items()}
        assert not any(model.load_state_dict(published))
        expected = Fusion(other, model.layers)(x)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("layers", [(3, 6), (1, 2), (6,)])
def test_the_papers_class_of_cnn14(layers):
    """Its blocks are counted from 1, as in the repository; a published file carries its front end too."""
    model, other, x = GeneralPurposeCnn14(list(layers)), CNN14(), torch.rand(2, 1, 101, 64)
    assert model.layers == tuple(layer - 1 for layer in layers)
    published = {**other.state_dict(), "logmel_extractor.melW": torch.zeros(257, 64)}
    assert not any(model.load_state_dict(published))
    expected = Fusion(other, model.layers)
    assert torch.equal(model(x), expected(x))
    assert torch.equal(model.encode_frames(x), expected.encode_frames(x))
    with pytest.raises(ValueError, match="has no layer"):
        GeneralPurposeCnn14([0])

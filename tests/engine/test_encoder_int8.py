"""The encoder in int8 on a CPU: its loops against formulas, the whole against float32, and where it is used."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import noise

import whisper_at
from whisper_at import model as model_module
from whisper_at.engine import decoder as decoder_module
from whisper_at.engine import int8_products
from whisper_at.engine.encoder import encode
from whisper_at.engine.encoder_int8 import EncoderInt8, Int8Linear
from whisper_at.engine.int8_products import ZERO_POINT, Int8Matrix
from whisper_at.engine.int8_steps import CompiledSteps, PyTorchSteps, Rounded, Sums

pytestmark = pytest.mark.skipif(int8_products.weight_limit() == 0, reason="this PyTorch has no int8 products")


def rounded(x: torch.Tensor, steps: int = 127) -> torch.Tensor:
    """Every row to the nearest of so many steps on either side of 0."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / steps
    return (x / scale).round() * scale


def log_mel(model: whisper_at.WhisperAT, seconds: float = 30, seed: int = 0) -> torch.Tensor:
    return whisper_at.log_mel_spectrogram(noise(seconds, seed), model.dims.n_mels)[None, :, :3000]


@pytest.fixture
def without_bfloat16(monkeypatch):
    """A processor of the kind that the int8 encoder is for."""
    monkeypatch.setattr(model_module, "has_bfloat16", lambda: False)
    monkeypatch.setattr(decoder_module, "has_bfloat16", lambda: False)
    monkeypatch.setattr(int8_products, "is_faster_than_float32", lambda: True)


STEPS = [CompiledSteps, PyTorchSteps]


def values_of(x: Rounded) -> torch.Tensor:
    """As float32."""
    return (x.values.float() - ZERO_POINT) * x.scale[:, None]


def weight_of(layer: Int8Linear, width: int) -> torch.Tensor:
    """In float32: what it makes of each input alone."""
    one_each = torch.eye(width).add_(ZERO_POINT).to(torch.uint8)
    return layer.matrix.product(one_each).T * layer.scale[:, None]


def made_sums(rows: int, width: int) -> Sums:
    rng = torch.Generator().manual_seed(width)
    sums = torch.randint(-(10**6), 10**6, (rows, width), generator=rng).float()
    row_scale, scale = torch.rand(rows, generator=rng) / 1000, torch.rand(width, generator=rng) / 1000
    return Sums(sums, row_scale, scale, torch.randn(width, generator=rng))


@pytest.mark.parametrize("steps", STEPS)
def test_layer_norm_is_rounded_by_row(steps):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(7, 192, generator=rng) * 5 + 3
    weight, bias = torch.randn(192, generator=rng), torch.randn(192, generator=rng)
    found = Rounded.empty(7, 192)
    steps.layer_norm(x, weight, bias, found)
    expected = F.layer_norm(x, (192,), weight, bias)
    torch.testing.assert_close(found.scale, expected.abs().amax(1) / 127, rtol=1e-5, atol=0)
    assert ((values_of(found) - expected).abs() <= 0.501 * found.scale[:, None]).all()
    assert (found.values.int() - ZERO_POINT).abs().amax(1).eq(127).all()


@pytest.mark.parametrize("steps", STEPS)
def test_gelu_is_rounded_by_row(steps):
    x, found = made_sums(5, 256), Rounded.empty(5, 256)
    steps.gelu(x, found)
    expected = F.gelu(x.sums.double() * x.row_scale[:, None] * x.scale + x.bias)
    assert ((values_of(found) - expected).abs() <= 0.501 * found.scale[:, None]).all()


@pytest.mark.parametrize("steps", STEPS)
def test_a_layer_is_added_to_the_residual(steps):
    x, y = made_sums(9, 64), torch.rand(9, 64)
    expected = y.double() + x.sums.double() * x.row_scale[:, None] * x.scale + x.bias
    steps.add(x, y)
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (3, 64), (70, 384), (1500, 512)])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e4])
def test_kernels_and_pytorch_give_the_same_bits(rows, width, size):
    """Features, and with them the text, do not depend on when the kernels are ready."""
    rng = torch.Generator().manual_seed(rows)
    x = (torch.randn(rows, width, generator=rng) * 3 + 1) * size
    x[0] = 0
    weight, bias = torch.randn(width, generator=rng), torch.randn(width, generator=rng)
    sums = made_sums(rows, width)
    sums = sums._replace(scale=sums.scale * size)
    found = []
    for steps in STEPS:
        normed, activated, y = Rounded.empty(rows, width), Rounded.empty(rows, width), x.clone()
        steps.layer_norm(x, weight, bias, normed)
        steps.gelu(sums, activated)
        steps.add(sums, y)
        found.append([*normed, *activated, y])
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_smoothing_changes_nothing_but_the_rounding():
    """Channels of a layer norm that are a hundred times larger than others leave these some steps."""
    torch.manual_seed(3)
    norm, linear = torch.nn.LayerNorm(64), torch.nn.Linear(64, 32)
    norm.weight.data[5], norm.bias.data[9] = 100, 50
    linear.weight.data[:, [5, 9]] /= 100
    x = torch.randn(20, 64)
    expected = linear(norm(x))
    layer = Int8Linear.of(linear, norm=norm)
    weight = weight_of(layer, 64)
    smooth = F.layer_norm(x, (64,), *layer.norm)
    torch.testing.assert_close(smooth @ weight.T + layer.bias, expected, rtol=0.05, atol=0.02)
    plain = Int8Linear.of(linear)
    error = (rounded(smooth) @ weight.T + layer.bias - expected).norm()
    plain_error = (rounded(norm(x)) @ weight_of(plain, 64).T + plain.bias - expected).norm()
    assert error < plain_error / 3


@torch.no_grad()
def test_the_whole_is_float32_with_rounded_weights_and_inputs(model_en, monkeypatch):
    monkeypatch.setattr(int8_products, "weight_limit", lambda: 63)  # no sum overflows, on any processor
    encoder, mel = model_en.encoder, log_mel(model_en)
    int8 = EncoderInt8(encoder)
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2) + encoder.positional_embedding
    blocks = []
    for i, block in enumerate(encoder.blocks):
        qkv, up, down = (
            (weight_of(w, n), w.bias) for w, n in ((int8.qkv[i], 64), (int8.mlp_up[i], 64), (int8.mlp_down[i], 256))
        )
        qkv = F.linear(rounded(F.layer_norm(x, x.shape[-1:], *int8.qkv[i].norm)), *qkv)
        query, key, value = qkv.unflatten(2, (3, block.attn.n_head, -1)).permute(2, 0, 3, 1, 4)
        x = x + block.attn.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        wide = F.gelu(F.linear(rounded(F.layer_norm(x, x.shape[-1:], *int8.mlp_up[i].norm)), *up))
        x = x + F.linear(rounded(wide), *down)
        blocks.append(x)
    seen = []
    found = int8(mel, lambda output: seen.append(output.clone()))
    error = max((a - b).norm() / b.norm() for a, b in zip([*seen, found], [*blocks, encoder.ln_post(x)]))
    assert error < 5e-3  # numbers at the middle of two steps are rounded to either
    assert 1e-4 < (found - encode(encoder, mel)).norm() / found.norm() < 0.05


@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"word_timestamps": True}])
def test_int8_without_bfloat16_encodes_in_int8(without_bfloat16, options):
    audio = whisper_at.load_audio("sample/speech.flac")
    int8, plain = (whisper_at.load_model("nano.en", "cpu", compute_type=t) for t in ("int8", None))
    found, expected = (m.transcribe(audio, language="en", fp16=False, at_time_res=2, **options) for m in (int8, plain))
    assert isinstance(int8._encoder, EncoderInt8)
    assert found["text"] == expected["text"]
    assert (found["audio_tag"] - expected["audio_tag"]).abs().max() < 0.5


def test_windows_of_a_batch_are_those_alone(without_bfloat16, model_en):
    model_en.compute_type = "int8"
    mel = torch.cat([log_mel(model_en, seed=i) for i in range(2)])
    features, states = model_en.encode(mel)
    for i in range(2):
        alone, own = model_en.encode(mel[i : i + 1])
        assert torch.equal(features[i], alone[0])
        assert torch.equal(states[i], own[0])


def test_new_weights_count(without_bfloat16, model_en):
    model_en.compute_type = "int8"
    mel = log_mel(model_en)
    before, copied = model_en.embed_audio(mel), copy.deepcopy(model_en)
    copied.encoder.blocks[0].mlp[2].weight.data.mul_(3)
    assert not torch.equal(copied.embed_audio(mel), before)
    assert torch.equal(model_en.embed_audio(mel), before)


def test_slow_products_are_not_used(without_bfloat16, model_en, monkeypatch):
    monkeypatch.setattr(int8_products, "is_faster_than_float32", lambda: False)
    model_en.compute_type = "int8"
    mel = log_mel(model_en)
    with torch.no_grad():
        assert torch.equal(model_en.embed_audio(mel), encode(model_en.encoder, mel))


def test_steps_of_weights_are_those_that_the_processor_can_add():
    """All at their largest is what overflows in 16 bits."""
    x, weight = torch.full((16, 64), 127 + ZERO_POINT, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    exact = (Int8Matrix(weight).product(x) == 64 * 127 * 127).all()
    assert int8_products.weight_limit() == (127 if exact else 90)
    assert (Int8Matrix(weight.clamp(max=63)).product(x) == 64 * 127 * 63).all()


@pytest.mark.parametrize(("rows", "width", "out"), [(1, 16, 48), (5, 64, 192), (1500, 384, 1536), (33, 2048, 512)])
def test_products_are_exact_where_nothing_overflows(rows, width, out):
    rng = torch.Generator().manual_seed(rows)
    x, weight = (
        torch.randint(-127, 128, (rows, width), generator=rng),
        torch.randint(-63, 64, (out, width), generator=rng),
    )
    found = Int8Matrix(weight.to(torch.int8)).product((x + ZERO_POINT).to(torch.uint8))
    assert torch.equal(found, (x @ weight.T).float())

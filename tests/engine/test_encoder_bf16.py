"""The encoder in bfloat16 on a CPU: its loops against formulas, and the whole against openai-whisper's encoder."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import whisper
from conftest import noise

from whisper_at.engine import encoder_bf16
from whisper_at.engine.encoder_bf16 import TILE_ROWS, EncoderBF16
from whisper_at.windows import Window

pytestmark = pytest.mark.skipif(not encoder_bf16.SUPPORTED, reason="this processor has no bfloat16 products")


def bfloat16(array: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, by PyTorch."""
    return torch.from_numpy(array).bfloat16().view(torch.uint16).numpy()


def values(bits: np.ndarray) -> np.ndarray:
    """The numbers that bfloat16 bits stand for, in float64."""
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def packed(matrix: np.ndarray) -> np.ndarray:
    linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0])
    linear.weight.data = torch.from_numpy(matrix)
    return encoder_bf16._pack([[linear]]).weight[0]


@pytest.mark.parametrize(("rows", "width", "out"), [(1500, 64, 128), (7, 128, 64), (6, 192, 192)])
def test_products(rows, width, out):
    """Bfloat16 in, float32 sums: a residual grows by W x + b to the rounding of float32."""
    rng = np.random.default_rng(rows)
    x, w = rng.standard_normal((rows, width), np.float32), rng.standard_normal((out, width), np.float32)
    bias, y = rng.standard_normal(out, np.float32), rng.standard_normal((rows, out), np.float32)
    padded = np.zeros((-(-rows // TILE_ROWS) * TILE_ROWS, width), np.uint16)
    padded[:rows] = bfloat16(x)
    expected = y + values(padded[:rows]) @ values(bfloat16(w)).T + bias
    encoder_bf16._matmul(packed(w), bias, padded, y, False)
    np.testing.assert_allclose(y, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("gelu", [False, True])
def test_products_in_bfloat16(gelu):
    """What the next product reads is the nearest bfloat16 of W x + b, or of its GELU, or a neighbour of that."""
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((12, 64), np.float32), rng.standard_normal((64, 64), np.float32) / 4
    bias, y = rng.standard_normal(64, np.float32), np.zeros((11, 64), np.uint16)
    z = (values(bfloat16(x)) @ values(bfloat16(w)).T + bias)[:11]
    erf = np.vectorize(math.erf)
    expected = z * 0.5 * (1 + erf(z / math.sqrt(2))) if gelu else z
    encoder_bf16._matmul(packed(w), bias, bfloat16(x), y, gelu)
    np.testing.assert_allclose(values(y), expected, rtol=2**-8, atol=2e-6)


@pytest.mark.parametrize(("rows", "heads", "size"), [(1500, 2, 64), (50, 4, 16), (64, 1, 64), (1, 2, 32), (131, 3, 64)])
def test_attention(rows, heads, size):
    """softmax(q·k/√size) v of every head, with scores and sums in float32: only weights and results are rounded."""
    rng = np.random.default_rng(rows)
    qkv = bfloat16(rng.standard_normal((rows, 3 * heads * size), np.float32) * 2)
    out = np.zeros((rows, heads * size), np.uint16)
    encoder_bf16._attention(qkv, heads, out)
    query, key, value = values(qkv).reshape(rows, 3, heads, size).transpose(1, 2, 0, 3)
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(size)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights @ value / weights.sum(-1, keepdims=True)
    # half a unit of the last place of every weight, times the values met, and the same of the result
    bound = 2**-8 * (weights @ abs(value) / weights.sum(-1, keepdims=True) + abs(expected)) + 1e-6
    found = values(out).reshape(rows, heads, size).transpose(1, 0, 2)
    assert (abs(found - expected) <= bound).all()


def test_attention_to_very_different_scores():
    """Where one key outshines all others by more than e⁸⁷, its value is the answer, and nothing overflows."""
    qkv = np.zeros((70, 3 * 64), np.float32)
    qkv[:, :64] = 30.0
    qkv[69, 64:128] = 30.0
    qkv[:, 128:] = np.arange(70)[:, None]
    out = np.zeros((70, 64), np.uint16)
    encoder_bf16._attention(bfloat16(qkv), 1, out)
    assert (values(out) == 69).all()


def mel(n: int = 2) -> torch.Tensor:
    return torch.stack([whisper.log_mel_spectrogram(noise(30, seed)) for seed in range(n)])


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


def test_nearer_to_float32_than_bfloat16_everywhere(model_en):
    """The reason to keep sums and residuals in float32; recordings of a batch do not touch each other."""
    batch = mel()
    with torch.no_grad():
        exact = model_en.encoder(batch)
        all_in_bfloat16 = model_en.encoder(batch.bfloat16()).float()
        features = EncoderBF16(model_en.encoder)(batch)
        assert torch.equal(EncoderBF16(model_en.encoder)(batch[1:]), features[1:])
    assert features.dtype == torch.float32
    assert features.shape == exact.shape
    assert distance(features, exact) < distance(all_in_bfloat16, exact) < 0.01


def test_pooled_states(model_en):
    """Heads see every block's output, as they do in float32."""
    batch, windows = mel(), [Window(0), Window(2533, 1200)]
    _, exact = model_en.encode(batch, windows)
    model_en.compute_type = "bfloat16"
    features, states = model_en.encode(batch, windows)
    assert torch.equal(features, model_en.embed_audio(batch))
    assert states.shape == exact.shape
    assert torch.equal(states.isnan(), exact.isnan())
    assert distance(states.nan_to_num(), exact.nan_to_num()) < 0.01
    assert model_en._encoder is not None


def test_changed_encoders_are_packed_again(model_en):
    model_en.compute_type = "bfloat16"
    batch = mel(1)
    before = model_en.embed_audio(batch)
    with torch.no_grad():
        model_en.encoder.blocks[1].mlp[2].weight.mul_(1.5)
    after = model_en.embed_audio(batch)
    fresh = copy.deepcopy(model_en)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh.embed_audio(batch))


def test_hooks_and_replaced_parts_are_honoured(model_en):
    """An encoder with hooks or replaced parts runs as the module that it is."""
    model_en.compute_type = "bfloat16"
    calls = []
    with model_en.encoder.blocks[0].register_forward_hook(lambda *_: calls.append(1)):
        model_en.embed_audio(mel(1))
    assert calls == [1]
    assert model_en._encoder is None
    model_en.embed_audio(mel(1))
    assert calls == [1]
    assert model_en._encoder is not None
    model_en.encoder.blocks[0].mlp[1] = torch.nn.ReLU()
    assert not EncoderBF16.fits(model_en.encoder)


def test_other_processors(model_en, monkeypatch):
    """Where there are no such instructions, or better ones, PyTorch multiplies."""
    model_en.compute_type = "bfloat16"
    features = model_en.embed_audio(mel(1))
    monkeypatch.setattr(encoder_bf16, "SUPPORTED", False)
    model_en._encoder = None
    assert distance(model_en.embed_audio(mel(1)), features) < 0.02
    assert model_en._encoder is None


def test_mels_of_another_length(model_en):
    with pytest.raises(AssertionError, match="incorrect audio shape"):
        EncoderBF16(model_en.encoder)(torch.zeros(1, 80, 100))

"""Heads against the published math, written out here a second time, and against the official layout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from whisper_at.tagging.heads import build_head, infer_mode, make_head

SIZES = {"tiny": (4, 384), "base": (6, 512), "small": (12, 768), "medium": (24, 1024), "large": (32, 1280)}


def attention_block(p: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Pre-norm residual attention block of spec section 1.2 on ``x`` of shape ``(batch, n, width)``."""

    def norm(x: Tensor, which: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], p[f"{name}.{which}.weight"], p[f"{name}.{which}.bias"])

    _batch, _n, width = x.shape
    size = width // heads
    a = norm(x, "attn_ln")
    q = linear(a, p[f"{name}.attn.query.weight"], p[f"{name}.attn.query.bias"])
    k = linear(a, p[f"{name}.attn.key.weight"])
    v = linear(a, p[f"{name}.attn.value.weight"], p[f"{name}.attn.value.bias"])
    out = torch.empty_like(x)
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(-1)
        out[..., part] = weights @ v[..., part]
    x = x + linear(out, p[f"{name}.attn.out.weight"], p[f"{name}.attn.out.bias"])
    hidden = gelu(linear(norm(x, "mlp_ln"), p[f"{name}.mlp.0.weight"], p[f"{name}.mlp.0.bias"]))
    return x + linear(hidden, p[f"{name}.mlp.2.weight"], p[f"{name}.mlp.2.bias"])


def norm_linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    x = layer_norm(x, x.shape[-1:], p[f"{name}.0.weight"], p[f"{name}.0.bias"])
    return linear(x, p[f"{name}.1.weight"], p[f"{name}.1.bias"])


def published_tltr(p: dict[str, Tensor], states: Tensor) -> Tensor:
    """TL-TR of one row, ``(layers, steps, dim)`` to ``(classes,)``."""
    x = norm_linear(p, "down_layer", states) if "down_layer.1.weight" in p else states
    x = torch.stack([attention_block(p, "time_tr", layer[None], 1)[0].mean(0) for layer in x])
    return norm_linear(p, "mlp_layer", attention_block(p, "layer_tr", x[None], 8)[0].mean(0))


@pytest.mark.parametrize("mode", ["tl_tr_1_8", "tl_down_tr_32_1_8"])
@pytest.mark.parametrize("steps", [1, 3, 11, 25, 75])
def test_tltr_equals_the_published_math(mode, steps):
    torch.manual_seed(steps)
    head = make_head(mode, n_layer=4, rep_dim=64).eval()
    states = torch.randn(3, 4, steps, 64) * 3
    with torch.no_grad():
        logits = head(states)
        for item, row in zip(states, logits):
            torch.testing.assert_close(row, published_tltr(dict(head.state_dict()), item), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("down", [False, True])
def test_official_layout(size, down):
    """34 or 38 keys, their shapes and the parameter counts of spec section 1.3."""
    layers, d = SIZES[size]
    with torch.device("meta"):
        head = make_head("tl_down_tr_512_1_8" if down else "tl_tr_1_8", n_layer=layers, rep_dim=d)
    state = head.state_dict()
    width = 512 if down else d
    assert len(state) == (38 if down else 34)
    assert "time_tr.attn.key.bias" not in state
    assert "layer_tr.mlp.2.weight" in state
    assert state["mlp_layer.1.weight"].shape == (527, width)
    expected = 24 * width**2 + 553 * width + 527 + (2 * d + 512 * d + 512 if down else 0)
    assert sum(p.numel() for p in state.values()) == expected


@pytest.mark.parametrize(
    "mode", ["mean_mlp", "last_mlp", "wa_mlp", "mean_tr_8", "last_tr_4", "wa_tr_8", "wa_down_tr_32_8"]
)
def test_baselines_equal_the_published_math(mode):
    torch.manual_seed(0)
    head = make_head(mode, n_layer=3, rep_dim=64).eval()
    if "wa" in mode:
        torch.nn.init.uniform_(head.layer_weight, 0.1, 1)
    p = dict(head.state_dict())
    states = torch.randn(2, 3, 25, 64)
    with torch.no_grad():
        logits = head(states)
        for item, row in zip(states, logits):
            if mode.startswith("wa"):
                u = p["layer_weight"]
                x = sum(w * layer for w, layer in zip(u, item)) / u.sum()
            else:
                x = item.mean(0) if mode.startswith("mean") else item[-1]
            if "down" in mode:
                x = norm_linear(p, "down_layer", x)
            if "tr" in mode:
                x = attention_block(p, "time_tr", x[None], int(mode.rsplit("_", 1)[1]))[0]
            torch.testing.assert_close(row, norm_linear(p, "mlp_layer", x.mean(0)), atol=1e-4, rtol=1e-4)


def test_weighted_average_starts_at_the_mean():
    assert make_head("wa_mlp", n_layer=5, rep_dim=64).layer_weight.tolist() == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("steps", [1, 3, 75])
def test_statistics_are_those_of_every_layer_standardised(steps):
    torch.manual_seed(steps)
    head = make_head("stats_mlp", n_layer=3, rep_dim=8, label_dim=5).eval()
    torch.nn.init.normal_(head.mlp_layer[1].weight)
    training = torch.randn(40, 3, 7, 8) * torch.logspace(-3, 3, 8) + 10  # states differ in scale by orders of magnitude
    head.fit_statistics(training.split(16))
    rows = [torch.cat([f(x) for f in (mean_of, max_of, min_of)]) for x in training]
    center, scale = torch.stack(rows).mean(0), torch.stack(rows).std(0, correction=0)
    states = torch.randn(2, 3, steps, 8)
    for item, row in zip(states, head(states)):
        x = (torch.cat([f(item) for f in (mean_of, max_of, min_of)]) - center) / scale
        expected = linear(x, head.mlp_layer[1].weight, head.mlp_layer[1].bias)
        torch.testing.assert_close(row, expected, atol=1e-2, rtol=1e-3)


def mean_of(states: Tensor) -> Tensor:
    return states.mean(1).flatten()


def max_of(states: Tensor) -> Tensor:
    return states.max(1).values.flatten()


def min_of(states: Tensor) -> Tensor:
    return states.min(1).values.flatten()


def test_what_never_varies_is_not_scaled():
    head = make_head("stats_mlp", n_layer=1, rep_dim=2, label_dim=2)
    head.fit_statistics([torch.ones(4, 1, 3, 2)])
    assert head.mlp_layer[0].std.tolist() == [1.0] * 6
    assert head(torch.ones(1, 1, 3, 2)).isfinite().all()


def test_a_head_of_statistics_comes_back_and_fits_its_encoder_alone():
    head = make_head("stats_mlp", n_layer=3, rep_dim=8, label_dim=4)
    head.fit_statistics([torch.randn(9, 3, 5, 8)])
    torch.nn.init.normal_(head.mlp_layer[1].weight)
    about = {"mode": "stats_mlp", "n_layer": "3"}
    states = torch.randn(2, 3, 6, 8)
    torch.testing.assert_close(build_head(head.state_dict(), about, n_layer=3, rep_dim=8)(states), head(states))
    with pytest.raises(ValueError, match="width 8, but this Whisper's has width 16"):
        build_head(head.state_dict(), about, n_layer=3, rep_dim=16)
    with pytest.raises(ValueError, match="3 layers, but this Whisper's has 4"):
        build_head(head.state_dict(), about, n_layer=4, rep_dim=8)
    with pytest.raises(ValueError, match="mlp_layer is missing"):
        build_head({"mlp_layer.0.mean": torch.zeros(72)}, about, n_layer=3, rep_dim=8)
    with pytest.raises(ValueError, match="there is stats_mlp"):
        make_head("stats_tr_8", n_layer=3, rep_dim=8)


def test_training_names_mean_the_same_head():
    assert (
        make_head("lw_tr_1_8", n_layer=2, rep_dim=64).state_dict().keys()
        == make_head("tl_tr_1_8", n_layer=2, rep_dim=64).state_dict().keys()
    )


@pytest.mark.parametrize("mode", ["tl_tr", "wa", "median_mlp", "tl_tr_1_8x", ""])
def test_unknown_modes_are_named(mode):
    with pytest.raises(ValueError, match="mode"):
        make_head(mode, n_layer=2, rep_dim=64)


@pytest.mark.parametrize("mode", ["tl_tr_1_7", "tl_tr_0_8", "tl_down_tr_20_1_8", "wa_tr_5"])
def test_heads_that_do_not_divide_the_width_are_refused(mode):
    with pytest.raises(ValueError, match="attention heads do not divide the width of (64|20)"):
        make_head(mode, n_layer=2, rep_dim=64)


def test_mode_and_sizes_come_from_the_parameters():
    """D19: a head given as a file must say itself what it is."""
    for mode in ("tl_tr_1_8", "tl_down_tr_16_1_8"):
        tensors = make_head(mode, n_layer=2, rep_dim=64, label_dim=10).state_dict()
        assert infer_mode(tensors) == mode
        head = build_head(tensors, None, n_layer=2, rep_dim=64)
        assert head.label_dim == 10
        assert not any(p.requires_grad for p in head.parameters())


def test_baselines_come_back_by_their_metadata():
    head = make_head("wa_tr_8", n_layer=3, rep_dim=64)
    again = build_head(head.state_dict(), {"mode": "wa_tr_8"}, n_layer=3, rep_dim=64)
    states = torch.randn(1, 3, 5, 64)
    torch.testing.assert_close(again(states), head(states))


def test_a_head_that_does_not_fit_is_refused():
    """D20, D21: wrong width, wrong depth, missing or foreign parameters: one clear error each."""
    tensors = make_head("tl_tr_1_8", n_layer=2, rep_dim=64).state_dict()
    with pytest.raises(ValueError, match="width 64, but this Whisper's has width 128"):
        build_head(tensors, None, n_layer=2, rep_dim=128)
    with pytest.raises(ValueError, match="2 layers, but this Whisper's has 4"):
        build_head(tensors, {"mode": "tl_tr_1_8", "n_layer": "2"}, n_layer=4, rep_dim=64)
    with pytest.raises(ValueError, match="not a TL-TR head"):
        build_head({"encoder.conv1.weight": torch.zeros(1)}, None, n_layer=2, rep_dim=64)
    with pytest.raises(ValueError, match="mlp_layer.0.bias is missing"):
        build_head({k: v for k, v in tensors.items() if k != "mlp_layer.0.bias"}, None, n_layer=2, rep_dim=64)
    with pytest.raises(ValueError, match="extra"):
        build_head({**tensors, "extra": torch.zeros(1)}, None, n_layer=2, rep_dim=64)


def test_heads_compute_in_float32():
    """D15: half-precision states broke a float32 head."""
    head = make_head("tl_down_tr_16_1_8", n_layer=2, rep_dim=64)
    assert head(torch.randn(1, 2, 5, 64).half()).dtype == torch.float32

"""Pooling and heads of adaptation: against plain loops, published parameter counts, and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from whisper_at.adapt.backbones import Hidden
from whisper_at.adapt.pooling import (
    ConvHead,
    HeadInput,
    LinearHead,
    concat_inputs,
    make_adapt_head,
    masked_max,
    masked_mean,
    token_mask,
)
from whisper_at.tagging.heads import TLTR

WIDTH, DEPTH = 16, 3


def hidden(lengths: list[int], special: int = 0, seed: int = 0, fill: float = 50.0) -> Hidden:
    """States of clips with so many tokens; padding holds ``fill``, which must never matter."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    states = tuple(torch.randn(len(lengths), longest, WIDTH, generator=generator) for _ in range(DEPTH + 1))
    return Hidden(tuple(torch.where(mask[..., None], s, torch.tensor(fill)) for s in states), mask, special)


def logits(head: nn.Module, of: Hidden) -> Tensor:
    with torch.no_grad():
        return head.eval()(*head.reduce(of))


def one(of: Hidden, i: int) -> Hidden:
    n = int(of.mask[i].sum())
    return Hidden(tuple(s[i : i + 1, :n] for s in of.states), of.mask[i : i + 1, :n], of.special)


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        ("all", "11111110"),
        ("frames", "00000110"),
        ("speech", "00000110"),
        ("mean_max", "00000110"),
        ("cls", "10000000"),
        ("cls_dist", "11000000"),
        ("prompts", "00111000"),
        ("prompts_speech", "00111110"),
    ],
)
def test_which_tokens_are_averaged(pooling, wanted):
    mask = torch.tensor([[True] * 7 + [False]])  # CLS, DIST, three prompts, two frames, padding
    assert "".join(str(int(b)) for b in token_mask(pooling, Hidden((), mask, 2, slice(2, 5)))[0]) == wanted


def test_impossible_poolings_are_refused():
    mask = torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="pooling must be one of"):
        token_mask("mean", Hidden((), mask, 0))
    with pytest.raises(ValueError, match="0 special tokens"):
        token_mask("cls", Hidden((), mask, 0))
    with pytest.raises(ValueError, match="1 special tokens"):
        token_mask("cls_dist", Hidden((), mask, 1))
    with pytest.raises(ValueError, match="no prompts"):
        token_mask("prompts", Hidden((), mask, 1))


def test_masked_mean_and_max_are_those_of_the_real_tokens():
    of = hidden([5, 2, 7])
    for i, n in enumerate([5, 2, 7]):
        real = of.states[1][i, :n]
        torch.testing.assert_close(masked_mean(of.states[1], of.mask)[i], real.mean(0))
        torch.testing.assert_close(masked_max(of.states[1], of.mask)[i], real.amax(0))
    stacked = torch.stack(of.states, 1)
    torch.testing.assert_close(masked_mean(stacked, of.mask)[1, 2], of.states[2][1, :2].mean(0))


@pytest.mark.parametrize("pooling", ["all", "frames", "mean_max"])
@pytest.mark.parametrize("layers", ["last", "weighted", "weighted_conv"])
def test_linear_head_equals_its_formula(pooling, layers):
    torch.manual_seed(1)
    head = LinearHead(WIDTH, DEPTH, 4, layers, pooling)
    if head.average is not None:
        nn.init.normal_(head.average.weight)
    of = hidden([6, 3], special=1)
    found = logits(head, of)
    for i in range(2):
        item = one(of, i)
        states = {"last": item.states[-1:], "weighted": item.states[1:], "weighted_conv": item.states}[layers]
        weights = torch.ones(1) if layers == "last" else head.average.weight.detach().softmax(0)
        x = sum(w * s[0] for w, s in zip(weights, states, strict=True))
        x = x if pooling == "all" else x[1:]
        x = x.mean(0) + (x.amax(0) if pooling == "mean_max" else 0)
        torch.testing.assert_close(found[i], head.linear(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv", "tl_tr_1_4"])
def test_s8_padding_never_matters(name):
    """S8: the reference averages with a mask, but single clips and padded batches go different ways elsewhere."""
    torch.manual_seed(2)
    head = make_adapt_head(
        name, width=WIDTH, depth=DEPTH, classes=3, layers="weighted", pooling="mean_max", frame_rate=50.0
    )
    lengths = [45, 20, 61, 7]
    together, other_fill = logits(head, hidden(lengths)), logits(head, hidden(lengths, fill=-9.0))
    torch.testing.assert_close(together, other_fill)
    alone = torch.cat([logits(head, one(hidden(lengths), i)) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", ["last", "weighted"])
def test_a_clip_of_one_token_is_pooled_alike_alone_and_beside_others(layers):
    head = LinearHead(WIDTH, DEPTH, 3, layers, "mean_max")
    of = hidden([1, 5])
    torch.testing.assert_close(logits(head, one(of, 0))[0], logits(head, of)[0])


@pytest.mark.parametrize(("width", "published"), [(384, 296_964), (512, 329_732), (768, 395_268), (1024, 460_804)])
def test_head_of_peft_ser_has_the_published_number_of_parameters(width, published):
    head = ConvHead(width, 12, 4, "weighted_conv")
    assert sum(p.numel() for p in head.parameters()) == published + 13
    assert sum(p.numel() for p in ConvHead(width, 12, 4).parameters()) == published + 12


def test_s11_first_state_is_left_out_or_counted():
    of = hidden([4])
    changed = of._replace(states=(of.states[0] + 100, *of.states[1:]))
    for layers, matters in (("weighted", False), ("weighted_conv", True), ("last", False)):
        head = ConvHead(WIDTH, DEPTH, 2, layers)
        assert torch.equal(logits(head, of), logits(head, changed)) is not matters


def test_tltr_hears_frames_only_wherever_prompts_stand():
    torch.manual_seed(4)
    head = make_adapt_head("tl_tr_1_4", width=WIDTH, depth=DEPTH, classes=2, frame_rate=5.0)
    plain = hidden([6])
    extra = torch.full((1, 2, WIDTH), 9.0)
    more = torch.ones(1, 8, dtype=torch.bool)
    front = Hidden(tuple(torch.cat([extra, s], 1) for s in plain.states), more, 0, slice(0, 2))
    back = Hidden(tuple(torch.cat([s, extra], 1) for s in plain.states), more, 0, slice(6, 8))
    assert torch.equal(logits(head, plain), logits(head, front))
    assert torch.equal(logits(head, plain), logits(head, back))


def test_layer_weights_start_uniform():
    of = hidden([4])
    head = LinearHead(WIDTH, DEPTH, 2, "weighted_conv")
    mean = torch.stack(of.states).mean(0).mean(1)
    torch.testing.assert_close(logits(head, of), head.linear(mean).detach())


def test_tltr_hears_steps_of_twenty_frames():
    torch.manual_seed(3)
    head = make_adapt_head("tl_tr_1_4", width=WIDTH, depth=DEPTH, classes=5, frame_rate=50.0)
    of = hidden([50])
    steps = torch.stack([torch.stack([s[0, a : a + 20].mean(0) for a in (0, 20, 40)]) for s in of.states[1:]])
    assert isinstance(head.tltr, TLTR)
    torch.testing.assert_close(logits(head, of), head.tltr.eval()(steps[None]).detach(), atol=1e-5, rtol=1e-5)


def test_reduced_states_can_be_kept_instead_of_hidden_ones():
    head = make_adapt_head("conv", width=WIDTH, depth=DEPTH, classes=3, layers="weighted_conv")
    long, short = hidden([9, 4]), hidden([3], seed=5)
    kept = concat_inputs([head.reduce(long), head.reduce(short)])
    assert isinstance(kept, HeadInput)
    assert kept.values.shape == (3, DEPTH + 1, 9, WIDTH)
    with torch.no_grad():
        found = head.eval()(*kept)
    torch.testing.assert_close(found, torch.cat([logits(head, long), logits(head, short)]))


def test_wrong_heads_are_refused():
    with pytest.raises(ValueError, match="head must be one of linear, conv, tl_tr"):
        make_adapt_head("mlp", width=8, depth=2, classes=2)
    with pytest.raises(ValueError, match="frames in time"):
        make_adapt_head("tl_tr", width=8, depth=2, classes=2)
    with pytest.raises(ValueError, match="layers must be one of"):
        make_adapt_head("conv", width=8, depth=2, classes=2, layers="first")
    with pytest.raises(ValueError, match="pooling must be one of"):
        make_adapt_head("linear", width=8, depth=2, classes=2, pooling="mean")

"""LoRA: its formula, and merging."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_backbones import FAMILIES, adapted_and_plain_block, make_backbone, make_clips, perturb, randomize
from torch import nn

from whisper_at.adapt import merge, unmerge
from whisper_at.adapt.methods.lora import LoRA

pytest.importorskip("transformers")


def test_p3_lora_is_scaled_by_alpha_over_rank():
    torch.manual_seed(0)
    x, linear = torch.randn(4, 6), nn.Linear(6, 5)
    for rank in (2, 4):
        lora = randomize(LoRA(6, 5, rank, alpha=8))
        torch.testing.assert_close(lora(x), x @ (8 / rank * lora.B @ lora.A).T, rtol=1e-4, atol=1e-5)
        merged = F.linear(x, linear.weight + lora.delta_weight(), linear.bias)
        torch.testing.assert_close(merged, linear(x) + lora(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny"])
def test_lora_is_at_the_projections_that_are_named(name):
    block, plain, h = adapted_and_plain_block(name, {"name": "lora", "sites": ["q", "o", "up"], "rank": 2, "alpha": 4})
    wanted = copy.deepcopy(plain)
    with torch.no_grad():
        for part, site in ((wanted.attn, "q"), (wanted.attn, "o"), (wanted.ffn, "up")):
            lora = (block.attn if site != "up" else block.ffn).lora[site]
            getattr(part, site).weight += 2.0 * lora.B @ lora.A
    torch.testing.assert_close(block(h), wanted(h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_lora_changes_nothing_and_unmerging_is_exact(name):
    backbone = perturb(
        make_backbone(name, {"name": "lora", "sites": ["q", "k", "v", "o", "up", "down"], "rank": 3}), std=0.05
    )
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    waveforms, lengths = make_clips(0.5, 0.4)
    wanted = backbone(waveforms, lengths).states[-1]
    merge(backbone)
    merge(backbone)  # a second time does nothing
    weight = backbone.blocks[0].attn.q.weight
    lora = backbone.blocks[0].attn.lora["q"]
    torch.testing.assert_close(weight, before["blocks.0.attn.q.weight"] + 8 / 3 * lora.B @ lora.A)
    torch.testing.assert_close(backbone(waveforms, lengths).states[-1], wanted, rtol=1e-4, atol=1e-4)
    unmerge(backbone)
    assert all(torch.equal(before[key], tensor) for key, tensor in backbone.state_dict().items())
    assert torch.equal(backbone(waveforms, lengths).states[-1], wanted)


@pytest.mark.parametrize("name", ["whisper-nano", "wav2vec2-tiny"])
def test_merged_weights_may_change_their_type(name):
    backbone = perturb(make_backbone(name, {"name": "lora", "rank": 3}), std=0.05)
    waveforms = make_clips(0.5)[0]
    wanted = backbone(waveforms).states[-1]
    merge(backbone)
    backbone.double()
    unmerge(backbone)
    assert {p.dtype for p in backbone.parameters()} == {torch.float64}
    torch.testing.assert_close(backbone.float()(waveforms).states[-1], wanted, rtol=1e-5, atol=1e-5)

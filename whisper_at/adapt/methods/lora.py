"""LoRA: y = W x + b + (alpha / r) B A x, at any linear layer of attention or FFN.

Hu et al., ICLR 2022, arXiv 2106.09685; spec sections 1.2 and 2.3. The scale is alpha / r whatever the width (defect
P3). A starts as Kaiming uniform and B as zero, after the pretrained weights are loaded, so nothing changes at first
(defect P2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from .options import check_choice, check_positive, select_blocks

ATTENTION, FFN = ("q", "k", "v", "o"), ("up", "down")
SITES = (*ATTENTION, *FFN)


class LoRA(nn.Module):
    """The delta (alpha / rank) B A x of one linear layer.

    Parameters
    ----------
    in_features, out_features : int
        Sizes of the layer.
    rank : int
        Rank r of the delta.
    alpha : float
        The scale is alpha / rank.

    Attributes
    ----------
    A, B : nn.Parameter, shape (rank, in_features) and (out_features, rank)
        The two matrices.
    unmerged_weight : Tensor or None
        The layer's own weight while the delta is merged into it, see `merge`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.empty(rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.unmerged_weight: Tensor | None = None

    @property
    def merged(self) -> bool:
        """Whether the layer's weight contains the delta."""
        return self.unmerged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        """Return the delta ``(..., out_features)`` for the layer's input ``(..., in_features)``."""
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    def delta_weight(self) -> Tensor:
        """Return the delta of the weight, ``(out_features, in_features)``."""
        return self.B @ self.A * self.scale


def add_lora(
    backbone: Backbone,
    *,
    sites: Sequence[str] = ("q", "v"),
    rank: int = 8,
    alpha: float = 8.0,
    blocks: Sequence[int] | None = None,
) -> None:
    """Add LoRA to linear layers: any of q, k, v, o of attention and up, down of the FFN (spec sections 1.2, 2.3)."""
    check_positive("lora", rank=rank, alpha=alpha)
    for site in dict.fromkeys(sites):
        check_choice("lora", "site", site, SITES)
        for _, block in select_blocks(backbone, blocks):
            part = block.attn if site in ATTENTION else block.ffn
            if site in part.lora:
                raise ValueError(f"two methods add LoRA at {site!r} of the same block; leave one out")
            layer = getattr(part, site)
            part.lora[site] = LoRA(layer.in_features, layer.out_features, rank, alpha)


def lora_layers(backbone: Backbone) -> Iterator[tuple[int, str, nn.Linear, LoRA]]:
    """Yield index of the block, site, adapted linear layer and LoRA of every LoRA."""
    for i, block in select_blocks(backbone):
        for part in (block.attn, block.ffn):
            for site, lora in part.lora.items():
                assert isinstance(lora, LoRA)
                yield i, site, getattr(part, site), lora


@torch.no_grad()
def merge(backbone: Backbone) -> None:
    """Add every LoRA to its layer's weight, so that the adapted encoder costs no more than the plain one.

    The plain weights are kept for `unmerge`; models that share them do not change. It is for inference: training goes
    on after `unmerge` only.
    """
    for _, _, layer, lora in lora_layers(backbone):
        if not lora.merged:
            lora.unmerged_weight = layer.weight.data
            layer.weight.data = layer.weight.data + lora.delta_weight().to(layer.weight.dtype)


def unmerge(backbone: Backbone) -> None:
    """Undo `merge`: the weights are bit for bit what they were, in the type and on the device of now."""
    for _, _, layer, lora in lora_layers(backbone):
        if lora.unmerged_weight is not None:
            layer.weight.data = lora.unmerged_weight.to(layer.weight)
            lora.unmerged_weight = None


@contextmanager
def unmerged(backbone: Backbone) -> Iterator[None]:
    """Keep LoRA apart from the weights within the context."""
    merged = any(lora.merged for *_, lora in lora_layers(backbone))
    unmerge(backbone)
    try:
        yield
    finally:
        if merged:
            merge(backbone)

"""LoRA: y = W x + b + (alpha / r) B A x, at any projection of attention or FFN (Hu et al., 2021).

Spec sections 1.2 and 2.3. The scale is alpha / r whatever the width (defect P3), A starts as Kaiming uniform and B as
zero, after the pretrained weights are loaded, so nothing changes at first (defect P2).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Backbone
from .tuning import chosen_blocks, require_choice, require_positive

ATTENTION, FFN = ("q", "k", "v", "o"), ("up", "down")
SITES = (*ATTENTION, *FFN)


class LoRA(nn.Module):
    """The delta (alpha / rank) B A x of one linear map.

    Attributes
    ----------
    A, B : ``(rank, in)`` and ``(out, rank)``
    merged : whether the weight that this belongs to contains it already; see `merge`
    """

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float):
        super().__init__()
        self.scale = alpha / rank
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.plain: list[nn.Linear] = []  # the map without the delta while it is merged; a list hides it from nn.Module

    @property
    def merged(self) -> bool:
        return bool(self.plain)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    @torch.no_grad()
    def added_to(self, linear: nn.Linear) -> nn.Linear:
        """A linear map whose weight is the given one's and this delta; the given one stays as it is."""
        whole = copy.copy(linear)
        whole._parameters = dict(linear._parameters)
        delta = (self.B @ self.A * self.scale).to(linear.weight.dtype)
        whole.weight = nn.Parameter(linear.weight + delta, requires_grad=False)
        return whole


def add_lora(
    backbone: Backbone,
    *,
    sites: Sequence[str] = ("q", "v"),
    rank: int = 8,
    alpha: float = 8.0,
    blocks: Sequence[int] | None = None,
) -> None:
    """Put LoRA at projections: any of q, k, v, o of attention, up and down of the FFN."""
    require_positive("lora", rank=rank, alpha=alpha)
    for site in dict.fromkeys(sites):
        require_choice("lora", "site", site, SITES)
        for _, block in chosen_blocks(backbone, blocks):
            part = block.attn if site in ATTENTION else block.ffn
            if site in part.lora:
                raise ValueError(f"two methods want LoRA at {site!r} of the same block; leave one out")
            linear = getattr(part, site)
            part.lora[site] = LoRA(linear.in_features, linear.out_features, rank, alpha)


def placed_lora(backbone: Backbone) -> Iterator[tuple[int, str, Any, LoRA]]:
    """Every LoRA: index of its block, site, module that has the linear map by the site's name, and itself."""
    for i, block in chosen_blocks(backbone, None):
        for part in (block.attn, block.ffn):
            for site, lora in part.lora.items():
                assert isinstance(lora, LoRA)
                yield i, site, part, lora


def merge(backbone: Backbone) -> None:
    """Add every LoRA to its weight, so that the adapted encoder costs no more than the plain one.

    The plain weights are kept aside for `unmerge`. For inference: training goes on after `unmerge` only.
    """
    for _, site, part, lora in placed_lora(backbone):
        if not lora.merged:
            plain = getattr(part, site)
            setattr(part, site, lora.added_to(plain))
            lora.plain.append(plain)


def unmerge(backbone: Backbone) -> None:
    """Undo `merge`: the weights are again, bit for bit, what they were; type and device stay those of now."""
    for _, site, part, lora in placed_lora(backbone):
        if lora.merged:
            setattr(part, site, lora.plain.pop().to(getattr(part, site).weight))


@contextmanager
def unmerged(backbone: Backbone) -> Iterator[None]:
    """Have LoRA apart from the weights as long as this lasts."""
    merged = any(lora.merged for *_, lora in placed_lora(backbone))
    unmerge(backbone)
    try:
        yield
    finally:
        if merged:
            merge(backbone)

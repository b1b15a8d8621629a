"""Mixtures of adapters beside a sub-layer: Dense-MoA and Soft-MoA.

Cappellazzo et al., Interspeech 2024, arXiv 2402.00828; spec section 1.2. The delta of a mixture is added once, to the
output of the sub-layer whose input it reads (defect P6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from .adapters import adapted_sublayers, make_adapter
from .options import bottleneck_dim, check_positive, select_blocks


class DenseMoA(nn.Module):
    """M(x) = sum over experts e of softmax(R x)_e · A_e(x), per token; every expert sees every token."""

    def __init__(self, experts: list[nn.Module], width: int):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(width, len(experts))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the delta ``(batch, tokens, D)``."""
        weights = self.router(x).softmax(dim=-1)
        outputs = torch.stack([expert(x, mask) for expert in self.experts], dim=-1)
        return (outputs * weights[:, :, None].to(outputs.dtype)).sum(dim=-1)


class SoftMoA(nn.Module):
    """Experts that each see ``slots`` mixtures of all tokens, and whose outputs every token mixes.

    It is Soft MoE (Puigcerver et al., ICLR 2024, arXiv 2308.00951) with adapters for experts. With the slot matrix
    ``phi (D, experts, slots)``::

        Z[m, e, s] = X[m] · phi[:, e, s]
        S[e, s]    = sum over tokens m of softmax(Z over m) X[m]
        M(X)[m]    = sum over e, s of softmax(Z over e and s) A_e(S[e])[s]

    With ``normalize``, X and phi are brought to length 1 over D for Z, which is then multiplied by a learned scale; the
    slots take X as it is (defect P8). Padding is in no slot.
    """

    def __init__(self, experts: list[nn.Module], width: int, slots: int, normalize: bool):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        n = len(experts)
        self.phi = nn.Parameter(torch.randn(width, n, slots) * math.sqrt(2 / (n * slots + width * slots)))
        self.scale = nn.Parameter(torch.ones(1)) if normalize else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the delta ``(batch, tokens, D)``."""
        if self.scale is None:
            z = torch.einsum("bmd,des->bmes", x, self.phi.to(x.dtype))
        else:
            phi = self.scale * F.normalize(self.phi, dim=0, eps=1e-6)
            z = torch.einsum("bmd,des->bmes", F.normalize(x, dim=-1, eps=1e-6), phi.to(x.dtype))
        combine = z.flatten(2).softmax(dim=-1).view_as(z)
        if mask is not None:
            z = z.masked_fill(~mask[:, :, None, None], -torch.inf)
        slots = torch.einsum("bmes,bmd->besd", z.softmax(dim=1).to(x.dtype), x)
        outputs = torch.stack([expert(slots[:, e]) for e, expert in enumerate(self.experts)], dim=1)
        return torch.einsum("bmes,besd->bmd", combine.to(outputs.dtype), outputs)


def add_dense_moa(
    backbone: Backbone,
    *,
    experts: int = 7,
    dim: int | None = None,
    reduction: float | None = None,
    block: str = "bottleneck",
    layout: str = "pfeiffer",
    location: str = "attn",
    kernel: int = 31,
    blocks: Sequence[int] | None = None,
) -> None:
    """Add a Dense-MoA beside attention or FFN (layout pfeiffer, `location`) or both (houlsby); spec section 1.2."""
    sublayers = adapted_sublayers("dense_moa", layout, location)
    check_positive("dense_moa", experts=experts)
    width, dim = backbone.width, bottleneck_dim("dense_moa", backbone.width, dim, reduction)

    def make_mixture() -> DenseMoA:
        return DenseMoA([make_adapter(block, width, dim, kernel=kernel) for _ in range(experts)], width)

    _add_mixtures(backbone, "dense_moa", make_mixture, sublayers, blocks)


def add_soft_moa(
    backbone: Backbone,
    *,
    experts: int = 7,
    slots: int = 1,
    dim: int | None = None,
    reduction: float | None = None,
    block: str = "bottleneck",
    normalize: bool = False,
    layout: str = "pfeiffer",
    location: str = "attn",
    blocks: Sequence[int] | None = None,
) -> None:
    """Add a Soft-MoA beside attention or FFN (layout pfeiffer, `location`) or both (houlsby); spec section 1.2."""
    if block != "bottleneck":
        raise ValueError(
            f"soft_moa takes bottleneck experts, not {block!r}: slots have no order that a convolution could run over; "
            "take dense_moa"
        )
    check_positive("soft_moa", slots=slots, experts=experts)
    sublayers = adapted_sublayers("soft_moa", layout, location)
    width, dim = backbone.width, bottleneck_dim("soft_moa", backbone.width, dim, reduction)

    def make_mixture() -> SoftMoA:
        return SoftMoA([make_adapter(block, width, dim) for _ in range(experts)], width, slots, normalize)

    _add_mixtures(backbone, "soft_moa", make_mixture, sublayers, blocks)


def _add_mixtures(
    backbone: Backbone,
    name: str,
    make_mixture: Callable[[], nn.Module],
    sublayers: Sequence[str],
    blocks: Sequence[int] | None,
) -> None:
    for sublayer in sublayers:
        for _, host in select_blocks(backbone, blocks):
            host.add_patch(f"{name}_{sublayer}", make_mixture(), f"{sublayer}.in", f"{sublayer}.out")

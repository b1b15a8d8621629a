"""Mixtures of adapters beside a sub-layer: Dense-MoA and Soft-MoA (Cappellazzo et al., Interspeech 2024).

Spec section 1.2. Both are added once, to the output of the sub-layer whose input they read (defect P6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters import layout_sites, make_adapter
from .backbones import Backbone
from .tuning import bottleneck_width, chosen_blocks, require_positive


class DenseMoA(nn.Module):
    """M(x) = sum over experts e of softmax(R x)_e · A_e(x), per token; every expert sees every token."""

    def __init__(self, experts: list[nn.Module], width: int):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = nn.Linear(width, len(experts))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The delta ``(batch, tokens, D)``."""
        weights = self.router(x).softmax(dim=-1)
        outputs = torch.stack([expert(x, mask) for expert in self.experts], dim=-1)
        return (outputs * weights[:, :, None].to(outputs.dtype)).sum(dim=-1)


class SoftMoA(nn.Module):
    """Experts that each see ``slots`` mixtures of all tokens, and whose outputs every token mixes.

    With slot matrix ``phi (D, experts, slots)``::

        Z[m, e, s] = X[m] · phi[:, e, s]
        S[e, s]    = sum over tokens m of softmax(Z over m) X[m]
        M(X)[m]    = sum over e, s of softmax(Z over e and s) A_e(S[e])[s]

    With ``normalize``, Z is of X and phi brought to length 1 over D, times a learned scale; the slots take X as it is
    (defect P8). Padding is in no slot.
    """

    def __init__(self, experts: list[nn.Module], width: int, slots: int, normalize: bool):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        n = len(experts)
        self.phi = nn.Parameter(torch.randn(width, n, slots) * math.sqrt(2 / (n * slots + width * slots)))
        self.scale = nn.Parameter(torch.ones(1)) if normalize else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The delta ``(batch, tokens, D)``."""
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
    """Put a Dense-MoA beside attention or FFN (layout pfeiffer, ``location``), or beside both (houlsby)."""

    def make(width: int) -> nn.Module:
        return make_adapter(block, backbone.width, width, kernel=kernel)

    sites = layout_sites("dense_moa", layout, location)
    _add(backbone, "dense_moa", DenseMoA, experts, make, (dim, reduction), sites, blocks)


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
    """Put a Soft-MoA beside attention or FFN (layout pfeiffer, ``location``), or beside both (houlsby)."""
    if block != "bottleneck":
        raise ValueError(
            f"soft_moa takes bottleneck experts, not {block!r}: slots have no order that a convolution could run over; "
            "take dense_moa"
        )
    require_positive("soft_moa", slots=slots)

    def mix(parts: list[nn.Module], width: int) -> SoftMoA:
        return SoftMoA(parts, width, slots, normalize)

    def make(width: int) -> nn.Module:
        return make_adapter(block, backbone.width, width)

    sites = layout_sites("soft_moa", layout, location)
    _add(backbone, "soft_moa", mix, experts, make, (dim, reduction), sites, blocks)


def _add(
    backbone: Backbone,
    name: str,
    mix: Callable[[list[nn.Module], int], nn.Module],
    experts: int,
    make: Callable[[int], nn.Module],
    sizes: tuple[int | None, float | None],
    sites: Sequence[str],
    blocks: Sequence[int] | None,
) -> None:
    """Put a mixture of adapters, each made from its bottleneck's width, beside sub-layers."""
    require_positive(name, experts=experts)
    dim = bottleneck_width(name, backbone.width, *sizes)
    for site in sites:
        for _, host in chosen_blocks(backbone, blocks):
            patch = mix([make(dim) for _ in range(experts)], backbone.width)
            host.place(f"{name}_{site}", patch, f"{site}.in", f"{site}.out")

"""Adapters: small networks whose output is added in or beside a sub-layer of every block.

Three kinds (spec sections 1.2, 2.3, 3.1), each ``(batch, tokens, D)`` to the same, and zero until trained (defects P2
and W7)::

    bottleneck :  s · Up(act(Down x))
    conformer  :  P2 SiLU(BN(DW_k(GLU(P1 LN(x)))))      convolutions over tokens, DW depthwise
    convpass   :  Up QuickGELU(C_3 QuickGELU(Down x))   C_3 a convolution over tokens

An adapter returns a delta and never its input; the block adds the residual, once (defects S1 and W7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import Backbone
from .tuning import bottleneck_width, chosen_blocks, require_choice, require_positive

KINDS = ("bottleneck", "conformer", "convpass")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
PLACEMENTS = ("parallel", "before", "after")


def _zeroed(layer: nn.Linear | nn.Conv1d) -> nn.Linear | nn.Conv1d:
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def _emptied(x: Tensor, mask: Tensor | None) -> Tensor:
    """``(batch, channels, tokens)`` with 0 at padding, as a convolution finds it past the end of a single clip."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


class Bottleneck(nn.Module):
    """s · Up(dropout(act(Down x))); Down starts as Kaiming uniform without bias, Up as zero."""

    def __init__(self, width: int, dim: int, activation: str = "gelu", dropout: float = 0.0, scale: float = 1.0):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.activation, self.dropout, self.scale = ACTIVATIONS[activation], dropout, scale
        nn.init.zeros_(self.down.bias)
        _zeroed(self.up)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The delta ``(..., D)`` of ``(..., D)``."""
        inner = F.dropout(self.activation(self.down(x)), self.dropout, self.training)
        return self.up(inner) * self.scale


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over channels whose statistics are of real tokens only; of a single one, those learned so far."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """``(batch, channels, tokens)``; mask ``(batch, tokens)``."""
        if self.training and (x.shape[0] * x.shape[2] if mask is None else int(mask.sum())) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if mask is None or not self.training:
            return super().forward(x)
        x = x.transpose(1, 2)
        normed = super().forward(x[mask])
        return torch.zeros_like(x, dtype=normed.dtype).masked_scatter(mask[..., None], normed).transpose(1, 2)


class Conformer(nn.Module):
    """The convolution module of a Conformer: LN, 1x1 to 2b, GLU, depthwise k, BatchNorm, SiLU, 1x1 to D.

    The LayerNorm's output goes on (in PETL_AST it was computed and dropped, defect P5). The last convolution is zero.
    """

    def __init__(self, width: int, dim: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Conv1d(width, 2 * dim, 1)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding="same", groups=dim)
        self.batch_norm = MaskedBatchNorm(dim)
        self.leave = nn.Conv1d(dim, width, 1)
        _zeroed(self.leave)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The delta ``(batch, tokens, D)``; padding is 0 to the depthwise convolution."""
        y = F.glu(self.enter(self.norm(x).transpose(1, 2)), dim=1)
        y = self.depthwise(_emptied(y, mask))
        return self.leave(F.silu(self.batch_norm(y, mask))).transpose(1, 2)


class Convpass(nn.Module):
    """Up(dropout(QuickGELU(C QuickGELU(Down x)))), C a convolution of three tokens whose output is used (defect P9)."""

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.convolution = nn.Conv1d(dim, dim, 3, padding="same")
        for layer in (self.down, self.convolution):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        _zeroed(self.up)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The delta ``(batch, tokens, D)``; padding is 0 to the convolution."""
        y = _quick_gelu(self.down(x)).transpose(1, 2)
        y = self.convolution(_emptied(y, mask)).transpose(1, 2)
        return self.up(F.dropout(_quick_gelu(y), 0.1, self.training))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def make_adapter(kind: str, width: int, dim: int, *, kernel: int = 31, activation: str = "gelu") -> nn.Module:
    """An adapter of a kind, the same for every method that has adapters in it (defect P7).

    Raises
    ------
    ValueError
        If the kind or activation does not exist, or the kernel is even.
    """
    require_choice("adapter", "block", kind, KINDS)
    require_choice("adapter", "activation", activation, tuple(ACTIVATIONS))
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel of a conformer adapter must be odd, not {kernel}")
    if kind == "bottleneck":
        return Bottleneck(width, dim, activation)
    return Conformer(width, dim, kernel) if kind == "conformer" else Convpass(width, dim)


def layout_sites(method: str, layout: str, location: str) -> tuple[str, ...]:
    """The sub-layers that a layout means: one of attn and ffn for pfeiffer, both for houlsby."""
    require_choice(method, "layout", layout, ("pfeiffer", "houlsby"))
    require_choice(method, "location", location, ("attn", "ffn"))
    return ("attn", "ffn") if layout == "houlsby" else (location,)


def add_adapter(
    backbone: Backbone,
    *,
    block: str = "bottleneck",
    dim: int | None = None,
    reduction: float | None = None,
    layout: str = "pfeiffer",
    location: str = "ffn",
    placement: str = "parallel",
    activation: str = "gelu",
    kernel: int = 31,
    blocks: Sequence[int] | None = None,
) -> None:
    """Put an adapter A to sub-layer F with input x, in one of three distinct placements (defect P15)::

    parallel :  F(x) + A(x)
    before   :  F(x + A(x))
    after    :  F(x) + A(F(x))
    """
    require_choice("adapter", "placement", placement, PLACEMENTS)
    dim = bottleneck_width("adapter", backbone.width, dim, reduction)
    for site in layout_sites("adapter", layout, location):
        for _, host in chosen_blocks(backbone, blocks):
            patch = make_adapter(block, backbone.width, dim, kernel=kernel, activation=activation)
            reads = f"{site}.out" if placement == "after" else f"{site}.in"
            adds = f"{site}.in" if placement == "before" else f"{site}.out"
            host.place(f"adapter_{site}", patch, reads, adds)


def add_scaled_parallel(
    backbone: Backbone,
    *,
    dim: int = 128,
    scale: float = 0.1,
    dropout: float = 0.1,
    reads: str = "ffn.in",
    blocks: Sequence[int] | None = None,
) -> None:
    """PEFT-SER's ``adapter``: s · E(x) is added to the FFN's output, and only that (defect S1).

    x is the FFN's input, or the residual stream before its norm with ``reads="stream"`` (as published).
    """
    require_choice("scaled_parallel", "reads", reads, ("ffn.in", "stream"))
    _add_scaled(backbone, "scaled_parallel", dim, scale, dropout, blocks, lambda _pre_norm: (reads, "ffn.out"))


def add_post_ffn(
    backbone: Backbone, *, dim: int = 128, scale: float = 0.1, dropout: float = 0.1, blocks: Sequence[int] | None = None
) -> None:
    """PEFT-SER's ``adapter_l``: out = r + f + s · E(f), or LN2(t + s · E(t)) of t = r + f in post-norm blocks."""
    places = {True: ("ffn.out", "ffn.out"), False: ("ffn.sum", "ffn.sum")}
    _add_scaled(backbone, "post_ffn", dim, scale, dropout, blocks, places.__getitem__)


def _add_scaled(
    backbone: Backbone,
    name: str,
    dim: int,
    scale: float,
    dropout: float,
    blocks: Sequence[int] | None,
    places: Callable[[bool], tuple[str, str]],
) -> None:
    """Put s · E, E with ReLU and dropout, to the places that a pre-norm or a post-norm block has for it."""
    require_positive(name, dim=dim, scale=scale)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout of {name} must be at least 0 and below 1, not {dropout}")
    for _, host in chosen_blocks(backbone, blocks):
        patch = Bottleneck(backbone.width, dim, "relu", dropout, scale)
        host.place(name, patch, *places(host.pre_norm))

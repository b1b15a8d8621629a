"""Adapters: small networks whose output is added in or beside a sub-layer of every block.

There are three kinds (spec sections 1.2, 2.3, 3.1). Each maps ``(batch, tokens, D)`` to the same shape, and gives zero
until it is trained (defects P2 and W7)::

    bottleneck :  s · Up(act(Down x))                   Houlsby et al., ICML 2019, arXiv 1902.00751
    conformer  :  P2 SiLU(BN(DW_k(GLU(P1 LN(x)))))      Cappellazzo et al., MLSP 2024, arXiv 2312.03694
    convpass   :  Up QuickGELU(C_3 QuickGELU(Down x))   Jie and Deng, 2022, arXiv 2207.07039

DW_k and C_3 are convolutions over tokens, DW_k depthwise. An adapter returns a delta, without its input; the block adds
the residual, once (defects S1 and W7).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones import Backbone
from .options import bottleneck_dim, check_choice, check_positive, select_blocks

ADAPTERS = ("bottleneck", "conformer", "convpass")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
PLACEMENTS = ("parallel", "before", "after")


def _zero_init(layer: nn.Linear | nn.Conv1d) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set padding of ``(batch, channels, tokens)`` to 0, which a convolution finds past the end of a single clip."""
    return x if mask is None else x.masked_fill(~mask[:, None], 0.0)


class BottleneckAdapter(nn.Module):
    """s · Up(dropout(act(Down x))); Down starts as Kaiming uniform without bias, Up as zero."""

    def __init__(self, width: int, dim: int, activation: str = "gelu", dropout: float = 0.0, scale: float = 1.0):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.activation, self.dropout, self.scale = ACTIVATIONS[activation], dropout, scale
        nn.init.zeros_(self.down.bias)
        _zero_init(self.up)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the delta of ``(..., D)``, of the same shape."""
        inner = F.dropout(self.activation(self.down(x)), self.dropout, self.training)
        return self.up(inner) * self.scale


class MaskedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over channels with the statistics of real tokens; for a single token, with the running statistics."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``(batch, channels, tokens)``; the mask is ``(batch, tokens)``."""
        if self.training and (x.shape[0] * x.shape[2] if mask is None else int(mask.sum())) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if mask is None or not self.training:
            return super().forward(x)
        x = x.transpose(1, 2)
        normed = super().forward(x[mask])
        return torch.zeros_like(x, dtype=normed.dtype).masked_scatter(mask[..., None], normed).transpose(1, 2)


class ConformerAdapter(nn.Module):
    """The convolution module of a Conformer: LN, 1x1 to 2b, GLU, depthwise k, BatchNorm, SiLU, 1x1 to D.

    The LayerNorm's output is used (PETL_AST computes and drops it, defect P5). The last convolution starts as zero.
    """

    def __init__(self, width: int, dim: int, kernel: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Conv1d(width, 2 * dim, 1)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding="same", groups=dim)
        self.batch_norm = MaskedBatchNorm(dim)
        self.leave = nn.Conv1d(dim, width, 1)
        _zero_init(self.leave)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the delta ``(batch, tokens, D)``; the depthwise convolution sees padding as 0."""
        y = F.glu(self.enter(self.norm(x).transpose(1, 2)), dim=1)
        y = self.depthwise(_zero_padding(y, mask))
        return self.leave(F.silu(self.batch_norm(y, mask))).transpose(1, 2)


class ConvpassAdapter(nn.Module):
    """Up(dropout(QuickGELU(C QuickGELU(Down x)))) with a convolution C over three tokens.

    The convolution's output is used (PETL_AST drops it, defect P9).
    """

    def __init__(self, width: int, dim: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.convolution = nn.Conv1d(dim, dim, 3, padding="same")
        for layer in (self.down, self.convolution):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        _zero_init(self.up)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the delta ``(batch, tokens, D)``; the convolution sees padding as 0."""
        y = _quick_gelu(self.down(x)).transpose(1, 2)
        y = self.convolution(_zero_padding(y, mask)).transpose(1, 2)
        return self.up(F.dropout(_quick_gelu(y), 0.1, self.training))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def make_adapter(kind: str, width: int, dim: int, *, kernel: int = 31, activation: str = "gelu") -> nn.Module:
    """Make an adapter; every method that has adapters in it takes the same kinds (defect P7).

    Raises
    ------
    ValueError
        If the kind or activation does not exist, or the kernel is even.
    """
    check_choice("adapter", "block", kind, ADAPTERS)
    check_choice("adapter", "activation", activation, tuple(ACTIVATIONS))
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel of a conformer adapter must be odd, not {kernel}")
    if kind == "bottleneck":
        return BottleneckAdapter(width, dim, activation)
    return ConformerAdapter(width, dim, kernel) if kind == "conformer" else ConvpassAdapter(width, dim)


def adapted_sublayers(method: str, layout: str, location: str) -> tuple[str, ...]:
    """Return the sub-layers of a layout: one of attn and ffn for pfeiffer, both for houlsby."""
    check_choice(method, "layout", layout, ("pfeiffer", "houlsby"))
    check_choice(method, "location", location, ("attn", "ffn"))
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
    """Add an adapter A to a sub-layer F with input x, in one of three placements (defect P15).

    ``parallel`` gives F(x) + A(x), ``before`` F(x + A(x)), and ``after`` F(x) + A(F(x)). The layouts are those of
    Houlsby et al. (ICML 2019) and Pfeiffer et al. (EACL 2021); spec sections 1.2 and 3.1.
    """
    check_choice("adapter", "placement", placement, PLACEMENTS)
    dim = bottleneck_dim("adapter", backbone.width, dim, reduction)
    for sublayer in adapted_sublayers("adapter", layout, location):
        for _, host in select_blocks(backbone, blocks):
            patch = make_adapter(block, backbone.width, dim, kernel=kernel, activation=activation)
            input_site = f"{sublayer}.out" if placement == "after" else f"{sublayer}.in"
            output_site = f"{sublayer}.in" if placement == "before" else f"{sublayer}.out"
            host.add_patch(f"adapter_{sublayer}", patch, input_site, output_site)


def add_scaled_parallel(
    backbone: Backbone,
    *,
    dim: int = 128,
    scale: float = 0.1,
    dropout: float = 0.1,
    reads: str = "ffn.in",
    blocks: Sequence[int] | None = None,
) -> None:
    """Add s · E(x), and only that, to the FFN's output (defect S1): PEFT-SER's ``adapter``, spec section 2.3.

    x is the FFN's input, or the residual stream before its norm with ``reads="stream"`` (as published).
    """
    check_choice("scaled_parallel", "reads", reads, ("ffn.in", "stream"))
    _check_scaled("scaled_parallel", dim, scale, dropout)
    for _, host in select_blocks(backbone, blocks):
        patch = BottleneckAdapter(backbone.width, dim, "relu", dropout, scale)
        host.add_patch("scaled_parallel", patch, reads, "ffn.out")


def add_post_ffn(
    backbone: Backbone, *, dim: int = 128, scale: float = 0.1, dropout: float = 0.1, blocks: Sequence[int] | None = None
) -> None:
    """Add s · E after the FFN: PEFT-SER's ``adapter_l``, spec section 2.3.

    It gives r + f + s · E(f), or LN2(t + s · E(t)) with t = r + f in post-norm blocks.
    """
    _check_scaled("post_ffn", dim, scale, dropout)
    for _, host in select_blocks(backbone, blocks):
        patch = BottleneckAdapter(backbone.width, dim, "relu", dropout, scale)
        site = "ffn.out" if host.pre_norm else "ffn.sum"
        host.add_patch("post_ffn", patch, site, site)


def _check_scaled(method: str, dim: int, scale: float, dropout: float) -> None:
    check_positive(method, dim=dim, scale=scale)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout of {method} must be at least 0 and below 1, not {dropout}")

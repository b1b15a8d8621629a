"""One transformer block for all backbones, with named places where methods add to it.

The two templates of spec section 0, with every place of section 5 in them::

    pre-norm :  x = LN1(h)  at attn.in;   a = attention(x)  at attn.out;   r = h + a
                y = LN2(r)  at ffn.in;    f = FFN(y)        at ffn.out;    h' = r + f
    post-norm:  x = h       at attn.in;   a = attention(x)  at attn.out;   r = LN1(h + a)
                y = r       at ffn.in;    f = FFN(y)        at ffn.out;    h' = LN2(r + f  at ffn.sum)

``stream`` is the residual stream before its norm: r of the first, h + a of the second. At each place the block adds
what its patches return; it owns every residual itself, so none is ever added twice (defects S1, P6 and W7).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.onednn import attention, quicken

PLACES = ("attn.in", "attn.out", "stream", "ffn.in", "ffn.out", "ffn.sum")
"""Places of a block in the order in which they are computed."""


class Attention(nn.Module):
    """Self-attention of a pretrained block.

    Attributes
    ----------
    q, k, v, o : the pretrained projections; `lora` may hold a patch for each, by the same names
    gate, gate_scale : WavLM's gate of the relative bias, or None
    prefix : keys and values that precede those of the tokens, or None
    """

    def __init__(
        self,
        q: nn.Linear,
        k: nn.Linear,
        v: nn.Linear,
        o: nn.Linear,
        heads: int,
        gate: nn.Linear | None = None,
        gate_scale: nn.Parameter | None = None,
    ):
        super().__init__()
        self.q, self.k, self.v, self.o, self.heads = q, k, v, o, heads
        self.gate, self.gate_scale = gate, gate_scale
        quicken(self)
        self.lora = nn.ModuleDict()
        self.prefix: nn.Module | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attention over tokens.

        Parameters
        ----------
        x : ``(batch, tokens, dim)``
        mask : bool ``(batch, tokens)``, tokens that may be attended to, or None for all
        bias : what is added to the scores, ``(heads, tokens, tokens)`` or ``(batch, heads, tokens, tokens)``
        """
        q, k, v = project(self, "q", x), project(self, "k", x), project(self, "v", x)
        n_prefix = 0
        if self.prefix is not None:
            k, v = self.prefix(k, v)
            n_prefix = k.shape[1] - q.shape[1]
            mask = None if mask is None else F.pad(mask, (n_prefix, 0), value=True)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        allowed = None if mask is None else mask[:, None, None]
        if bias is not None:
            bias = F.pad(self._gated(x, bias), (n_prefix, 0)).to(q.dtype)  # a prefix has no position, so no bias
            allowed = bias if allowed is None else bias.masked_fill(~allowed, -torch.inf)
        a = attention(q, k, v, allowed)
        return project(self, "o", a.transpose(1, 2).flatten(2))

    def _gated(self, x: Tensor, bias: Tensor) -> Tensor:
        """WavLM's bias, which every query weighs for itself: ``(batch, heads, tokens, tokens)``."""
        if self.gate is None or self.gate_scale is None:
            return bias
        parts = self.gate(x.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        a, b = torch.sigmoid(parts.unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return (a * (b * self.gate_scale - 1.0) + 2.0) * bias


class FeedForward(nn.Module):
    """The pretrained FFN: ``down(activation(up(x)))``; `lora` may hold a patch for ``up`` and ``down``."""

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.down, self.activation = up, down, activation
        quicken(self)
        self.lora = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, dim)`` to the same."""
        return project(self, "down", self.activation(project(self, "up", x)))


def project(module: nn.Module, site: str, x: Tensor) -> Tensor:
    """What the projection ``site`` of a module gives, and what its LoRA adds unless it is merged already."""
    y = getattr(module, site)(x)
    lora = module.lora
    assert isinstance(lora, nn.ModuleDict)
    if site in lora and not lora[site].merged:
        y = y + lora[site](x)
    return y


class RelativeBias(nn.Module):
    """WavLM's bias of attention scores by the distance of two tokens, shared by all blocks.

    Distances up to a quarter of the buckets have one each, longer ones share in steps of a logarithm.
    """

    def __init__(self, embedding: nn.Embedding, max_distance: int):
        super().__init__()
        self.embedding, self.max_distance = embedding, max_distance

    def forward(self, tokens: int) -> Tensor:
        """Scores ``(heads, tokens, tokens)``: of each query (row) for each key."""
        place = torch.arange(tokens, device=self.embedding.weight.device)
        distance = place[None, :] - place[:, None]
        half = self.embedding.num_embeddings // 2
        near = half // 2
        far = torch.log(distance.abs().float() / near) / math.log(self.max_distance / near)
        far = (near + (far * (half - near)).clamp(min=-near)).long().clamp(max=half - 1)
        bucket = torch.where(distance.abs() < near, distance.abs(), far)
        return self.embedding(bucket + (distance > 0) * half).permute(2, 0, 1)


class Block(nn.Module):
    """A pretrained transformer block.

    Attributes
    ----------
    attn, ffn : the two sub-layers
    norm1, norm2 : LN1 and LN2 of the templates above
    pre_norm : which of the two it is
    patches : what methods added, by name; see `place`
    language : the adapter that a model of MMS was trained with, after the block, or None
    """

    def __init__(
        self,
        attn: Attention,
        ffn: FeedForward,
        norm1: nn.LayerNorm,
        norm2: nn.LayerNorm,
        pre_norm: bool,
        language: nn.Module | None = None,
    ):
        super().__init__()
        self.attn, self.ffn, self.norm1, self.norm2, self.pre_norm = attn, ffn, norm1, norm2, pre_norm
        self.language = language
        self.patches = nn.ModuleDict()
        self._places: dict[str, tuple[str, str]] = {}

    def place(self, name: str, patch: nn.Module, reads: str, adds: str) -> None:
        """Let ``patch(values, mask)`` of the values at the place `reads` be added at the place `adds`.

        Raises
        ------
        ValueError
            If a place does not exist, comes too late to be read, or the name is taken.
        """
        if reads not in PLACES or adds not in PLACES or PLACES.index(reads) > PLACES.index(adds):
            raise ValueError(f"nothing read at {reads!r} can be added at {adds!r}; places in order: {PLACES}")
        if name in self.patches:
            raise ValueError(f"two methods want to be {name!r} of a block; leave one out")
        self.patches[name] = patch
        self._places[name] = reads, adds

    def forward(self, h: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The block's output ``(batch, tokens, dim)``; mask and bias as in `Attention`."""
        seen: dict[str, Tensor] = {}

        def at(place: str, values: Tensor) -> Tensor:
            seen[place] = values
            for name, (reads, adds) in self._places.items():
                if adds == place:
                    values = values + self.patches[name](seen[reads], mask)
            return values

        x = at("attn.in", self.norm1(h) if self.pre_norm else h)
        a = at("attn.out", self.attn(x, mask, bias))
        r = at("stream", h + a)
        if not self.pre_norm:
            r = self.norm1(r)
        y = at("ffn.in", self.norm2(r) if self.pre_norm else r)
        f = at("ffn.out", self.ffn(y))
        out = at("ffn.sum", r + f)
        if not self.pre_norm:
            out = self.norm2(out)
        return out if self.language is None else out + self.language(out)

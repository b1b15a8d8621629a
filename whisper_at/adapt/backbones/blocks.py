"""One transformer block for all backbones, with named sites at which methods add to it.

These are the two templates of spec section 0, with the sites of section 5::

    pre-norm :  x = LN1(h)  at attn.in;   a = attention(x)  at attn.out;   r = h + a
                y = LN2(r)  at ffn.in;    f = FFN(y)        at ffn.out;    h' = r + f
    post-norm:  x = h       at attn.in;   a = attention(x)  at attn.out;   r = LN1(h + a)
                y = r       at ffn.in;    f = FFN(y)        at ffn.out;    h' = LN2(r + f  at ffn.sum)

``stream`` is the residual stream before its norm: r in pre-norm blocks, h + a in post-norm blocks. A method adds a
*patch*, a module that returns a delta. The block owns every residual, so none is added twice (defects S1, P6 and W7).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engine.onednn import Linear, attention

SITES = ("attn.in", "attn.out", "stream", "ffn.in", "ffn.out", "ffn.sum")
"""Sites of a block in the order in which they are computed."""

M = TypeVar("M", bound=nn.Module)


def share_frozen(source: nn.Module, target: M) -> M:
    """Give `target` the parameters of `source`, frozen and on the same memory; return it."""
    for name, parameter in source.named_parameters(recurse=False):
        setattr(target, name, nn.Parameter(parameter.detach(), requires_grad=False))
    return target


def frozen_linear(layer: nn.Linear) -> Linear:
    """Return a layer that computes by oneDNN with the frozen weights of `layer`, which it shares."""
    return share_frozen(layer, Linear.sharing(layer))


class Attention(nn.Module):
    """Self-attention of a pretrained block.

    Parameters
    ----------
    q, k, v, o : nn.Linear
        The pretrained projections, whose weights are shared.
    heads : int
        Number of heads.
    gate, gate_scale : nn.Linear and nn.Parameter, optional
        WavLM's gate of the relative bias.

    Attributes
    ----------
    lora : nn.ModuleDict
        A LoRA for any of ``q``, ``k``, ``v`` and ``o``.
    prefix : nn.Module or None
        Learned keys and values that precede those of the tokens.
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
        self.q, self.k, self.v, self.o = (frozen_linear(layer) for layer in (q, k, v, o))
        self.heads = heads
        self.gate = None if gate is None else frozen_linear(gate)
        self.gate_scale = gate_scale
        self.lora = nn.ModuleDict()
        self.prefix: nn.Module | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attend from every token to all tokens.

        Parameters
        ----------
        x : Tensor, shape (batch, tokens, dim)
            Tokens.
        mask : bool Tensor, shape (batch, tokens), optional
            Tokens that may be attended to; all by default.
        bias : Tensor, shape (heads, tokens, tokens) or (batch, heads, tokens, tokens), optional
            Term that is added to the attention scores.

        Returns
        -------
        Tensor, shape (batch, tokens, dim)
        """
        q, k, v = linear_with_lora(self, "q", x), linear_with_lora(self, "k", x), linear_with_lora(self, "v", x)
        n_prefix = 0
        if self.prefix is not None:
            k, v = self.prefix(k, v)
            n_prefix = k.shape[1] - q.shape[1]
            mask = None if mask is None else F.pad(mask, (n_prefix, 0), value=True)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attn_mask = None if mask is None else mask[:, None, None]
        if bias is not None:
            bias = F.pad(self._gated(x, bias), (n_prefix, 0)).to(q.dtype)  # a prefix has no position, so no bias
            attn_mask = bias if attn_mask is None else bias.masked_fill(~attn_mask, -torch.inf)
        a = attention(q, k, v, attn_mask)
        return linear_with_lora(self, "o", a.transpose(1, 2).flatten(2))

    def _gated(self, x: Tensor, bias: Tensor) -> Tensor:
        """Scale the bias for each query, as WavLM does: ``(batch, heads, tokens, tokens)``."""
        if self.gate is None or self.gate_scale is None:
            return bias
        gates = self.gate(x.unflatten(-1, (self.heads, -1)).transpose(1, 2))
        a, b = torch.sigmoid(gates.unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return (a * (b * self.gate_scale - 1.0) + 2.0) * bias


class FeedForward(nn.Module):
    """The pretrained FFN, ``down(activation(up(x)))``.

    Parameters
    ----------
    up, down : nn.Linear
        The pretrained layers, whose weights are shared; `lora` may hold a LoRA for each, by the same names.
    activation : callable
        Function between them.
    """

    def __init__(self, up: nn.Linear, down: nn.Linear, activation: Callable[[Tensor], Tensor]):
        super().__init__()
        self.up, self.down, self.activation = frozen_linear(up), frozen_linear(down), activation
        self.lora = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape."""
        return linear_with_lora(self, "down", self.activation(linear_with_lora(self, "up", x)))


def linear_with_lora(module: Attention | FeedForward, name: str, x: Tensor) -> Tensor:
    """Apply a layer of a module, and its LoRA unless that is merged into the weight."""
    y = getattr(module, name)(x)
    if name in module.lora and not module.lora[name].merged:
        y = y + module.lora[name](x)
    return y


class RelativeBias(nn.Module):
    """WavLM's bias of attention scores by the distance of two tokens, shared by all blocks.

    Distances up to a quarter of the buckets have a bucket each; longer ones share buckets on a logarithmic scale.
    """

    def __init__(self, embedding: nn.Embedding, max_distance: int):
        super().__init__()
        self.embedding, self.max_distance = embedding, max_distance

    def forward(self, tokens: int) -> Tensor:
        """Return the bias ``(heads, tokens, tokens)`` of each query (row) for each key (column)."""
        position = torch.arange(tokens, device=self.embedding.weight.device)
        distance = position[None, :] - position[:, None]
        half = self.embedding.num_embeddings // 2
        exact = half // 2
        far = torch.log(distance.abs().float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (far * (half - exact)).clamp(min=-exact)).long().clamp(max=half - 1)
        bucket = torch.where(distance.abs() < exact, distance.abs(), far)
        return self.embedding(bucket + (distance > 0) * half).permute(2, 0, 1)


class WhisperLayerNorm(nn.LayerNorm):
    """LayerNorm in float32 whatever its input is, as openai-whisper's, with parameters of any precision."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axis."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)


class Block(nn.Module):
    """A pretrained transformer block.

    Parameters
    ----------
    attn : Attention
        First sub-layer.
    ffn : FeedForward
        Second sub-layer.
    norm1, norm2 : nn.LayerNorm
        LN1 and LN2 of the module's templates.
    pre_norm : bool
        Which of the two templates holds.
    language : nn.Module, optional
        Adapter behind the block that a model of MMS was trained with.

    Attributes
    ----------
    patches : nn.ModuleDict
        What methods added; see `add_patch`.
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
        self._patch_sites: dict[str, tuple[str, str]] = {}

    def add_patch(self, name: str, patch: nn.Module, input_site: str, output_site: str) -> None:
        """Add ``patch(values, mask)``, of the values at one site, to the values at the same or a later site.

        Raises
        ------
        ValueError
            If a site does not exist, the input is computed after the output, or the name is taken.
        """
        if not {input_site, output_site} <= set(SITES) or SITES.index(input_site) > SITES.index(output_site):
            raise ValueError(
                f"values at {input_site!r} cannot change those at {output_site!r}; sites in order: {SITES}"
            )
        if name in self.patches:
            raise ValueError(f"two methods add {name!r} to the same block; leave one out")
        self.patches[name] = patch
        self._patch_sites[name] = input_site, output_site

    def remove_patches(self) -> None:
        """Remove everything that methods added."""
        self.patches.clear()
        self._patch_sites.clear()
        self.attn.lora.clear()
        self.ffn.lora.clear()
        self.attn.prefix = None

    def forward(self, h: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Compute the block's output ``(batch, tokens, dim)``; the arguments are those of `Attention`."""
        inputs: dict[str, Tensor] = {}

        def patched(site: str, values: Tensor) -> Tensor:
            """Add to the values at a site what patches return for it."""
            inputs[site] = values
            for name, (input_site, output_site) in self._patch_sites.items():
                if output_site == site:
                    values = values + self.patches[name](inputs[input_site], mask)
            return values

        x = patched("attn.in", self.norm1(h) if self.pre_norm else h)
        a = patched("attn.out", self.attn(x, mask, bias))
        r = patched("stream", h + a)
        if not self.pre_norm:
            r = self.norm1(r)
        y = patched("ffn.in", self.norm2(r) if self.pre_norm else r)
        f = patched("ffn.out", self.ffn(y))
        out = patched("ffn.sum", r + f)
        if not self.pre_norm:
            out = self.norm2(out)
        return out if self.language is None else out + self.language(out)

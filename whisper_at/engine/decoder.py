"""A Whisper's text decoder for inference: keys and values kept, nothing computed twice, no logits that nobody reads.

The numbers are those of ``model.decoder`` up to the order in which float32 sums are taken. On a CPU a few tokens at a
time go through `kernels`; whatever is longer, and any GPU, through PyTorch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import (
    AudioEncoder,
    Conv1d,
    LayerNorm,
    Linear,
    MultiHeadAttention,
    ResidualAttentionBlock,
    TextDecoder,
    Whisper,
)

from . import cpu_kernels, onednn
from .cuda_graphs import KEPT, StaticStep, empty_caches
from .onednn import across, linear
from .simd import COLUMNS, READS_HALF

STOCK = (
    *(AudioEncoder, TextDecoder, ResidualAttentionBlock, MultiHeadAttention, Linear, LayerNorm, Conv1d),
    *(onednn.Linear, nn.ModuleList, nn.Sequential, nn.GELU, nn.Embedding),
)

SAMPLED = 16
"""Values of every parameter that are compared to see whether it was changed."""
PART = 4096
"""Rows of a matrix that are converted at once, so that there is no second whole one."""


def is_stock(module: nn.Module) -> bool:
    """Whether an encoder or decoder is openai-whisper's as installed: no hooks, no replaced parts or methods."""
    return all(
        type(part) in STOCK
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not {"forward", "qkv_attention"} & vars(part).keys()
        for part in module.modules()
    )


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself; others imitate it, slowly."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile", "arm_bf16"))


class Heard(NamedTuple):
    """What the decoder hears of some windows, computed once and shared by all rows and tries.

    features : ``(recordings, frames, width)`` as the encoder gave them
    keys, values : ``(layers, recordings, heads, size, frames)``; for the compiled decoder as of `kernels._attend_cross`
    """

    features: Tensor
    keys: Tensor
    values: Tensor


Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, and its queries, keys and values ``(rows, heads, n, size)`` → what attention makes of them and of the past."""


class Decoder:
    """The decoder of one model in one precision; see `is_stock` and `is_current`.

    dtype : of the features and, but for int8, of the weights
    static : whether steps have one shape and are recorded, see `graphs`; for GPUs
    reduced : None; or, on a CPU, ``bfloat16`` (what is heard is computed in bfloat16 and kept in half precision) or
        ``int8`` (that, where the processor has bfloat16, and int8 weights)
    """

    def __init__(self, model: Whisper, dtype: torch.dtype, reduced: str | None = None) -> None:
        self.dims, self.dtype, self.reduced = model.dims, dtype, reduced
        decoder = model.decoder
        self.device = decoder.positional_embedding.device
        self.heads = model.dims.n_text_head
        self.norm = (decoder.ln.weight, decoder.ln.bias)
        self.embedding = decoder.token_embedding.weight.detach()
        self.positions = decoder.positional_embedding.detach()
        self.fingerprint = Fingerprint(decoder)
        vectors = self.dims.n_text_state % 64 == 0 and self.dims.n_text_state // self.heads % 4 == 0
        compiled = self.device.type == "cpu" and dtype == torch.float32 and vectors
        # the compiled step has weights of its own; PyTorch, which serves long prompts then, widens them on the way
        kept = None if compiled else dtype
        self.blocks = [
            _Block.of(block, kept, fused=not compiled) for block in cast(list[ResidualAttentionBlock], decoder.blocks)
        ]
        self.projection = self.embedding.to(kept)
        self.weights = _pack(self, reduced == "int8") if compiled else None
        self.static = self.device.type == "cuda"
        self.steps: deque[StaticStep] = deque(maxlen=KEPT)
        # keys and values are computed in one precision and kept in another
        self.hearing, self.heard = dtype, dtype
        if reduced and compiled:
            self.heard = torch.float16 if READS_HALF else torch.float32
            self.hearing = torch.bfloat16 if reduced == "bfloat16" or has_bfloat16() else dtype
        self.listeners = [
            (b.cross_key.to(self.hearing), b.cross_value.to(self.hearing), b.cross_value_bias.to(self.hearing))
            for b in self.blocks
        ]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Copies of a model, and saved ones, make their own."""
        return type(None), ()

    def is_current(self, model: Whisper, dtype: torch.dtype, reduced: str | None = None) -> bool:
        """Whether the model's weights are still those that this was made of, and the precision is the one asked for."""
        return (dtype, reduced) == (self.dtype, self.reduced) and self.fingerprint.fits(model.decoder)

    @torch.no_grad()
    def hear(self, features: Tensor) -> Heard:
        """Keys and values of encoder output ``(recordings, frames, width)``."""
        count, frames, width = features.shape
        blocks = -(-frames // COLUMNS) if self.weights else 1
        padded = blocks * COLUMNS if self.weights else frames
        shape = (len(self.blocks), count, self.heads, width // self.heads, padded)
        keys, values = (torch.empty(shape, dtype=self.heard, device=self.device) for _ in range(2))
        values[..., frames:] = 0.0
        if self.weights:
            keys = keys.view(*shape[:3], blocks, shape[3], COLUMNS)
        recorded = features.to(self.hearing)
        # on a CPU one after the other, so that products stay near
        for some in [slice(i, i + 1) for i in range(count)] if self.device.type == "cpu" else [slice(None)]:
            for (to_key, to_value, bias), key, value in zip(self.listeners, keys[:, some], values[:, some]):
                plain_key = across(to_key, recorded[some])
                plain_value = across(to_value, recorded[some]).add_(bias[:, None])
                value[..., :frames] = plain_value.unflatten(1, (self.heads, -1))
                if self.weights:
                    plain_key = F.pad(plain_key, (0, padded - frames)).unflatten(2, (blocks, -1))
                    key.copy_(plain_key.unflatten(1, (self.heads, -1)).transpose(2, 3))
                else:
                    key.copy_(plain_key.unflatten(1, (self.heads, -1)))
        return Heard(features, keys, values)

    def run(self, x: Tensor, heard: Heard, attend: Attend, trace: list[Tensor] | None = None) -> Tensor:
        """Embedded tokens ``(rows, n, width)`` through all layers, by PyTorch → output of the last layer norm.

        ``attend`` is self-attention with its past; ``trace`` is given the cross-attention scores of every layer.
        """
        x = x.to(self.dtype)
        for i, block in enumerate(self.blocks):
            block = block.to(self.dtype)
            normed = block.attn_norm(x)
            projected = [linear(normed, *part) for part in zip(block.inward, block.inward_biases)]
            query, key, value = torch.cat(projected, 2).unflatten(2, (3, self.heads, -1)).unbind(2)
            query, key, value = (z.transpose(1, 2) for z in (query, key, value))
            mixed = attend(i, query, key, value)
            x = x + linear(mixed.transpose(1, 2).flatten(2), block.out, block.out_bias)
            query = linear(block.cross_norm(x), block.cross_query, block.cross_query_bias)
            mixed = self._attend_cross(query, heard, i, trace)
            x = x + linear(mixed, block.cross_out, block.cross_out_bias)
            wide = F.gelu(linear(block.mlp_norm(x), block.up, block.up_bias))
            x = x + linear(wide, block.down, block.down_bias)
        return _layer_norm(x, *self.norm)

    def _attend_cross(self, query: Tensor, heard: Heard, layer: int, trace: list[Tensor] | None) -> Tensor:
        """Queries ``(rows, n, width)`` of a layer → what they hear, of the same shape."""
        rows, n, _ = query.shape
        recordings, frames, _ = heard.features.shape
        # all queries of a recording meet its keys in one product
        query = query.reshape(recordings, rows // recordings * n, self.heads, -1).transpose(1, 2)
        keys, values = (kept[layer].to(query.dtype) for kept in (heard.keys, heard.values))
        if keys.ndim == 5:
            keys, values = keys.transpose(2, 3).flatten(3)[..., :frames], values[..., :frames]
        scores = ((query * query.shape[-1] ** -0.5) @ keys).float()
        if trace is not None:
            trace.append(scores)
        weights = scores.softmax(-1).to(query.dtype)
        mixed = weights @ values.transpose(2, 3)
        return mixed.transpose(1, 2).reshape(rows, n, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``(rows, vocabulary)`` of outputs of the last layer norm."""
        if self.weights is None or len(hidden) > cpu_kernels.MOST_TOKENS:
            return linear(hidden, self.projection.to(hidden.dtype)).float()
        w = self.weights
        out = np.empty((len(hidden), len(self.embedding)), np.float32)
        with cpu_kernels.LOCK:
            cpu_kernels.multiply(w.embedding, w.embedding_scale, w.embedding_bias, hidden.numpy(), out, 0.0)
        return torch.from_numpy(out)


class Rows:
    """Sequences being decoded, ``group`` to a recording, with the keys and values of all of their tokens.

    ``steps`` says whether there will be any; what is only started needs no graphs.
    """

    def __init__(self, decoder: Decoder, heard: Heard, group: int = 1, *, steps: bool = True) -> None:
        self.decoder, self.heard, self.group = decoder, heard, group
        dims, count = decoder.dims, heard.features.shape[0] * group
        self.static = StaticStep.claim(self, decoder, heard, group) if decoder.static and steps else None
        self.keys, self.values = self.static.caches if self.static else empty_caches(decoder, count)
        # a row's past may lie in other rows' caches: they share the prompt, and beams that fork share their stem
        self.all = torch.arange(count, dtype=torch.int32, device=decoder.device)
        self.ancestors = self.all[:, None].repeat(1, dims.n_text_ctx)
        self.position = 0

    @torch.no_grad()
    def start(self, tokens: Tensor, *, at: Sequence[int] = (-1,)) -> Tensor:
        """The first tokens ``(recordings, n)`` → logits ``(recordings, len(at), vocabulary)`` behind those places."""
        count, n = tokens.shape
        first = torch.arange(0, count * self.group, self.group)
        self.ancestors[:, :n] = first.to(self.ancestors)[:, None].expand(-1, self.group).reshape(-1, 1)
        hidden = self._forward(tokens, first)
        self.position = n
        return self.decoder.logits(hidden[:, list(at)].flatten(0, 1)).unflatten(0, (count, len(at)))

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """One more token of every row ``(rows,)`` → logits ``(rows, vocabulary)`` behind them."""
        self.ancestors[:, self.position] = self.all
        if self.static is not None:
            logits = self.static(tokens, self.position, self.ancestors)
        else:
            logits = self.decoder.logits(self._forward(tokens[:, None], self.all)[:, 0])
        self.position += 1
        return logits

    @torch.no_grad()
    def extend(self, tokens: Tensor, *, at: slice = slice(None)) -> Tensor:
        """Some more tokens of every row ``(rows, n)`` → logits ``(rows, n, vocabulary)`` behind those ``at`` places."""
        n = tokens.shape[1]
        self.ancestors[:, self.position : self.position + n] = self.all[:, None]
        hidden = self._forward(tokens, self.all)[:, at]
        self.position += n
        return self.decoder.logits(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    @torch.no_grad()
    def trace(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """First tokens ``(recordings, n)`` → logits ``(recordings, n, vocabulary)`` behind each, and every layer's
        cross-attention scores, float32 ``(recordings, heads, n, frames)``, before their softmax.
        """
        scores: list[Tensor] = []
        first = torch.arange(0, len(self.ancestors), self.group)
        hidden = self._forward(tokens, first, scores)
        return self.decoder.logits(hidden.flatten(0, 1)).unflatten(0, tokens.shape), scores

    def reorder(self, sources: Sequence[int]) -> None:
        """Row i goes on as a copy of row ``sources[i]``; no key or value moves."""
        if list(sources) != list(range(len(sources))):
            self.ancestors = self.ancestors[torch.tensor(sources, device=self.ancestors.device)]

    def _forward(self, tokens: Tensor, owners: Tensor, trace: list[Tensor] | None = None) -> Tensor:
        """Tokens ``(some rows, n)`` of the rows ``owners`` → output of the last layer norm ``(rows, n, width)``.

        ``trace`` is given the cross-attention scores of every layer.
        """
        d, (count, n) = self.decoder, tokens.shape
        x = d.embedding[tokens.to(d.device)] + d.positions[self.position : self.position + n]
        if d.weights is not None and count * n <= cpu_kernels.MOST_TOKENS and trace is None:
            return self._forward_compiled(x, owners)
        owners, past = owners.to(d.device).long(), self.position + n
        mask, causal = None, n > 1
        if causal and self.position:  # PyTorch's own would let the first of these tokens see the first of all alone
            mask, causal = torch.ones(n, past, dtype=torch.bool, device=d.device).tril(self.position), False

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.keys[layer, owners, :, self.position : past] = key
            self.values[layer, owners, :, self.position : past] = value
            if self.position:
                before = torch.arange(self.position, device=d.device)
                lineage = self.ancestors[:, : self.position].long(), slice(None), before
                key = torch.cat((self.keys[layer][lineage].transpose(1, 2), key), 2)
                value = torch.cat((self.values[layer][lineage].transpose(1, 2), value), 2)
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)

        return d.run(x, self.heard, attend, trace)

    def _forward_compiled(self, x: Tensor, owners: Tensor) -> Tensor:
        d, (count, n, _) = self.decoder, x.shape
        cpu_kernels.use_threads()
        out = np.ascontiguousarray(x.flatten(0, 1).numpy())
        places = np.arange(self.position, self.position + n, dtype=np.int32)
        with cpu_kernels.LOCK:
            cpu_kernels.decode(
                d.weights,
                out,
                np.repeat(owners.numpy().astype(np.int32), n),
                np.tile(places, count),
                self.keys.numpy(),
                self.values.numpy(),
                self.ancestors.numpy(),
                _numbers(self.heard.keys),
                _numbers(self.heard.values),
                self.heard.features.shape[1],
                count * n // self.heard.features.shape[0],
                d.heads,
            )
        return torch.from_numpy(out).unflatten(0, (count, n))


class _Block(NamedTuple):
    """A layer's weights; norms stay float32, as openai-whisper's do.

    inward, inward_biases : of self-attention's queries, keys (whose bias is 0) and values; as one if fused
    """

    norms: list[Tensor]
    inward: list[Tensor]
    inward_biases: list[Tensor]
    out: Tensor
    out_bias: Tensor
    cross_query: Tensor
    cross_query_bias: Tensor
    cross_key: Tensor
    cross_value: Tensor
    cross_value_bias: Tensor
    cross_out: Tensor
    cross_out_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor

    @classmethod
    def of(cls, block: ResidualAttentionBlock, dtype: torch.dtype | None, fused: bool) -> _Block:
        """In a precision, or as they are; ``fused`` copies what is put together."""
        attn, cross = block.attn, cast(MultiHeadAttention, block.cross_attn)
        norms = (block.attn_ln, cast(LayerNorm, block.cross_attn_ln), block.mlp_ln)
        inward = [attn.query.weight, attn.key.weight, attn.value.weight]
        biases = [attn.query.bias, torch.zeros_like(attn.query.bias), attn.value.bias]
        parts = (
            *(attn.out.weight, attn.out.bias, cross.query.weight, cross.query.bias, cross.key.weight),
            *(cross.value.weight, cross.value.bias, cross.out.weight, cross.out.bias),
            *(block.mlp[0].weight, block.mlp[0].bias, block.mlp[2].weight, block.mlp[2].bias),
        )
        of_block = cls(
            [part.detach() for norm in norms for part in (norm.weight, norm.bias)],
            [torch.cat(inward).detach()] if fused else [part.detach() for part in inward],
            [torch.cat(biases).detach()] if fused else [part.detach() for part in biases],
            *(part.detach() for part in parts),
        )
        return of_block if dtype is None else of_block.to(dtype)

    def to(self, dtype: torch.dtype) -> _Block:
        norms, inward, biases, *rest = self
        return _Block(norms, [w.to(dtype) for w in inward], [b.to(dtype) for b in biases], *(w.to(dtype) for w in rest))

    def attn_norm(self, x: Tensor) -> Tensor:
        return _layer_norm(x, *self.norms[:2])

    def cross_norm(self, x: Tensor) -> Tensor:
        return _layer_norm(x, *self.norms[2:4])

    def mlp_norm(self, x: Tensor) -> Tensor:
        return _layer_norm(x, *self.norms[4:])


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float()).to(x.dtype)


class Fingerprint:
    """By what one knows a module's weights again: where they lie, how often they were changed, and a few of their
    values, since changes to ``.data`` are not counted.
    """

    def __init__(self, module: nn.Module) -> None:
        flat = [p.detach().flatten() for p in module.parameters()]
        self.places = self._places(module)
        self.sampled = [weights[:: len(weights) // SAMPLED + 1] for weights in flat]
        self.values = torch.cat(self.sampled)

    def fits(self, module: nn.Module) -> bool:
        return self._places(module) == self.places and torch.equal(torch.cat(self.sampled), self.values)

    @staticmethod
    def _places(module: nn.Module) -> list[tuple[int, int]]:
        return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters()]


def _numbers(tensor: Tensor) -> np.ndarray:
    """As `kernels` reads it: half precision by its bits."""
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.float16 else tensor.numpy()


def is_exact_in_half(matrix: Tensor) -> bool:
    """Whether half precision holds a matrix without loss."""
    return matrix.dtype == torch.float16 or all(torch.equal(part.half().float(), part) for part in matrix.split(PART))


def _pack(decoder: Decoder, int8: bool) -> cpu_kernels.Weights:
    """The weights as `kernels` reads them: as int8, or else in half precision where that loses nothing."""
    blocks = decoder.blocks

    def stored(matrices: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        rows, width = sum(len(matrix) for matrix in matrices), matrices[0].shape[1]
        half = not int8 and READS_HALF and all(map(is_exact_in_half, matrices))
        dtype, scale = torch.int8 if int8 else torch.float16 if half else torch.float32, torch.ones(rows)
        if len(matrices) == 1 and matrices[0].dtype == dtype:
            return _numbers(matrices[0].contiguous()), scale.numpy()
        out, row = torch.empty(rows, width, dtype=dtype), 0
        for part in (part for matrix in matrices for part in matrix.split(PART)):
            place = slice(row, row := row + len(part))
            if int8:
                part = part.float()
                scale[place] = part.abs().amax(-1).clamp(min=1e-12) / 127
                part = (part / scale[place, None]).round_()
            out[place] = part
        return _numbers(out), scale.numpy()

    def stacked(matrices: Iterable[Tensor | Sequence[Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        parts = [[matrix] if isinstance(matrix, Tensor) else matrix for matrix in matrices]
        matrix, scale = stored([part for block in parts for part in block])
        return matrix.reshape(len(parts), -1, matrix.shape[1]), scale.reshape(len(parts), -1)

    def biases(parts: list[Tensor]) -> np.ndarray:
        return torch.stack(parts).numpy()

    return cpu_kernels.Weights(
        *stacked(b.inward for b in blocks),
        biases([torch.cat(b.inward_biases) for b in blocks]),
        *stacked(b.out for b in blocks),
        biases([b.out_bias for b in blocks]),
        *stacked(b.cross_query for b in blocks),
        biases([b.cross_query_bias for b in blocks]),
        *stacked(b.cross_out for b in blocks),
        biases([b.cross_out_bias for b in blocks]),
        *stacked(b.up for b in blocks),
        biases([b.up_bias for b in blocks]),
        *stacked(b.down for b in blocks),
        biases([b.down_bias for b in blocks]),
        biases([torch.stack(b.norms).float() for b in blocks]),
        torch.stack(decoder.norm).detach().numpy(),
        *stored([decoder.embedding]),
        np.zeros(len(decoder.embedding), np.float32),
    )

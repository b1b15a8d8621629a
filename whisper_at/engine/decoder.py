"""A Whisper's text decoder for inference: nothing is computed twice, and no logits that nobody reads.

The numbers are those of ``model.decoder`` up to the order in which float32 sums are taken. On a CPU a few tokens at a
time go through `cpu_kernels`; whatever is longer, and any GPU, through PyTorch. The text so far is in `DecoderState`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import ResidualAttentionBlock, Whisper

from . import cpu_kernels, onednn, simd
from .cuda_graphs import MAX_CACHED, StaticStep
from .forks import kernels_can_run
from .kv_cache import EncodedAudio
from .simd import TILE_WIDTH, has_bfloat16
from .weights import Affine, LayerWeights, WeightsVersion, pack_for_kernels

SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, and its queries, keys and values ``(rows, heads, n, size)`` → what attention makes of them and of the past."""


class Decoder:
    """The decoder of one model in one precision; see `is_unmodified` and `is_current`.

    Parameters
    ----------
    model : Whisper
        Or anything else with its ``dims`` and ``decoder``.
    dtype : torch.dtype
        Of the features and, but for int8, of the weights.
    compute_type : {"bfloat16", "int8"}, optional
        On a CPU, ``bfloat16`` computes cross-attention's keys and values in bfloat16 and keeps them in half precision;
        ``int8`` does so where the processor has bfloat16, and keeps the weights in int8.

    Attributes
    ----------
    packed : DecoderWeights or None
        The weights as `cpu_kernels` reads them; None where PyTorch computes all.
    uses_graphs : bool
        Whether steps have one shape and are recorded, see `cuda_graphs`; for GPUs.
    """

    def __init__(self, model: Whisper, dtype: torch.dtype, compute_type: str | None = None) -> None:
        self.dims, self.dtype, self.compute_type = model.dims, dtype, compute_type
        decoder = model.decoder
        self.device = decoder.positional_embedding.device
        self.n_head = model.dims.n_text_head
        self.last_norm = Affine.of(decoder.ln)
        self.embedding = decoder.token_embedding.weight.detach()
        self.positions = decoder.positional_embedding.detach()
        self.weights_version = WeightsVersion(decoder)
        fits_tiles = self.dims.n_text_state % 64 == 0 and self.dims.n_text_state // self.n_head % 4 == 0
        compiled = self.device.type == "cpu" and dtype == torch.float32 and fits_tiles
        blocks = cast(list[ResidualAttentionBlock], decoder.blocks)
        self.layers = [LayerWeights.of(block, fuse=not compiled) for block in blocks]
        self.projection = self.embedding
        self.packed: cpu_kernels.DecoderWeights | None = None
        if compiled:  # the kernels have weights of their own; PyTorch, which serves long prompts, converts these
            int8 = compute_type == "int8"
            self.packed = pack_for_kernels(self.layers, self.last_norm, self.embedding, int8=int8)
        else:
            self.layers = [layer.to(dtype) for layer in self.layers]
            self.projection = self.embedding.to(dtype)
        self.uses_graphs = self.device.type == "cuda"
        self.cached_steps: deque[StaticStep] = deque(maxlen=MAX_CACHED)
        self.cross_kv_compute_dtype = self.cross_kv_dtype = dtype
        if compute_type and compiled:
            self.cross_kv_dtype = torch.float16 if simd.HAS_FP16_LOADS else torch.float32
            self.cross_kv_compute_dtype = torch.bfloat16 if compute_type == "bfloat16" or has_bfloat16() else dtype
        compute_dtype = self.cross_kv_compute_dtype
        self.cross_kv_weights = [(w.cross_key.to(compute_dtype), w.cross_value.to(compute_dtype)) for w in self.layers]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave it out of copies of a model, and of saved ones: they make their own."""
        return type(None), ()

    def is_current(self, model: Whisper, dtype: torch.dtype, compute_type: str | None = None) -> bool:
        """Return whether it was made of the weights that the model has now, in this precision."""
        same_precision = (dtype, compute_type) == (self.dtype, self.compute_type)
        return same_precision and self.weights_version.matches(model.decoder)

    @torch.no_grad()
    def precompute_cross_kv(self, features: Tensor) -> EncodedAudio:
        """Compute cross-attention's keys and values of encoder output, shape ``(recordings, frames, width)``."""
        count, frames, width = features.shape
        tiles = -(-frames // TILE_WIDTH) if self.packed else 1
        padded = tiles * TILE_WIDTH if self.packed else frames
        shape = (len(self.layers), count, self.n_head, width // self.n_head, padded)
        keys, values = (torch.empty(shape, dtype=self.cross_kv_dtype, device=self.device) for _ in range(2))
        values[..., frames:] = 0.0
        if self.packed:
            keys = keys.view(*shape[:3], tiles, shape[3], TILE_WIDTH)
        features_cast = features.to(self.cross_kv_compute_dtype)
        # on a CPU one recording after the other, so that products stay in its caches
        parts = [slice(i, i + 1) for i in range(count)] if self.device.type == "cpu" else [slice(None)]
        for part in parts:
            for (to_key, to_value), key, value in zip(self.cross_kv_weights, keys[:, part], values[:, part]):
                new_key = onednn.linear_transposed(to_key.weight, features_cast[part])
                new_value = onednn.linear_transposed(to_value.weight, features_cast[part])
                new_value.add_(cast(Tensor, to_value.bias)[:, None])
                value[..., :frames] = new_value.unflatten(1, (self.n_head, -1))
                if self.packed:
                    new_key = F.pad(new_key, (0, padded - frames)).unflatten(2, (tiles, -1))
                    key.copy_(new_key.unflatten(1, (self.n_head, -1)).transpose(2, 3))
                else:
                    key.copy_(new_key.unflatten(1, (self.n_head, -1)))
        return EncodedAudio(features, keys, values)

    def forward(
        self, x: Tensor, audio: EncodedAudio, attend: SelfAttention, cross_scores: list[Tensor] | None = None
    ) -> Tensor:
        """Put embedded tokens ``(rows, n, width)`` through all layers by PyTorch → output of the last layer norm.

        ``attend`` is self-attention with its past; ``cross_scores`` is given the cross-attention scores of every layer.
        """
        x = x.to(self.dtype)
        for i, weights in enumerate(self.layers):
            layer = weights.to(self.dtype)
            normed = layer.attn_ln.layer_norm(x)
            qkv = torch.cat([part.linear(normed) for part in layer.qkv], 2).unflatten(2, (3, self.n_head, -1))
            query, key, value = (z.transpose(1, 2) for z in qkv.unbind(2))
            mixed = attend(i, query, key, value)
            x = x + layer.attn_out.linear(mixed.transpose(1, 2).flatten(2))
            query = layer.cross_query.linear(layer.cross_attn_ln.layer_norm(x))
            x = x + layer.cross_out.linear(self._cross_attention(query, audio, i, cross_scores))
            x = x + layer.mlp_down.linear(F.gelu(layer.mlp_up.linear(layer.mlp_ln.layer_norm(x))))
        return self.last_norm.layer_norm(x)

    def _cross_attention(
        self, query: Tensor, audio: EncodedAudio, layer: int, cross_scores: list[Tensor] | None
    ) -> Tensor:
        """Let the queries ``(rows, n, width)`` of a layer attend to their recordings → the same shape."""
        rows, n, _ = query.shape
        recordings, frames, _ = audio.features.shape
        # all queries of a recording meet its keys in one product
        query = query.reshape(recordings, rows // recordings * n, self.n_head, -1).transpose(1, 2)
        keys, values = (cached[layer].to(query.dtype) for cached in (audio.keys, audio.values))
        if keys.ndim == 5:
            keys, values = keys.transpose(2, 3).flatten(3)[..., :frames], values[..., :frames]
        scores = ((query * query.shape[-1] ** -0.5) @ keys).float()
        if cross_scores is not None:
            cross_scores.append(scores)
        weights = scores.softmax(-1).to(query.dtype)
        mixed = weights @ values.transpose(2, 3)
        return mixed.transpose(1, 2).reshape(rows, n, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute float32 logits ``(rows, vocabulary)`` of outputs ``(rows, width)`` of the last layer norm."""
        if self.packed is None or len(hidden) > cpu_kernels.MAX_KERNEL_TOKENS or not kernels_can_run():
            return onednn.linear(hidden, self.projection.to(hidden.dtype)).float()
        out = np.empty((len(hidden), len(self.embedding)), np.float32)
        cpu_kernels.use_threads()
        with cpu_kernels.KERNEL_LOCK:
            cpu_kernels.matmul(*self.packed.embedding, hidden.numpy(), out, 0.0)
        return torch.from_numpy(out)

    def empty_cache(self, rows: int) -> tuple[Tensor, Tensor]:
        """Make room for keys and values ``(layers, rows, heads, positions, size)`` of sequences of any length."""
        dims = self.dims
        shape = (dims.n_text_layer, rows, dims.n_text_head, dims.n_text_ctx, dims.n_text_state // dims.n_text_head)
        keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return keys, values

    def weight_bytes(self) -> int:
        """Return the bytes of weights that a step reads."""
        if self.packed is None:
            return self.projection.nbytes + sum(layer.nbytes() for layer in self.layers)
        parts = (part if isinstance(part, tuple) else (part,) for part in self.packed)
        return sum(array.nbytes for part in parts for array in part)

"""A Whisper's text decoder for inference: nothing is computed twice, and no logits that nobody reads.

The numbers are those of ``model.decoder`` up to the order in which float32 sums are taken. On a CPU a few tokens at a
time go through `cpu_kernels`; whatever is longer, and any GPU, through PyTorch, and so does a window that is encoded
before the kernels are compiled: with the same weights, and the same rounding. The text so far is in `DecoderState`.
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

from . import compilation, cpu_kernels, onednn, simd
from .cuda_graphs import MAX_CACHED, StaticStep
from .file_pages import FileRows
from .half_parameters import make_float32, stored_weight
from .kv_cache import EncodedAudio
from .simd import TILE_WIDTH, has_bfloat16
from .weights import Affine, Int8Affine, LayerWeights, WeightsVersion, as_numpy, pack_for_kernels

SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Layer, and its queries, keys and values ``(rows, heads, n, size)`` → what attention makes of them and of the past."""


MAX_CONVERTED_BYTES = 1 << 30
"""Of a reduced decoder's weights in float32 that are kept until kernels are compiled; more are converted each time."""


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
        self.positions = decoder.positional_embedding.detach()
        fits_tiles = self.dims.n_text_state % 64 == 0 and self.dims.n_text_state // self.n_head % 4 == 0
        compiled = self.device.type == "cpu" and dtype == torch.float32 and fits_tiles
        if not compiled:
            make_float32(decoder)
        self.weights_version = WeightsVersion(decoder)
        self.embedding = stored_weight(decoder.token_embedding).detach()
        self.token_rows: Tensor | FileRows = self.embedding  # of which those of tokens are taken
        blocks = cast(list[ResidualAttentionBlock], decoder.blocks)
        self.layers = [LayerWeights.of(block, fuse=not compiled) for block in blocks]
        self.projection: Affine | Int8Affine = Affine(self.embedding, None)
        self.packed: cpu_kernels.DecoderWeights | None = None
        compute_dtype = self.cross_kv_compute_dtype = self.cross_kv_dtype = dtype
        if compute_type and compiled:
            self.cross_kv_dtype = torch.float16 if simd.HAS_FP16_LOADS else torch.float32
            compute_dtype = torch.bfloat16 if compute_type == "bfloat16" or has_bfloat16() else dtype
            self.cross_kv_compute_dtype = compute_dtype
        self.cross_kv_weights = [(w.cross_key, w.cross_value) for w in self.layers]
        if compute_dtype != torch.float32:  # from half precision to that, they are converted when they are used
            self.cross_kv_weights = [(k.to(compute_dtype), v.to(compute_dtype)) for k, v in self.cross_kv_weights]
        if compiled:  # the kernels have weights of their own; PyTorch converts these
            int8 = compute_type == "int8"
            pages = self.weights_version.pages
            if int8 and self.embedding.data_ptr() in pages.addresses:
                self.token_rows = FileRows.of(self.embedding) or self.embedding
            self.packed = packed = pack_for_kernels(self.layers, self.last_norm, self.embedding, pages, int8=int8)
            if int8:
                self.layers = [layer.rounded_as(packed, i) for i, layer in enumerate(self.layers)]
                weight, scale, _ = map(torch.from_numpy, packed.embedding)
                self.projection = Int8Affine(weight, scale, None)
        else:
            self.layers = [layer.to(dtype) for layer in self.layers]
            self.projection = self.projection.to(dtype)
        self._converted: tuple[list[LayerWeights], Affine | Int8Affine] | None = None
        self._keeps_layers = False
        self.uses_graphs = self.device.type == "cuda"
        self.cached_steps: deque[StaticStep] = deque(maxlen=MAX_CACHED)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave it out of copies of a model, and of saved ones: they make their own."""
        return type(None), ()

    def is_current(self, model: Whisper, dtype: torch.dtype, compute_type: str | None = None) -> bool:
        """Return whether it was made of the weights that the model has now, in this precision."""
        same_precision = (dtype, compute_type) == (self.dtype, self.compute_type)
        return same_precision and self.weights_version.matches(model.decoder)

    def kernels_are_ready(self) -> bool:
        """Return whether kernels can compute steps; if not yet, they are compiled in the background."""
        if self.packed is None:
            return False

        def array(ndim: int, dtype: torch.dtype) -> np.ndarray:
            return as_numpy(torch.empty((1,) * ndim, dtype=dtype))

        rows, ids, cache = array(2, torch.float32), array(1, torch.int32), array(5, torch.float32)
        cross_kv = array(6, self.cross_kv_dtype), array(5, self.cross_kv_dtype)
        step = self.packed, rows, ids, ids, cache, cache, array(2, torch.int32), *cross_kv, ids, 1, 1
        product = *self.packed.embedding, rows, rows, 0.0
        calls = (cpu_kernels.decoder_forward, step), (cpu_kernels.matmul, product)
        ready = [compilation.is_ready(kernel, *arguments) for kernel, arguments in calls]  # ask for both
        if all(ready) and not self._keeps_layers:
            self._converted = None
        return all(ready)

    @torch.no_grad()
    def precompute_cross_kv(self, features: Tensor) -> EncodedAudio:
        """Compute cross-attention's keys and values of encoder output, shape ``(recordings, frames, width)``.

        They are laid out for kernels if these are ready now, else for PyTorch.
        """
        count, frames, width = features.shape
        for_kernels = self.kernels_are_ready()
        tiles = -(-frames // TILE_WIDTH) if for_kernels else 1
        padded = tiles * TILE_WIDTH if for_kernels else frames
        shape = (len(self.layers), count, self.n_head, width // self.n_head, padded)
        keys, values = (torch.empty(shape, dtype=self.cross_kv_dtype, device=self.device) for _ in range(2))
        values[..., frames:] = 0.0
        if for_kernels:
            keys = keys.view(*shape[:3], tiles, shape[3], TILE_WIDTH)
        features_cast = features.to(self.cross_kv_compute_dtype)
        # on a CPU one recording after the other, so that products stay in its caches
        parts = [slice(i, i + 1) for i in range(count)] if self.device.type == "cpu" else [slice(None)]
        for part in parts:
            for (to_key, to_value), key, value in zip(self.cross_kv_weights, keys[:, part], values[:, part]):
                to_key, to_value = to_key.to(features_cast.dtype), to_value.to(features_cast.dtype)
                new_key = onednn.linear_transposed(to_key.weight, features_cast[part])
                new_value = onednn.linear_transposed(to_value.weight, features_cast[part])
                new_value.add_(cast(Tensor, to_value.bias)[:, None])
                value[..., :frames] = new_value.unflatten(1, (self.n_head, -1))
                if for_kernels:
                    new_key = F.pad(new_key, (0, padded - frames)).unflatten(2, (tiles, -1))
                    key.copy_(new_key.unflatten(1, (self.n_head, -1)).transpose(2, 3))
                else:
                    key.copy_(new_key.unflatten(1, (self.n_head, -1)))
        if not for_kernels:
            self._keep_converted()
            keys, values = keys.to(self.dtype), values.to(self.dtype)
        return EncodedAudio(features, keys, values)

    def _keep_converted(self) -> None:
        """Keep weights as PyTorch multiplies them, until kernels take over, instead of converting them every time."""
        if self.packed is not None and self._converted is None and self._may_convert(self.embedding.numel()):
            self._converted = [layer.to(self.dtype) for layer in self.layers], self.projection.to(self.dtype)

    def keep_layers_converted(self) -> None:
        """Keep layers as PyTorch multiplies them beside kernels, too, for who aligns words all the time."""
        self._keeps_layers = self._may_convert()
        if self._keeps_layers and self.packed is not None and self._converted is None:
            self._converted = [layer.to(self.dtype) for layer in self.layers], self.projection

    def _may_convert(self, more: int = 0) -> bool:
        """Return whether float32 weights of all layers, and some more, may be kept, as modules keep them."""
        size = 4 * (14 * len(self.layers) * self.dims.n_text_state**2 + more)
        return self.compute_type is None or size <= MAX_CONVERTED_BYTES

    def forward(
        self, x: Tensor, audio: EncodedAudio, attend: SelfAttention, cross_scores: list[Tensor] | None = None
    ) -> Tensor:
        """Put embedded tokens ``(rows, n, width)`` through all layers by PyTorch → output of the last layer norm.

        ``attend`` is self-attention with its past; ``cross_scores`` is given the cross-attention scores of every layer.
        """
        x = x.to(self.dtype)
        layers, _ = self._converted or (self.layers, self.projection)
        for i, weights in enumerate(layers):
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
        if audio.is_for_kernels:
            keys, values = keys.transpose(2, 3).flatten(3)[..., :frames], values[..., :frames]
        scores = ((query * query.shape[-1] ** -0.5) @ keys).float()
        if cross_scores is not None:
            cross_scores.append(scores)
        weights = scores.softmax(-1).to(query.dtype)
        mixed = weights @ values.transpose(2, 3)
        return mixed.transpose(1, 2).reshape(rows, n, -1)

    def logits(self, hidden: Tensor, audio: EncodedAudio) -> Tensor:
        """Compute float32 logits ``(rows, vocabulary)`` of outputs ``(rows, width)`` of the last layer norm.

        ``audio`` tells whether by kernels.
        """
        if self.packed is None or not audio.can_use_kernels(len(hidden)):
            _, projection = self._converted or (self.layers, self.projection)
            return projection.to(self.dtype).linear(hidden).float()
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
            return self.projection.weight.nbytes + sum(layer.nbytes() for layer in self.layers)
        parts = (part if isinstance(part, tuple) else (part,) for part in self.packed)
        return sum(array.nbytes for part in parts for array in part)

"""A Whisper's audio encoder in bfloat16 on a CPU, compiled by Numba.

Products take bfloat16; sums, norms, softmax and the residual stream are float32, so that less is lost than where every
tensor is bfloat16. It is for processors that multiply pairs of bfloat16 in one instruction and have no instructions for
whole matrices: those are served best by PyTorch. Until it is compiled, PyTorch multiplies the same bfloat16 numbers in
float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange, types
from torch import Tensor, nn
from whisper.model import AudioEncoder, ResidualAttentionBlock

from . import compilation, onednn
from .cpu_kernels import KERNEL_LOCK, gelu, mean_and_inverse_std, use_threads
from .encoder import OnBlock, add_positions
from .forks import kernels_can_run
from .simd import (
    FASTMATH,
    TARGET,
    TILE_WIDTH,
    Array,
    bf16_dot_6,
    bf16_softmax,
    bits_of_float,
    compiled,
    implements,
    inlined,
)
from .weights import WeightsVersion, is_unmodified

SUPPORTED = "avx512bf16" in TARGET and "amx-bf16" not in TARGET
TILE_ROWS = 6
"""Rows that are multiplied at once."""
CHUNK_ROWS = 96
"""Rows that meet a tile of weights while it is in cache."""


class PackedLinear(NamedTuple):
    """A linear layer of every block.

    weight : int32 array, shape (layers, out / TILE_WIDTH, in / 2, TILE_WIDTH)
        Pairs of neighbours of one row, in bfloat16.
    bias : float32 array, shape (layers, out)
    """

    weight: Array
    bias: Array


class EncoderWeights(NamedTuple):
    """An encoder's blocks, one array over all of them."""

    qkv: PackedLinear
    attn_out: PackedLinear
    mlp_up: PackedLinear
    mlp_down: PackedLinear
    norms: Array  # (layers, 4, width): weight and bias of attn_ln and mlp_ln


@inlined
def _bfloat16(x: np.float32) -> np.uint16:
    """Return the nearest bfloat16, as the uint16 of its bits."""
    bits = bits_of_float(x)
    return np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@compiled(parallel=True, fastmath=FASTMATH)
def _layer_norm(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Normalise every row of ``x`` (rows, width), to bfloat16."""
    rows, width = x.shape
    for r in prange(rows):
        mean, inverse = mean_and_inverse_std(x[r])
        for j in range(width):
            out[r, j] = _bfloat16((x[r, j] - mean) * inverse * weight[j] + bias[j])


def _store_tile(tile: Array, bias: Array, y: Array, r: int, i: int, activate: bool) -> None:
    """Put products in their places, with a bias and perhaps a GELU: y in float32 is added to."""
    raise NotImplementedError("compiled only")


@implements(_store_tile, inline="always")
def _(tile: Array, bias: Array, y: Array, r: int, i: int, activate: bool) -> Any:
    def add(tile: Array, bias: Array, y: Array, r: int, i: int, activate: bool) -> None:
        for k in range(min(TILE_ROWS, len(y) - r)):
            for j in range(TILE_WIDTH):
                y[r + k, i + j] += tile[k, j] + bias[i + j]

    def write(tile: Array, bias: Array, y: Array, r: int, i: int, activate: bool) -> None:
        for k in range(min(TILE_ROWS, len(y) - r)):
            for j in range(TILE_WIDTH):
                x = tile[k, j] + bias[i + j]
                y[r + k, i + j] = _bfloat16(gelu(x) if activate else x)

    return add if y.dtype == types.float32 else write


@compiled(parallel=True, fastmath=FASTMATH)
def _matmul(w: Array, bias: Array, x: Array, y: Array, activate: bool) -> None:
    """Multiply ``x`` (rows, in) in bfloat16 by packed ``w`` (out, in), see `_store_tile`.

    x has rows to spare, up to a multiple of `TILE_ROWS`.
    """
    rows, pairs = len(y), x.view(np.int32)
    for chunk in prange((rows + CHUNK_ROWS - 1) // CHUNK_ROWS):
        tile = np.empty((TILE_ROWS, TILE_WIDTH), np.float32)
        for i in range(len(w)):
            for r in range(chunk * CHUNK_ROWS, min(chunk * CHUNK_ROWS + CHUNK_ROWS, rows), TILE_ROWS):
                bf16_dot_6(pairs, r, w[i], tile, 0)
                _store_tile(tile, bias, y, r, TILE_WIDTH * i, activate)


@compiled(parallel=True, fastmath=FASTMATH)
def _attention(qkv: Array, heads: int, out: Array) -> None:
    """Let every row of ``qkv`` (rows, 3·width) attend to all, in bfloat16; out is (rows, width) or longer."""
    rows, width = len(qkv), qkv.shape[1] // 3
    size = width // heads
    blocks = (rows + TILE_WIDTH - 1) // TILE_WIDTH
    keys = np.zeros((heads, blocks, size // 2, TILE_WIDTH), np.int32)
    values = np.zeros((heads, blocks * TILE_WIDTH // 2, TILE_WIDTH), np.int32)
    pairs = qkv.view(np.int32)
    for head in prange(heads):
        low = width + head * size
        for f in range(rows):
            for p in range(size // 2):
                keys[head, f // TILE_WIDTH, p, f % TILE_WIDTH] = pairs[f, low // 2 + p]
        low += width
        for p in range((rows + 1) // 2):
            for j in range(size):
                pair = np.int32(qkv[2 * p + 1, low + j]) << np.int32(16) if 2 * p + 1 < rows else np.int32(0)
                values[head, p, j] = np.int32(qkv[2 * p, low + j]) | pair
    scale = np.float32(1.0 / math.sqrt(size))
    chunks = (rows + CHUNK_ROWS - 1) // CHUNK_ROWS
    for task in prange(heads * chunks):
        head, chunk = task // chunks, task % chunks
        query = np.zeros((TILE_ROWS, size), np.uint16)
        scores = np.empty((TILE_ROWS, blocks * TILE_WIDTH), np.float32)
        weights = np.empty((TILE_ROWS, blocks * TILE_WIDTH), np.uint16)
        sums = np.empty(TILE_ROWS, np.float32)
        mixed = np.empty((TILE_ROWS, TILE_WIDTH), np.float32)
        for r in range(chunk * CHUNK_ROWS, min(chunk * CHUNK_ROWS + CHUNK_ROWS, rows), TILE_ROWS):
            count = min(TILE_ROWS, rows - r)
            for k in range(count):
                for j in range(size):
                    query[k, j] = qkv[r + k, head * size + j]
            for i in range(blocks):
                bf16_dot_6(query.view(np.int32), 0, keys[head, i], scores, TILE_WIDTH * i)
            for k in range(TILE_ROWS):
                scores[k, rows:] = np.float32(-np.inf)
                sums[k] = bf16_softmax(scores, k, scale, weights)
            bf16_dot_6(weights.view(np.int32), 0, values[head], mixed, 0)
            for k in range(count):
                share = np.float32(1.0) / sums[k]
                for j in range(size):
                    out[r + k, head * size + j] = _bfloat16(mixed[k, j] * share)


@compiled(nogil=True)
def _block(w: EncoderWeights, i: int, heads: int, x: Array, normed: Array, qkv: Array, wide: Array) -> None:
    """Compute block i on ``x`` (rows, width), in place; the last three are buffers."""
    _layer_norm(x, w.norms[i, 0], w.norms[i, 1], normed)
    _matmul(w.qkv.weight[i], w.qkv.bias[i], normed, qkv, False)
    _attention(qkv, heads, normed)
    _matmul(w.attn_out.weight[i], w.attn_out.bias[i], normed, x, False)
    _layer_norm(x, w.norms[i, 2], w.norms[i, 3], normed)
    _matmul(w.mlp_up.weight[i], w.mlp_up.bias[i], normed, wide, True)
    _matmul(w.mlp_down.weight[i], w.mlp_down.bias[i], wide, x, False)


class EncoderBF16:
    """The encoder of one model, its weights packed for the kernels above; see `fits`."""

    def __init__(self, encoder: AudioEncoder) -> None:
        self.encoder, self.weights_version = encoder, WeightsVersion(encoder)
        blocks = cast(list[ResidualAttentionBlock], encoder.blocks)
        self.n_head = blocks[0].attn.n_head
        norms = [torch.stack([p for n in (b.attn_ln, b.mlp_ln) for p in (n.weight, n.bias)]) for b in blocks]

        def pack(*parts: Sequence[nn.Linear]) -> PackedLinear:
            packed = _pack(list(zip(*parts)))
            self.weights_version.pages.release()  # of what has been read
            return packed

        self.weights = EncoderWeights(
            qkv=pack(*([getattr(b.attn, name) for b in blocks] for name in ("query", "key", "value"))),
            attn_out=pack([b.attn.out for b in blocks]),
            mlp_up=pack([b.mlp[0] for b in blocks]),
            mlp_down=pack([b.mlp[2] for b in blocks]),
            norms=torch.stack(norms).detach().float().numpy(),
        )

    @staticmethod
    def fits(encoder: AudioEncoder) -> bool:
        """Return whether processor and encoder are of the kind that this is for."""
        weight = encoder.ln_post.weight
        size = weight.shape[0] // encoder.blocks[0].attn.n_head
        shapes = weight.shape[0] % TILE_WIDTH == 0 and size % 2 == 0 and size <= TILE_WIDTH
        return SUPPORTED and kernels_can_run() and weight.device.type == "cpu" and shapes and is_unmodified(encoder)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave it out of copies of a model, and of saved ones: they make their own."""
        return type(None), ()

    def is_current(self, encoder: AudioEncoder) -> bool:
        """Return whether it was made of the weights that the encoder has now."""
        return self.weights_version.matches(encoder)

    @torch.no_grad()
    def __call__(self, mel: Tensor, on_block: OnBlock | None = None, partial: bool = False) -> Tensor:
        """Encode log-mel spectrograms ``(batch, n_mels, 3000)`` → float32 features ``(batch, 1500, dim)``.

        ``on_block`` is given the output of every block in float32, which the next one writes over; ``partial`` is as of
        `whisper_at.engine.encoder.encode`.
        """
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel.bfloat16())))).transpose(1, 2)
        x = add_positions(encoder, x, partial).contiguous()
        _, rows, width = x.shape
        padded = -(-rows // TILE_ROWS) * TILE_ROWS
        normed, qkv, wide = (np.zeros((padded, n * width), np.uint16) for n in (1, 3, 4))
        ready = compilation.is_ready(_block, self.weights, 0, self.n_head, x[0].numpy(), normed, qkv[:rows], wide)
        use_threads()
        for i, block in enumerate(encoder.blocks):
            for recording in x:
                if ready:
                    with KERNEL_LOCK:
                        _block(self.weights, i, self.n_head, recording.numpy(), normed, qkv[:rows], wide)
                else:
                    block_by_pytorch(block, recording)
            if on_block is not None:
                on_block(x)
        return encoder.ln_post(x)


def block_by_pytorch(block: ResidualAttentionBlock, x: Tensor) -> None:
    """Compute a block on ``x`` (rows, width), in place, with the rounding of the kernels."""

    def rounded(tensor: Tensor) -> Tensor:
        return tensor.bfloat16().float()

    def linear(layer: nn.Linear, tensor: Tensor) -> Tensor:
        return onednn.linear(tensor, rounded(layer.weight), None if layer.bias is None else layer.bias.float())

    attn = block.attn
    normed = rounded(block.attn_ln(x))
    query, key, value = (
        rounded(linear(part, normed)).unflatten(1, (attn.n_head, -1)).transpose(0, 1)
        for part in (attn.query, attn.key, attn.value)
    )
    mixed = torch.empty_like(query)
    for head in range(attn.n_head):
        scores = query[head] @ key[head].t()
        scores = ((scores - scores.amax(1, keepdim=True)) * query.shape[-1] ** -0.5).exp_()
        mixed[head] = rounded(scores) @ value[head] / scores.sum(1, keepdim=True)
    x += linear(attn.out, rounded(mixed).transpose(0, 1).flatten(1))
    wide = rounded(F.gelu(linear(block.mlp[0], rounded(block.mlp_ln(x)))))
    x += linear(block.mlp[2], wide)


def _pack(parts: Sequence[Sequence[nn.Linear]]) -> PackedLinear:
    """Pack a linear layer of every block, given as parts that lie one below the other."""
    rows, width = sum(len(part.weight) for part in parts[0]), parts[0][0].weight.shape[1]
    pairs = torch.empty(len(parts), rows // TILE_WIDTH, width // 2, TILE_WIDTH, dtype=torch.int32)
    biases = torch.zeros(len(parts), rows)
    for i, block in enumerate(parts):
        row = 0
        for part in block:
            end = row + len(part.weight)
            tiles = part.weight.detach().bfloat16().view(torch.int32).unflatten(0, (-1, TILE_WIDTH))
            pairs[i, row // TILE_WIDTH : end // TILE_WIDTH] = tiles.transpose(1, 2)
            if part.bias is not None:
                biases[i, row:end] = part.bias.detach()
            row = end
    return PackedLinear(pairs.numpy(), biases.numpy())

"""A Whisper's audio encoder in bfloat16 on a CPU, compiled by Numba.

What is multiplied is bfloat16; sums, norms, softmax and what runs from block to block are float32, so that less is lost
than where every tensor is bfloat16. It is for processors that multiply pairs of bfloat16 in one instruction and have no
instructions for whole matrices: those are served best by PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit, prange, types
from numba.extending import overload
from torch import Tensor, nn
from whisper.model import AudioEncoder, ResidualAttentionBlock

from .cpu_kernels import FAST, LOCK, gelu, moments, use_threads
from .decoder import Fingerprint, is_stock
from .simd import COLUMNS, HOST, compiled, pair_products6, softmax, to_bits

SUPPORTED = bool(HOST.get("avx512bf16")) and not HOST.get("amx-bf16")
ROWS = 6
"""Rows that are multiplied at once."""
CHUNK = 96
"""Rows that meet a block of weights while it is near."""


class Weights(NamedTuple):
    """An encoder's blocks, one array over all of them; names as in `kernels.Weights`.

    Matrices are `_packed`; biases and norms float32 ``(layers, width)``.
    """

    attn: Any
    attn_bias: Any
    out: Any
    out_bias: Any
    up: Any
    up_bias: Any
    down: Any
    down_bias: Any
    norms: Any  # (layers, 4, width): weight and bias of attn_ln and mlp_ln


@njit(inline="always")
def _bfloat16(x):
    """The nearest bfloat16, as the uint16 of its bits."""
    bits = to_bits(x)
    return np.uint16((bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16))


@compiled(parallel=True, fastmath=FAST)
def _norm(x, weight, bias, out):
    """Layer norm of every row of ``x`` (rows, width), to bfloat16."""
    rows, width = x.shape
    for r in prange(rows):
        mean, inverse = moments(x[r])
        for j in range(width):
            out[r, j] = _bfloat16((x[r, j] - mean) * inverse * weight[j] + bias[j])


def _finish(tile, bias, y, r, i, activate):
    """Puts products where they belong, with a bias and perhaps a GELU: float32 adds to what is there."""


@overload(_finish, inline="always")
def _(tile, bias, y, r, i, activate):
    def add(tile, bias, y, r, i, activate):
        for k in range(min(ROWS, len(y) - r)):
            for j in range(COLUMNS):
                y[r + k, i + j] += tile[k, j] + bias[i + j]

    def write(tile, bias, y, r, i, activate):
        for k in range(min(ROWS, len(y) - r)):
            for j in range(COLUMNS):
                x = tile[k, j] + bias[i + j]
                y[r + k, i + j] = _bfloat16(gelu(x) if activate else x)

    return add if y.dtype == types.float32 else write


@compiled(parallel=True, fastmath=FAST)
def _multiply(w, bias, x, y, activate):
    """``x`` (rows, in) in bfloat16 by packed ``w`` (out, in): see `_finish`. x has rows to spare, up to a multiple of
    `ROWS`.
    """
    rows, pairs = len(y), x.view(np.int32)
    for chunk in prange((rows + CHUNK - 1) // CHUNK):
        tile = np.empty((ROWS, COLUMNS), np.float32)
        for i in range(len(w)):
            for r in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, rows), ROWS):
                pair_products6(pairs, r, w[i], tile, 0)
                _finish(tile, bias, y, r, COLUMNS * i, activate)


@compiled(parallel=True, fastmath=FAST)
def _attend(qkv, heads, out):
    """Attention of every row of ``qkv`` (rows, 3·width) to all, both bfloat16; out is (rows, width) or longer."""
    rows, width = len(qkv), qkv.shape[1] // 3
    size = width // heads
    blocks = (rows + COLUMNS - 1) // COLUMNS
    keys = np.zeros((heads, blocks, size // 2, COLUMNS), np.int32)
    values = np.zeros((heads, blocks * COLUMNS // 2, COLUMNS), np.int32)
    pairs = qkv.view(np.int32)
    for head in prange(heads):
        low = width + head * size
        for f in range(rows):
            for p in range(size // 2):
                keys[head, f // COLUMNS, p, f % COLUMNS] = pairs[f, low // 2 + p]
        low += width
        for p in range((rows + 1) // 2):
            for j in range(size):
                pair = np.int32(qkv[2 * p + 1, low + j]) << np.int32(16) if 2 * p + 1 < rows else np.int32(0)
                values[head, p, j] = np.int32(qkv[2 * p, low + j]) | pair
    scale = np.float32(1.0 / math.sqrt(size))
    chunks = (rows + CHUNK - 1) // CHUNK
    for task in prange(heads * chunks):
        head, chunk = task // chunks, task % chunks
        query = np.zeros((ROWS, size), np.uint16)
        scores = np.empty((ROWS, blocks * COLUMNS), np.float32)
        weights = np.empty((ROWS, blocks * COLUMNS), np.uint16)
        sums = np.empty(ROWS, np.float32)
        mixed = np.empty((ROWS, COLUMNS), np.float32)
        for r in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, rows), ROWS):
            count = min(ROWS, rows - r)
            for k in range(count):
                for j in range(size):
                    query[k, j] = qkv[r + k, head * size + j]
            for i in range(blocks):
                pair_products6(query.view(np.int32), 0, keys[head, i], scores, COLUMNS * i)
            for k in range(ROWS):
                scores[k, rows:] = np.float32(-np.inf)
                sums[k] = softmax(scores, k, scale, weights)
            pair_products6(weights.view(np.int32), 0, values[head], mixed, 0)
            for k in range(count):
                share = np.float32(1.0) / sums[k]
                for j in range(size):
                    out[r + k, head * size + j] = _bfloat16(mixed[k, j] * share)


@compiled(nogil=True)
def _block(w, i, heads, x, normed, qkv, wide):
    """Block i on ``x`` (rows, width), in place; the others are room for what it computes on the way."""
    _norm(x, w.norms[i, 0], w.norms[i, 1], normed)
    _multiply(w.attn[i], w.attn_bias[i], normed, qkv, False)
    _attend(qkv, heads, normed)
    _multiply(w.out[i], w.out_bias[i], normed, x, False)
    _norm(x, w.norms[i, 2], w.norms[i, 3], normed)
    _multiply(w.up[i], w.up_bias[i], normed, wide, True)
    _multiply(w.down[i], w.down_bias[i], wide, x, False)


class Encoder:
    """The encoder of one model, its weights packed for the loops above; see `fits`."""

    def __init__(self, encoder: AudioEncoder) -> None:
        self.encoder, self.fingerprint = encoder, Fingerprint(encoder)
        blocks = cast(list[ResidualAttentionBlock], encoder.blocks)
        self.heads = blocks[0].attn.n_head
        norms = [torch.stack([p for n in (b.attn_ln, b.mlp_ln) for p in (n.weight, n.bias)]) for b in blocks]
        self.weights = Weights(
            *_packed([[b.attn.query, b.attn.key, b.attn.value] for b in blocks]),
            *_packed([[b.attn.out] for b in blocks]),
            *_packed([[b.mlp[0]] for b in blocks]),
            *_packed([[b.mlp[2]] for b in blocks]),
            torch.stack(norms).detach().float().numpy(),
        )

    @staticmethod
    def fits(encoder: AudioEncoder) -> bool:
        """Whether processor and encoder are of the kind that this is for."""
        weight = encoder.ln_post.weight
        size = weight.shape[0] // encoder.blocks[0].attn.n_head
        shapes = weight.shape[0] % COLUMNS == 0 and size % 2 == 0 and size <= COLUMNS
        return SUPPORTED and weight.device.type == "cpu" and shapes and is_stock(encoder)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Copies of a model, and saved ones, make their own."""
        return type(None), ()

    def is_current(self, encoder: AudioEncoder) -> bool:
        """Whether its weights are still those that this was made of."""
        return self.fingerprint.fits(encoder)

    @torch.no_grad()
    def __call__(self, mel: Tensor, each: Callable[[Tensor], object] | None = None) -> Tensor:
        """Log-mel ``(batch, n_mels, 3000)`` → float32 features ``(batch, 1500, dim)``.

        ``each`` is given the output of every block, float32 ``(batch, 1500, dim)``, which the next one overwrites.
        """
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel.bfloat16())))).transpose(1, 2)
        assert x.shape[1:] == encoder.positional_embedding.shape, "incorrect audio shape"  # as upstream
        x = (x + encoder.positional_embedding).contiguous()
        _, rows, width = x.shape
        padded = -(-rows // ROWS) * ROWS
        normed, qkv, wide = (np.zeros((padded, n * width), np.uint16) for n in (1, 3, 4))
        use_threads()
        for i in range(len(self.weights.norms)):
            for recording in x.numpy():
                with LOCK:
                    _block(self.weights, i, self.heads, recording, normed, qkv[:rows], wide)
            if each is not None:
                each(x)
        return encoder.ln_post(x)


def _packed(parts: Sequence[Sequence[nn.Linear]]) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of every block, given as parts that lie one below the other, and their biases ``(layers, out)``.

    ``(layers, out / COLUMNS, in / 2, COLUMNS)``: an int32 is a pair of neighbours of one row, in bfloat16.
    """
    weights = torch.stack([torch.cat([part.weight.detach().bfloat16() for part in block]) for block in parts])
    biases = [
        torch.cat([part.weight.new_zeros(len(part.weight)) if part.bias is None else part.bias for part in block])
        for block in parts
    ]
    pairs = weights.view(torch.int32).unflatten(1, (-1, COLUMNS)).transpose(2, 3).contiguous()
    return pairs.numpy(), torch.stack(biases).detach().float().numpy()

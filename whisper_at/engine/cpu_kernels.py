"""One decoder step on a CPU, compiled by Numba: as fast as memory can be read.

A step multiplies every weight of the decoder by a handful of numbers, so its time is that of reading the weights. Two
things make it short. General matrix libraries read at less than half of what memory delivers when one operand is a
single row; the loops here do not. And official checkpoints are stored in half precision: kept as such and widened
while they are read, they give the very float32 products at half of the bytes.

Everything is float32 except the weights, which are float32, half precision (as the ``uint16`` of their bits) or int8
with a scale per row. A row of tokens, keys or values is a sequence that is being decoded.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange, types

from .simd import (
    FASTMATH,
    TILE_WIDTH,
    Array,
    compiled,
    dot_1x1,
    dot_2x1,
    dot_5x1,
    dot_5x4,
    dot_8x1,
    dot_8x3,
    exp,
    implements,
    inlined,
    scores_1,
    scores_2,
    scores_5,
)

SQRT_HALF = math.sqrt(0.5)
MAX_KERNEL_TOKENS = 256
"""For more tokens at once a matrix library is faster."""
L1_BYTES = 24 << 10
"""Bytes of a core's first cache that the activations of a product may fill; the weights pass through the rest."""
KERNEL_LOCK = threading.RLock()
"""Held by whoever calls a kernel: not every threading layer of Numba bears two callers, and one fills all cores."""


def use_threads() -> None:
    """Give kernels that are called from this thread as many threads as PyTorch has.

    Numba starts its threads at the first call, and sets OpenMP's number, which is PyTorch's too, to one for each core:
    it is set back, or every later product of PyTorch's would ignore ``OMP_NUM_THREADS`` and `torch.set_num_threads`.
    """
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class LinearWeights(NamedTuple):
    """A linear layer, of one or, along the first axis of all arrays, of every layer of a decoder.

    weight : array, shape (…, out, in)
        In float32, half precision (as ``uint16``) or int8.
    scale, bias : float32 array, shape (…, out)
    """

    weight: Array
    scale: Array
    bias: Array


class DecoderWeights(NamedTuple):
    """A decoder's weights, one array over all layers."""

    qkv: LinearWeights  # query, key and value of self-attention, one below the other
    attn_out: LinearWeights
    cross_query: LinearWeights  # cross-attention's keys and values are computed once per window
    cross_out: LinearWeights
    mlp_up: LinearWeights
    mlp_down: LinearWeights
    norms: Array  # (layers, 6, width): weight and bias of attn_ln, cross_attn_ln, mlp_ln
    last_norm: Array  # (2, width)
    embedding: LinearWeights  # (vocabulary, width)


def _quantize_input(w: Array, x: Array) -> tuple[Array, Array]:
    """Return ``x`` (rows, in) as `simd` multiplies it with ``w``, and the scale of each row's products."""
    raise NotImplementedError("compiled only")


@implements(_quantize_input)
def _(w: Array, x: Array) -> Any:
    def keep(w: Array, x: Array) -> tuple[Array, Array]:
        return x, np.ones(x.shape[0], np.float32)

    def to_int12(w: Array, x: Array) -> tuple[Array, Array]:
        # 8,000 products of 12 bits with int8 fit into 31, and their rounding is small beside that of the weights
        numbers = np.empty(x.shape, np.int16)
        scale = np.empty(x.shape[0], np.float32)
        for r in range(x.shape[0]):
            top = np.float32(1e-30)
            for j in range(x.shape[1]):
                top = max(top, abs(x[r, j]))
            scale[r] = top / np.float32(2047.0)
            inverse = np.float32(2047.0) / top
            for j in range(x.shape[1]):
                numbers[r, j] = np.int16(np.floor(x[r, j] * inverse + np.float32(0.5)))
        return numbers, scale

    return to_int12 if w.dtype == types.int8 else keep


@inlined
def gelu(x: np.float32) -> np.float32:
    """Compute x/2 (1 + erf(x/√2)), erf to 1.5e-7 by Abramowitz and Stegun 7.1.26."""
    z = abs(x) * np.float32(SQRT_HALF)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
    p = np.float32(1.061405429) * t - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    tail = p * t * exp(-z * z)  # 1 − erf(z)
    return x * np.float32(0.5) * (np.float32(2.0) - tail if x > 0 else tail)


@inlined
def mean_and_inverse_std(row: Array) -> tuple[np.float32, np.float32]:
    """Return the mean and 1 / standard deviation of a row, for a layer norm."""
    mean = np.float32(0.0)
    for j in range(len(row)):
        mean += row[j]
    mean /= np.float32(len(row))
    variance = np.float32(0.0)
    for j in range(len(row)):
        variance += (row[j] - mean) * (row[j] - mean)
    return mean, np.float32(1.0) / np.sqrt(variance / np.float32(len(row)) + np.float32(1e-5))


@compiled(parallel=True, fastmath=FASTMATH)
def _gelu_in_place(x: Array) -> None:
    rows, width = x.shape
    for r in prange(rows):
        for j in range(width):
            x[r, j] = gelu(x[r, j])


@compiled(fastmath=FASTMATH)
def _layer_norm(x: Array, weight: Array, bias: Array, out: Array) -> None:
    """Normalise every row of ``x`` (rows, width)."""
    rows, width = x.shape
    for r in range(rows):
        mean, inverse = mean_and_inverse_std(x[r])
        for j in range(width):
            out[r, j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]


@compiled(parallel=True)
def matmul(w: Array, scale: Array, bias: Array, x: Array, y: Array, add: float) -> None:
    """Multiply ``x`` (rows, in) by ``w`` (out, in) → ``y`` (rows, out); ``add`` adds to what is there, as a residual.

    ``add`` is 1.0 or 0.0, because Numba would compile all this once more for each literal True or False.
    """
    rows = x.shape[0]
    numbers, steps = _quantize_input(w, x)
    # memory is read best one row of w after the other; where x is too large for that, each of its loads must do more
    wide = numbers.size * numbers.itemsize > L1_BYTES
    for block in prange((w.shape[0] + 11) // 12):
        first, last = 12 * block, min(12 * block + 12, w.shape[0])
        if not add:
            for r in range(rows):
                for i in range(first, last):
                    y[r, i] = np.float32(0.0)
        r = 0
        if wide and last == first + 12:
            while r + 8 <= rows:
                for i in range(first, last, 3):
                    many = dot_8x3(w, i, numbers, r)
                    for o in range(3):
                        for k in range(8):
                            y[r + k, i + o] += many[8 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 8
            while r + 5 <= rows:
                for i in range(first, last, 4):
                    some = dot_5x4(w, i, numbers, r)
                    for o in range(4):
                        for k in range(5):
                            y[r + k, i + o] += some[5 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 5
        done = r
        for i in range(first, last):
            r = done
            while r + 8 <= rows:
                eight = dot_8x1(w, i, numbers, r)
                for k in range(8):
                    y[r + k, i] += eight[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 8
            while r + 5 <= rows:
                five = dot_5x1(w, i, numbers, r)
                for k in range(5):
                    y[r + k, i] += five[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 5
            while r + 2 <= rows:
                two = dot_2x1(w, i, numbers, r)
                for k in range(2):
                    y[r + k, i] += two[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 2
            if r < rows:
                one = dot_1x1(w, i, numbers, r)
                y[r, i] += one[0] * (scale[i] * steps[r]) + bias[i]


@inlined
def _linear(weights: LinearWeights, layer: int, x: Array, y: Array, add: float) -> None:
    """Apply the linear map of a layer, see `matmul`."""
    matmul(weights.weight[layer], weights.scale[layer], weights.bias[layer], x, y, add)


@compiled(parallel=True, fastmath=FASTMATH)
def _self_attention(
    qkv: Array,
    keys: Array,
    values: Array,
    cache_indices: Array,
    row_ids: Array,
    positions: Array,
    heads: int,
    out: Array,
) -> None:
    """Let every token attend to those before it and to itself.

    qkv (tokens, 3·width); keys, values (rows, heads, positions, size) hold all of them already; cache_indices (rows,
    positions): which row's cache holds a position of this row's past.
    """
    tokens, width = out.shape
    size = width // heads
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(tokens * heads):
        t, head = task // heads, task % heads
        past = cache_indices[row_ids[t], : positions[t] + 1]
        count = len(past)
        query = qkv[t, head * size : (head + 1) * size] * scaling
        scores = np.empty(count, np.float32)
        top = np.float32(-np.inf)
        for p in range(count):
            key = keys[past[p], head, p]
            score = np.float32(0.0)
            for j in range(size):
                score += query[j] * key[j]
            scores[p] = score
            top = max(top, score)
        total = np.float32(0.0)
        for p in range(count):
            scores[p] = exp(scores[p] - top)
            total += scores[p]
        mixed = np.zeros(size, np.float32)
        for p in range(count):
            value = values[past[p], head, p]
            for j in range(size):
                mixed[j] += scores[p] * value[j]
        for j in range(size):
            out[t, head * size + j] = mixed[j] / total


@compiled()
def _write_cache(qkv: Array, keys: Array, values: Array, row_ids: Array, positions: Array) -> None:
    """Put the keys and values of new tokens in their places."""
    heads, size = keys.shape[1], keys.shape[3]
    width = heads * size
    for t in range(len(row_ids)):
        for head in range(heads):
            for j in range(size):
                keys[row_ids[t], head, positions[t], j] = qkv[t, width + head * size + j]
                values[row_ids[t], head, positions[t], j] = qkv[t, 2 * width + head * size + j]


@compiled(parallel=True, fastmath=FASTMATH)
def _cross_attention(
    query: Array, keys: Array, values: Array, recordings: Array, frames: int, heads: int, out: Array
) -> None:
    """Let every token attend to its recording: as many, one after the other, to each of ``recordings``.

    keys (recordings, heads, padded / `TILE_WIDTH`, size, `TILE_WIDTH`), values (recordings, heads, size, padded);
    padded is ``frames`` and some zeros.
    """
    size, padded, group = values.shape[2], values.shape[3], len(out) // len(recordings)
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(len(recordings) * heads):
        recording, head = recordings[task // heads], task % heads
        first, low = task // heads * group, head * size
        mine = query[first : first + group, low : low + size] * scaling
        key, value = keys[recording, head], values[recording, head]
        weights = np.empty((group, padded), np.float32)
        for f in range(0, padded, TILE_WIDTH):
            r = 0
            while r + 5 <= group:
                scores_5(key[f // TILE_WIDTH], mine, r, weights, f)
                r += 5
            while r + 2 <= group:
                scores_2(key[f // TILE_WIDTH], mine, r, weights, f)
                r += 2
            if r < group:
                scores_1(key[f // TILE_WIDTH], mine, r, weights, f)
        for r in range(group):
            row = weights[r]
            row[frames:] = np.float32(-np.inf)
            top = np.float32(-np.inf)
            for f in range(frames):
                top = max(top, row[f])
            total = np.float32(0.0)
            for f in range(padded):
                row[f] = exp(row[f] - top)
                total += row[f]
            for f in range(padded):
                row[f] /= total
        r = 0
        while r + 5 <= group:
            for j in range(0, size, 4):
                some = dot_5x4(value, j, weights, r)
                for o in range(4):
                    for k in range(5):
                        out[first + r + k, low + j + o] = some[5 * o + k]
            r += 5
        while r + 2 <= group:
            for j in range(size):
                two = dot_2x1(value, j, weights, r)
                for k in range(2):
                    out[first + r + k, low + j] = two[k]
            r += 2
        if r < group:
            for j in range(size):
                out[first + r, low + j] = dot_1x1(value, j, weights, r)[0]


@compiled(nogil=True)
def decoder_forward(
    w: DecoderWeights,
    x: Array,
    row_ids: Array,
    positions: Array,
    keys: Array,
    values: Array,
    cache_indices: Array,
    cross_keys: Array,
    cross_values: Array,
    recordings: Array,
    frames: int,
    heads: int,
) -> None:
    """Put a few new tokens through all layers: the next one of every row, or several of one.

    Parameters
    ----------
    w : DecoderWeights
    x : float32 array, shape (tokens, width)
        Embedded tokens; becomes the output of the last layer norm.
    row_ids, positions : int32 array, shape (tokens,)
        The row that each token belongs to, and how many tokens are before it.
    keys, values : float32 array, shape (layers, rows, heads, positions, size)
        Cache of self-attention; those of the new tokens are written.
    cache_indices : int32 array, shape (rows, positions)
        Which row's cache holds a position of a row's past.
    cross_keys, cross_values : array
        Of the encoded audio, for every layer as of `_cross_attention`.
    recordings : int32 array
        Those that the tokens belong to: the same number of tokens, one after the other, to each.
    frames : int
        Encoder positions; the keys and values behind them are padding.
    heads : int
    """
    normed, mixed, query = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    qkv = np.empty((x.shape[0], w.qkv.weight.shape[1]), np.float32)
    wide = np.empty((x.shape[0], w.mlp_up.weight.shape[1]), np.float32)
    for i in range(keys.shape[0]):
        _layer_norm(x, w.norms[i, 0], w.norms[i, 1], normed)
        _linear(w.qkv, i, normed, qkv, 0.0)
        _write_cache(qkv, keys[i], values[i], row_ids, positions)
        _self_attention(qkv, keys[i], values[i], cache_indices, row_ids, positions, heads, mixed)
        _linear(w.attn_out, i, mixed, x, 1.0)
        _layer_norm(x, w.norms[i, 2], w.norms[i, 3], normed)
        _linear(w.cross_query, i, normed, query, 0.0)
        _cross_attention(query, cross_keys[i], cross_values[i], recordings, frames, heads, mixed)
        _linear(w.cross_out, i, mixed, x, 1.0)
        _layer_norm(x, w.norms[i, 4], w.norms[i, 5], normed)
        _linear(w.mlp_up, i, normed, wide, 0.0)
        _gelu_in_place(wide)
        _linear(w.mlp_down, i, wide, x, 1.0)
    _layer_norm(x, w.last_norm[0], w.last_norm[1], x)

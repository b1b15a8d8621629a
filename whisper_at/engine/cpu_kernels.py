"""One decoder step on a CPU, compiled by Numba: as fast as memory can be read.

A step multiplies every weight of the decoder by a handful of numbers, so its time is that of reading the weights. Two
things make it short. General matrix libraries read at less than half of what memory delivers when one operand is a
single row; the loops here do not. And official checkpoints are stored in half precision: kept as such and widened
while they are read, they give the very float32 products at half of the bytes.

Everything is float32 except the weights, which are float32, half precision (as the ``uint16`` of their bits) or int8
with a scale per row. A row is a sequence that is being decoded.
"""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import njit, prange, types
from numba.extending import overload

from .simd import (
    COLUMNS,
    compiled,
    dots1,
    dots2,
    dots5,
    dots5x4,
    dots8,
    dots8x3,
    from_bits,
    scores1,
    scores2,
    scores5,
)

FAST = {"reassoc", "contract", "nsz"}  # sums in any order; infinities stay infinities
SQRT_HALF = math.sqrt(0.5)
MOST_TOKENS = 256
"""For more tokens at once a matrix library is faster."""
NEAR = 24 << 10
"""Bytes of a core's fastest cache that the numbers of a product may fill; the weights pass through the rest."""
LOCK = threading.Lock()
"""To be held by who calls: not every threading layer of Numba bears two callers, and one fills all cores."""


def use_threads() -> None:
    """Let loops that are called from this thread have as many as PyTorch has."""
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]


class Weights(NamedTuple):
    """A decoder's weights, one array over all layers; the names are those of a block of openai-whisper's.

    Matrices are ``(layers, out, in)`` with scales ``(layers, out)``; biases and norms are float32 ``(layers, width)``.
    """

    attn: Any  # query, key and value, one below the other
    attn_scale: Any
    attn_bias: Any
    out: Any
    out_scale: Any
    out_bias: Any
    cross: Any  # query alone: keys and values are computed once per window
    cross_scale: Any
    cross_bias: Any
    cross_out: Any
    cross_out_scale: Any
    cross_out_bias: Any
    up: Any
    up_scale: Any
    up_bias: Any
    down: Any
    down_scale: Any
    down_bias: Any
    norms: Any  # (layers, 6, width): weight and bias of attn_ln, cross_attn_ln, mlp_ln
    last_norm: Any  # (2, width)
    embedding: Any  # (vocabulary, width)
    embedding_scale: Any
    embedding_bias: Any  # zeros


def _operand(w, x):
    """``x`` (rows, in) as `_dots` wants it for ``w``, and what to multiply the products of each row by."""


@overload(_operand)
def _(w, x):
    def as_it_is(w, x):
        return x, np.ones(x.shape[0], np.float32)

    def in_integers(w, x):
        # 12 bits: 8,000 products with int8 fit into 31, and next to the rounding of the weights theirs does not count
        numbers = np.empty(x.shape, np.int16)
        steps = np.empty(x.shape[0], np.float32)
        for r in range(x.shape[0]):
            top = np.float32(1e-30)
            for j in range(x.shape[1]):
                top = max(top, abs(x[r, j]))
            steps[r] = top / np.float32(2047.0)
            inverse = np.float32(2047.0) / top
            for j in range(x.shape[1]):
                numbers[r, j] = np.int16(np.floor(x[r, j] * inverse + np.float32(0.5)))
        return numbers, steps

    return in_integers if w.dtype == types.int8 else as_it_is


@njit(inline="always")
def exp(x):
    """exp for −87 < x ≤ 0, to the last bit or two of float32, in a form that loops are vectorised with."""
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    x = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * x + np.float32(1.3981999507e-3)
    p = p * x + np.float32(8.3334519073e-3)
    p = p * x + np.float32(4.1665795894e-2)
    p = p * x + np.float32(1.6666665459e-1)
    p = p * x + np.float32(5.0000001201e-1)
    p = p * x * x + x + np.float32(1.0)
    return p * from_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(inline="always")
def gelu(x):
    """x/2 (1 + erf(x/√2)), erf to 1.5e-7 by Abramowitz and Stegun 7.1.26."""
    z = abs(x) * np.float32(SQRT_HALF)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
    p = np.float32(1.061405429) * t - np.float32(1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t - np.float32(0.284496736)
    p = p * t + np.float32(0.254829592)
    tail = p * t * exp(-z * z)  # 1 − erf(z)
    return x * np.float32(0.5) * (np.float32(2.0) - tail if x > 0 else tail)


@njit(inline="always")
def moments(row):
    """Mean of a row, and the inverse of its standard deviation, for a layer norm."""
    mean = np.float32(0.0)
    for j in range(len(row)):
        mean += row[j]
    mean /= np.float32(len(row))
    variance = np.float32(0.0)
    for j in range(len(row)):
        variance += (row[j] - mean) * (row[j] - mean)
    return mean, np.float32(1.0) / np.sqrt(variance / np.float32(len(row)) + np.float32(1e-5))


@compiled(parallel=True, fastmath=FAST)
def _activate(x):
    """GELU of every element, in place."""
    rows, width = x.shape
    for r in prange(rows):
        for j in range(width):
            x[r, j] = gelu(x[r, j])


@compiled(fastmath=FAST)
def _norm(x, weight, bias, out):
    """Layer norm of every row of ``x`` (rows, width)."""
    rows, width = x.shape
    for r in range(rows):
        mean, inverse = moments(x[r])
        for j in range(width):
            out[r, j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]


@compiled(parallel=True)
def multiply(w, scale, bias, x, y, add):
    """``x`` (rows, in) by ``w`` (out, in) → ``y`` (rows, out); ``add`` adds to what is there, as a residual does.

    ``add`` is 1.0 or 0.0, because Numba would compile all this once more for each truth value that is spelled out.
    """
    rows = x.shape[0]
    numbers, steps = _operand(w, x)
    # memory is read best one row of w after the other; where x is too large for that, each of its loads must do more
    wide = numbers.size * numbers.itemsize > NEAR
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
                    many = dots8x3(w, i, numbers, r)
                    for o in range(3):
                        for k in range(8):
                            y[r + k, i + o] += many[8 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 8
            while r + 5 <= rows:
                for i in range(first, last, 4):
                    some = dots5x4(w, i, numbers, r)
                    for o in range(4):
                        for k in range(5):
                            y[r + k, i + o] += some[5 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 5
        done = r
        for i in range(first, last):
            r = done
            while r + 8 <= rows:
                eight = dots8(w, i, numbers, r)
                for k in range(8):
                    y[r + k, i] += eight[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 8
            while r + 5 <= rows:
                five = dots5(w, i, numbers, r)
                for k in range(5):
                    y[r + k, i] += five[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 5
            while r + 2 <= rows:
                two = dots2(w, i, numbers, r)
                for k in range(2):
                    y[r + k, i] += two[k] * (scale[i] * steps[r + k]) + bias[i]
                r += 2
            if r < rows:
                one = dots1(w, i, numbers, r)
                y[r, i] += one[0] * (scale[i] * steps[r]) + bias[i]


@compiled(parallel=True, fastmath=FAST)
def _attend_self(qkv, keys, values, ancestors, owners, positions, heads, out):
    """Attention of every token to those before it and to itself.

    qkv (tokens, 3·width); keys, values (rows, heads, positions, size) hold all of them already; ancestors (rows,
    positions): which row's cache holds a position of this row's past.
    """
    tokens, width = out.shape
    size = width // heads
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(tokens * heads):
        t, head = task // heads, task % heads
        past = ancestors[owners[t], : positions[t] + 1]
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
def _remember(qkv, keys, values, owners, positions):
    """Put the keys and values of new tokens in their places."""
    heads, size = keys.shape[1], keys.shape[3]
    width = heads * size
    for t in range(len(owners)):
        for head in range(heads):
            for j in range(size):
                keys[owners[t], head, positions[t], j] = qkv[t, width + head * size + j]
                values[owners[t], head, positions[t], j] = qkv[t, 2 * width + head * size + j]


@compiled(parallel=True, fastmath=FAST)
def _attend_cross(query, keys, values, frames, group, heads, out):
    """Attention of every row to its recording.

    keys (recordings, heads, padded / `COLUMNS`, size, `COLUMNS`), values (recordings, heads, size, padded); padded
    is ``frames`` and some zeros
    """
    size, padded = values.shape[2], values.shape[3]
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(len(out) // group * heads):
        recording, head = task // heads, task % heads
        first, low = recording * group, head * size
        mine = query[first : first + group, low : low + size] * scaling
        key, value = keys[recording, head], values[recording, head]
        weights = np.empty((group, padded), np.float32)
        for f in range(0, padded, COLUMNS):
            r = 0
            while r + 5 <= group:
                scores5(key[f // COLUMNS], mine, r, weights, f)
                r += 5
            while r + 2 <= group:
                scores2(key[f // COLUMNS], mine, r, weights, f)
                r += 2
            if r < group:
                scores1(key[f // COLUMNS], mine, r, weights, f)
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
                some = dots5x4(value, j, weights, r)
                for o in range(4):
                    for k in range(5):
                        out[first + r + k, low + j + o] = some[5 * o + k]
            r += 5
        while r + 2 <= group:
            for j in range(size):
                two = dots2(value, j, weights, r)
                for k in range(2):
                    out[first + r + k, low + j] = two[k]
            r += 2
        if r < group:
            for j in range(size):
                out[first + r, low + j] = dots1(value, j, weights, r)[0]


@compiled(nogil=True)
def decode(w, x, owners, positions, keys, values, ancestors, cross_keys, cross_values, frames, group, heads):
    """A few new tokens through all layers: the next one of every row, or several of one.

    x : float32 ``(tokens, width)``, embedded; becomes the output of the last layer norm
    owners, positions : int32 ``(tokens,)``, the row that each belongs to and how many tokens are before it
    keys, values : float32 ``(layers, rows, heads, positions, size)``; those of the new tokens are written
    ancestors : int32 ``(rows, positions)``: whose cache holds a position of a row's past
    cross_keys, cross_values, frames : what is heard, for every layer as of `_attend_cross`
    group : how many of the tokens, one after the other, belong to a recording
    """
    normed, mixed, query = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    qkv = np.empty((x.shape[0], w.attn.shape[1]), np.float32)
    wide = np.empty((x.shape[0], w.up.shape[1]), np.float32)
    for i in range(keys.shape[0]):
        _norm(x, w.norms[i, 0], w.norms[i, 1], normed)
        multiply(w.attn[i], w.attn_scale[i], w.attn_bias[i], normed, qkv, 0.0)
        _remember(qkv, keys[i], values[i], owners, positions)
        _attend_self(qkv, keys[i], values[i], ancestors, owners, positions, heads, mixed)
        multiply(w.out[i], w.out_scale[i], w.out_bias[i], mixed, x, 1.0)
        _norm(x, w.norms[i, 2], w.norms[i, 3], normed)
        multiply(w.cross[i], w.cross_scale[i], w.cross_bias[i], normed, query, 0.0)
        _attend_cross(query, cross_keys[i], cross_values[i], frames, group, heads, mixed)
        multiply(w.cross_out[i], w.cross_out_scale[i], w.cross_out_bias[i], mixed, x, 1.0)
        _norm(x, w.norms[i, 4], w.norms[i, 5], normed)
        multiply(w.up[i], w.up_scale[i], w.up_bias[i], normed, wide, 0.0)
        _activate(wide)
        multiply(w.down[i], w.down_scale[i], w.down_bias[i], wide, x, 1.0)
    _norm(x, w.last_norm[0], w.last_norm[1], x)

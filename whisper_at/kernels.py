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

import numpy as np
from llvmlite import binding, ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array

FAST = {"reassoc", "contract", "nsz"}  # sums in any order; infinities stay infinities
HOST = binding.get_host_cpu_features()
SQRT_HALF = math.sqrt(0.5)
MOST_TOKENS = 16
"""For more tokens at once a matrix library is faster."""
LOCK = threading.Lock()
"""To be held by who calls: not every threading layer of Numba bears two callers, and one fills all cores."""


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


@intrinsic
def _float(typing_context, value):
    """A stored weight as float32: float32 as it is, uint16 as the bits of a half, int8 as a number."""

    def codegen(context, builder, signature, args):
        (kind,) = signature.args
        if kind == types.float32:
            return args[0]
        if kind == types.uint16:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        return builder.sitofp(args[0], ir.FloatType())

    return types.float32(value), codegen


def _picked(builder, vector, places):
    """Some elements of a vector."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, vector, mask)


def _pairs(builder, a, b):
    """Two vectors of 32 int16 → 16 int32, the sums of the products of neighbours: one instruction on most processors,
    which LLVM has to be told."""
    words, integers = (lambda n: ir.VectorType(ir.IntType(16), n)), (lambda n: ir.VectorType(ir.IntType(32), n))
    if HOST.get("avx512bw"):
        kind = ir.FunctionType(integers(16), [words(32), words(32)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pmaddw.d.512")
        return builder.call(function, [a, b])
    if HOST.get("avx2"):
        kind = ir.FunctionType(integers(8), [words(16), words(16)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        halves = (range(16), range(16, 32))
        low, high = (builder.call(function, [_picked(builder, v, half) for v in (a, b)]) for half in halves)
        return builder.shuffle_vector(low, high, ir.Constant(integers(16), list(range(16))))
    places = range(0, 32, 2), range(1, 32, 2)
    wide = [[builder.sext(_picked(builder, v, place), integers(16)) for v in (a, b)] for place in places]
    return builder.add(*(builder.mul(*both) for both in wide))


def _dots(count):
    """A function of w (out, in), i, x (rows, in), r: the products of row i of w with ``count`` rows of x from r on.

    Spelled in vectors, because how a compiler would vectorise these loops is a matter of luck, and of a factor of five.
    A weight is widened once for all rows. x is float32, or int16 where w is int8: integers are multiplied and added in
    pairs by one instruction. The length must be a multiple of 64.
    """

    @intrinsic
    def dots(typing_context, w, i, x, r):
        integer = w.dtype == types.int8
        lanes = 32 if integer else 16
        unrolled = max(1, 64 // lanes // count)  # sums in flight, to hide the latency of adding

        def codegen(context, builder, signature, args):
            index = args[1].type
            weights = make_array(w)(context, builder, args[0])
            numbers = make_array(x)(context, builder, args[2])
            length = cgutils.unpack_tuple(builder, weights.shape)[1]
            stored = {types.int8: ir.IntType(8), types.uint16: ir.HalfType(), types.float32: ir.FloatType()}[w.dtype]
            element = ir.IntType(32) if integer else ir.FloatType()
            total = ir.VectorType(element, 16)
            sums = [[cgutils.alloca_once_value(builder, total(None)) for _ in range(unrolled)] for _ in range(count)]

            def load(data, row, j, kind, size):
                place = builder.add(builder.mul(row, length), j)
                vector = ir.VectorType(kind, lanes)
                plain = builder.bitcast(data, ir.IntType(8).as_pointer())
                address = builder.gep(plain, [builder.mul(place, index(size))])
                return builder.load(builder.bitcast(address, vector.as_pointer()), align=size, typ=vector)

            step = lanes * unrolled
            with cgutils.for_range_slice(builder, index(0), length, index(step), index) as (j, _):
                for u in range(unrolled):
                    at = builder.add(j, index(u * lanes))
                    value = load(weights.data, args[1], at, stored, w.dtype.bitwidth // 8)
                    if integer:
                        value = builder.sext(value, ir.VectorType(ir.IntType(16), lanes))
                    elif stored != element:
                        value = builder.fpext(value, total)
                    for k in range(count):
                        row = builder.add(args[3], index(k))
                        if integer:
                            other = load(numbers.data, row, at, ir.IntType(16), 2)
                            new = builder.add(builder.load(sums[k][u]), _pairs(builder, value, other))
                        else:
                            other = load(numbers.data, row, at, element, 4)
                            product = builder.fmul(value, other, flags=("contract",))
                            new = builder.fadd(builder.load(sums[k][u]), product, flags=("contract",))
                        builder.store(new, sums[k][u])

            add = builder.add if integer else builder.fadd
            results = []
            for places in sums:
                whole, *others = [builder.load(place) for place in places]
                for other in others:
                    whole = add(whole, other)
                for width in (8, 4, 2, 1):
                    whole = add(*(_picked(builder, whole, range(f, f + width)) for f in (0, width)))
                result = builder.extract_element(whole, ir.IntType(32)(0))
                results.append(builder.sitofp(result, ir.FloatType()) if integer else result)
            return context.make_tuple(builder, signature.return_type, results)

        return types.UniTuple(types.float32, count)(w, types.intp, x, types.intp), codegen

    return dots


_dots1, _dots2, _dots5, _dots8 = _dots(1), _dots(2), _dots(5), _dots(8)


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


@intrinsic
def _from_bits(typing_context, bits):
    """The float32 of an int32's bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@njit(inline="always")
def _exp(x):
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
    return p * _from_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@njit(cache=True, fastmath=FAST)
def _gelu(x):
    """GELU of every element, in place: x/2 (1 + erf(x/√2)), erf to 1.5e-7 by Abramowitz and Stegun 7.1.26."""
    rows, width = x.shape
    for r in range(rows):
        for j in range(width):
            z = abs(x[r, j]) * np.float32(SQRT_HALF)
            t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * z)
            p = np.float32(1.061405429) * t - np.float32(1.453152027)
            p = p * t + np.float32(1.421413741)
            p = p * t - np.float32(0.284496736)
            p = p * t + np.float32(0.254829592)
            tail = p * t * _exp(-z * z)  # 1 − erf(z)
            positive = np.float32(0.5) * (np.float32(2.0) - tail)
            x[r, j] *= positive if x[r, j] > 0 else np.float32(0.5) * tail


@njit(cache=True, fastmath=FAST)
def _norm(x, weight, bias, out):
    """Layer norm of every row of ``x`` (rows, width)."""
    rows, width = x.shape
    for r in range(rows):
        mean = np.float32(0.0)
        for j in range(width):
            mean += x[r, j]
        mean /= np.float32(width)
        variance = np.float32(0.0)
        for j in range(width):
            variance += (x[r, j] - mean) * (x[r, j] - mean)
        inverse = np.float32(1.0) / np.sqrt(variance / np.float32(width) + np.float32(1e-5))
        for j in range(width):
            out[r, j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]


@njit(cache=True, parallel=True)
def multiply(w, scale, bias, x, y, add):
    """``x`` (rows, in) by ``w`` (out, in) → ``y`` (rows, out); ``add`` adds to what is there, as a residual does."""
    rows = x.shape[0]
    numbers, steps = _operand(w, x)
    for i in prange(w.shape[0]):
        if not add:
            for r in range(rows):
                y[r, i] = np.float32(0.0)
        r = 0
        while r + 8 <= rows:
            eight = _dots8(w, i, numbers, r)
            for k in range(8):
                y[r + k, i] += eight[k] * (scale[i] * steps[r + k]) + bias[i]
            r += 8
        while r + 5 <= rows:
            five = _dots5(w, i, numbers, r)
            for k in range(5):
                y[r + k, i] += five[k] * (scale[i] * steps[r + k]) + bias[i]
            r += 5
        while r + 2 <= rows:
            two = _dots2(w, i, numbers, r)
            for k in range(2):
                y[r + k, i] += two[k] * (scale[i] * steps[r + k]) + bias[i]
            r += 2
        if r < rows:
            one = _dots1(w, i, numbers, r)
            y[r, i] += one[0] * (scale[i] * steps[r]) + bias[i]


@njit(cache=True, parallel=True, fastmath=FAST)
def _attend_self(qkv, keys, values, ancestors, owners, positions, heads, out):
    """Attention of every token to those before it and to itself.

    qkv (tokens, 3·width); keys, values (rows, positions, width) hold all of them already; ancestors (rows, positions):
    which row's cache holds a position of this row's past.
    """
    tokens, width = out.shape
    size = width // heads
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(tokens * heads):
        t, low = task // heads, (task % heads) * size
        count, owner = positions[t] + 1, owners[t]
        scores = np.empty(count, np.float32)
        top = np.float32(-np.inf)
        for p in range(count):
            row = ancestors[owner, p]
            score = np.float32(0.0)
            for j in range(low, low + size):
                score += qkv[t, j] * keys[row, p, j]
            scores[p] = score * scaling
            top = max(top, scores[p])
        total = np.float32(0.0)
        mixed = np.zeros(size, np.float32)
        for p in range(count):
            weight = _exp(scores[p] - top)
            total += weight
            row = ancestors[owner, p]
            for j in range(size):
                mixed[j] += weight * values[row, p, low + j]
        for j in range(size):
            out[t, low + j] = mixed[j] / total


@njit(cache=True)
def _remember(qkv, keys, values, owners, positions):
    """Put the keys and values of new tokens in their places."""
    width = keys.shape[2]
    for t in range(len(owners)):
        for j in range(width):
            keys[owners[t], positions[t], j] = qkv[t, width + j]
            values[owners[t], positions[t], j] = qkv[t, 2 * width + j]


@njit(cache=True, parallel=True, fastmath=FAST)
def _attend_cross(query, keys, values, group, heads, out):
    """Attention of every row to its recording: keys, values (recordings, heads, size, frames)."""
    rows = out.shape[0]
    size, frames = keys.shape[2], keys.shape[3]
    scaling = np.float32(1.0 / math.sqrt(size))
    for task in prange(rows // group * heads):
        recording, head = task // heads, task % heads
        for r in range(recording * group, (recording + 1) * group):  # one after the other: the keys stay in cache
            scores = np.zeros(frames, np.float32)
            for j in range(size):
                q = query[r, head * size + j] * scaling
                for f in range(frames):
                    scores[f] += q * _float(keys[recording, head, j, f])
            top = np.float32(-np.inf)
            for f in range(frames):
                top = max(top, scores[f])
            total = np.float32(0.0)
            for f in range(frames):
                scores[f] = _exp(scores[f] - top)
                total += scores[f]
            for j in range(size):
                mixed = np.float32(0.0)
                for f in range(frames):
                    mixed += scores[f] * _float(values[recording, head, j, f])
                out[r, head * size + j] = mixed / total


@njit(cache=True, nogil=True)
def decode(w, x, owners, positions, keys, values, ancestors, cross_keys, cross_values, group, heads):
    """A few new tokens through all layers: the next one of every row, or several of one.

    x : float32 ``(tokens, width)``, embedded; becomes the output of the last layer norm
    owners, positions : int32 ``(tokens,)``, the row that each belongs to and how many tokens are before it
    keys, values : float32 ``(layers, rows, positions, width)``; those of the new tokens are written
    ancestors : int32 ``(rows, positions)``: whose cache holds a position of a row's past
    cross_keys, cross_values : ``(layers, recordings, heads, size, frames)``
    group : how many of the tokens, one after the other, belong to a recording
    """
    normed, mixed, query = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    qkv = np.empty((x.shape[0], w.attn.shape[1]), np.float32)
    wide = np.empty((x.shape[0], w.up.shape[1]), np.float32)
    for i in range(keys.shape[0]):
        _norm(x, w.norms[i, 0], w.norms[i, 1], normed)
        multiply(w.attn[i], w.attn_scale[i], w.attn_bias[i], normed, qkv, False)
        _remember(qkv, keys[i], values[i], owners, positions)
        _attend_self(qkv, keys[i], values[i], ancestors, owners, positions, heads, mixed)
        multiply(w.out[i], w.out_scale[i], w.out_bias[i], mixed, x, True)
        _norm(x, w.norms[i, 2], w.norms[i, 3], normed)
        multiply(w.cross[i], w.cross_scale[i], w.cross_bias[i], normed, query, False)
        _attend_cross(query, cross_keys[i], cross_values[i], group, heads, mixed)
        multiply(w.cross_out[i], w.cross_out_scale[i], w.cross_out_bias[i], mixed, x, True)
        _norm(x, w.norms[i, 4], w.norms[i, 5], normed)
        multiply(w.up[i], w.up_scale[i], w.up_bias[i], normed, wide, False)
        _gelu(wide)
        multiply(w.down[i], w.down_scale[i], w.down_bias[i], wide, x, True)
    _norm(x, w.last_norm[0], w.last_norm[1], x)

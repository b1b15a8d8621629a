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
MOST_TOKENS = 256
"""For more tokens at once a matrix library is faster."""
COLUMNS = 64
"""Frames of what is heard lie together by so many; the last of them are zeros."""
NEAR = 24 << 10
"""Bytes of a core's fastest cache that the numbers of a product may fill; the weights pass through the rest."""
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


def _widened(builder, array, data, place, lanes):
    """So many stored weights from a place on, as float32, or int8 as int16."""
    stored = {types.int8: ir.IntType(8), types.uint16: ir.HalfType(), types.float32: ir.FloatType()}[array.dtype]
    address = builder.gep(builder.bitcast(data, stored.as_pointer()), [place])
    vector = ir.VectorType(stored, lanes)
    value = builder.load(builder.bitcast(address, vector.as_pointer()), align=array.dtype.bitwidth // 8, typ=vector)
    if array.dtype == types.int8:
        return builder.sext(value, ir.VectorType(ir.IntType(16), lanes))
    return value if array.dtype == types.float32 else builder.fpext(value, ir.VectorType(ir.FloatType(), lanes))


def _dots(count, outs=1):
    """A function of w (out, in), i, x (rows, in), r: the products of ``outs`` rows of w from i on with ``count`` rows
    of x from r on, those of the first row of w first.

    Spelled in vectors, because how a compiler would vectorise these loops is a matter of luck, and of a factor of five.
    Weights and numbers are loaded, and weights widened, once for all that they are multiplied with. x is float32, or
    int16 where w is int8, of a length divisible by 64: integers are multiplied and added in pairs by one instruction.
    """

    @intrinsic
    def dots(typing_context, w, i, x, r):
        integer = w.dtype == types.int8
        lanes = 32 if integer else 16
        unrolled = max(1, 64 // lanes // (count * outs))  # sums in flight, to hide the latency of adding

        def codegen(context, builder, signature, args):
            index = args[1].type
            weights = make_array(w)(context, builder, args[0])
            numbers = make_array(x)(context, builder, args[2])
            length = cgutils.unpack_tuple(builder, weights.shape)[1]
            element = ir.IntType(32) if integer else ir.FloatType()
            total = ir.VectorType(element, 16)
            pairs = [(o, k) for o in range(outs) for k in range(count)]
            sums = {pair: [cgutils.alloca_once_value(builder, total(None)) for _ in range(unrolled)] for pair in pairs}

            def number(row, j):
                kind, place = signature.args[2].dtype, builder.add(builder.mul(row, length), j)
                address = builder.gep(numbers.data, [place])
                vector = ir.VectorType(ir.IntType(16) if integer else element, lanes)
                return builder.load(builder.bitcast(address, vector.as_pointer()), align=kind.bitwidth // 8, typ=vector)

            def weight(row, j):
                return _widened(builder, w, weights.data, builder.add(builder.mul(row, length), j), lanes)

            step = lanes * unrolled
            with cgutils.for_range_slice(builder, index(0), length, index(step), index) as (j, _):
                for u in range(unrolled):
                    at = builder.add(j, index(u * lanes))
                    values = [weight(builder.add(args[1], index(o)), at) for o in range(outs)]
                    for k in range(count):
                        other = number(builder.add(args[3], index(k)), at)
                        for o in range(outs):
                            place = sums[o, k][u]
                            if integer:
                                new = builder.add(builder.load(place), _pairs(builder, values[o], other))
                            else:
                                product = builder.fmul(values[o], other, flags=("contract",))
                                new = builder.fadd(builder.load(place), product, flags=("contract",))
                            builder.store(new, place)

            add = builder.add if integer else builder.fadd
            results = []
            for pair in pairs:
                whole, *others = [builder.load(place) for place in sums[pair]]
                for other in others:
                    whole = add(whole, other)
                for width in (8, 4, 2, 1):
                    whole = add(*(_picked(builder, whole, range(f, f + width)) for f in (0, width)))
                result = builder.extract_element(whole, ir.IntType(32)(0))
                results.append(builder.sitofp(result, ir.FloatType()) if integer else result)
            return context.make_tuple(builder, signature.return_type, results)

        return types.UniTuple(types.float32, count * outs)(w, types.intp, x, types.intp), codegen

    return dots


_dots1, _dots2, _dots5, _dots8 = _dots(1), _dots(2), _dots(5), _dots(8)
_dots5x4, _dots8x3 = _dots(5, 4), _dots(8, 3)


def _scores(count):
    """A function of keys (size, `COLUMNS`), x (rows, size), r, out (rows, frames), f: writes to out, from column f on,
    the products of ``count`` rows of x from r on with all columns of keys."""

    @intrinsic
    def scores(typing_context, keys, x, r, out, f):
        def codegen(context, builder, signature, args):
            index, total, vectors = args[2].type, ir.VectorType(ir.FloatType(), 16), range(0, COLUMNS, 16)
            keys_, x_, out_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1, 3))
            size, (_, frames) = cgutils.unpack_tuple(builder, x_.shape)[1], cgutils.unpack_tuple(builder, out_.shape)
            sums = [[cgutils.alloca_once_value(builder, total(None)) for _ in vectors] for _ in range(count)]
            with cgutils.for_range_slice(builder, index(0), size, index(1), index) as (j, _):
                place = builder.mul(j, index(COLUMNS))
                columns = [_widened(builder, keys, keys_.data, builder.add(place, index(v)), 16) for v in vectors]
                for k in range(count):
                    place = builder.add(builder.mul(builder.add(args[2], index(k)), size), j)
                    number = builder.load(builder.gep(x_.data, [place]))
                    number = builder.insert_element(total(ir.Undefined), number, ir.IntType(32)(0))
                    number = _picked(builder, number, [0] * 16)
                    for column, place in zip(columns, sums[k]):
                        product = builder.fmul(column, number, flags=("contract",))
                        builder.store(builder.fadd(builder.load(place), product, flags=("contract",)), place)
            for k in range(count):
                row = builder.add(builder.mul(builder.add(args[2], index(k)), frames), args[4])
                for v, place in zip(vectors, sums[k]):
                    address = builder.gep(out_.data, [builder.add(row, index(v))])
                    builder.store(builder.load(place), builder.bitcast(address, total.as_pointer()), align=4)

        return types.void(keys, x, types.intp, out, types.intp), codegen

    return scores


_scores1, _scores2, _scores5 = _scores(1), _scores(2), _scores(5)


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


@njit(cache=True, parallel=True, fastmath=FAST)
def _gelu(x):
    """GELU of every element, in place: x/2 (1 + erf(x/√2)), erf to 1.5e-7 by Abramowitz and Stegun 7.1.26."""
    rows, width = x.shape
    for r in prange(rows):
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
                    many = _dots8x3(w, i, numbers, r)
                    for o in range(3):
                        for k in range(8):
                            y[r + k, i + o] += many[8 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 8
            while r + 5 <= rows:
                for i in range(first, last, 4):
                    some = _dots5x4(w, i, numbers, r)
                    for o in range(4):
                        for k in range(5):
                            y[r + k, i + o] += some[5 * o + k] * (scale[i + o] * steps[r + k]) + bias[i + o]
                r += 5
        done = r
        for i in range(first, last):
            r = done
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
            scores[p] = _exp(scores[p] - top)
            total += scores[p]
        mixed = np.zeros(size, np.float32)
        for p in range(count):
            value = values[past[p], head, p]
            for j in range(size):
                mixed[j] += scores[p] * value[j]
        for j in range(size):
            out[t, head * size + j] = mixed[j] / total


@njit(cache=True)
def _remember(qkv, keys, values, owners, positions):
    """Put the keys and values of new tokens in their places."""
    heads, size = keys.shape[1], keys.shape[3]
    width = heads * size
    for t in range(len(owners)):
        for head in range(heads):
            for j in range(size):
                keys[owners[t], head, positions[t], j] = qkv[t, width + head * size + j]
                values[owners[t], head, positions[t], j] = qkv[t, 2 * width + head * size + j]


@njit(cache=True, parallel=True, fastmath=FAST)
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
                _scores5(key[f // COLUMNS], mine, r, weights, f)
                r += 5
            while r + 2 <= group:
                _scores2(key[f // COLUMNS], mine, r, weights, f)
                r += 2
            if r < group:
                _scores1(key[f // COLUMNS], mine, r, weights, f)
        for r in range(group):
            row = weights[r]
            row[frames:] = np.float32(-np.inf)
            top = np.float32(-np.inf)
            for f in range(frames):
                top = max(top, row[f])
            total = np.float32(0.0)
            for f in range(padded):
                row[f] = _exp(row[f] - top)
                total += row[f]
            for f in range(padded):
                row[f] /= total
        r = 0
        while r + 5 <= group:
            for j in range(0, size, 4):
                some = _dots5x4(value, j, weights, r)
                for o in range(4):
                    for k in range(5):
                        out[first + r + k, low + j + o] = some[5 * o + k]
            r += 5
        while r + 2 <= group:
            for j in range(size):
                two = _dots2(value, j, weights, r)
                for k in range(2):
                    out[first + r + k, low + j] = two[k]
            r += 2
        if r < group:
            for j in range(size):
                out[first + r, low + j] = _dots1(value, j, weights, r)[0]


@njit(cache=True, nogil=True)
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
        _gelu(wide)
        multiply(w.down[i], w.down_scale[i], w.down_bias[i], wide, x, 1.0)
    _norm(x, w.last_norm[0], w.last_norm[1], x)

"""Vectors spelled in LLVM's own terms: what the loops of `kernels` are made of.

How a compiler would vectorise them is a matter of luck, and of a factor of five. Numba's cache watches the file of the
compiled functions alone: after a change here, touch `kernels.py`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

HOST = binding.get_host_cpu_features()
READS_HALF = platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86") or bool(HOST.get("f16c"))
"""Whether the processor itself widens half precision, to which `_widened` trusts."""
COLUMNS = 64
"""Frames of what is heard lie together by so many; the last of them are zeros."""


def compiled(**options) -> Callable[[Callable], Callable]:
    """Numba's ``njit``, kept on disk where a folder for that can be written."""

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # package, home and NUMBA_CACHE_DIR are all read-only
            return njit(**options)(function)

    return decorate


def _picked(builder, vector, places):
    """Some elements of a vector."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), list(places))
    return builder.shuffle_vector(vector, vector, mask)


def _pairs(builder, a, b):
    """Two vectors of 32 int16 → 16 int32, the sums of the products of neighbours: one instruction on most processors,
    which LLVM has to be told.
    """
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


dots1, dots2, dots5, dots8 = _dots(1), _dots(2), _dots(5), _dots(8)
dots5x4, dots8x3 = _dots(5, 4), _dots(8, 3)


def _scores(count):
    """A function of keys (size, `COLUMNS`), x (rows, size), r, out (rows, frames), f: writes to out, from column f on,
    the products of ``count`` rows of x from r on with all columns of keys.
    """

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


scores1, scores2, scores5 = _scores(1), _scores(2), _scores(5)


@intrinsic
def from_bits(typing_context, bits):
    """The float32 of an int32's bits."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


binding.initialize_native_asmparser()  # the instructions for bfloat16 are spelled out, see `_spelled`


def _spelled(builder, instruction, constraints, kind, *operands):
    """One instruction by its name, for what LLVM has no type that llvmlite could write down."""
    function = ir.InlineAsm(ir.FunctionType(kind, [o.type for o in operands]), instruction, constraints)
    return builder.call(function, operands)


@intrinsic
def pair_products6(typing_context, x, r, w, out, f):
    """Writes to out (6, …), from column f on, the products of 6 rows of x (rows, pairs), from r on, with all columns of
    w (pairs, `COLUMNS`). An int32 of x and w is a pair of bfloat16; products and sums are float32.
    """

    def codegen(context, builder, signature, args):
        index, vectors = args[1].type, range(0, COLUMNS, 16)
        total, words = ir.VectorType(ir.FloatType(), 16), ir.VectorType(ir.IntType(32), 16)
        x_, w_, out_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 3))
        (pairs, _), (_, width) = (cgutils.unpack_tuple(builder, a.shape) for a in (w_, out_))
        sums = [[cgutils.alloca_once_value(builder, total(None)) for _ in vectors] for _ in range(6)]
        with cgutils.for_range_slice(builder, index(0), pairs, index(1), index) as (j, _):
            columns = []
            for v in vectors:
                address = builder.gep(w_.data, [builder.add(builder.mul(j, index(COLUMNS)), index(v))])
                columns.append(builder.load(builder.bitcast(address, words.as_pointer()), align=4, typ=words))
            for k in range(6):
                row = builder.mul(builder.add(args[1], index(k)), pairs)
                pair = builder.load(builder.gep(x_.data, [builder.add(row, j)]))
                pair = builder.insert_element(words(ir.Undefined), pair, ir.IntType(32)(0))
                pair = _picked(builder, pair, [0] * 16)
                for column, place in zip(columns, sums[k]):
                    new = _spelled(
                        *(builder, "vdpbf16ps $3, $2, $0", "=v,0,v,v", total, builder.load(place), pair, column)
                    )
                    builder.store(new, place)
        for k in range(6):
            row = builder.add(builder.mul(index(k), width), args[4])
            for v, place in zip(vectors, sums[k]):
                address = builder.gep(out_.data, [builder.add(row, index(v))])
                builder.store(builder.load(place), builder.bitcast(address, total.as_pointer()), align=4)

    return types.void(x, types.intp, w, out, types.intp), codegen


@intrinsic
def softmax(typing_context, scores, r, scale, weights):
    """Writes to row r of weights, in bfloat16 (as uint16), e to the power of scale · (score − the row's largest).

    Returns their sum. Rows are a multiple of 16 long; exp is good to the last bit or two of float32.
    """

    def codegen(context, builder, signature, args):
        index, kind, lanes = args[1].type, ir.FloatType(), 16
        total, integers = ir.VectorType(kind, lanes), ir.VectorType(ir.IntType(32), lanes)
        halves = ir.VectorType(ir.IntType(16), lanes)
        scores_, weights_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3))
        length = cgutils.unpack_tuple(builder, scores_.shape)[1]
        begin = builder.mul(args[1], length)

        def every(value):
            return total([value] * lanes)

        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def plus(a, b, c):
            return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))

        def row(j):
            address = builder.gep(scores_.data, [builder.add(begin, j)])
            return builder.load(builder.bitcast(address, total.as_pointer()), align=4, typ=total)

        def folded(vector, join):
            for width in (8, 4, 2, 1):
                vector = join(*(_picked(builder, vector, range(f, f + width)) for f in (0, width)))
            return builder.extract_element(vector, ir.IntType(32)(0))

        def spread(number):
            vector = builder.insert_element(total(ir.Undefined), number, ir.IntType(32)(0))
            return _picked(builder, vector, [0] * lanes)

        tops = cgutils.alloca_once_value(builder, every(-float("inf")))
        with cgutils.for_range_slice(builder, index(0), length, index(lanes), index) as (j, _):
            builder.store(larger(row(j), builder.load(tops)), tops)
        top, scale_ = spread(folded(builder.load(tops), larger)), spread(args[2])
        sums = cgutils.alloca_once_value(builder, total(None))
        with cgutils.for_range_slice(builder, index(0), length, index(lanes), index) as (j, _):
            x = larger(builder.fmul(builder.fsub(row(j), top), scale_), every(-87.0))
            # x ≤ 0, so that cutting off what follows the point rounds to the nearest
            n = builder.fptosi(plus(x, every(1.44269504), every(-0.5)), integers)
            whole = builder.sitofp(n, total)
            x = plus(whole, every(-0.693359375), x)
            x = plus(whole, every(2.12194440e-4), x)
            p = every(1.9875691500e-4)
            for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
                p = plus(p, x, every(c))
            p = plus(builder.fmul(p, x), x, builder.fadd(x, every(1.0)))
            power = builder.shl(builder.add(n, integers([127] * lanes)), integers([23] * lanes))
            e = builder.fmul(p, builder.bitcast(power, total))
            builder.store(builder.fadd(builder.load(sums), e), sums)
            short = _spelled(builder, "vcvtneps2bf16 $1, $0", "=v,v", halves, e)
            address = builder.gep(weights_.data, [builder.add(begin, j)])
            builder.store(short, builder.bitcast(address, halves.as_pointer()), align=2)
        return folded(builder.load(sums), builder.fadd)

    return types.float32(scores, types.intp, types.float32, weights), codegen


@intrinsic
def to_bits(typing_context, number):
    """The bits of a float32, as an int32."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen

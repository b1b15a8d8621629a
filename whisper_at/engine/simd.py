"""Vector operations in LLVM IR, for the Numba kernels of `cpu_kernels` and `encoder_bf16`.

Spelled out because auto-vectorisation of the same loops varies by a factor of five in speed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import binding, ir
from numba import extending, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.np.arrayobj import make_array

from .kernel_cache import KernelCache

MACHINE = platform.machine().lower()
IS_X86 = MACHINE in ("x86_64", "amd64", "i686", "x86")


def target_features() -> frozenset[str]:
    """Return the names of the instruction sets that Numba compiles for.

    They are the host's, unless ``NUMBA_CPU_NAME=generic``, ``NUMBA_CPU_FEATURES`` or ``NUMBA_ENABLE_AVX`` say
    otherwise, as for images that are to run on other machines. What a named processor implies is not counted.
    """
    features = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    features = get_host_cpu_features() if features is None else features
    return frozenset(name.strip()[1:] for name in features.split(",") if name.strip().startswith("+"))


TARGET = target_features()
HAS_FP16_LOADS = not IS_X86 or "f16c" in TARGET
"""Whether half precision is converted to float32 by instructions, which `_load_widened` needs."""
TILE_WIDTH = 64
"""Columns of a matrix that are stored together and multiplied at once; the last tile is padded with zeros."""

Array: TypeAlias = np.ndarray[Any, Any]
FASTMATH = {"reassoc", "contract", "nsz"}
"""Of kernels: sums in any order; infinities stay infinities."""

F = TypeVar("F", bound=Callable[..., Any])
intrinsic = cast(Callable[[Callable[..., Any]], Any], extending.intrinsic)


def compiled(*sources: str, **options: Any) -> Callable[[F], F]:
    """Return Numba's ``njit`` with these options, and with a `KernelCache`."""

    def decorate(function: F) -> F:
        kernel: Any = njit(**options)(function)
        if hasattr(kernel, "_cache"):  # with NUMBA_DISABLE_JIT it is the function
            kernel._cache = KernelCache(function, *sources)
        return cast(F, kernel)

    return decorate


def inlined(function: F) -> F:
    """Compile a function into each of its callers."""
    return cast(F, njit(inline="always")(function))


def implements(function: Callable[..., Any], **options: Any) -> Callable[[F], F]:
    """Return Numba's ``overload``: the decorated function chooses an implementation by the types of the arguments."""
    return cast(Callable[[F], F], extending.overload(function, **options))


def has_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 itself, and ``ONEDNN_MAX_CPU_ISA`` lets it.

    Others imitate it, slowly.
    """
    if torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("avx512_bf16", "amx_tile", "arm_bf16"))


def _vector(element: Any, lanes: int) -> Any:
    return ir.VectorType(element, lanes)


def _select_lanes(builder: Any, vector: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(_vector(ir.IntType(32), len(lanes)), list(lanes))
    return builder.shuffle_vector(vector, vector, mask)


def _broadcast(builder: Any, scalar: Any, lanes: int = 16) -> Any:
    """Return a vector whose every lane is ``scalar``."""
    vector = builder.insert_element(_vector(scalar.type, lanes)(ir.Undefined), scalar, ir.IntType(32)(0))
    return _select_lanes(builder, vector, [0] * lanes)


def _load_vector(builder: Any, data: Any, offset: Any, vector: Any, align: int = 4) -> Any:
    address = builder.gep(data, [offset])
    return builder.load(builder.bitcast(address, vector.as_pointer()), align=align, typ=vector)


def _store_vector(builder: Any, value: Any, data: Any, offset: Any, align: int = 4) -> None:
    address = builder.gep(data, [offset])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


def _reduce_lanes(builder: Any, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combine the 16 lanes of a vector to a scalar, halves first."""
    for width in (8, 4, 2, 1):
        vector = combine(*(_select_lanes(builder, vector, range(i, i + width)) for i in (0, width)))
    return builder.extract_element(vector, ir.IntType(32)(0))


def _allocate_sums(builder: Any, vector: Any, keys: Iterable[Any]) -> dict[Any, Any]:
    """Return a variable of zeros for each key."""
    return {key: cgutils.alloca_once_value(builder, vector(None)) for key in keys}


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Return ``a * b + c`` of floats, in one instruction where the processor has it."""
    return builder.fadd(c, builder.fmul(a, b, flags=("contract",)), flags=("contract",))


def _multiply_int16_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Multiply two vectors of 32 int16 and add neighbours → 16 int32: ``pmaddwd`` on x86, which LLVM does not find."""
    int16, int32 = ir.IntType(16), ir.IntType(32)
    if "avx512bw" in TARGET:
        kind = ir.FunctionType(_vector(int32, 16), [_vector(int16, 32)] * 2)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pmaddw.d.512")
        return builder.call(function, [a, b])
    if "avx2" in TARGET:
        kind = ir.FunctionType(_vector(int32, 8), [_vector(int16, 16)] * 2)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
        halves = (range(16), range(16, 32))
        low, high = (builder.call(function, [_select_lanes(builder, v, half) for v in (a, b)]) for half in halves)
        return builder.shuffle_vector(low, high, ir.Constant(_vector(int32, 16), list(range(16))))
    neighbours = range(0, 32, 2), range(1, 32, 2)
    wide = [[builder.sext(_select_lanes(builder, v, n), _vector(int32, 16)) for v in (a, b)] for n in neighbours]
    return builder.add(*(builder.mul(*both) for both in wide))


def _load_widened(builder: Any, array: Any, data: Any, offset: Any, lanes: int) -> Any:
    """Load stored weights as float32, or int8 as int16."""
    stored = {types.int8: ir.IntType(8), types.uint16: ir.HalfType(), types.float32: ir.FloatType()}[array.dtype]
    data = builder.bitcast(data, stored.as_pointer())
    value = _load_vector(builder, data, offset, _vector(stored, lanes), array.dtype.bitwidth // 8)
    if array.dtype == types.int8:
        return builder.sext(value, _vector(ir.IntType(16), lanes))
    return value if array.dtype == types.float32 else builder.fpext(value, _vector(ir.FloatType(), lanes))


def _make_dot(x_rows: int, w_rows: int) -> Any:
    """Make a function of w ``(out, in)``, i, x ``(rows, in)``, r → tuple of ``w_rows * x_rows`` dot products.

    They are those of the rows of w from i on with the rows of x from r on, first all of the first row of w. Weights
    are loaded and widened once for all that they are multiplied with. x is float32, or int16 where w is int8, whose
    products are added in pairs by one instruction; ``in`` is a multiple of 64.
    """

    @intrinsic
    def dot(typing_context: Any, w: Any, i: Any, x: Any, r: Any) -> Any:
        integer = w.dtype == types.int8
        lanes = 32 if integer else 16
        unrolled = max(1, 64 // lanes // (x_rows * w_rows))  # independent sums hide the latency of adding

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            index = args[1].type
            weights = make_array(w)(context, builder, args[0])
            numbers = make_array(x)(context, builder, args[2])
            length = cgutils.unpack_tuple(builder, weights.shape)[1]
            element = ir.IntType(32) if integer else ir.FloatType()
            pairs = [(o, k) for o in range(w_rows) for k in range(x_rows)]
            sums = _allocate_sums(
                builder, _vector(element, 16), [(*pair, u) for pair in pairs for u in range(unrolled)]
            )

            def load_x(row: Any, j: Any) -> Any:
                offset = builder.add(builder.mul(row, length), j)
                vector = _vector(ir.IntType(16) if integer else element, lanes)
                return _load_vector(builder, numbers.data, offset, vector, signature.args[2].dtype.bitwidth // 8)

            def load_w(row: Any, j: Any) -> Any:
                return _load_widened(builder, w, weights.data, builder.add(builder.mul(row, length), j), lanes)

            with cgutils.for_range_slice(builder, index(0), length, index(lanes * unrolled), index) as (j, _):
                for u in range(unrolled):
                    column = builder.add(j, index(u * lanes))
                    w_parts = [load_w(builder.add(args[1], index(o)), column) for o in range(w_rows)]
                    for k in range(x_rows):
                        x_part = load_x(builder.add(args[3], index(k)), column)
                        for o in range(w_rows):
                            total = builder.load(sums[o, k, u])
                            if integer:
                                total = builder.add(total, _multiply_int16_pairs(builder, w_parts[o], x_part))
                            else:
                                total = _multiply_add(builder, w_parts[o], x_part, total)
                            builder.store(total, sums[o, k, u])

            add = builder.add if integer else builder.fadd
            results = []
            for o, k in pairs:
                total = builder.load(sums[o, k, 0])
                for u in range(1, unrolled):
                    total = add(total, builder.load(sums[o, k, u]))
                result = _reduce_lanes(builder, total, add)
                results.append(builder.sitofp(result, ir.FloatType()) if integer else result)
            return context.make_tuple(builder, signature.return_type, results)

        return types.UniTuple(types.float32, x_rows * w_rows)(w, types.intp, x, types.intp), codegen

    return dot


dot_1x1, dot_2x1, dot_5x1, dot_8x1 = (_make_dot(x_rows, 1) for x_rows in (1, 2, 5, 8))
dot_5x4, dot_8x3 = _make_dot(5, 4), _make_dot(8, 3)


def _make_scores(x_rows: int) -> Any:
    """Make a function of keys ``(size, TILE_WIDTH)``, x ``(rows, size)``, r, out ``(rows, frames)``, f.

    It writes to out, from column f on, the products of ``x_rows`` rows of x, from r on, with all columns of keys.
    """

    @intrinsic
    def scores(typing_context: Any, keys: Any, x: Any, r: Any, out: Any, f: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> None:
            index, total, parts = args[2].type, _vector(ir.FloatType(), 16), range(0, TILE_WIDTH, 16)
            keys_, x_, out_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 1, 3))
            size, (_, frames) = cgutils.unpack_tuple(builder, x_.shape)[1], cgutils.unpack_tuple(builder, out_.shape)
            sums = _allocate_sums(builder, total, [(k, p) for k in range(x_rows) for p in parts])
            with cgutils.for_range_slice(builder, index(0), size, index(1), index) as (j, _):
                row = builder.mul(j, index(TILE_WIDTH))
                columns = {p: _load_widened(builder, keys, keys_.data, builder.add(row, index(p)), 16) for p in parts}
                for k in range(x_rows):
                    offset = builder.add(builder.mul(builder.add(args[2], index(k)), size), j)
                    number = _broadcast(builder, builder.load(builder.gep(x_.data, [offset])))
                    for p in parts:
                        new = _multiply_add(builder, columns[p], number, builder.load(sums[k, p]))
                        builder.store(new, sums[k, p])
            for k in range(x_rows):
                row = builder.add(builder.mul(builder.add(args[2], index(k)), frames), args[4])
                for p in parts:
                    _store_vector(builder, builder.load(sums[k, p]), out_.data, builder.add(row, index(p)))

        return types.void(keys, x, types.intp, out, types.intp), codegen

    return scores


scores_1, scores_2, scores_5 = (_make_scores(x_rows) for x_rows in (1, 2, 5))


@intrinsic
def float_from_bits(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that an int32's bits stand for."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), codegen


@intrinsic
def bits_of_float(typing_context: Any, number: Any) -> Any:
    """Return the bits of a float32 as an int32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), codegen


binding.initialize_native_asmparser()  # for the instructions for bfloat16, see `_inline_asm`


def _inline_asm(builder: Any, instruction: str, constraints: str, kind: Any, *operands: Any) -> Any:
    """Insert one instruction by its name: llvmlite has no type for bfloat16."""
    function = ir.InlineAsm(ir.FunctionType(kind, [o.type for o in operands]), instruction, constraints)
    return builder.call(function, operands)


def _emit_exp(builder: Any, x: Any) -> Any:
    """Emit exp of a float32, or a vector of 16, for −87 < x ≤ 0 (below it is exp(−87)), to 1.3 units in the last place.

    Range reduction by ln 2 in two parts and the polynomial of Cephes' ``expf``.
    """
    is_vector = isinstance(x.type, ir.VectorType)
    integer, floor = (_vector(ir.IntType(32), 16), "v16f32") if is_vector else (ir.IntType(32), "f32")

    def constant(kind: Any, value: float) -> Any:
        return kind([value] * 16) if is_vector else kind(value)

    def number(value: float) -> Any:
        return constant(x.type, value)

    x = builder.select(builder.fcmp_ordered(">", x, number(-87.0)), x, number(-87.0))
    function = ir.FunctionType(x.type, [x.type])
    function = cgutils.get_or_insert_function(builder.module, function, f"llvm.floor.{floor}")
    n = builder.call(function, [builder.fadd(builder.fmul(x, number(1.44269504)), number(0.5))])
    x = builder.fsub(x, builder.fmul(n, number(0.693359375)))
    x = builder.fadd(x, builder.fmul(n, number(2.12194440e-4)))
    p = number(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = builder.fadd(builder.fmul(p, x), number(c))
    p = builder.fadd(builder.fadd(builder.fmul(builder.fmul(p, x), x), x), number(1.0))
    exponent = builder.shl(builder.add(builder.fptosi(n, integer), constant(integer, 127)), constant(integer, 23))
    return builder.fmul(p, builder.bitcast(exponent, x.type))


@intrinsic
def exp(typing_context: Any, x: Any) -> Any:
    """Return exp of a float32 for −87 < x ≤ 0, in a form that LLVM vectorises in loops."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _emit_exp(builder, args[0])

    return types.float32(types.float32), codegen


@intrinsic
def bf16_dot_6(typing_context: Any, x: Any, r: Any, w: Any, out: Any, f: Any) -> Any:
    """Multiply 6 rows of x ``(rows, pairs)``, from r on, with all columns of w ``(pairs, TILE_WIDTH)``.

    The products are written to out ``(6, …)`` from column f on. An int32 of x and w is a pair of bfloat16; products and
    sums are float32.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> None:
        index, parts = args[1].type, range(0, TILE_WIDTH, 16)
        total, words = _vector(ir.FloatType(), 16), _vector(ir.IntType(32), 16)
        x_, w_, out_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 3))
        (pairs, _), (_, width) = (cgutils.unpack_tuple(builder, a.shape) for a in (w_, out_))
        sums = _allocate_sums(builder, total, [(k, p) for k in range(6) for p in parts])
        with cgutils.for_range_slice(builder, index(0), pairs, index(1), index) as (j, _):
            row = builder.mul(j, index(TILE_WIDTH))
            columns = {p: _load_vector(builder, w_.data, builder.add(row, index(p)), words) for p in parts}
            for k in range(6):
                offset = builder.add(builder.mul(builder.add(args[1], index(k)), pairs), j)
                pair = _broadcast(builder, builder.load(builder.gep(x_.data, [offset])))
                for p in parts:
                    old = builder.load(sums[k, p])
                    new = _inline_asm(builder, "vdpbf16ps $3, $2, $0", "=v,0,v,v", total, old, pair, columns[p])
                    builder.store(new, sums[k, p])
        for k in range(6):
            row = builder.add(builder.mul(index(k), width), args[4])
            for p in parts:
                _store_vector(builder, builder.load(sums[k, p]), out_.data, builder.add(row, index(p)))

    return types.void(x, types.intp, w, out, types.intp), codegen


@intrinsic
def bf16_softmax(typing_context: Any, scores: Any, r: Any, scale: Any, weights: Any) -> Any:
    """Write exp(scale · (score − largest of the row)) of row r of scores to weights, in bfloat16 (as uint16).

    Returns their sum. Rows are a multiple of 16 long. By Numba it would take 2.7 times as long.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        index, lanes = args[1].type, 16
        total, halves = _vector(ir.FloatType(), lanes), _vector(ir.IntType(16), lanes)
        scores_, weights_ = (make_array(signature.args[i])(context, builder, args[i]) for i in (0, 3))
        length = cgutils.unpack_tuple(builder, scores_.shape)[1]
        begin = builder.mul(args[1], length)

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def load_scores(j: Any) -> Any:
            return _load_vector(builder, scores_.data, builder.add(begin, j), total)

        tops = cgutils.alloca_once_value(builder, total([-float("inf")] * lanes))
        with cgutils.for_range_slice(builder, index(0), length, index(lanes), index) as (j, _):
            builder.store(larger(load_scores(j), builder.load(tops)), tops)
        top = _broadcast(builder, _reduce_lanes(builder, builder.load(tops), larger))
        factor = _broadcast(builder, args[2])
        sums = cgutils.alloca_once_value(builder, total(None))
        with cgutils.for_range_slice(builder, index(0), length, index(lanes), index) as (j, _):
            e = _emit_exp(builder, builder.fmul(builder.fsub(load_scores(j), top), factor))
            builder.store(builder.fadd(builder.load(sums), e), sums)
            rounded = _inline_asm(builder, "vcvtneps2bf16 $1, $0", "=v,v", halves, e)
            _store_vector(builder, rounded, weights_.data, builder.add(begin, j), align=2)
        return _reduce_lanes(builder, builder.load(sums), builder.fadd)

    return types.float32(scores, types.intp, types.float32, weights), codegen

"""What the int8 encoder does between its products: layer norms, GELU, rounding. Twice: by kernels, and by PyTorch.

Both give the same numbers to the last bit. A difference in a last bit would move a number to the next of its 127 steps
now and then, and that, block after block, features by a third of what int8 moves them: text would depend on when the
kernels are ready. So sums are taken in one order, and nothing is left to the compiler's or PyTorch's choice.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from . import compilation
from .cpu_kernels import KERNEL_LOCK, gelu, use_threads
from .int8_products import ZERO_POINT
from .simd import Array, bits_of_float, compiled, float_from_bits, inlined

LANES = 16
"""Every such number of a row is summed together, then these sums, halves first."""
CHUNK_ROWS = 32
"""Rows whose GELU PyTorch computes at once, so that they stay in cache."""
MIN_TOP = 1e-12
"""The largest number of a row is taken to be no smaller."""


class Rounded(NamedTuple):
    """A layer's input: uint8 ``values`` ``(rows, in)``, of which `ZERO_POINT` is 0, and float32 ``scale`` of rows."""

    values: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, rows: int, width: int) -> Rounded:
        """Make room."""
        return cls(torch.empty(rows, width, dtype=torch.uint8), torch.empty(rows))


class Sums(NamedTuple):
    """A layer's output, before it is scaled: float32 ``(rows, out)``; scales of rows and of columns, and the bias."""

    sums: Tensor
    row_scale: Tensor
    scale: Tensor
    bias: Tensor


@inlined
def _sum_lanes(lanes: Array) -> np.float32:
    for half in (8, 4, 2, 1):
        for k in range(half):
            lanes[k] += lanes[k + half]
    return lanes[0]


@inlined
def _round_row(x: Array, values: Array) -> np.float32:
    """Round a row as `Rounded` has it; return its scale."""
    bits = np.int32(0)  # numbers without a sign are ordered as their bits, of which several are compared at once
    for j in range(len(x)):
        bits = max(bits, bits_of_float(x[j]) & np.int32(0x7FFFFFFF))
    top = max(float_from_bits(bits), np.float32(MIN_TOP))
    inverse = np.float32(127.0) / top
    for j in range(len(x)):
        values[j] = np.uint8(np.floor(x[j] * inverse + np.float32(0.5)) + np.float32(ZERO_POINT))
    return top / np.float32(127.0)


@compiled(parallel=True, nogil=True, error_model="numpy")
def _layer_norm(x: Array, weight: Array, bias: Array, values: Array, scale: Array) -> None:
    rows, width = x.shape
    for r in prange(rows):
        lanes, normed = np.zeros(LANES, np.float32), np.empty(width, np.float32)
        for j in range(0, width, LANES):
            for k in range(LANES):
                lanes[k] += x[r, j + k]
        mean = _sum_lanes(lanes) / np.float32(width)
        lanes[:] = np.float32(0.0)
        for j in range(0, width, LANES):
            for k in range(LANES):
                difference = x[r, j + k] - mean
                lanes[k] += difference * difference
        inverse = np.float32(1.0) / np.sqrt(_sum_lanes(lanes) / np.float32(width) + np.float32(1e-5))
        for j in range(width):
            normed[j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]
        scale[r] = _round_row(normed, values[r])


@compiled(parallel=True, nogil=True, error_model="numpy")
def _gelu(sums: Array, row_scale: Array, scale: Array, bias: Array, values: Array, out_scale: Array) -> None:
    rows, width = sums.shape
    for r in prange(rows):
        row = np.empty(width, np.float32)
        for j in range(width):
            row[j] = gelu(sums[r, j] * (row_scale[r] * scale[j]) + bias[j])
        out_scale[r] = _round_row(row, values[r])


@compiled(parallel=True, nogil=True, error_model="numpy")
def _add(sums: Array, row_scale: Array, scale: Array, bias: Array, y: Array) -> None:
    rows, width = sums.shape
    for r in prange(rows):
        for j in range(width):
            y[r, j] += sums[r, j] * (row_scale[r] * scale[j]) + bias[j]


class CompiledSteps:
    """The steps by the kernels above."""

    @staticmethod
    def are_ready() -> bool:
        """Return whether the kernels are compiled; if not yet, they are being compiled."""
        rows, row, values = np.empty((1, 1), np.float32), np.empty(1, np.float32), np.empty((1, 1), np.uint8)
        calls: tuple[tuple[Any, ...], ...] = (
            (_layer_norm, rows, row, row, values, row),
            (_gelu, rows, row, row, row, values, row),
            (_add, rows, row, row, row, rows),
        )
        return all([compilation.is_ready(*call) for call in calls])  # ask for all

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Rounded) -> None:
        """Normalise every row of ``x`` (rows, width), and round it."""
        _run(_layer_norm, x, weight, bias, *out)

    @staticmethod
    def gelu(x: Sums, out: Rounded) -> None:
        """Compute the GELU, and round every row."""
        _run(_gelu, *x, *out)

    @staticmethod
    def add(x: Sums, y: Tensor) -> None:
        """Add to ``y`` (rows, out)."""
        _run(_add, *x, y)


def _run(kernel: Any, *tensors: Tensor) -> None:
    use_threads()
    with KERNEL_LOCK:
        kernel(*(tensor.detach().numpy() for tensor in tensors))


class PyTorchSteps:
    """The same by PyTorch, two to four times as long: until kernels are compiled, and where they cannot run."""

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, out: Rounded) -> None:
        """Normalise every row of ``x`` (rows, width), and round it."""
        width = x.shape[1]
        difference = x - (_sum_by_lanes(x) / width)[:, None]
        variance = _sum_by_lanes(difference * difference) / width
        inverse = torch.from_numpy(np.sqrt((variance + 1e-5).numpy())).reciprocal()  # PyTorch's is off by a bit
        _round_rows(difference.mul_(inverse[:, None]).mul_(weight).add_(bias), out)

    @staticmethod
    def gelu(x: Sums, out: Rounded) -> None:
        """Compute the GELU, and round every row."""
        parts = [tensor.split(CHUNK_ROWS) for tensor in (x.sums, x.row_scale, *out)]
        for sums, row_scale, values, scale in zip(*parts):
            _round_rows(_gelu_by_pytorch(_scaled(Sums(sums, row_scale, x.scale, x.bias))), Rounded(values, scale))

    @staticmethod
    def add(x: Sums, y: Tensor) -> None:
        """Add to ``y`` (rows, out)."""
        y += _scaled(x)


def _sum_by_lanes(x: Tensor) -> Tensor:
    """Return the sums ``(rows,)`` of every row."""
    lanes = torch.zeros(len(x), LANES)
    for part in x.unflatten(1, (-1, LANES)).unbind(1):
        lanes += part
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def _round_rows(x: Tensor, out: Rounded) -> None:
    """Round every row of ``x`` (rows, in), which is written over."""
    top = x.abs().amax(1).clamp_(min=MIN_TOP)
    torch.div(top, 127.0, out=out.scale)
    inverse = torch.full_like(top, 127.0).div_(top)  # Python's 127.0 / top is the reciprocal times 127, twice rounded
    out.values.copy_(x.mul_(inverse[:, None]).add_(0.5).floor_().add_(ZERO_POINT))


def _scaled(x: Sums) -> Tensor:
    return (x.sums * (x.row_scale[:, None] * x.scale)).add_(x.bias)


def _gelu_by_pytorch(x: Tensor) -> Tensor:
    """Compute `cpu_kernels.gelu`, operation by operation."""
    z = x.abs() * math.sqrt(0.5)
    t = (z * 0.3275911).add_(1.0).reciprocal_()
    p = t * 1.061405429
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p.sub_(-coefficient) if coefficient < 0 else p.add_(coefficient)
        p.mul_(t)
    tail = p.mul_(_exp(-z * z))
    return (x * 0.5).mul_(torch.where(x > 0, 2.0 - tail, tail))


def _exp(x: Tensor) -> Tensor:
    """Compute `simd.exp`, operation by operation."""
    x = x.clamp(min=-87.0)
    n = (x * 1.44269504).add_(0.5).floor_()
    x = x - n * 0.693359375
    x = x + n * 2.12194440e-4
    p = torch.full_like(x, 1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p.mul_(x).add_(coefficient)
    p = p.mul_(x).mul_(x).add_(x).add_(1.0)
    return p.mul_(((n.int() + 127) << 23).view(torch.float32))

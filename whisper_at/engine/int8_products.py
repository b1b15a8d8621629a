"""Products of int8 matrices by oneDNN, as PyTorch's quantised linear layers compute them.

``torch._int_mm`` is not used: without AVX-512 it is a plain loop, twenty times as slow as float32.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from .onednn import linear

ZERO_POINT = 128
"""What inputs, from -127 to 127, are moved by to be bytes without a sign, which is what processors multiply fastest."""


class Int8Matrix:
    """An int8 matrix ``(out, in)``, laid out for oneDNN."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self._ones, self._zeros = torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)

    def product(self, x: Tensor) -> Tensor:
        """Multiply uint8 ``(rows, in)``, less `ZERO_POINT`, by it → whole numbers in float32 ``(rows, out)``."""
        weight = self._packed, self._ones, self._zeros, None
        return torch.ops.onednn.qlinear_pointwise(x, 1.0, ZERO_POINT, *weight, 1.0, 0, torch.float32, "none", [], "")


@cache
def weight_limit() -> int:
    """Return how many steps from 0 int8 weights take, or 0 if this PyTorch's int8 products are wrong.

    Processors without VNNI add pairs of products in 16 bits, which overflow where both inputs and both weights are
    large. With 63 steps they never do; with 90, they do so rarely that the error of whole encoders is least (relative
    to the features of base on speech, 0.046; with 63 steps 0.058, with 127 0.057).
    """
    exact = {limit for limit in (63, 127) if _is_exact(limit)}
    return 127 if exact == {63, 127} else 90 if exact == {63} else 0


def _is_exact(limit: int) -> bool:
    """Return whether products of inputs and weights of either sign, all at their largest, are right."""
    x = torch.full((16, 64), 127).mul_(torch.tensor([1, -1]).repeat(8)[:, None])
    weight = torch.full((16, 64), limit)
    try:
        found = Int8Matrix(weight.to(torch.int8)).product((x + ZERO_POINT).to(torch.uint8))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return torch.equal(found, (x @ weight.t()).float())


@cache
def is_faster_than_float32() -> bool:
    """Measure a product of each kind, some ten times in 0.1 s.

    int8 takes about half of the time with AVX2 or, where a processor lacks the instructions, far longer: the answer
    is the same on a busy machine.
    """
    if weight_limit() == 0:
        return False
    x, weight = torch.ones(256, 512), torch.ones(1024, 512)
    x8, weight8 = x.to(torch.uint8), Int8Matrix(weight.to(torch.int8))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(10):
        if turn == 2 and min(seconds[True]) > 4 * min(seconds[False]):
            return False
        for int8, times in seconds.items():
            start = time.perf_counter()
            _ = weight8.product(x8) if int8 else linear(x, weight)
            times.append(time.perf_counter() - start)
    return min(seconds[False]) > min(seconds[True])

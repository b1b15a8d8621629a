"""Float32 matrix products on a CPU by oneDNN, which PyTorch carries along, instead of by MKL.

On processors that are not Intel's, MKL leaves half of the width of their vectors unused. Numbers differ by float32's
rounding alone.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST = 4
"""Rows from which on oneDNN is worth its preparations."""
ROWS = 500
LONG = 256
"""Rows from which on attention is, head by head."""


@cache
def _supported() -> bool:
    """Whether this PyTorch has the operation that its compiler makes of linear layers, and it does what it should."""
    x, weight, bias = torch.arange(12.0).view(4, 3), torch.arange(6.0).view(2, 3), torch.arange(2.0)
    try:
        return torch.equal(_by_onednn(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: ``(…, in)`` by ``(out, in)`` → ``(…, out)``."""
    operands = (x, weight) if bias is None else (x, weight, bias)
    if x.numel() >= FEWEST * x.shape[-1] > 0 and _are_for_onednn(operands):
        return _by_onednn(x, weight, bias)
    return F.linear(x, weight, bias)


def across(weight: Tensor, x: Tensor) -> Tensor:
    """``(out, in)`` by each of ``(batch, n, in)`` → ``(batch, out, n)``."""
    if _are_for_onednn((weight, x)):
        return linear(weight, x[0])[None] if len(x) == 1 else torch.stack([linear(weight, each) for each in x])
    return weight @ x.transpose(1, 2)


def _are_for_onednn(operands: tuple[Tensor, ...]) -> bool:
    learning = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
    plain = all(operand.dtype == torch.float32 and operand.device.type == "cpu" for operand in operands)
    return plain and not learning and _supported()


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all to all, ``(batch, heads, n, size)`` each; `ROWS` of one head at a time, which stay in cache."""
    mixed = torch.empty_like(query)
    query = query * query.shape[-1] ** -0.5
    for recording in range(len(query)):
        for q, k, v, out in zip(query[recording], key[recording], value[recording], mixed[recording]):
            k, v = k.contiguous(), v.t().contiguous()
            for some, place in zip(q.split(ROWS), out.split(ROWS)):
                place.copy_(linear(linear(some.contiguous(), k).softmax(-1), v))
    return mixed


def fast_products() -> AbstractContextManager:
    """A context in which modules compute with `linear`, and attend without masks by `attend`.

    PyTorch's compiler, which sees to its products itself, is left alone.
    """
    return nullcontext() if torch.compiler.is_compiling() else _FastProducts()


class _FastProducts(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is F.linear and not kwargs:
            return linear(*args)
        plain = all(value is None or value is False for value in (kwargs or {}).values())
        if func is F.scaled_dot_product_attention and len(args) == 3 and plain:
            if args[0].ndim == 4 and args[0].shape[2] >= LONG and _are_for_onednn(args):
                return attend(*args)
        return func(*args, **(kwargs or {}))

"""Float32 linear layers and attention on a CPU by oneDNN, which comes with PyTorch, instead of by MKL.

On AMD's Zen 5 it takes half of the time (``python benchmarks/encoder.py``). Numbers differ by float32's rounding alone.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
import whisper.model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

MIN_MACS = 1 << 20
"""Multiply-adds from which on oneDNN is faster: it repacks the weights at every call."""
CHUNK_ROWS = 500
"""Queries of one head that attend at once, so that their scores stay in cache."""
MIN_ROWS = 256
"""Queries from which on attention is computed head by head."""


@cache
def _supported() -> bool:
    """Return whether this PyTorch has the operation that its compiler makes of linear layers, and it is right."""
    x, weight, bias = torch.arange(12.0).view(4, 3), torch.arange(6.0).view(2, 3), torch.arange(2.0)
    try:
        return torch.equal(_linear_by_onednn(x, weight, bias), F.linear(x, weight, bias))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


def _linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _can_use_onednn(*operands: Tensor | None) -> bool:
    """Return whether these are float32 on a CPU, and nothing else decides how they are multiplied.

    PyTorch's compiler and autocast choose for themselves, and what counts or traces products expects the usual ones.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch.is_autocast_enabled("cpu"):
        return False
    on_cpu = all(each is None or (each.dtype == torch.float32 and each.device.type == "cpu") for each in operands)
    return on_cpu and _supported()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``torch.nn.functional.linear``: ``(…, in)`` by ``(out, in)`` → ``(…, out)``."""
    if x.numel() * weight.shape[0] < MIN_MACS or not _can_use_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in (x, weight, bias)):
        return _DifferentiableLinear.apply(x, weight, bias)
    return _linear_by_onednn(x, weight, bias)


class _DifferentiableLinear(torch.autograd.Function):
    """`_linear_by_onednn` with gradients: a layer gives the same numbers whether or not they are recorded."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _linear_by_onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight, _bias = inputs
        wants_x, wants_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            grad @ weight if wants_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def linear_transposed(weight: Tensor, x: Tensor) -> Tensor:
    """Multiply ``(out, in)`` by each of ``(batch, n, in)`` → ``(batch, out, n)``."""
    if _can_use_onednn(x, weight):
        return linear(weight, x[0])[None] if len(x) == 1 else torch.stack([linear(weight, each) for each in x])
    return weight @ x.transpose(1, 2)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute ``torch.nn.functional.scaled_dot_product_attention`` of ``(batch, heads, n, size)``."""
    if mask is None and query.shape[2] >= MIN_ROWS and _can_use_onednn(query, key, value):
        return attention_by_head(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, mask)


def attention_by_head(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute attention of all to all, shape ``(batch, heads, n, size)``, `CHUNK_ROWS` of one head at a time.

    With AVX-512 it takes no longer than fused kernels, with AVX2 twice as long; its numbers are those of openai-whisper
    without them, up to rounding.
    """
    mixed = torch.empty_like(query)
    query = query * query.shape[-1] ** -0.5
    for head in itertools.product(range(query.shape[0]), range(query.shape[1])):
        k, v = key[head].contiguous(), value[head].t().contiguous()
        for first in range(0, query.shape[2], CHUNK_ROWS):
            rows = slice(first, first + CHUNK_ROWS)
            mixed[head][rows] = linear(linear(query[head][rows].contiguous(), k).softmax(-1), v)
    return mixed


class Linear(whisper.model.Linear):
    """openai-whisper's linear layer, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(…, in)`` → ``(…, out)``, in the precision of ``x``."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @classmethod
    def sharing(cls, module: nn.Linear) -> Linear:
        """Make a layer that has the parameters of another."""
        new = cls(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        new.weight, new.bias = module.weight, module.bias
        return new.train(module.training)


def use_onednn(module: nn.Module) -> None:
    """Replace the linear layers in a module by `Linear` layers with the same parameters.

    Subclasses, layers with hooks and those whose ``forward`` was replaced stay.
    """
    replaced: dict[nn.Module, Linear] = {}  # a layer may be in several places
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):
            if _is_plain_linear(child):
                if child not in replaced:
                    replaced[child] = Linear.sharing(child)
                setattr(parent, name, replaced[child])


def _is_plain_linear(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    if type(module) not in (nn.Linear, whisper.model.Linear) or "forward" in vars(module):
        return False
    return not any(hooks for name, hooks in vars(module).items() if name.endswith("_hooks"))

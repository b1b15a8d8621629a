"""Float32 matrix products on a CPU by oneDNN, which PyTorch carries along, instead of by MKL.

On AMD's Zen 5 it takes half of the time (``python benchmarks/encoder.py``). Numbers differ by float32's rounding alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
import whisper.model
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from whisper.model import AudioEncoder, MultiHeadAttention

LEAST = 1 << 20
"""Multiplications from which on oneDNN is worth its preparations."""
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
    if x.numel() * weight.shape[0] < LEAST or not _are_for_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(operand is not None and operand.requires_grad for operand in (x, weight, bias)):
        return _DifferentiableLinear.apply(x, weight, bias)
    return _by_onednn(x, weight, bias)


class _DifferentiableLinear(torch.autograd.Function):
    """`_by_onednn` with gradients, so that a layer gives the same numbers whether or not gradients are recorded."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _by_onednn(x, weight, bias)

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


def across(weight: Tensor, x: Tensor) -> Tensor:
    """``(out, in)`` by each of ``(batch, n, in)`` → ``(batch, out, n)``."""
    if _are_for_onednn(x, weight):
        return linear(weight, x[0])[None] if len(x) == 1 else torch.stack([linear(weight, each) for each in x])
    return weight @ x.transpose(1, 2)


def _are_for_onednn(*operands: Tensor | None) -> bool:
    """Whether these are float32 on a CPU, and nothing else decides how they are multiplied.

    PyTorch's compiler and autocast choose for themselves, and what counts or traces products is to find the usual ones.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch.is_autocast_enabled("cpu"):
        return False
    on_cpu = all(each is None or (each.dtype == torch.float32 and each.device.type == "cpu") for each in operands)
    return on_cpu and _supported()


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` of ``(batch, heads, n, size)``."""
    if mask is None and query.shape[2] >= LONG and _are_for_onednn(query, key, value):
        return attend(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, mask)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of all to all, ``(batch, heads, n, size)`` each; `ROWS` of one head at a time, which stay in cache."""
    mixed = torch.empty_like(query)
    query = query * query.shape[-1] ** -0.5
    for one in itertools.product(range(query.shape[0]), range(query.shape[1])):
        k, v = key[one].contiguous(), value[one].t().contiguous()
        for first in range(0, query.shape[2], ROWS):
            some = query[one][first : first + ROWS].contiguous()
            mixed[one][first : first + ROWS] = linear(linear(some, k).softmax(-1), v)
    return mixed


class Linear(whisper.model.Linear):
    """openai-whisper's linear layer, by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """``(…, in)`` → ``(…, out)``, in the precision of ``x``."""
        return linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def quicken(module: nn.Module) -> None:
    """Make a `Linear` of every linear layer in a module; weights and names stay."""
    for part in module.modules():
        if type(part) in (nn.Linear, whisper.model.Linear):
            part.__class__ = Linear


def can_attend_by_head(encoder: AudioEncoder, dtype: torch.dtype) -> bool:
    """Whether `attention_by_head` computes what openai-whisper's encoder does without fused kernels."""
    stock = all(
        type(block.attn) is MultiHeadAttention and "qkv_attention" not in vars(block.attn) for block in encoder.blocks
    )
    return encoder.ln_post.weight.device.type == "cpu" and dtype == torch.float32 and stock


@contextmanager
def attention_by_head(encoder: AudioEncoder) -> Iterator[None]:
    """Let an encoder compute attention as openai-whisper does without fused kernels, up to rounding.

    Head by head that takes no longer than the fused kernels do, since scores stay in cache. Upstream times words
    without them, in a pass of its own; so one pass can serve the text and the timing of its words.
    """
    attentions: list[Any] = [block.attn for block in encoder.blocks]
    for each in attentions:
        each.qkv_attention = partial(_attend_by_head, each.n_head)
    try:
        yield
    finally:
        for each in attentions:
            del each.qkv_attention


def _attend_by_head(
    heads: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, None]:
    query, key, value = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (query, key, value))
    return attend(query, key, value).transpose(1, 2).flatten(2), None

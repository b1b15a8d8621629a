"""A Whisper's audio encoder in int8 on a CPU: its large linear layers, by PyTorch's int8 products (oneDNN).

Every row of weights is rounded to at most 127 steps on either side of 0, and so is every row of a layer's input, when
it is met. Some channels of a layer norm's output are much larger than others and would leave these few steps; so
channels are brought nearer to one another, and the weights that they meet are scaled to make up for it (SmoothQuant,
Xiao et al., 2023), by what the layer norm's own weights say of their sizes. Attention, its output, norms and the
residual stream are float32.

It is for processors without bfloat16 products: with AVX2 alone, int8 products take half of the time of float32's, with
VNNI a quarter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch import Tensor, nn
from whisper.model import AudioEncoder, ResidualAttentionBlock

from .cpu_kernels import KERNEL_LOCK, gelu, mean_and_inverse_std, use_threads
from .encoder import OnBlock
from .forks import kernels_can_run
from .onednn import attention_by_head, linear
from .simd import FASTMATH, Array, compiled, inlined
from .weights import WeightsVersion, is_unmodified

MIN_SPEEDUP = 1.25
"""Of int8 products over those in float32: with less, their rounding would be paid for nothing."""
SMOOTHING = 0.7
"""Exponent of a channel's size in what it is divided by; the rest is the exponent of the weights that it meets."""
NORMED_MAX = 3.0
"""How far from 0 a channel is taken to be before a layer norm's weight."""


@cache
def weight_limit() -> int:
    """Return how many steps from 0 int8 weights take, or 0 if this PyTorch's int8 products are wrong.

    Processors without VNNI add pairs of products in 16 bits, which overflow where both inputs and both weights are
    large. With 63 steps they never do; with 90, they do so rarely that the error of whole encoders is least (relative
    to the features of base on speech, 0.046; with 63 steps 0.058, with 127 0.057).
    """
    ones = torch.full((16, 64), 127, dtype=torch.int8)
    exact = [limit for limit in (63, 127) if (torch._int_mm(ones, ones.clamp(max=limit).t()) == 64 * 127 * limit).all()]
    return {(63, 127): 127, (63,): 90}.get(tuple(exact), 0)


@cache
def is_faster_than_float32() -> bool:
    """Measure a product of each kind, some ten times in 0.1 s; int8's may not be there at all."""
    if weight_limit() == 0:
        return False
    x, w = torch.ones(256, 512), torch.ones(1024, 512)
    x8, w8 = x.to(torch.int8), w.to(torch.int8).t()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(10):
        for int8, times in seconds.items():
            start = time.perf_counter()
            _ = torch._int_mm(x8, w8) if int8 else linear(x, w)
            times.append(time.perf_counter() - start)
    return min(seconds[False]) > MIN_SPEEDUP * min(seconds[True])


class Int8Linear(NamedTuple):
    """A linear layer: ``weight`` int8 ``(out, in)``, float32 ``scale`` of its rows and ``bias`` ``(out,)``.

    ``norm`` are weight and bias of the layer norm before it, with smoothed channels.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    norm: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, *parts: nn.Linear, norm: nn.LayerNorm | None = None) -> Int8Linear:
        """Round layers that lie one below the other."""
        weight = torch.cat([part.weight.detach().float() for part in parts])
        bias = [torch.zeros(len(part.weight)) if part.bias is None else part.bias.detach().float() for part in parts]
        smoothed = None
        if norm is not None:
            gain, shift = norm.weight.detach().float(), norm.bias.detach().float()
            size = (NORMED_MAX * gain.abs() + shift.abs()).clamp(min=1e-3)
            divisor = size**SMOOTHING / weight.abs().amax(0).clamp(min=1e-5) ** (1 - SMOOTHING)
            weight, smoothed = weight * divisor, (gain / divisor, shift / divisor)
        scale = weight.abs().amax(1).clamp(min=1e-12) / weight_limit()
        return cls((weight / scale[:, None]).round().to(torch.int8), scale, torch.cat(bias), smoothed)


class Rounded(NamedTuple):
    """The input of a layer: ``values`` int8 ``(rows, in)``, and the ``scale`` of each row, float32 ``(rows,)``."""

    values: Tensor
    scale: Tensor

    @classmethod
    def empty(cls, rows: int, width: int) -> Rounded:
        """Make room."""
        return cls(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows))


@inlined
def _round_row(x: Array, values: Array) -> np.float32:
    """Round a row to int8; return its scale."""
    top = np.float32(1e-12)
    for j in range(len(x)):
        top = max(top, abs(x[j]))
    inverse = np.float32(127.0) / top
    for j in range(len(x)):
        values[j] = np.int8(np.floor(x[j] * inverse + np.float32(0.5)))
    return top / np.float32(127.0)


@compiled(parallel=True, fastmath=FASTMATH, nogil=True)
def _layer_norm(x: Array, weight: Array, bias: Array, values: Array, scale: Array) -> None:
    """Normalise every row of ``x`` (rows, width), and round it."""
    rows, width = x.shape
    for r in prange(rows):
        normed = np.empty(width, np.float32)
        mean, inverse = mean_and_inverse_std(x[r])
        for j in range(width):
            normed[j] = (x[r, j] - mean) * inverse * weight[j] + bias[j]
        scale[r] = _round_row(normed, values[r])


@compiled(parallel=True, fastmath=FASTMATH, nogil=True)
def _gelu(sums: Array, row_scale: Array, scale: Array, bias: Array, values: Array, out_scale: Array) -> None:
    """Compute the GELU of a layer's output from its ``sums`` (rows, out), and round every row."""
    rows, width = sums.shape
    for r in prange(rows):
        row = np.empty(width, np.float32)
        for j in range(width):
            row[j] = gelu(np.float32(sums[r, j]) * (row_scale[r] * scale[j]) + bias[j])
        out_scale[r] = _round_row(row, values[r])


@compiled(parallel=True, fastmath=FASTMATH, nogil=True)
def _add(sums: Array, row_scale: Array, scale: Array, bias: Array, y: Array) -> None:
    """Add a layer's output to ``y`` (rows, out)."""
    rows, width = sums.shape
    for r in prange(rows):
        for j in range(width):
            y[r, j] += np.float32(sums[r, j]) * (row_scale[r] * scale[j]) + bias[j]


class EncoderInt8:
    """The encoder of one model, with int8 weights; see `fits`."""

    def __init__(self, encoder: AudioEncoder) -> None:
        self.encoder, self.weights_version = encoder, WeightsVersion(encoder)
        self.blocks: list[ResidualAttentionBlock] = list(encoder.blocks)
        self.qkv = [Int8Linear.of(b.attn.query, b.attn.key, b.attn.value, norm=b.attn_ln) for b in self.blocks]
        self.mlp_up = [Int8Linear.of(cast(nn.Linear, block.mlp[0]), norm=block.mlp_ln) for block in self.blocks]
        self.mlp_down = [Int8Linear.of(cast(nn.Linear, block.mlp[2])) for block in self.blocks]

    @staticmethod
    def fits(encoder: AudioEncoder) -> bool:
        """Return whether processor and encoder are of the kind that this is for."""
        on_cpu = encoder.ln_post.weight.device.type == "cpu"
        return on_cpu and kernels_can_run() and is_unmodified(encoder) and is_faster_than_float32()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave it out of copies of a model, and of saved ones: they make their own."""
        return type(None), ()

    def is_current(self, encoder: AudioEncoder) -> bool:
        """Return whether it was made of the weights that the encoder has now."""
        return self.weights_version.matches(encoder)

    @torch.no_grad()
    def __call__(self, mel: Tensor, on_block: OnBlock | None = None) -> Tensor:
        """Encode log-mel spectrograms ``(batch, n_mels, 3000)`` → float32 features ``(batch, 1500, dim)``.

        ``on_block`` is given the output of every block, which the next one writes over.
        """
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        assert x.shape[1:] == encoder.positional_embedding.shape, "incorrect audio shape"  # as upstream
        x = (x + encoder.positional_embedding).contiguous()
        _, rows, width = x.shape
        narrow, wide = Rounded.empty(rows, width), Rounded.empty(rows, 4 * width)
        use_threads()
        for i in range(len(self.blocks)):
            for recording in x:
                self._block(i, recording, narrow, wide)
            if on_block is not None:
                on_block(x)
        return encoder.ln_post(x)

    def _block(self, i: int, x: Tensor, narrow: Rounded, wide: Rounded) -> None:
        """Compute block i on ``x`` (rows, width), in place; the other two are buffers."""
        attn = self.blocks[i].attn
        qkv = torch.zeros(len(x), 3 * x.shape[1])
        self._add_linear(self.qkv[i], self._normed(self.qkv[i], x, narrow), qkv)
        query, key, value = qkv.view(1, len(x), 3, attn.n_head, -1).permute(2, 0, 3, 1, 4)
        x += attn.out(attention_by_head(query, key, value)[0].transpose(0, 1).flatten(1))
        up = self.mlp_up[i]
        normed = self._normed(up, x, narrow)
        _run(_gelu, torch._int_mm(normed.values, up.weight.t()), normed.scale, up.scale, up.bias, *wide)
        self._add_linear(self.mlp_down[i], wide, x)

    @staticmethod
    def _normed(layer: Int8Linear, x: Tensor, out: Rounded) -> Rounded:
        """Return a layer's input: ``x`` (rows, width) after the layer norm."""
        _run(_layer_norm, x, *cast("tuple[Tensor, Tensor]", layer.norm), *out)
        return out

    @staticmethod
    def _add_linear(layer: Int8Linear, x: Rounded, y: Tensor) -> None:
        """Add a layer's output to ``y`` (rows, out)."""
        _run(_add, torch._int_mm(x.values, layer.weight.t()), x.scale, layer.scale, layer.bias, y)


def _run(kernel: Callable[..., None], *tensors: Tensor) -> None:
    with KERNEL_LOCK:
        kernel(*(tensor.detach().numpy() for tensor in tensors))

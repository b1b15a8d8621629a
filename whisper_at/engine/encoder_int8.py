"""A Whisper's audio encoder in int8 on a CPU: its large linear layers, by `int8_products`.

Every row of weights is rounded to at most 127 steps on either side of 0, and so is every row of a layer's input, when
it is met. Some channels of a layer norm's output are much larger than others and would leave these few steps; so
channels are brought nearer to one another, and the weights that they meet are scaled to make up for it (SmoothQuant,
Xiao et al., 2023), by what the layer norm's own weights say of their sizes. Attention, its output, norms and the
residual stream are float32. What lies between the products is in `int8_steps`.

It is for processors without bfloat16 products: with AVX2 alone, int8 products take about half of the time of float32's.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import AudioEncoder, ResidualAttentionBlock

from . import int8_products
from .encoder import OnBlock, add_positions
from .int8_products import Int8Matrix
from .int8_steps import LANES, CompiledSteps, PyTorchSteps, Rounded, Sums
from .weights import WeightsVersion, is_unmodified

SMOOTHING = 0.7
"""Exponent of a channel's size in what it is divided by; the rest is the exponent of the weights that it meets."""
NORMED_MAX = 3.0
"""How far from 0 a channel is taken to be before a layer norm's weight."""


class Int8Linear(NamedTuple):
    """A linear layer: int8 ``matrix`` ``(out, in)``, float32 ``scale`` of its rows and ``bias`` ``(out,)``.

    ``norm`` are weight and bias of the layer norm before it, with smoothed channels.
    """

    matrix: Int8Matrix
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
        scale = weight.abs().amax(1).clamp(min=1e-12) / int8_products.weight_limit()
        matrix = Int8Matrix((weight / scale[:, None]).round().to(torch.int8))
        return cls(matrix, scale, torch.cat(bias), smoothed)

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """``norm`` of a layer that has one."""
        assert self.norm is not None
        return self.norm

    def product(self, x: Rounded) -> Sums:
        """Multiply ``(rows, in)``."""
        return Sums(self.matrix.product(x.values), x.scale, self.scale, self.bias)


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
        weight = encoder.ln_post.weight
        fits = weight.device.type == "cpu" and len(weight) % LANES == 0
        return fits and is_unmodified(encoder) and int8_products.is_faster_than_float32()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave it out of copies of a model, and of saved ones: they make their own."""
        return type(None), ()

    def is_current(self, encoder: AudioEncoder) -> bool:
        """Return whether it was made of the weights that the encoder has now."""
        return self.weights_version.matches(encoder)

    @torch.no_grad()
    def __call__(self, mel: Tensor, on_block: OnBlock | None = None, partial: bool = False) -> Tensor:
        """Encode log-mel spectrograms ``(batch, n_mels, 3000)`` → float32 features ``(batch, 1500, dim)``.

        ``on_block`` is given the output of every block, which the next one writes over; ``partial`` is as of
        `whisper_at.engine.encoder.encode`.
        """
        encoder = self.encoder
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).transpose(1, 2)
        x = add_positions(encoder, x, partial).contiguous()
        _, rows, width = x.shape
        steps = CompiledSteps if CompiledSteps.are_ready() else PyTorchSteps
        narrow, wide = Rounded.empty(rows, width), Rounded.empty(rows, 4 * width)
        for i in range(len(self.blocks)):
            for recording in x:
                self._block(i, recording, steps, narrow, wide)
            if on_block is not None:
                on_block(x)
        return encoder.ln_post(x)

    def _block(
        self, i: int, x: Tensor, steps: type[CompiledSteps | PyTorchSteps], narrow: Rounded, wide: Rounded
    ) -> None:
        """Compute block i on ``x`` (rows, width), in place; the last two are buffers."""
        attn, up = self.blocks[i].attn, self.mlp_up[i]
        qkv = torch.zeros(len(x), 3 * x.shape[1])
        steps.layer_norm(x, *self.qkv[i].normalisation, narrow)
        steps.add(self.qkv[i].product(narrow), qkv)
        query, key, value = qkv.view(1, len(x), 3, attn.n_head, -1).permute(2, 0, 3, 1, 4)
        x += attn.out(F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1))
        steps.layer_norm(x, *up.normalisation, narrow)
        steps.gelu(up.product(narrow), wide)
        steps.add(self.mlp_down[i].product(wide), x)

"""A Whisper's audio encoder in one pass that serves the text, the timing of words and whoever reads its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.audio import N_FRAMES, pad_or_trim
from whisper.model import AudioEncoder, MultiHeadAttention

from .isolation import isolated
from .onednn import attention_by_head
from .weights import is_unmodified

OnBlock = Callable[[Tensor], object]
"""Given the output of every block, ``(batch, 1500, dim)``."""


def can_attend_unfused(encoder: AudioEncoder, dtype: torch.dtype) -> bool:
    """Return whether `encode` can give the numbers of openai-whisper without fused kernels, as it times words."""
    return dtype == torch.float32 and is_unmodified(encoder) and encoder.ln_post.weight.device.type == "cpu"


def add_positions(encoder: AudioEncoder, x: Tensor, partial: bool = False) -> Tensor:
    """Add the embedding of positions to the output ``(batch, n, dim)`` of the convolutions.

    As upstream, n must be 1500; with ``partial``, fewer will do.
    """
    table = encoder.positional_embedding[: x.shape[1]] if partial else encoder.positional_embedding
    assert x.shape[1:] == table.shape, "incorrect audio shape"  # as upstream
    return x + table


def encode(
    encoder: AudioEncoder,
    mel: Tensor,
    on_block: OnBlock | None = None,
    partial: bool = False,
    unfused_attention: bool = False,
) -> Tensor:
    """Encode log-mel spectrograms ``(batch, n_mels, 3000)`` → features ``(batch, 1500, dim)``.

    The numbers are those of openai-whisper's modules or, with ``unfused_attention`` and in float32 on a CPU, those it
    has without fused kernels: slower, and what it times words by.
    With ``partial``, spectrograms may be shorter, and so are their features, which are not those of the same sound with
    silence up to 30 s; an encoder that runs as a module is given that silence.
    An encoder with hooks or replaced parts runs as the module that it is.
    """
    if not is_unmodified(encoder):
        return _encode_by_module(encoder, pad_or_trim(mel, N_FRAMES) if partial else mel, on_block)
    unfused = unfused_attention and can_attend_unfused(encoder, mel.dtype)
    attend = attention_by_head if unfused else F.scaled_dot_product_attention
    x = _gelu(encoder.conv2(_gelu(encoder.conv1(mel)))).transpose(1, 2)
    x = add_positions(encoder, x, partial).to(x.dtype)
    for block in encoder.blocks:
        x = x + _self_attention(block.attn, block.attn_ln(x), attend)
        x = x + _mlp(block.mlp, block.mlp_ln(x))
        if on_block is not None:
            on_block(x)
    return encoder.ln_post(x)


def _gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """Compute GELU, in place where no gradient is asked for: its input is the largest of all tensors."""
    if torch.is_grad_enabled() and x.requires_grad:
        return F.gelu(x, approximate=approximate)
    return cast(Tensor, torch.ops.aten.gelu_(x, approximate=approximate))


def _mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    for layer in layers:
        x = _gelu(x, layer.approximate) if isinstance(layer, nn.GELU) else layer(x)
    return x


def _self_attention(attn: MultiHeadAttention, x: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    query, key, value = (
        part(x).unflatten(2, (attn.n_head, -1)).transpose(1, 2) for part in (attn.query, attn.key, attn.value)
    )
    return attn.out(attend(query, key, value).transpose(1, 2).flatten(2))


def _encode_by_module(encoder: AudioEncoder, mel: Tensor, on_block: OnBlock | None) -> Tensor:
    with isolated(encoder) as own:
        if on_block is not None:
            for block in own.blocks:
                block.register_forward_hook(lambda _, __, output: on_block(output))
        return own(mel)

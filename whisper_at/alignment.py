"""Word timing: what ``whisper.timing.find_alignment`` is given in place of a model, so that it has less to do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from whisper.model import AudioEncoder, MultiHeadAttention

from .inference import Heard, Rows, is_stock

if TYPE_CHECKING:
    from .model import WhisperAT


def timing_model(model: WhisperAT, heard: Heard | Tensor | None) -> StrictModel | HeardModel | WhisperAT:
    """What to give find_alignment: for a mel if nothing ``heard`` is to be used again, else for features."""
    if heard is None:
        return StrictModel(model)
    return HeardModel(model, heard) if isinstance(heard, Heard) else model


class StrictModel:
    """A model whose encoder, on a CPU, computes openai-whisper's attention without fused kernels head by head.

    find_alignment does without fused kernels, and so its encoder pass is not the one that the text came from. The
    numbers are the same as upstream's; one head's scores stay in cache, where those of all heads do not.
    """

    def __init__(self, model: WhisperAT) -> None:
        self.dims, self.device, self.alignment_heads = model.dims, model.device, model.alignment_heads
        self.decoder = model.decoder
        by_head = model.device.type == "cpu" and is_stock(model.encoder)
        self._encode = (lambda mel: _encode_by_head(model.encoder, mel)) if by_head else model.encoder

    def __call__(self, mel: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, self._encode(mel))


def _encode_by_head(encoder: AudioEncoder, mel: Tensor) -> Tensor:
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mel)))).permute(0, 2, 1)
    x = (x + encoder.positional_embedding).to(x.dtype)
    for block in encoder.blocks:
        x = x + _attend_by_head(block.attn, block.attn_ln(x))
        x = x + block.mlp(block.mlp_ln(x))
    return encoder.ln_post(x)


def _attend_by_head(attention: MultiHeadAttention, x: Tensor) -> Tensor:
    projected = (attention.query(x), attention.key(x), attention.value(x))
    query, key, value = (z.unflatten(2, (attention.n_head, -1)).transpose(1, 2) for z in projected)
    scale = query.shape[-1] ** -0.25  # of both factors, as upstream has it
    query, key = query * scale, (key * scale).transpose(-1, -2)
    mixed = torch.empty_like(query)
    for head in range(attention.n_head):
        weights = (query[:, head] @ key[:, head]).float().softmax(-1).to(x.dtype)
        mixed[:, head] = weights @ value[:, head]
    return attention.out(mixed.transpose(1, 2).flatten(2))


class HeardModel:
    """What ``whisper.timing.find_alignment`` uses of a model, for one window whose keys and values are known.

    It is called with a mel, which is not read, and tokens ``(1, n)``; it returns logits ``(1, n, vocabulary)`` and
    shows the scores of every layer's cross-attention to the hooks that find_alignment has put there.
    """

    def __init__(self, model: WhisperAT, heard: Heard) -> None:
        self.dims, self.device, self.alignment_heads = model.dims, model.device, model.alignment_heads
        self._model, self._heard = model, heard
        self._attentions = [_CrossAttention() for _ in range(model.dims.n_text_layer)]
        self.decoder = SimpleNamespace(blocks=[SimpleNamespace(cross_attn=a) for a in self._attentions])

    def __call__(self, mel: Tensor, tokens: Tensor) -> Tensor:
        rows = Rows(self._model.fast_decoder(self._heard.features.dtype), self._heard)
        logits, scores = rows.trace(tokens)
        for attention, layer in zip(self._attentions, scores):
            attention.show(layer)
        return logits


class _CrossAttention:
    """A place for forward hooks."""

    def __init__(self) -> None:
        self._hooks: dict[int, Callable] = {}

    def register_forward_hook(self, hook: Callable) -> SimpleNamespace:
        key = len(self._hooks)
        self._hooks[key] = hook
        return SimpleNamespace(remove=lambda: self._hooks.pop(key))

    def show(self, scores: Tensor) -> None:
        for hook in self._hooks.values():
            hook(self, (), (None, scores))

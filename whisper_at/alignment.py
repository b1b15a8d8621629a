"""Word timing: what ``whisper.timing.find_alignment`` is given in place of a model, so that it has less to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from whisper.model import AudioEncoder, MultiHeadAttention

from .inference import Heard, Rows

if TYPE_CHECKING:
    from .model import WhisperAT


def timing_model(model: WhisperAT, heard: Heard | Tensor | None) -> HeardModel | WhisperAT:
    """What to give find_alignment, so that it uses again what was heard, if anything."""
    return HeardModel(model, heard) if isinstance(heard, Heard) else model


def can_attend_by_head(model: WhisperAT, dtype: torch.dtype) -> bool:
    """Whether `attention_by_head` computes what openai-whisper's encoder does without fused kernels."""
    kinds = {type(block.attn) for block in model.encoder.blocks}
    return model.device.type == "cpu" and dtype == torch.float32 and kinds == {MultiHeadAttention}


@contextmanager
def attention_by_head(encoder: AudioEncoder) -> Iterator[None]:
    """Let an encoder compute attention as openai-whisper does without fused kernels, to the same numbers.

    Upstream's find_alignment does without them, in a pass of its own. Head by head that takes no longer than the fused
    kernels do, since the scores of one head stay in cache; so one pass can serve the text and the timing of its words.
    """
    attentions = [block.attn for block in encoder.blocks]
    for attention in attentions:
        attention.qkv_attention = partial(_attend_by_head, attention.n_head)
    try:
        yield
    finally:
        for attention in attentions:
            del attention.qkv_attention


def _attend_by_head(
    heads: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, None]:
    query, key, value = (z.unflatten(2, (heads, -1)).transpose(1, 2) for z in (query, key, value))
    scale = query.shape[-1] ** -0.25  # of both factors, as upstream has it
    query, key = query * scale, (key * scale).transpose(-1, -2)
    mixed = torch.empty_like(query)
    for head in range(heads):
        mixed[:, head] = (query[:, head] @ key[:, head]).softmax(-1) @ value[:, head]
    return mixed.transpose(1, 2).flatten(2), None


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

"""Word timing from what was heard already: openai-whisper's, without its second pass of the encoder."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor

from .inference import Heard, Rows

if TYPE_CHECKING:
    from .model import WhisperAT


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

"""Word timing by openai-whisper's own functions, which are given less to do: a stand-in for the model that knows what
was heard, and a faster median filter of the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor
from whisper import timing

from .cpu_kernels import LOCK, use_threads
from .decoder import Heard, Rows
from .simd import compiled

if TYPE_CHECKING:
    from ..model import WhisperAT


def add_word_timestamps(**arguments: Any) -> None:
    """``whisper.timing.add_word_timestamps`` of the installed openai-whisper, with `median_filter`."""
    find_alignment = _seeing(timing.find_alignment, median_filter=median_filter)
    _seeing(timing.add_word_timestamps, find_alignment=find_alignment)(**arguments)


def _seeing(function: Any, **names: object) -> Any:
    """A function that finds other things under some names of its module, in which nothing changes."""
    changed = {**function.__globals__, **names}
    twin = FunctionType(function.__code__, changed, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def median_filter(x: Tensor, filter_width: int) -> Tensor:
    """``whisper.timing.median_filter``: upstream sorts every seven neighbours."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or filter_width != 7 or x.shape[-1] <= 3:
        return timing.median_filter(x, filter_width)
    rows = x.contiguous().view(-1, x.shape[-1])
    out = torch.empty_like(rows)
    use_threads()
    with LOCK:
        _medians_of_seven(rows.numpy(), out.numpy())
    return out.view(x.shape)


@njit(inline="always")
def median_of_seven(a, b, c, d, e, f, g):
    """The fourth largest, by a network of thirteen comparisons, without branches (N. Devillard, 1998)."""
    a, f = min(a, f), max(a, f)
    a, d = min(a, d), max(a, d)
    b, g = min(b, g), max(b, g)
    c, e = min(c, e), max(c, e)
    b = max(a, b)
    d, f = min(d, f), max(d, f)
    c, g = min(c, g), max(c, g)
    d = max(c, d)
    d = min(d, g)
    e = min(e, f)
    b, e = min(b, e), max(b, e)
    d = max(b, d)
    return min(d, e)


@compiled(parallel=True)
def _medians_of_seven(x, out):
    """Of every number of ``x`` (rows, n) and its neighbours in the row, mirrored at the ends; n is over 3."""
    rows, n = x.shape
    for r in prange(rows):
        row = np.empty(n + 6, np.float32)
        row[3 : n + 3] = x[r]
        for i in range(3):
            row[i] = x[r, 3 - i]
            row[n + 3 + i] = x[r, n - 2 - i]
        for i in range(n):
            out[r, i] = median_of_seven(row[i], row[i + 1], row[i + 2], row[i + 3], row[i + 4], row[i + 5], row[i + 6])


def timing_model(model: WhisperAT, heard: Heard | Tensor | None) -> HeardModel | WhisperAT:
    """What to give find_alignment, so that it uses again what was heard, if anything."""
    return HeardModel(model, heard) if isinstance(heard, Heard) else model


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
        rows = Rows(self._model.fast_decoder(self._heard.features.dtype), self._heard, steps=False)
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

"""Word timing by openai-whisper's own functions, which are given less to do.

They get a stand-in for the model that knows the encoded audio, a faster sort of the same numbers, and their own
compiled time warping from this package's cache, since they would compile it in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.overrides import TorchFunctionMode
from whisper import timing
from whisper.timing import dtw_cpu as upstream_dtw

from . import compilation
from .cpu_kernels import KERNEL_LOCK, use_threads
from .dtw import dtw_by_diagonals
from .isolation import isolated, one_numba_thread
from .kv_cache import DecoderState, EncodedAudio
from .simd import Array, compiled, inlined

if TYPE_CHECKING:
    from ..model import WhisperAT


def add_word_timestamps(*, model: Any, **arguments: Any) -> None:
    """Call ``whisper.timing.add_word_timestamps`` of the installed openai-whisper, with a faster median filter."""
    with isolated(model) as own, one_numba_thread(), FastMedianSort(), cached_dtw():
        timing.add_word_timestamps(model=own, **arguments)


@compiled(timing.__file__, nogil=True)
def _dtw(x: Array) -> Array:
    """Call openai-whisper's, which is compiled into this."""
    return upstream_dtw(x)


@contextmanager
def cached_dtw() -> Iterator[None]:
    """Within it, ``whisper.timing.dtw_cpu`` does not have to be compiled; for one thread at a time, see `isolated`."""
    if timing.dtw_cpu is not upstream_dtw:  # somebody's own
        yield
        return
    try:
        timing.dtw_cpu = _dtw_without_compiling
        yield
    finally:
        timing.dtw_cpu = upstream_dtw


def _dtw_without_compiling(x: np.ndarray) -> np.ndarray:
    return _dtw(x) if compilation.is_ready(_dtw, x) else dtw_by_diagonals(x)


class FastMedianSort(TorchFunctionMode):
    """Within it, ``Tensor.sort`` of all windows of 7 neighbours is compiled; the indices are left out.

    That is all that ``whisper.timing.median_filter`` sorts, and most of the time that word timing takes on a CPU: for
    100 tokens of small, 0.14 s by PyTorch's sort and 0.025 s here.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or sort if this is such a call."""
        if func is Tensor.sort and len(args) == 1 and not kwargs and (found := _sort_windows(args[0])) is not None:
            return found, None
        return func(*args, **(kwargs or {}))


def _sort_windows(windows: Tensor) -> Tensor | None:
    """Sort ``rows.unfold(-1, 7, 1)``, shape (…, n, 7), float32 on a CPU; None for anything else, or with NaN."""
    overlap = windows.ndim >= 2 and windows.shape[-1] == 7 and windows.stride()[-2:] == (1, 1)
    if not overlap or windows.device.type != "cpu" or windows.dtype != torch.float32:
        return None
    *shape, n, _ = windows.shape
    rows = windows.as_strided((*shape, n + 6), windows.stride()[:-1]).reshape(-1, n + 6)
    out = torch.empty(7, len(rows), n)
    if rows.isnan().any() or not compilation.is_ready(_sort_sevens, rows.numpy(), out.numpy()):
        return None  # NaN belong at the end
    use_threads()
    with KERNEL_LOCK:
        _sort_sevens(rows.numpy(), out.numpy())
    return out.view(7, *shape, n).movedim(0, -1)


@inlined
def sort_seven(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any) -> Any:
    """Sort seven numbers without branches, by a network of 16 comparisons (Knuth, section 5.3.4)."""
    a, g = min(a, g), max(a, g)
    c, d = min(c, d), max(c, d)
    e, f = min(e, f), max(e, f)
    a, c = min(a, c), max(a, c)
    b, e = min(b, e), max(b, e)
    d, g = min(d, g), max(d, g)
    a, b = min(a, b), max(a, b)
    c, f = min(c, f), max(c, f)
    d, e = min(d, e), max(d, e)
    b, c = min(b, c), max(b, c)
    e, g = min(e, g), max(e, g)
    c, d = min(c, d), max(c, d)
    e, f = min(e, f), max(e, f)
    b, c = min(b, c), max(b, c)
    d, e = min(d, e), max(d, e)
    f, g = min(f, g), max(f, g)
    return a, b, c, d, e, f, g


@compiled(parallel=True)
def _sort_sevens(x: Array, out: Array) -> None:
    """Sort every seven neighbours in the rows of x (rows, n + 6) → out (7, rows, n)."""
    _, rows, n = out.shape
    for r in prange(rows):
        row = x[r]
        for i in range(n):
            ordered = sort_seven(row[i], row[i + 1], row[i + 2], row[i + 3], row[i + 4], row[i + 5], row[i + 6])
            for k in range(7):
                out[k, r, i] = ordered[k]


def alignment_model(model: WhisperAT, audio: EncodedAudio | Tensor | None) -> AlignmentModel | WhisperAT:
    """Return what to give find_alignment, so that it reuses the encoded audio if there is any."""
    return AlignmentModel(model, audio) if isinstance(audio, EncodedAudio) else model


class AlignmentModel:
    """What ``whisper.timing.find_alignment`` uses of a model, for one window that is encoded already.

    It is called with a mel, which is not read, and tokens ``(1, n)``; it returns logits ``(1, n, vocabulary)`` and
    shows the scores of every layer's cross-attention to the hooks that find_alignment has put there. They stay in
    ``scores``, ``(1, heads, n, frames)`` each. ``logits_from`` : logits before this place are left out, as where
    probabilities of the words are known.
    """

    scores: list[Tensor]

    def __init__(self, model: WhisperAT, audio: EncodedAudio, logits_from: int = 0) -> None:
        self.dims, self.device, self.alignment_heads = model.dims, model.device, model.alignment_heads
        self._model, self._audio, self._logits_from = model, audio, logits_from
        self._attentions = [_CrossAttention() for _ in range(model.dims.n_text_layer)]
        self.decoder = SimpleNamespace(blocks=[SimpleNamespace(cross_attn=a) for a in self._attentions])

    def __call__(self, mel: Tensor, tokens: Tensor) -> Tensor:
        """Compute logits, and show the scores to the hooks."""
        decoder = self._model.fast_decoder(self._audio.features.dtype)
        state = DecoderState(decoder, self._audio, use_graphs=False)
        logits, self.scores = state.prefill_with_scores(tokens, self._logits_from)
        for attention, layer in zip(self._attentions, self.scores):
            attention.show(layer)
        return logits


class _CrossAttention:
    """A place for forward hooks."""

    def __init__(self) -> None:
        self._hooks: dict[int, Callable[..., object]] = {}

    def register_forward_hook(self, hook: Callable[..., object]) -> SimpleNamespace:
        key = len(self._hooks)
        self._hooks[key] = hook
        return SimpleNamespace(remove=lambda: self._hooks.pop(key))

    def show(self, scores: Tensor) -> None:
        for hook in self._hooks.values():
            hook(self, (), (None, scores))

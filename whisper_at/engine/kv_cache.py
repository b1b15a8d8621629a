"""Keys and values that are kept: of the encoded audio for cross-attention, and of the tokens that were decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu_kernels
from .cuda_graphs import StaticStep
from .forks import kernels_can_run
from .weights import as_numpy

if TYPE_CHECKING:
    from .decoder import Decoder


class EncodedAudio(NamedTuple):
    """What the decoder attends to of some windows, computed once and shared by all rows and tries.

    features : Tensor, shape (recordings, frames, width)
        As the encoder gave them.
    keys, values : Tensor, shape (layers, recordings, heads, size, frames)
        For kernels as in `cpu_kernels._cross_attention`.
    sound_ends : int Tensor, shape (recordings,), optional
        Positions (frames of the features) before which the text of a window may not break off in the middle, see
        `batched`.
    """

    features: Tensor
    keys: Tensor
    values: Tensor
    sound_ends: Tensor | None = None

    @property
    def is_for_kernels(self) -> bool:
        """Whether kernels were ready when it was made: a window is decoded by the same means from first to last."""
        return self.keys.ndim == 6

    def can_use_kernels(self, tokens: int) -> bool:
        """Return whether so many tokens at once are to be put through kernels."""
        return self.is_for_kernels and tokens <= cpu_kernels.MAX_KERNEL_TOKENS and kernels_can_run()

    def select(self, recordings: Sequence[int]) -> EncodedAudio:
        """Return some of the recordings."""
        chosen = list(recordings)
        ends = None if self.sound_ends is None else self.sound_ends[chosen]
        return EncodedAudio(self.features[chosen], self.keys[:, chosen], self.values[:, chosen], ends)


class DecoderState:
    """Sequences being decoded, with the keys and values of all of their tokens.

    Parameters
    ----------
    decoder : Decoder
    audio : EncodedAudio
        What the sequences are decoded from, by `Decoder.precompute_cross_kv`.
    n_group : int
        Sequences (rows) of each recording, one after the other.
    use_graphs : bool
        Whether CUDA graphs may be used; not worth it where no `step` follows `prefill`.

    Attributes
    ----------
    position : int
        Number of tokens so far. It may be set back: what was behind is written over.
    cache_indices : int32 Tensor, shape (rows, positions)
        Which row's cache holds a position of a row's past: rows share the prompt, and beams that fork share their stem.
    """

    def __init__(self, decoder: Decoder, audio: EncodedAudio, n_group: int = 1, *, use_graphs: bool = True) -> None:
        self.decoder, self.audio, self.n_group = decoder, audio, n_group
        rows = len(audio.features) * n_group
        use_graphs = use_graphs and decoder.uses_graphs
        self.static_step = StaticStep.acquire(self, decoder, audio, n_group) if use_graphs else None
        self.keys, self.values = self.static_step.cache if self.static_step else decoder.empty_cache(rows)
        self.row_ids = torch.arange(rows, dtype=torch.int32, device=decoder.device)
        self.cache_indices = self.row_ids[:, None].repeat(1, decoder.dims.n_text_ctx)
        self.position = 0

    @torch.no_grad()
    def prefill(self, tokens: Tensor, *, logits_at: Sequence[int] = (-1,)) -> Tensor:
        """Take the first tokens ``(recordings, n)`` → logits ``(recordings, len(logits_at), vocabulary)`` there."""
        count, n = tokens.shape
        first = torch.arange(0, count * self.n_group, self.n_group)
        self.cache_indices[:, :n] = first.to(self.cache_indices).repeat_interleave(self.n_group)[:, None]
        hidden = self._forward(tokens, first)
        self.position = n
        logits = self.decoder.logits(hidden[:, list(logits_at)].flatten(0, 1), self.audio)
        return logits.unflatten(0, (count, len(logits_at)))

    @torch.no_grad()
    def prefill_with_scores(self, tokens: Tensor, logits_from: int = 0) -> tuple[Tensor, list[Tensor]]:
        """Take the first tokens ``(recordings, n)``, for logits and cross-attention; no step can follow.

        Logits before a place are not computed, but 0.

        Returns
        -------
        logits : Tensor, shape (recordings, n, vocabulary)
        scores : list of float32 Tensor, shape (recordings, heads, n, frames)
            Cross-attention scores of every layer, before their softmax.
        """
        scores: list[Tensor] = []
        first = torch.arange(0, len(self.row_ids), self.n_group)
        hidden = self._forward(tokens, first, scores)
        hidden = hidden[:, logits_from:]
        logits = self.decoder.logits(hidden.flatten(0, 1), self.audio).unflatten(0, hidden.shape[:2])
        return F.pad(logits, (0, 0, logits_from, 0)) if logits_from else logits, scores

    @property
    def can_drop_rows(self) -> bool:
        """Whether `step` may be given a part of the rows."""
        return self.decoder.packed is not None and self.audio.can_use_kernels(len(self.row_ids))

    @torch.no_grad()
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """Take one more token of every row ``(rows,)`` → logits ``(rows, vocabulary)`` of the next.

        ``rows``, in ascending order, are those that still go on, if `can_drop_rows`: of a recording all or none.
        """
        self.cache_indices[:, self.position] = self.row_ids
        if self.static_step is not None:
            logits = self.static_step(tokens, self.position, self.cache_indices)
        else:
            row_ids = self.row_ids if rows is None else self.row_ids[rows]
            logits = self.decoder.logits(self._forward(tokens[:, None], row_ids)[:, 0], self.audio)
        self.position += 1
        return logits

    @torch.no_grad()
    def extend(self, tokens: Tensor, *, logits_at: slice = slice(None)) -> Tensor:
        """Take some more tokens of every row ``(rows, n)`` → logits ``(rows, n, vocabulary)``, or at some places."""
        n = tokens.shape[1]
        self.cache_indices[:, self.position : self.position + n] = self.row_ids[:, None]
        hidden = self._forward(tokens, self.row_ids)[:, logits_at]
        self.position += n
        return self.decoder.logits(hidden.flatten(0, 1), self.audio).unflatten(0, hidden.shape[:2])

    def reorder(self, sources: Sequence[int]) -> None:
        """Let row i go on as a copy of row ``sources[i]``; no key or value moves."""
        if list(sources) != list(range(len(sources))):
            self.cache_indices = self.cache_indices[torch.tensor(sources, device=self.cache_indices.device)]

    def _forward(self, tokens: Tensor, row_ids: Tensor, cross_scores: list[Tensor] | None = None) -> Tensor:
        """Put tokens ``(some rows, n)`` of the rows ``row_ids`` through all layers → hidden ``(some rows, n, width)``.

        ``cross_scores`` is given the cross-attention scores of every layer.
        """
        d, (count, n) = self.decoder, tokens.shape
        x = d.token_rows[tokens.to(d.device)] + d.positions[self.position : self.position + n]
        if d.packed is not None and cross_scores is None and self.audio.can_use_kernels(count * n):
            return self._forward_by_kernels(d.packed, x, row_ids)
        row_ids, end = row_ids.to(d.device).long(), self.position + n
        mask, causal = None, n > 1
        if causal and self.position:  # PyTorch's own mask would let the first of these tokens see only the very first
            mask, causal = torch.ones(n, end, dtype=torch.bool, device=d.device).tril(self.position), False

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.keys[layer, row_ids, :, self.position : end] = key
            self.values[layer, row_ids, :, self.position : end] = value
            if self.position:
                past = torch.arange(self.position, device=d.device)
                lineage = self.cache_indices[:, : self.position].long(), slice(None), past
                key = torch.cat((self.keys[layer][lineage].transpose(1, 2), key), 2)
                value = torch.cat((self.values[layer][lineage].transpose(1, 2), value), 2)
            return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)

        return d.forward(x, self.audio, attend, cross_scores)

    def _forward_by_kernels(self, weights: cpu_kernels.DecoderWeights, x: Tensor, row_ids: Tensor) -> Tensor:
        (count, n, _), frames = x.shape, self.audio.features.shape[1]
        rows = row_ids.numpy().astype(np.int32)  # as `Decoder.kernels_are_ready` asks for it
        cpu_kernels.use_threads()
        out = np.ascontiguousarray(x.flatten(0, 1).numpy())
        positions = np.arange(self.position, self.position + n, dtype=np.int32)
        with cpu_kernels.KERNEL_LOCK:
            cpu_kernels.decoder_forward(
                weights,
                out,
                np.repeat(rows, n),
                np.tile(positions, count),
                self.keys.numpy(),
                self.values.numpy(),
                self.cache_indices.numpy(),
                as_numpy(self.audio.keys),
                as_numpy(self.audio.values),
                np.unique(rows // np.int32(self.n_group)),
                frames,
                self.decoder.n_head,
            )
        return torch.from_numpy(out).unflatten(0, (count, n))
